-- LoRA training: a style or a subject that a model does not know, from a few clips. The recipe train_lora is this with a
-- command line; docs/training.md shows it.
--
--   local clips = assert(train_lora.clips("films", { model = model, work = "out/style" }))    melies.lora.clips.open
--   local tuning = assert(train_lora.new { model = model, clips = clips, folder = "out/style", steps = 400 })
--   local ok, message = tuning:run()            true and a reason where it stopped early; the folder keeps the state
--   assert(tuning:save("style.safetensors"))    as melies.lora.write writes it
--
-- Rectified flow: x = (1 - sigma) clean + sigma noise, the transformer gives noise - clean. sigma is logit-normal (Esser et
-- al. 2024) or uniform, then shifted as a schedule's are. The model's own weights are frozen: matrices stay in the type
-- of the work, mapped from their file where they are stored so, and only the two small matrices of each layer learn.
--
-- Models of Wan's layout that make films from text alone; others are refused with the reason.
local lib = require "melies.ffi.lib"
local cache = require "melies.cache"
local fs = require "melies.fs"
local grad = require "melies.grad"
local names = require "melies.lora.names"
local sets = require "melies.lora.clips"
local tensor = require "melies.tensor"
local train = require "melies.train"
local train_watch = require "melies.train_watch"
local T = tensor

local M = { clips = sets.open, writable = require("melies.lora.write").writable }
local Tuning = {}
Tuning.__index = Tuning

-- ---- layers ----------------------------------------------------------------------------------------------------------

local groups = {
  self_attention = { "self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o" },
  cross_attention = { "cross_attn.q", "cross_attn.k", "cross_attn.v", "cross_attn.o" },
  ffn = { "ffn.0", "ffn.2" },
}
groups.attention = {}
for _, name in ipairs { "self_attention", "cross_attention" } do
  for _, part in ipairs(groups[name]) do table.insert(groups.attention, part) end
end
groups.all = { "ffn.0", "ffn.2", unpack(groups.attention) }

