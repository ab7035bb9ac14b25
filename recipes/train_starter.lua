-- melies-api: 1
-- Trains the starter model from nothing: see recipes/starter/README.md and docs/training.md. Every part goes on where it
-- was stopped.
local melies = require "melies"
local train_watch = melies.train_watch

local here = debug.getinfo(1, "S").source:match "^@(.*)/[^/]*$" or "."
local function part(name) return dofile(("%s/starter/train/%s.lua"):format(here, name)) end

-- Prompts that are looked at while it learns.
local looked_at = {
  "a red ball bounces in a meadow by day", "a cartoon of a blue car driving to the right in the city",
  "a yellow star spinning on the moon, pixel art", "a purple boat moving to the left on the sea at sunset",
  "a pencil drawing of a green tree swaying in the snow", "an orange fish rising in a room, cartoon",
  "a black bird flying in circles in the desert", "a pink heart coming closer in a forest at night",
}

local guidance = 2
local stages = {}

local function tensors_of(job, path)
  local file, out = job:check(melies.weights.open(path)), {}
  for _, name in ipairs(file:names()) do out[name] = file:get(name):clone() end
  return out
end

function stages.blocks(p, job, world)
  local blocks = part "blocks"
  local tensors, psnr
  if p.from then
    local compute = melies.compute()
    melies.set_compute "f32"
    tensors, psnr = blocks.of(job:load(p.from).autoencoder, world, { clips = 40, size = p.size })
    melies.set_compute(compute)
  else
    job:progress("principal axes", 400)
    tensors, psnr = blocks.train(world, { clips = 400, size = p.size, progress = function(n) job.stage:step(n) end })
    job:end_stage()
  end
  io.stderr:write(("%d values for a block of 768: %.2f dB on held-out clips\n"):format(blocks.latent, psnr))
  job:check(melies.weights.save(p.folder .. "/code.safetensors", tensors, { psnr = ("%.3f"):format(psnr) }))
end

-- The linear code as a model, and its tensors.
local function linear(p, job)
  local tensors = tensors_of(job, p.folder .. "/code.safetensors")
  return part("blocks").model(tensors), tensors
end

-- Runs to the end, with its watch, and keeps the moving averages. steps: what runs it.
local function finish(job, run, watch, path, steps)
  job:check(watch:follow(run))
  local ok, message = (steps or run.run)(run)
  watch:finish()
  job:check(ok, message)
  local weights = run:weights(true)
  if path then job:check(melies.weights.save(path, weights)) end
  return weights
end

function stages.autoencoder(p, job, world)
  if p.from then
    local name = "/autoencoder.safetensors"
    job:check(melies.weights.save(p.folder .. name, tensors_of(job, p.from .. name)))
    return
  end
  local autoencoder, folder = part "autoencoder", p.folder .. "/autoencoder"
  local code, tensors = linear(p, job)
  local compute = melies.compute()
  melies.set_compute "f32"
  local params, run = autoencoder.init(tensors, part("blocks").axes, p.seed), nil
  melies.set_compute(compute)
  local function net()
    local all = {}
    for name, param in pairs(params) do all[name] = param end
    for name, value in pairs(run:weights(true)) do all[name] = value end
    return melies["grad.taehv"].net(all)
  end
  local watch = job:check(train_watch.new { folder = folder, steps = p.autoencoder_steps, title = "starter: decoder",
    bar = job:progress("autoencoder", p.autoencoder_steps), best = false, heldout_every = 250,
    heldout = function() return 10 ^ (autoencoder.psnr(net(), world, { size = p.size, count = 8 }) / -10) end })
  run = job:check(autoencoder.train(world, { params = params, linear = code, folder = folder, size = p.size, batch = 2,
    steps = p.autoencoder_steps, lr = 2e-3, seed = p.seed, on_step = watch.on_step }))
  local weights = finish(job, run, watch)
  for name, param in pairs(params) do weights[name] = weights[name] or param.value end
  local psnr = autoencoder.psnr(melies["grad.taehv"].net(weights), world, { size = p.size, count = 40 })
  io.stderr:write(("autoencoder: %.2f dB on held-out clips\n"):format(psnr))
  job:check(melies.weights.save(p.folder .. "/autoencoder.safetensors", weights, { psnr = ("%.3f"):format(psnr) }))
end

function stages.tokenizer(p, job, world)
  if p.from then
    job:check(melies.fs.write(p.folder .. "/spiece.model", job:check(melies.fs.read(p.from .. "/spiece.model"))))
    return
  end
  job:check(part("tokenizer").train(world, p.folder))
