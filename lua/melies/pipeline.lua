-- Model folders: config.json names a text encoder, a diffusion transformer and an autoencoder; together they are a
-- model object that turns a prompt and noise into frames. Sizes come from the folder, none from here.
--
--   pipeline.load(name or path, given) -> model | nil, message      (kept for the life of the process)
--     path: a model folder, or a file or a folder of published checkpoints (melies.assemble); given: text_encoder=,
--     autoencoder=, image_encoder=, tokenizer= in place of the folder's
--   pipeline.find(name)            -> folder or file | nil, message
--
--   model:encode(prompt, { truncate= })      -> text [L, D] | nil, message    (text, notice where it was cut)
--                                               prompt: words as they are, or what prompt.parse gave
--   model:set_loras(list)                    -> applied | nil, message   (docs/lora.md)
--   model:encode_ahead(fn)                   fn(model) encodes texts; all of them go through the encoder in one pass
--   model:latent_shape{ frames, height, width } -> { C, T, H, W } | nil, message
--   model:frame_count(T)                     -> frames of T latent frames
--   model:plan(shape, texts at once)         -> budget.plan for that latent | nil, message; predict follows it
--   model:predict(x, sigma, texts, { cache=, condition= }) -> { raw prediction [C, T, H, W] for each text }, one forward
--   model:conditions{ first=, last=, shape=, fps= } -> condition | nil, message   (melies.conditions)
--   model:blocks(noise, sigmas, text, { seed=, step= }) -> iterator of finished latent blocks of a causal model
--                                               (melies.models.wan_causal); model.causal, .block_frames
--   model:to_x0(x, sigma, prediction)        -> estimate of the clean latent
--   model:add_noise(latent, noise, sigma)    -> the noised latent of that sigma
--   model:decode(latent)                     -> frames [N, H, W, 3], f32 in [0, 1]
--   model:decode_stream(latent, sink, tick)  -> number of frames; sink(frames, i) gets them as they come
--   model:encode_video(frames)               -> latent [C, T, H, W]
--   model:schedule_params(p)                 -> parameters of the model's own schedule for a film of that size
--   model.name, .folder, .config, .defaults, .space, .text_len, .stride { time, height, width }, .frame_grid,
--   .image_input ("channels", "first" or nil: melies.conditions), .boundary (of two experts)
local T = require "melies.tensor"
local json = require "melies.json"
local lib = require "melies.ffi.lib"

local M = {}
local Model = {}
Model.__index = Model

-- ---- folders ---------------------------------------------------------------------------------------

local function exists(path)
  local f = io.open(path, "rb")
  if f then f:close() end
  return f ~= nil
end

-- Folders that hold model folders, in the order of the search.
local function places()
  local here = debug.getinfo(1, "S").source:match("^@(.*)lua/melies/[^/]*$") or "./"
  local config = os.getenv "MELIES_CONFIG"
    or (os.getenv "XDG_CONFIG_HOME" or (os.getenv "HOME" or "") .. "/.config") .. "/melies"
  local list = { "melies/models", config .. "/models", here .. "recipes" }
  local first = os.getenv "MELIES_MODELS"
  if first and first ~= "" then table.insert(list, 1, first) end
  return list
end

function M.find(name)
  if name:find("/", 1, true) or name == "." then
    if exists(name) then return #name > 1 and name:gsub("/+$", "") or name end
    return nil, ("no model in %s: there is no such file or folder"):format(name)
  end
  local searched = places()
  for _, place in ipairs(searched) do
    if exists(place .. "/" .. name .. "/config.json") then return place .. "/" .. name end
  end
  if exists(name) then return name end
  return nil, ("no model '%s': no %s/config.json here or in %s"):format(name, name, table.concat(searched, ", "))
end

-- ---- parts -----------------------------------------------------------------------------------------

-- Which file of models/ reads a part: by a word of its `layout`, else by the tensors that it has.
local kinds = {
  dit = { { "wan_dit", "wan", "patch_embedding.weight" } },
  text_encoder = { { "t5", "t5", "blocks.0.attn.q.weight" } },
  autoencoder = {
    { "linear_blocks", "linear", "decoder.bias" },
    { "wan_vae", "wan", "decoder.conv1.weight" },
    { "taehv", "tae", "decoder.1.weight" },
  },
}

