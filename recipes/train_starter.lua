-- melies-api: 1
-- Trains the starter model from nothing: see recipes/starter/README.md and docs/training.md. Every part goes on where it
-- was stopped.
local melies = require "melies"
local train_watch = require "melies.train_watch"

local here = debug.getinfo(1, "S").source:match "^@(.*)/[^/]*$" or "."
local function part(name) return dofile(("%s/starter/train/%s.lua"):format(here, name)) end

-- Prompts that are looked at while it learns.
local looked_at = {
  "a red ball bounces in a meadow by day", "a cartoon of a blue car driving to the right in the city",
  "a yellow star spinning on the moon, pixel art", "a purple boat moving to the left on the sea at sunset",
  "a pencil drawing of a green tree swaying in the snow", "an orange fish rising in a room, cartoon",
  "a black bird flying in circles in the desert", "a pink heart coming closer in a forest at night",
}

local stages = {}

function stages.blocks(p, job, world)
  local blocks = part "blocks"
  job:progress("principal axes", 400)
  local tensors, psnr = blocks.train(world, { clips = 400, size = p.size, progress = function(n) job.stage:step(n) end })
  job:end_stage()
  io.stderr:write(("%d values for a block of 768: %.2f dB on held-out clips\n"):format(blocks.latent, psnr))
  job:check(melies.weights.save(p.folder .. "/autoencoder.safetensors", tensors, { psnr = ("%.3f"):format(psnr) }))
end

function stages.tokenizer(p, job, world) job:check(part("tokenizer").train(world, p.folder)) end

function stages.latents(p, job, world)
  local file = job:check(melies.weights.open(p.folder .. "/autoencoder.safetensors"))
  local net = require("melies.models.linear_blocks").load(file, { block = part("blocks").block }, { compute = "f32" })
  job:progress("latents", p.clips)
  job:check(part("latents").make(world, net, { folder = p.folder .. "/latents", size = p.size, clips = p.clips,
    progress = function(n) job.stage:step(n) end }))
  job:end_stage()
end

function stages.transformer(p, job, world)
  local transformer = part "transformer"
  local folder = p.folder .. "/transformer"
  local store = job:check(part("latents").open(p.folder .. "/latents"))
  local tokenizer = job:check(melies.tokenizer.load(p.folder .. "/spiece.model"))
  local decoder = require("melies.models.linear_blocks").load(job:check(melies.weights.open(p.folder ..
    "/autoencoder.safetensors")), { block = part("blocks").block })
  local shape, run = { store:get(1).shape[1], 5, p.size / 8, p.size / 8 }, nil
  local watch = job:check(train_watch.new { folder = folder, steps = p.steps, title = "starter: transformer",
    sample_every = p.sample_every, bar = job:progress("transformer", p.steps), sample = function()
      local nets = transformer.with(world, run:weights(true))
      local latents = transformer.sample(nets, tokenizer, looked_at, { shape = shape, steps = 20, guidance = 4 })
      local clips = {}
      for i = 1, #looked_at do
        local clip = melies.media.to_u8(decoder:decode(latents:select(1, i):contiguous()))
        clips[i] = melies.tensor.stack({ clip:select(1, 1), clip:select(1, 7), clip:select(1, 12), clip:select(1, 17) }, 1)
      end
      return melies.media.contact_sheet(clips, { columns = 4, labels = looked_at, gap = 2 })
    end })
  run = job:check(transformer.train(world, { folder = folder, latents = store, tokenizer = tokenizer, steps = p.steps,
    batch = p.batch, lr = p.rate, seed = p.seed, on_step = watch.on_step }))
  job:check(watch:follow(run))
  local ok, message = run:run()
  watch:finish()
  job:check(ok, message)
  job:check(melies.weights.save(p.folder .. "/transformer.safetensors", run:weights(true)))
end

local order = { "blocks", "tokenizer", "latents", "transformer" }

return {
  kind = "recipe", name = "train_starter", help = "Train the starter model: autoencoder, text encoder, transformer.",
  params = {
    stage = { "enum", choices = { "all", unpack(order) }, default = "all", help = "which part to train" },
    folder = { "string", default = "out/starter", help = "of the checkpoints and logs" },
    size = { "integer", default = 96, min = 32, max = 256, help = "pixels of a side, a multiple of 16" },
    clips = { "integer", default = 24000, min = 500, max = 1e7, help = "training clips kept as latents" },
    steps = { "integer", default = 12000, min = 1, max = 1e7, help = "steps of the transformer" },
    batch = { "integer", default = 16, min = 1, max = 4096, help = "clips a step" },
    rate = { "number", default = 2e-3, min = 1e-6, max = 1, help = "learning rate" },
    sample_every = { "integer", default = 1000, min = 1, help = "steps between two sheets to look at" },
    threads = { "integer", default = 1, min = 1, max = 256, help = "threads" },
  },
  order = { "stage", "folder", "size", "clips", "steps", "batch", "rate", "sample_every", "threads" },
  run = function(p, job)
    local world = part "../world/init"
    melies.threads(p.threads)
    job:check(melies.fs.make(p.folder))
    for _, name in ipairs(order) do
      if p.stage == "all" or p.stage == name then stages[name](p, job, world) end
    end
  end,
}