end

function stages.latents(p, job, world)
  local code = linear(p, job)
  job:progress("latents", p.clips)
  job:check(part("latents").make(world, code, { folder = p.folder .. "/latents", size = p.size, clips = p.clips,
    progress = function(n) job.stage:step(n) end }))
  job:end_stage()
end

function stages.transformer(p, job, world)
  local transformer, together = part "transformer", part "together"
  local folder = p.folder .. "/transformer"
  local store = job:check(part("latents").open(p.folder .. "/latents"))
  local tokenizer = job:check(melies.tokenizer.load(p.folder .. "/spiece.model"))
  local settings = { folder = folder, latents = store, tokenizer = tokenizer, steps = p.steps, batch = p.batch,
    stills = p.stills, lr = p.rate, seed = p.seed, every = (p.workers > 1 or p.worker > 1) and math.huge or nil }
  if p.worker > 1 then -- one round for the process that started this one
    settings.folder, settings.from, settings.seed = ("%s/worker-%d"):format(folder, p.worker), folder, p.seed + p.worker
    local helping = job:check(transformer.train(world, settings))
    io.stdout:write "begun\n" -- together.run waits for it
    io.stdout:flush()
    job:check(helping:run(together.last(helping)))
    job:check(helping:save())
    return
  end
  local decoder = linear(p, job)
  local shape, run = { store:get(1).shape[1], 5, p.size / 8, p.size / 8 }, nil
  local watch = job:check(train_watch.new { folder = folder, steps = p.steps, title = "starter: transformer",
    sample_every = p.sample_every, bar = job:progress("transformer", p.steps), sample = function()
      local nets = transformer.with(world, run:weights(true))
      local latents = transformer.sample(nets, tokenizer, looked_at, { shape = shape, steps = 20, guidance = guidance })
      local clips = {}
      for i = 1, #looked_at do
        local clip = melies.media.to_u8(decoder:decode(latents:select(1, i):contiguous()))
        clips[i] = melies.tensor.stack({ clip:select(1, 1), clip:select(1, 7), clip:select(1, 12), clip:select(1, 17) }, 1)
      end
      return melies.media.contact_sheet(clips, { columns = 4, labels = looked_at, gap = 2 })
    end })
  settings.on_step = watch.on_step
  if p.from then
    settings.initial = {}
    for _, kind in ipairs { "dit", "text_encoder" } do
      for name, tensor in pairs(tensors_of(job, ("%s/%s.safetensors"):format(p.from, kind))) do
        settings.initial[kind .. "/" .. name] = tensor:to "f32"
      end
    end
  end
  run = job:check(transformer.train(world, settings))
  local threads = math.max(1, math.floor(tonumber(melies.threads()) / p.workers))
  if p.workers > 1 then melies.threads(threads) end
  local steps = p.workers > 1 and function()
    return together.run(run, p.workers, function(k)
      return { "-q", "--threads", threads, "run", "train_starter",
        "--stage", "transformer", "--folder", p.folder, "--size", p.size, "--steps", p.steps, "--batch", p.batch,
        "--stills", p.stills, "--rate", p.rate, "--seed", p.seed, "--worker", k }
    end)
  end
  finish(job, run, watch, p.folder .. "/transformer.safetensors", steps)
end

function stages.few_steps(p, job, world)
  local transformer = part "transformer"
  local weights = tensors_of(job, p.folder .. "/transformer.safetensors")
  local watch = job:check(train_watch.new { folder = p.folder .. "/few_steps", steps = p.few_steps_steps,
    title = "starter: four steps", bar = job:progress("four steps", p.few_steps_steps) })
  local run = job:check(part("few_steps").train(world, transformer, { weights = weights, guidance = guidance,
    store = job:check(part("latents").open(p.folder .. "/latents")), folder = p.folder .. "/few_steps",
    tokenizer = job:check(melies.tokenizer.load(p.folder .. "/spiece.model")), steps = p.few_steps_steps,
    batch = p.batch, lr = p.rate / 5, seed = p.seed, on_step = watch.on_step }))
  finish(job, run, watch, p.folder .. "/few_steps.safetensors")
end