-- The part's module, weights and configuration, or nil and a message.
local function open_part(folder, config, part)
  local settings = config[part]
  if type(settings) ~= "table" then return nil, ("%s/config.json: no '%s'"):format(folder, part) end
  local path = folder .. "/" .. (settings.file or part .. ".safetensors")
  local weights, message = require("melies.weights").open(path)
  if not weights then return nil, message end
  local layout = (settings.layout or ""):lower()
  for _, by in ipairs { "layout", "tensors" } do
    for _, kind in ipairs(kinds[part]) do
      if (by == "layout" and layout:find(kind[2], 1, true)) or (by == "tensors" and weights:has(kind[3])) then
        return require("melies.models." .. kind[1]), weights, settings
      end
    end
  end
  return nil, ("%s/config.json: %s has the layout '%s', which is not known here"):format(folder, part,
    settings.layout or "")
end

-- Matrices of a large part stay in its file until the budget says which are packed; small parts are packed at once.
local SMALL = 1 / 32 -- of the memory there is
local function how_to_load(weights, part)
  local options = { compute = require("melies").compute() }
  if part == "autoencoder" then return options end
  local limit, bytes = require("melies.budget").limit(), 0
  for _, file in ipairs(require("melies.budget").files(weights)) do
    for _, name in ipairs(file:names()) do bytes = bytes + file:bytes(name) end
  end
  options.lazy = bytes > limit * SMALL or nil
  return options
end

-- set: what melies.assemble made of checkpoints, or nil for a model folder.
local function load_parts(model, folder, config, set, dit_options)
  for _, part in ipairs { "text_encoder", "dit", "autoencoder" } do
    local module, weights, settings
    local from = set and set.parts[part]
    if from then module, weights, settings = from.module, from.weights, from.settings
    else module, weights, settings = open_part(folder, config, part) end
    if not module then return nil, weights end
    -- What does not fit raises one line without a position.
    local options = how_to_load(weights, part)
    if part == "dit" then
      for name, value in pairs(dit_options) do options[name] = value end
    end
    local ok, net = pcall(module.load, weights, settings, options)
    if not ok then return nil, ("%s: %s: %s"):format(folder, part, tostring(net)) end
    model[part] = net
    model.sources[part] = { module = module, weights = weights, settings = settings, options = options }
  end
  local eye = set and set.parts.image_encoder -- read when it is wanted, and let go
  if eye and model.dit.image then
    if eye.settings.width ~= model.dit.image.width then
      return nil, ("%s: the parts do not fit: image_encoder gives tokens of %s values, dit takes %d"):format(folder,
        tostring(eye.settings.width), model.dit.image.width)
    end
    eye.options = { compute = require("melies").compute(), lazy = true }
    model.sources.image_encoder = eye
  end
  for _, pair in ipairs {
    { "dit", model.dit.out_channels, "autoencoder", model.autoencoder.latent_channels, "latent channels" },
    { "text_encoder", model.text_encoder.dim, "dit", model.dit.text_dim, "values a row of text" },
  } do
    if pair[2] and pair[4] and pair[2] ~= pair[4] then
      return nil, ("%s: the parts do not fit: %s gives %d %s, %s takes %d"):format(folder, pair[1], pair[2], pair[5],
        pair[3], pair[4])
    end
  end
  local file = set and set.tokenizer or folder .. "/" .. (config.text_encoder.tokenizer or "spiece.model")
  local tokenizer, message = require("melies.tokenizer").load(file)
  if not tokenizer then return nil, message end
  if tokenizer.size > model.text_encoder.vocabulary then
    return nil, ("%s: %d pieces, but the text encoder knows %d: it is another model's tokenizer"):format(file,
      tokenizer.size, model.text_encoder.vocabulary)
  end
  model.tokenizer = tokenizer
  return model
end