local function is_end(name, word) return name == word or name:sub(-#word - 1) == "." .. word end

-- train_lora.targets(weights, { word, ... }) -> sorted names of linear layers, or nil and a message. A word: attention,
-- self_attention, cross_attention, ffn, all; the end of a layer's name in the original's or diffusers' spelling
-- ("to_q", "blocks.3.ffn.0"); or a pattern with "*" of the whole name ("blocks.*.ffn.2").
function M.targets(weights, words)
  local layers, endings, out, taken = {}, {}, {}, {}
  for _, name in ipairs(weights:names()) do
    local layer = name:match "^(.*)%.weight$"
    if layer and #weights:shape(name) == 2 then
      layers[#layers + 1] = layer
      for _, spelling in ipairs { layer, names.diffusers(layer) } do
        endings[spelling:gsub("^blocks%.%d+%.", "")] = true
      end
    end
  end
  for group in pairs(groups) do endings[group] = true end
  for _, word in ipairs(words) do
    local found = false
    local pattern = word:find("*", 1, true)
      and "^" .. word:gsub("[%^%$%(%)%%%.%[%]%+%-%?]", "%%%0"):gsub("%*", ".*") .. "$"
    for _, layer in ipairs(layers) do
      local theirs, fits = names.diffusers(layer), false
      for _, part in ipairs(groups[word] or { word }) do
        if pattern then fits = fits or layer:find(pattern) or theirs:find(pattern)
        else fits = fits or is_end(layer, part) or is_end(theirs, part) end
      end
      if fits then
        found = true
        if not taken[layer] then out[#out + 1] = layer end
        taken[layer] = true
      end
    end
    if not found then
      return nil, ("targets: no linear layer is '%s'%s"):format(word, lib.suggest(word, endings))
    end
  end
  table.sort(out)
  return out
end

-- train_lora.base(weights, compute, save_memory) -> { name = tensor }: the frozen weights. Matrices in the type of the work
-- (those that are stored so are views of the file), vectors and the time embedding in float32. With save_memory
-- matrices in half precision stay as they are stored and are converted at each use.
function M.base(weights, compute, save_memory)
  local params = {}
  for _, name in ipairs(weights:names()) do
    local shape, stored = weights:shape(name), weights:dtype(name)
    local matrix = (#shape == 2 or #shape == 5) and not name:find "^time_"
    local keep = stored == compute or (save_memory and (stored == "bf16" or stored == "f16"))
    params[name] = matrix and (keep and weights:get(name) or weights:get(name, compute)) or weights:get(name, "f32")
  end
  return params
end

-- ---- noise levels ----------------------------------------------------------------------------------------------------

-- A noise level from z, a standard normal number.
M.timesteps = {
  logit_normal = function(z) return 1 / (1 + math.exp(-z)) end,
  uniform = function(z) -- the normal distribution's own function, by Abramowitz and Stegun 26.2.17
    local t = 1 / (1 + 0.2316419 * math.abs(z))
    local tail = math.exp(-z * z / 2) / math.sqrt(2 * math.pi) * t * (0.319381530 + t * (-0.356563782 +
      t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))))
    return z < 0 and tail or 1 - tail
  end,
}
local function shifted(s, shift) return shift * s / (1 + (shift - 1) * s) end
-- Levels at the middle of each quarter of a standard normal distribution: what the held-out loss is looked at with.
local QUARTERS = { -1.15035, -0.31864, 0.31864, 1.15035 }

-- ---- a training ------------------------------------------------------------------------------------------------------

local known = { model = true, clips = true, folder = true, rank = true, alpha = true, targets = true, steps = true,
  batch = true, accumulate = true, lr = true, warmup = true, schedule = true, weight_decay = true, clip = true,
  seed = true, timesteps = true, shift = true, dropout = true, holdout = true, heldout_every = true, patience = true,
  sample_every = true, samples = true, sample_steps = true, guidance = true, save_every = true, save_memory = true,
  bar = true, on_record = true }
local defaults = { rank = 16, targets = { "all" }, steps = 400, batch = 4, accumulate = 1, lr = 1e-3, warmup = 10,
  schedule = "constant", weight_decay = 0.01, clip = 1, seed = 0, timesteps = "logit_normal", dropout = 0.1,
  holdout = 0.1, heldout_every = 50, sample_every = 0, save_every = 50 }

-- nil, or why this model cannot be trained.
local function unfit(model)
  local source = model.sources.dit
  if not source.weights.has or not source.weights:has "blocks.0.self_attn.q.weight" then
    return ("%s: LoRAs are trained for transformers of Wan's layout, one at a time"):format(model.name)
  end
  if model.causal then return model.name .. ": a causal model is not trained here; take the model it was made of" end
  if model.dit.in_channels ~= model.dit.out_channels or model.dit.image then
    return model.name .. ": makes films from images; LoRAs are trained for models that take text alone"
  end
end

-- Texts of the captions and of the empty one: { text = rows }, and how many rows the longest has.
local function texts_of(model, captions)
  local texts, longest = {}, 0
  model:encode_ahead(function(stand_in)
    for _, caption in ipairs(captions) do assert(stand_in:encode(caption, { truncate = true })) end
  end)
  for _, caption in ipairs(captions) do
    if not texts[caption] then
      local rows, message = model:encode(caption, { truncate = true })
      if not rows then return nil, message end
      texts[caption], longest = rows:to("f32"), math.max(longest, rows.shape[1])
    end
  end
  return texts, longest
end

-- The adapters' parameters by name, and net.lora set: down uniform as a linear layer's weights begin, up zero.
local function adapters(net, layers, rank, alpha, seed)
  local params = {}
  for i, layer in ipairs(layers) do
    local shape = net.params[layer .. ".weight"].shape
    local limit = 1 / math.sqrt(shape[2])
    local down = grad.param((T.uniform({ rank, shape[2] }, { seed = seed, stream = 2 ^ 43 + i }) * 2 - 1) * limit)
    local up = grad.param(T.zeros { shape[1], rank })
    net.lora[layer] = { down = down, up = up, scale = alpha / rank }
    params[layer .. ".down"], params[layer .. ".up"] = down, up
  end
  return params
end

-- Clips by number, with noise and levels { sigma, ... }, as the network's loss. captions: one each.
local function flow_loss(self, list, captions, noise, sigma)
  local clean, rows, times = {}, {}, {}
  for i, clip in ipairs(list) do
    clean[i], rows[i], times[i] = self.clips:latent(clip), self.texts[captions[i]], sigma[i] * self.model.time_scale
  end
  local x0, s = T.stack(clean, 1), T.of(sigma, { #list, 1, 1, 1, 1 })
  local text, key_bias = self.wan.padded(rows, self.rows, self.model.text_len)
  return grad.mse(self.net:forward(x0 * (1 - s) + noise * s, times, text, key_bias), noise - x0)
end

-- The nth clip that is trained on: every clip once in each round, in another order.
local function clip_at(self, n)
  local count = #self.training
  local round = math.floor(n / count)
  if self.round ~= round then
    self.round, self.order = round, sets.shuffled(count, self.o.seed, 2 ^ 41 + round)
  end
  return self.training[self.order[n % count + 1]]
end

local function loss_of(self, step)
  local o, list, captions, sigma = self.o, {}, {}, {}
  local first = ((step.index - 1) * o.accumulate + step.micro - 1) * o.batch
  local z = step:noise { o.batch }
  local level = M.timesteps[o.timesteps]
  for i = 1, o.batch do
    list[i] = clip_at(self, first + i - 1)
    captions[i] = step:random() < o.dropout and "" or self.clips.captions[list[i]]
    sigma[i] = shifted(level(z:get(i)), o.shift)
  end
  return flow_loss(self, list, captions, step:noise { o.batch, unpack(self.clips.shape) }, sigma)
end

local HELD = 16 -- clips that the held-out loss looks at, at most

-- The loss of clips that are not trained on, with the same noise at the same levels every time.
function Tuning:heldout()
  local total, count, list, sigma, captions, streams = 0, 0, {}, {}, {}, {}
  local level, shape = M.timesteps[self.o.timesteps], self.clips.shape
  local function flush()
    if #list == 0 then return end
    local noise = {}
    for i, stream in ipairs(streams) do noise[i] = T.noise(shape, { seed = self.o.seed, stream = stream }) end
    local loss = grad.no_grad(function() return flow_loss(self, list, captions, T.stack(noise, 1), sigma) end)
    total, count = total + loss:item() * #list, count + #list
    list, sigma, captions, streams = {}, {}, {}, {}
    lib.check(lib.C.mel_check_cancel(lib.err))
  end
  for i = 1, math.min(HELD, #self.held) do
    for k, z in ipairs(QUARTERS) do
      list[#list + 1], sigma[#sigma + 1] = self.held[i], shifted(level(z), self.o.shift)
      captions[#captions + 1], streams[#streams + 1] = self.clips.captions[self.held[i]], 2 ^ 44 + 4 * i + k
      if #list == self.o.batch then flush() end
    end
  end
  flush()
  return total / count
end

-- Films of the prompts with the LoRA as it is now, by the network that is trained: frames [T, H, W, 3] each.
function Tuning:films(prompts, options)
  options = options or {}
  local model, net, out = self.model, self.net, {}
  local d, shape = model.defaults, self.clips.shape
  local stand_in = setmetatable({ predict = function(_, x, sigma, rows)
    local views, times = {}, {}
    for i = 1, #rows do views[i], times[i] = x:to("f32"), sigma * model.time_scale end
    local most = 0
    for _, r in ipairs(rows) do most = math.max(most, r.shape[1]) end
    local text, key_bias = self.wan.padded(rows, math.min(most + 1, model.text_len), model.text_len)
    local y = grad.no_grad(function() return net:forward(T.stack(views, 1), times, text, key_bias) end).value
    local predictions = {}
    for i = 1, #rows do predictions[i] = y:select(1, i) end
    return predictions
  end }, { __index = model })
  if model.plan then model:plan(shape, 1) end -- says whether decoding has to go by tiles
  local sigmas = require("melies.schedule").make("flow", options.steps or d.steps, { shift = d.shift }, model)
  for i, prompt in ipairs(prompts) do
    local denoise = require("melies.guide").make("cfg", stand_in, { text = assert(model:encode(prompt,
      { truncate = true })), negative = assert(model:encode ""), scale = options.guidance or d.guidance })
    local noise = T.noise(shape, { seed = options.seed or self.o.seed, stream = i })
    local latent = require("melies.sampling").run("euler", denoise, noise, sigmas, { space = "flow" })
    out[i] = model:decode(latent)
  end
  return out
end

-- train_lora.new{...} -> tuning, or nil and a message. model and clips are wanted; the others, and what they are by default:
--   folder        of checkpoints, log.jsonl, loss.svg, samples/, best.safetensors: a run goes on from there. nil: none
--   rank = 16, alpha = rank, targets = { "all" }       as train_lora.targets reads them
--   steps = 400, batch = 4, accumulate = 1, lr = 1e-3, warmup = 10, schedule = "constant", weight_decay, clip, seed = 0
--   timesteps = "logit_normal" or "uniform"; shift: the model's own; dropout = 0.1: of captions
--   holdout = 0.1: part of the clips that the held-out loss is of; heldout_every = 50 steps; patience: looks without a
--                 lower one until the training ends (nil: it never does)
--   samples       prompts; sample_every = 0 (never); sample_steps, guidance: the model's own
--   save_every = 50; save_memory: blocks are computed twice instead of kept (by default where they are large)
--   bar, on_record   as train_watch.new takes them
function M.new(given)
  lib.check_options("train_lora.new", given, known)
  local o = {}
  for key, value in pairs(defaults) do o[key] = value end
  for key, value in pairs(given) do o[key] = value end
  local model, clips = o.model, o.clips
  if not model or not clips then error("train_lora.new: model and clips are wanted", 2) end
  if not M.timesteps[o.timesteps] then
    error(("train_lora.new: timesteps is '%s'%s"):format(o.timesteps, lib.suggest(o.timesteps, M.timesteps)), 2)
  end
  o.alpha, o.shift = o.alpha or o.rank, o.shift or model.defaults.shift or 1
  local why = unfit(model)
  if why then return nil, why end
  local weights = model.sources.dit.weights
  local layers, message = M.targets(weights, o.targets)
  if not layers then return nil, message end
  local compute = require("melies").compute() == "f32" and "f32" or "bf16"
  local tokens, bytes = clips.shape[2] * clips.shape[3] * clips.shape[4] * o.batch, 0
  for i = 1, 3 do tokens = tokens / model.patch[i] end
  for _, name in ipairs(weights:names()) do bytes = bytes + weights:bytes(name) end
  if o.save_memory == nil then o.save_memory = bytes > 2 ^ 30 or tokens * model.dit.dim * #model.dit.blocks > 2 ^ 26 end

  local self = setmetatable({ o = o, model = model, clips = clips, layers = layers,
    wan = require "melies.grad.wan_dit" }, Tuning)
  self.training, self.held = clips:split(o.holdout, o.seed)
  local captions = { "", unpack(clips.captions) }
  for _, prompt in ipairs(o.samples or {}) do captions[#captions + 1] = prompt end
  local longest
  self.texts, longest = texts_of(model, captions)
  if not self.texts then return nil, longest end
  self.rows = math.min(longest + 1, model.text_len)

  self.net = self.wan.net(M.base(weights, compute, o.save_memory), { heads = model.dit.head_count, eps = model.dit.eps,
    compute = compute, text_len = model.text_len, preconditioned = model.dit.preconditioned, positions = model.dit.positions,
    pooled = model.dit.pooled })
  self.net.save_memory = o.save_memory
  local params = adapters(self.net, layers, o.rank, o.alpha, o.seed)
  local files = weights:files()
  local watch
  if o.folder then
    watch, message = train_watch.new { folder = o.folder, steps = o.steps, title = "Loss", bar = o.bar,
      heldout = #self.held > 0 and function() return self:heldout() end or nil, heldout_every = o.heldout_every,
      patience = o.patience, on_record = o.on_record,
      sample = o.sample_every > 0 and o.samples and #o.samples > 0 and function() return self:sheet() end or nil,
      sample_every = o.sample_every, best_metadata = { ["melies.rank"] = tostring(o.rank) } }
    if not watch then return nil, message end
  end
  self.watch = watch
  local run
  run, message = train.new { params = params, steps = o.steps, lr = o.lr, schedule = o.schedule, warmup = o.warmup,
    weight_decay = o.weight_decay, clip = o.clip, accumulate = o.accumulate, seed = o.seed, folder = o.folder,
    every = o.save_every, on_step = watch and watch.on_step or o.on_record,
    may_differ = o.schedule == "constant" and { "steps" } or nil,
    config = { rank = o.rank, alpha = o.alpha, targets = table.concat(o.targets, ","), batch = o.batch,
      timesteps = o.timesteps, shift = o.shift, dropout = o.dropout, holdout = o.holdout,
      clips = ("%d clips (%s)"):format(clips.count, clips.identity:sub(1, 12)),
      model = ("%s (%s)"):format(model.name, (files and cache.identity(files) or ""):sub(1, 12)) },
    loss = function(step) return loss_of(self, step) end }
  if not run then return nil, message end
  self.training_run = run
  if watch then
    local ok
    ok, message = watch:follow(run)
    if not ok then return nil, message end
  end
  return self
end

-- One image of the samples: a row of frames for each prompt.
function Tuning:sheet()
  local o = self.o
  return require("melies.media").contact_sheet(self:films(o.samples, { steps = o.sample_steps, guidance = o.guidance }),
    { columns = 5, labels = o.samples, gap = 2 })
end

-- tuning:run(last) -> true, or nil and a message, as train's run:run. true and a reason: it stopped early.
function Tuning:run(last)
  local ok, message = self.training_run:run(last)
  if self.watch then self.watch:finish() end
  return ok, message
end

-- { layer = { down =, up =, scale = } }: as they are now, or where `best` those of the lowest held-out loss, if such are
-- kept; and the step that they are of.
function Tuning:layers_now(best)
  local step, get = self.training_run.step, nil
  local path = best and self.o.folder and self.watch.best and self.o.folder .. "/best.safetensors"
  local file, message
  if path and fs.stat(path) then
    file, message = require("melies.weights").open(path)
    if not file then return nil, message end
    step = tonumber(file.metadata["melies.step"])
    get = function(name) return file:get(name):clone() end
  end
  local own, out = self.training_run:weights(), {}
  for _, layer in ipairs(self.layers) do
    out[layer] = { scale = self.o.alpha / self.o.rank }
    for _, part in ipairs { "down", "up" } do
      local name = layer .. "." .. part
      out[layer][part] = get and get(name) or own[name]
    end
  end
  if file then file:close() end
  return out, step
end

-- tuning:save(path, { format = "peft", dtype = "bf16", best = true }) -> step, or nil and a message.
local save_known = { format = true, dtype = true, best = true }
function Tuning:save(path, options)
  options = options or {}
  lib.check_options("save", options, save_known)
  local layers, step = self:layers_now(options.best ~= false)
  if not layers then return nil, step end
  local o = self.o
  local metadata = { ["melies.step"] = step, ["melies.model"] = self.model.name, ["melies.clips"] = self.clips.count }
  if options.format == "kohya" then
    metadata.ss_output_name = path:match("([^/]+)$"):gsub("%.%w+$", "")
    metadata.ss_learning_rate, metadata.ss_max_train_steps = ("%.9g"):format(o.lr), o.steps
    metadata.ss_num_train_items, metadata.ss_seed = #self.training, o.seed
    metadata.ss_gradient_accumulation_steps, metadata.ss_optimizer = o.accumulate, "adamw"
    metadata.ss_lr_scheduler, metadata.ss_steps = o.schedule, step
  end
  local ok, message = require("melies.lora.write").save(path, layers, { format = options.format, dtype = options.dtype,
    metadata = metadata })
  if not ok then return nil, message end
  return step
end

return M