-- The model folder: bf16 weights, the tokenizer, and config.json.
function stages.export(p, job)
  local transformer = part "transformer"
  local to = p.folder .. "/model"
  job:check(melies.fs.make(to))
  local function write(name, tensors) job:check(melies.weights.save(to .. "/" .. name, tensors)) end
  local function halves(tensors)
    for name, tensor in pairs(tensors) do tensors[name] = tensor:to("bf16") end
    return tensors
  end
  local parts = { dit = {}, text_encoder = {} }
  for name, tensor in pairs(tensors_of(job, p.folder .. "/transformer.safetensors")) do
    local kind, own = name:match "^([%w_]+)/(.*)$"
    if parts[kind] then parts[kind][own] = tensor end
  end
  write("dit.safetensors", halves(parts.dit))
  write("text_encoder.safetensors", halves(parts.text_encoder))
  local few = melies.fs.stat(p.folder .. "/few_steps.safetensors")
  if few then write("dit_few.safetensors", halves(tensors_of(job, p.folder .. "/few_steps.safetensors"))) end
  write("autoencoder.safetensors", halves(tensors_of(job, p.folder .. "/autoencoder.safetensors")))
  job:check(melies.fs.write(to .. "/spiece.model", job:check(melies.fs.read(p.folder .. "/spiece.model"))))
  local dit, text = transformer.dit, transformer.text
  job:check(melies.fs.write(to .. "/config.json", melies.json.encode({
    dit = { layout = "wan2.1 t2v", dim = dit.dim, heads = dit.heads, ffn = dit.ffn, layers = dit.layers,
      freq_dim = dit.freq_dim, text_dim = dit.text_dim, text_len = transformer.text_len, in_channels = dit.channels,
      out_channels = dit.channels, patch = dit.patch, preconditioned = transformer.additions.preconditioned,
      positions = transformer.additions.positions, pooled = transformer.additions.pooled,
      prediction = "flow: velocity = noise - data; timestep = 1000 * sigma" },
    text_encoder = { layout = "umt5", vocab = text.vocabulary, dim = text.dim, dim_attn = text.dim, heads = text.heads,
      ffn = text.ffn, layers = text.layers, buckets = 32, max_distance = 128, eos = 1, pad = 0,
      empty_prompt = "the end mark alone" },
    autoencoder = { layout = "taehv", latent = transformer.dit.channels, pad = "front" },
    sample = { frames = 17, height = p.size, width = p.size, fps = 8, steps = 20, shift = transformer.shift,
      guidance = guidance, sampler = "euler" },
    few_steps = few and { file = "dit_few.safetensors", steps = 4, guidance = 1 } or nil,
  }, { indent = 1 }) .. "\n"))
end

local order = { "blocks", "autoencoder", "tokenizer", "latents", "transformer", "few_steps", "export" }

return {
  kind = "recipe", name = "train_starter",
  help = "Train the starter model from nothing: latent space, tokenizer, text encoder, transformer, four steps.",
  params = {
    stage = { "enum", choices = { "all", unpack(order) }, default = "all", help = "which part to train" },
    folder = { "string", default = "out/starter", help = "of the checkpoints and logs" },
    from = { "string",
      help = "folder of a model that this recipe made, to go on from: its transformer learns on, the rest stays" },
    size = { "integer", default = 96, min = 32, max = 256, help = "pixels of a side, a multiple of 16" },
    clips = { "integer", default = 24000, min = 500, max = 1e7, help = "training clips kept as latents" },
    autoencoder_steps = { "integer", default = 4000, min = 1, max = 1e7, help = "steps of the autoencoder" },
    steps = { "integer", default = 12000, min = 1, max = 1e7, help = "steps of the transformer" },
    stills = { "number", default = 0.85, min = 0, max = 1,
      help = "part of the steps of the transformer that look at single frames" },
    few_steps_steps = { "integer", default = 500, min = 1, max = 1e7, help = "steps of the four-step variant" },
    batch = { "integer", default = 16, min = 1, max = 4096, help = "clips a step" },
    rate = { "number", default = 2e-3, min = 1e-6, max = 1, help = "learning rate" },
    workers = { "integer", default = 1, min = 1, max = 256, help = "processes that train the transformer together" },
    worker = { "integer", default = 0, min = 0, max = 256, help = "which of them this is: --workers starts the others" },
    sample_every = { "integer", default = 1000, min = 1, help = "steps between two sheets to look at" },
  },
  order = { "stage", "folder", "from", "size", "clips", "autoencoder_steps", "steps", "stills", "few_steps_steps", "batch",
    "rate", "workers", "worker", "sample_every" },
  run = function(p, job)
    local world = part "../world/init"
    job:check(melies.fs.make(p.folder))
    for _, name in ipairs(order) do
      if p.stage == "all" or p.stage == name then stages[name](p, job, world) end
    end
  end,
}