-- Pixels to one latent value: { frames, rows, columns }.
local function stride_of(net, settings)
  if settings.stride or net.stride then return settings.stride or net.stride end
  if type(net.block) == "table" then return net.block end
  local time, space = net.time_up or net.time_down or 4, net.block or 8
  return { time, space, space }
end

local defaults = { frames = 17, fps = 16, steps = 20, sampler = "euler", schedule = "flow", shift = 3, guide = "cfg",
                   guidance = 5 }

local cache = {}

-- A folder of melies' own kind has a config.json that names its parts; all else is published checkpoints.
local function configuration(folder, given)
  local path = folder .. "/config.json"
  local config = exists(path) and json.read(path)
  if type(config) == "table" and (config.dit or config.autoencoder) and not next(given) then return config end
  if exists(path) and not config then return nil, select(2, json.read(path)) end
  local set, message = require("melies.assemble").open(folder, given)
  if not set then
    return nil, exists(path) and message or ("%s; nor is it a model folder, there is no config.json"):format(message)
  end
  return set.config, set
end

-- The configuration of a model's few-step variant: config.few_steps = { file = transformer, and what of `sample` differs }.
local function few_steps_of(config, folder)
  local few = config.few_steps
  if not few then return nil, ("%s: this model has no few-step variant (no few_steps in its configuration)"):format(folder) end
  local out, dit, sample = {}, {}, {}
  for key, value in pairs(config) do out[key] = value end
  for key, value in pairs(config.dit) do dit[key] = value end
  for key, value in pairs(config.sample or {}) do sample[key] = value end
  for key, value in pairs(few) do
    if key == "file" then dit.file = value else sample[key] = value end
  end
  out.dit, out.sample = dit, sample
  return out
end

function M.load(name, given)
  given = given or {}
  if type(name) ~= "string" then error("a model is a name or a folder, not a " .. type(name), 2) end
  local folder, message = M.find(name)
  if not folder then return nil, message end
  local key = table.concat({ folder, require("melies").compute(), given.text_encoder or "", given.autoencoder or "",
    given.image_encoder or "", given.tokenizer or "", given.quantization or "", given.attention or "",
    given.few_steps and "few" or "" }, ":")
  if cache[key] then return cache[key] end
  local parts, quantization = {}, nil
  for key_, value in pairs(given) do parts[key_] = value end
  parts.attention = nil
  if given.quantization then
    parts.quantization = nil
    quantization, message = require("melies.quantize").read(given.quantization)
    if not quantization then return nil, message end
  end
  parts.few_steps = nil
  local config, set = configuration(folder, parts)
  if config and given.few_steps then config, set = few_steps_of(config, folder) end
  if not config then return nil, set end
  local model = setmetatable({ name = folder:match("([^/]+)$"), folder = folder, config = config, sources = {},
    rows = {}, variant = set and set.variant }, Model)
  local ok
  ok, message = load_parts(model, folder, config, set, { quantization = quantization, attention = given.attention })
  if not ok then return nil, message end
  model.space = "flow"
  model.text_len = model.dit.text_len or config.dit.text_len or 512
  local causal = model.dit.causal_options
  model.causal, model.block_frames = causal ~= nil, causal and (causal.frames_per_block or 3)
  model.image_input, model.boundary = require("melies.conditions").input(model), model.dit.boundary
  model.time_scale = config.dit.time_scale or 1000
  model.eos, model.pad = config.text_encoder.eos or 1, config.text_encoder.pad or 0
  model.patch, model.latent_channels = model.dit.patch, model.dit.out_channels
  model.stride = stride_of(model.autoencoder, config.autoencoder)
  model.frame_grid = ("1 + %dk frames"):format(model.stride[1])
  model.defaults = {}
  for key_, value in pairs(defaults) do model.defaults[key_] = value end
  for key_, value in pairs(config.sample or {}) do model.defaults[key_] = value end
  if config.schedule and config.schedule.dynamic then model.defaults.shift = (config.sample or {}).shift end
  cache[key] = model
  return model
end

-- Forgets the models that are kept; their memory goes with the last use.
function M.forget()
  cache = {}
  lib.reclaim()
end

-- ---- text ------------------------------------------------------------------------------------------

-- Token ids with the end mark, or nil and a message; ids and a notice where the prompt was cut.
function Model:tokens(prompt, opts)
  local ids = self.tokenizer:encode(prompt)
  local notice
  local limit = self.text_len
  if ids[#ids] ~= self.eos then ids[#ids + 1] = self.eos end
  if #ids > limit then
    local said = ("the prompt is %d tokens; %s takes %d"):format(#ids, self.name, limit)
    if not (opts and opts.truncate) then return nil, said .. " (--truncate cuts it)" end
    notice = said .. ": cut"
    for i = #ids, limit + 1, -1 do ids[i] = nil end
    ids[limit] = self.eos
  end
  return ids, notice
end

-- Everything that a part's result depends on besides its input; nil where the files cannot be named.
local function identity(model, part)
  local files = model.sources[part].weights:files()
  local who = files and require("melies.cache").identity(files)
  return who and { weights = who, config = model.config[part], compute = model[part].dtype }
end

-- rows { ids = ... } of lists of ids: those computed before in this process, then those on disk, then the encoder, in
-- one pass over its weights for all that are left.
local KEPT = 64 -- texts kept in memory
local function encode_all(model, lists)
  local out, missing, keys = {}, {}, {}
  local disk = require("melies.cache").default()
  local who = disk and identity(model, "text_encoder")
  for i, ids in ipairs(lists) do
    local name = table.concat(ids, ",")
    out[i] = model.rows[name]
    if not out[i] and who then
      keys[i] = disk:key("text", { ids = ids, encoder = who })
      local found = disk:get("text", keys[i])
      out[i] = found and found.rows
    end
    if not out[i] then missing[#missing + 1] = i end
    if out[i] then model.rows[name] = out[i] end
  end
  if #missing == 0 then return out end
  local wanted = {}
  for n, i in ipairs(missing) do wanted[n] = lists[i] end
  local computed = model.text_encoder:encode(wanted)
  local count = 0
  for _ in pairs(model.rows) do count = count + 1 end
  if count + #missing > KEPT then model.rows = {} end
  for n, i in ipairs(missing) do
    out[i] = computed[n]
    model.rows[table.concat(lists[i], ",")] = computed[n]
    if keys[i] then disk:put("text", keys[i], { rows = computed[n] }, { model = model.name, tokens = #lists[i] }) end
  end
  return out
end

-- Rows of text for guides and predict. The zero rows up to text_len, which Wan attends to, are added in the
-- transformer's context.
function Model:encode(prompt, opts)
  if type(prompt) == "table" then return require("melies.prompt").conditions(prompt, self, opts) end
  local ids, message = self:tokens(prompt, opts)
  if not ids then return nil, message end
  return encode_all(self, { ids })[1], message
end

-- Texts that will be wanted, computed together: fn(model) is run with a model whose encode only notes the ids and gives
-- rows of zeros.
function Model:encode_ahead(fn)
  local lists, seen = {}, {}
  local stand_in = setmetatable({ encode = function(me, prompt, opts)
    if type(prompt) == "table" then return require("melies.prompt").conditions(prompt, me, opts) end
    local ids, message = self:tokens(prompt, opts)
    if not ids then return nil, message end
    local name = table.concat(ids, ",")
    if not seen[name] then lists[#lists + 1], seen[name] = ids, true end
    return T.zeros { #ids, self.text_encoder.dim }, message
  end }, { __index = self })
  fn(stand_in)
  encode_all(self, lists)
end

-- ---- LoRAs -----------------------------------------------------------------------------------------

local function lora_key(list)
  local out = {}
  for i, item in ipairs(list) do
    local lora, strength = item[1] or item.file, item[2] or item.strength or 1
    out[i] = (type(lora) == "table" and lora.path or tostring(lora)) .. "\0" .. json.encode(strength)
  end
  return table.concat(out, "\1")
end

local no_loras = { matched = 0, unmatched = {}, notices = {}, varies = false, seek = function() end }

-- The LoRAs of the transformer, as lora.apply takes them; nil or {} for none. Where they are others than now, the
-- transformer is read from its file again, so that nothing stays of those before. Gives what lora.apply says of them,
-- or nil and a message; the model is then as it was, or without LoRAs where the fault shows only in loading.
function Model:set_loras(list)
  list = list or {}
  local key = lora_key(list)
  if key == (self.lora_key or "") then return self.loras or no_loras end
  local source, applied = self.sources.dit, no_loras
  local weights = source.weights
  if #list > 0 then
    weights, applied = require("melies.lora").apply(weights, list)
    if not weights then return nil, applied end
  end
  self.dit, self.last_texts, self.last_context, self.last_condition = nil, nil, nil, nil
  lib.reclaim()
  self.planned, self.packed = nil, nil
  local ok, net = pcall(source.module.load, weights, source.settings, source.options)
  self.dit = ok and net or source.module.load(source.weights, source.settings, source.options)
  self.lora_key, self.loras = ok and key or "", ok and applied or no_loras
  if not ok then return nil, tostring(net) end
  return applied
end

-- ---- sizes -----------------------------------------------------------------------------------------

local function fit(value, unit) return math.max(unit, math.floor(value / unit + 0.5) * unit) end

function Model:frame_count(latent_frames) return 1 + (latent_frames - 1) * self.stride[1] end

-- A length off the grid is rounded to the nearest on it (compare frame_count); a size that does not fit is refused.
function Model:latent_shape(p)
  local want, s = {}, self.stride
  for _, key in ipairs { "frames", "height", "width" } do
    want[key] = p[key] or self.defaults[key]
    if type(want[key]) ~= "number" or want[key] < 1 then
      return nil, ("%s is %s; it should be a positive number"):format(key, tostring(want[key]))
    end
  end
  local unit_h, unit_w = s[2] * self.patch[2], s[3] * self.patch[3]
  local w, h = fit(want.width, unit_w), fit(want.height, unit_h)
  if w ~= want.width or h ~= want.height then
    return nil, ("%dx%d does not fit %s: width must be a multiple of %d and height of %d; the nearest is %dx%d"):format(
      want.width, want.height, self.name, unit_w, unit_h, w, h)
  end
  local latent_frames = 1 + math.max(0, math.floor((want.frames - 1) / s[1] + 0.5))
  local step = self.patch[1]
  latent_frames = math.ceil(latent_frames / step) * step
  return { self.latent_channels, latent_frames, h / s[2], w / s[3] }
end

-- config.schedule: dynamic (the shift goes by the number of tokens, where p.shift gives none), terminal.
function Model:schedule_params(p)
  local own, out = self.config.schedule, {}
  if type(own) ~= "table" then return out end
  local shape = own.dynamic and not p.shift and self:latent_shape(p)
  if shape then
    out.tokens = 1
    for i = 1, 3 do out.tokens = out.tokens * shape[i + 1] / self.patch[i] end
  end
  out.terminal = own.terminal
  return out
end

-- ---- diffusion -------------------------------------------------------------------------------------

-- The context (text embedding, keys and values of cross-attention) of the last list of texts is kept: it is the same
-- at every step.
local function context_of(model, texts, condition)
  local last = model.last_texts
  local same = last and #last == #texts and rawequal(condition, model.last_condition) and model.last_context
  for i = 1, same and #texts or 0 do same = same and last[i] == texts[i] end
  if not same then
    model.last_context = model.dit:context(texts, condition)
    model.last_texts, model.last_condition = { unpack(texts) }, condition
  end
  return model.last_context
end

-- What is packed and streamed for a latent of this shape, within the budget. The last plan serves until one for
-- more is wanted.
function Model:plan(shape, batch)
  local budget, last = require "melies.budget", self.planned
  local same = last and last.batch >= batch and last.limit == budget.limit_of(last)
  for i = 1, 4 do same = same and last.shape[i] == shape[i] end
  if same then return last end
  local plan, message = budget.plan(self, { shape = { unpack(shape) }, batch = batch })
  if not plan then return nil, message end
  self.planned, self.packed = plan, false
  return plan
end

local function pack(model, shape, batch)
  local plan, message = model:plan(shape, batch)
  if not plan then error(("%s: %s"):format(model.name, message), 0) end
  if not model.packed then require("melies.budget").apply(model, plan) end
  model.packed = true
end

function Model:predict(x, sigma, texts, options)
  if x.ndim ~= 4 then error(("predict: x has %d dimensions, not [C, T, H, W]"):format(x.ndim), 2) end
  pack(self, x.shape, #texts)
  options = options or {}
  local out = self.dit:forward(x:unsqueeze(1), sigma * self.time_scale, context_of(self, texts, options.condition),
    options.cache and { cache = options.cache, sigma = sigma })
  local predictions = {}
  for i = 1, #texts do predictions[i] = out:select(1, i) end
  return predictions
end

function Model:blocks(noise, sigmas, text, options)
  pack(self, noise.shape, 1)
  local timesteps = {}
  for i = 1, #sigmas - 1 do timesteps[i] = sigmas[i] * self.time_scale end
  return self.dit:causal():blocks(noise, { timesteps = timesteps, seed = options.seed, step = options.step,
    context = context_of(self, { text }) })
end

function Model:conditions(given) return require("melies.conditions").make(self, given) end

-- Flow: x_s = (1 - s) x0 + s noise and the prediction is noise - x0, so x0 = x - s * prediction.
function Model:to_x0(x, sigma, prediction) return T.lincomb { 1, x, -sigma, prediction } end

function Model:add_noise(latent, noise, sigma) return T.lincomb { 1 - sigma, latent, sigma, noise } end

-- ---- frames ----------------------------------------------------------------------------------------

local DECODE_STREAM = 2 ^ 41 -- of noise: a number that no job and no sampler uses

function Model:decode(latent)
  local parts = {}
  self:decode_stream(latent, function(frames) parts[#parts + 1] = frames end)
  return #parts == 1 and parts[1] or T.concat(parts, 1)
end

-- A decoder that wants noise (config.autoencoder.decode_noise) gets the same one for every film. In tiles where the last
-- plan, made for that size, says so; tick(done, all) is then called after each. The packed transformer is let go where
-- the plan wants its memory.
function Model:decode_stream(latent, sink, tick)
  if latent.ndim ~= 4 then error(("decode: the latent has %d dimensions, not [C, T, H, W]"):format(latent.ndim), 2) end
  local plan, length, noisy = self.planned, latent.shape[2], self.config.autoencoder.decode_noise
  if noisy then latent = self:add_noise(latent, T.noise(latent.shape, { stream = DECODE_STREAM }), noisy) end
  for i = 2, 4 do
    if plan and plan.shape[i] ~= latent.shape[i] then plan = nil end
  end
  if plan and plan.release and self.packed then
    require("melies.budget").release(plan)
    self.packed = false
  end
  if plan and plan.tile then
    return require("melies.tiles").decode(self.autoencoder, latent, { tile = plan.tile,
      overlap = require("melies.budget").overlap, stride = self.stride }, sink, tick)
  end
  local decoder, count = self.autoencoder:decoder(), 0
  local function give(frames, i)
    if frames and frames.shape[1] > 0 then
      sink(frames, i)
      count = count + frames.shape[1]
    end
    if lib.C.mel_canceled() then error(lib.canceled, 0) end
  end
  for i = 1, length do give(decoder:push(latent:slice(2, i, i)), i) end
  if decoder.finish then give(decoder:finish(), length) end -- of one that looks ahead
  return count
end

function Model:encode_video(frames)
  local shape = frames.shape
  if #shape ~= 4 or shape[4] ~= 3 then error("encode_video: frames should be [N, H, W, 3]", 2) end
  if (shape[1] - 1) % self.stride[1] ~= 0 then
    error(("encode_video: %d frames; %s makes %s"):format(shape[1], self.name, self.frame_grid), 2)
  end
  local disk = require("melies.cache").default()
  local who = disk and identity(self, "autoencoder")
  local key = who and disk:key("video", { frames = frames, encoder = who })
  local found = key and disk:get("video", key)
  if found then return found.latent end
  local latent = self.autoencoder:encode(frames)
  if key then disk:put("video", key, { latent = latent }, { model = self.name, frames = shape[1] }) end
  return latent
end

return M
