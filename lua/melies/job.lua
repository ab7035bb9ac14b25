-- A job: what a running recipe holds. It loads models (kept between jobs of one process), makes noise, samples with
-- progress and cancel, and saves with the metadata that says how the film was made.
-- Its methods raise an expected failure (a missing folder, a prompt too long) as recipe.fail does: recipe.run turns
-- it into nil, message, exit code, so that a recipe reads straight down.
local ffi = require "ffi"
local lib = require "melies.ffi.lib"
local recipe = require "melies.recipe"

local M = {}
local Job = {}
Job.__index = Job

-- ---- what is shown -------------------------------------------------------------------------------

local silent = { step = function() end, finish = function() end }

-- opts.progress, as recipe.run takes it, as a factory.
local function factory_of(progress)
  if progress == nil then progress = require("melies.term").isatty(2) end
  if type(progress) == "function" then return progress end
  if progress then return require("melies.progress").bar end
  return function() return silent end
end

-- A stage of `total` steps: stage:step(i, note), stage:finish(). Raises where the job was canceled.
function Job:progress(label, total)
  self:check_cancel()
  self:end_stage()
  self.stage_label, self.stage_start = label, lib.C.mel_seconds()
  self.stage = self.make_stage { label = label, total = total or 1 }
  return self.stage
end

function Job:end_stage()
  if not self.stage then return end
  self.stage:finish()
  self.stage = nil
  if lib.C.mel_profile_on() then require("melies.profile").stage(self.stage_label, self.stage_start) end
end

-- One line for the user that is no error: a rounded length.
function Job:notice(format, ...)
  local text = format:format(...)
  self.notices[#self.notices + 1] = text
  if self.opts.notice then self.opts.notice(text)
  else require("melies.log").say("melies: %s", text) end
end

function Job:check_cancel()
  if lib.C.mel_canceled() then recipe.fail("canceled", recipe.CANCELED) end
end

-- value, or the failure that message is: job:check(melies.media.load(path)).
function Job:check(value, message)
  if value == nil or value == false then recipe.fail(message or "failed") end
  return value
end

-- ---- models and parameters -----------------------------------------------------------------------

-- A model by name or folder (default: the job's own `model` parameter, else "starter").
function Job:load(name)
  name = name or self.params.model or "starter"
  local stage = self:progress("loading " .. tostring(name), 1)
  local p, given = self.params, nil
  if name == p.model then given = { text_encoder = p.text_encoder, autoencoder = p.vae,
    image_encoder = p.image_encoder, tokenizer = p.tokenizer, quantization = p.quantization,
    attention = p.attention, few_steps = p.few_steps } end
  local model = self:check(require("melies.pipeline").load(name, given))
  stage:step(1)
  self.model = self.model or model
  return model
end

-- Fills the parameters declared with from_model, where nothing was given, from the model's defaults. Then seconds
-- and size become frames, width and height. Returns the job's parameters, which the metadata will hold.
function Job:defaults(model)
  local p, all = self.params, recipe.params(self.recipe)
  local one_guidance = p.guidance and p.guidance_low == nil -- given by the user: for both experts
  for name, spec in pairs(all) do
    if spec.from_model and p[name] == nil then p[name] = model.defaults[name] end
  end
  if one_guidance or not model.boundary then p.guidance_low = nil end
  if p.size then p.width, p.height, p.size = p.size.width, p.size.height, nil end
  if p.seconds and p.fps then p.frames, p.seconds = math.max(1, math.floor(p.seconds * p.fps + 0.5)), nil end
  if self.film_latent then
    local s, stride = self.film_latent.shape, model.stride
    p.frames, p.height, p.width = model:frame_count(s[2]), s[3] * stride[2], s[4] * stride[3]
  end
  return p
end

-- Parameters of the chosen plugin, given as --sampler.eta: kind is "sampler", "schedule", "guide" or "step_cache".
function Job:plugin_params(kind)
  local all = recipe.params(self.recipe)
  if not all[kind] then return {} end
  local params, message = recipe.plugin_params(all, self.params, kind)
  if not params then recipe.fail(("%s: %s"):format(self.recipe.name, message), recipe.USAGE) end
  return params
end

-- The shape [C, T, H, W] of the latent of p.frames, p.height, p.width. A length off the model's grid is rounded with
-- a notice, or refused where p.strict says so; a size that does not fit is a failure that names the nearest that does,
-- and so are images that the model cannot take, or lacks.
function Job:shape(model, p)
  p = p or self.params
  if model.sources and not self.film_latent then
    local refusal = require("melies.conditions").refusal(model, { first = p.image, last = p.last_image })
    if refusal then recipe.fail(refusal) end
  end
  local shape, message = model:latent_shape(p)
  self:check(shape, message)
  local frames = model:frame_count(shape[2])
  if p.frames ~= frames then
    if p.strict then
      recipe.fail(("%s frames: the model makes %s; the nearest is %d"):format(tostring(p.frames), model.frame_grid, frames),
        recipe.USAGE)
    end
    self:notice("%s frames are rounded to %d: the model makes %s", tostring(p.frames), frames, model.frame_grid)
    p.frames = frames
  end
  if self.film_latent then
    local s = self.film_latent.shape
    if table.concat(s, "x") ~= table.concat(shape, "x") then
      recipe.fail(("%s: the latent is [%s], wanted [%s]"):format(self.params.latents, table.concat(s, ", "),
        table.concat(shape, ", ")))
    end
  end
  self:budget(model, shape)
  return shape
end

-- Plans memory for a latent of that shape and says so; a job that cannot fit ends here.
function Job:budget(model, shape)
  if not model.plan then return end
  local plan = self:check(model:plan(shape, self.params.guidance == 1 and (self.params.guidance_low or 1) == 1 and 1 or 2))
  if self.plan == plan then return end
  if not self.plan then self.limit_before = tonumber(lib.C.mel_mem_limit()) end
  self.plan = plan
  lib.C.mel_mem_set_limit(plan.limit)
  if self.opts.progress == true then
    for _, line in ipairs(plan.lines) do require("melies.log").say("melies: %s", line) end
  end
end

-- LoRAs of a prompt: they hold for all that the job samples. The same one with the same strength counts once.
function Job:add_loras(loras)
  local same = require("melies.json").encode
  for _, lora in ipairs(loras) do
    local file, message = require("melies.lora").find(lora.name)
    local entry, known = { file = self:check(file, message), strength = lora.strength }, false
    for _, other in ipairs(self.loras) do
      known = known or other.file == file and same { other.strength } == same { lora.strength }
    end
    if not known then self.loras[#self.loras + 1] = entry end
  end
end

-- A prompt with its marks (docs/prompts.md) as the model's text: rows, or what changes from step to step. p.truncate
-- cuts one that is too long; otherwise it is a failure. opts.negative: AND is a word.
function Job:encode(model, prompt, opts)
  local p = self.params
  local parsed = require("melies.prompt").parse(prompt, { style = p.prompt_style, seed = self.seed,
    wildcards = p.wildcards, negative = opts and opts.negative })
  for _, warning in ipairs(parsed.warnings) do self:notice("prompt: %s", warning) end
  self:add_loras(parsed.loras)
  local text, message = model:encode(parsed, { truncate = p.truncate, steps = p.steps })
  self:check(text, message)
  if message then self:notice("%s", message) end
  if not require("melies.tensor").is(text) then self.followers[#self.followers + 1] = text end
  return text
end

-- Prompts that will be encoded go through the encoder together, in one pass over its weights; the negative one is among
-- them. What is wrong with a prompt is told when it is encoded.
function Job:encode_ahead(model, prompts)
  if not model.encode_ahead then return end
  local p = self.params
  local function ahead(stand_in, text, negative)
    local ok, parsed = pcall(require("melies.prompt").parse, text, { style = p.prompt_style, seed = self.seed,
      wildcards = p.wildcards, negative = negative })
    if ok then stand_in:encode(parsed, { truncate = p.truncate, steps = p.steps }) end
  end
  model:encode_ahead(function(stand_in)
    for _, text in ipairs(prompts) do ahead(stand_in, text) end
    ahead(stand_in, p.negative or "", true)
  end)
end

-- An image file as a frame [1, H, W, 3] of the film's size; nil for nil.
function Job:image(path)
  local p = self.params
  return path and self:check(require("melies.media").load(path, { width = p.width, height = p.height, frames = 1 }))
end

-- What the model is given beside the texts: p.fps, and first and last image [1, H, W, 3] for a latent of that shape.
function Job:conditions(model, shape, first, last)
  local stage = first and self:progress("looking at the image", 1)
  local condition = self:check(model:conditions { first = first, last = last, shape = shape, fps = self.params.fps })
  if stage then stage:step(1) end
  return condition
end

-- { text =, negative = } of p.prompt and p.negative, for guides.
function Job:texts(model)
  local p, stage = self.params, self:progress("encoding the text", 1)
  self:encode_ahead(model, { p.prompt })
  local texts = { text = self:encode(model, p.prompt),
    negative = self:encode(model, p.negative or "", { negative = true }) }
  stage:step(1)
  return texts
end

-- make(...), whose refusals are about the values that the user gave: the place in the code is left out.
local function made_of_values(make, ...)
  local ok, result = pcall(make, ...)
  if ok then return result end
  if type(result) ~= "string" then error(result, 0) end
  recipe.fail((result:gsub("^[^\n]-%.lua:%d+: ", "")), recipe.USAGE)
end

-- Gives the model the LoRAs of --lora and of the prompts that were encoded, and no others. Whoever samples without
-- job:guide and job:sample calls it first.
function Job:apply_loras(model)
  if not model.set_loras then
    if #self.loras > 0 then recipe.fail(("%s takes no LoRAs"):format(model.name or "the model")) end
    return
  end
  local applied, message = model:set_loras(self.loras)
  self:check(applied, message)
  if applied == self.applied then return end
  self.applied = applied
  for _, notice in ipairs(applied.notices) do self:notice("%s", notice) end
end

-- Descending sigmas of p.schedule, p.steps, p.shift and --schedule.* ; the last is 0.
function Job:sigmas(model, p)
  p = p or self.params
  local params = self:plugin_params("schedule")
  local registry = require "melies.registry"
  local plugin = type(p.schedule) == "table" and p.schedule or registry.get("schedule", p.schedule)
  if plugin and plugin.params and plugin.params.shift and params.shift == nil then params.shift = p.shift end
  if model.schedule_params and p.schedule == model.defaults.schedule then
    for key, value in pairs(model:schedule_params(p)) do
      if params[key] == nil then params[key] = value end
    end
  end
  return made_of_values(require("melies.schedule").make, p.schedule, p.steps, params, model)
end

-- denoise(x, sigma) of p.guide, p.guidance and --guide.* over the texts of opts: text=, negative=; condition= is what
-- job:conditions gave.
function Job:guide(model, opts)
  if model.causal and not self.told_causal then
    self.told_causal = true
    self:notice("%s was made to run block by block, as text_to_video does; here it sees all frames at once", model.name)
  end
  self:apply_loras(model)
  local p = self.params
  local params = self:plugin_params("guide")
  for key, value in pairs(opts) do params[key] = value end
  if params.scale == nil then params.scale = p.guidance end
  if p.guidance_low and p.guidance_low ~= p.guidance then
    params.low = { scale = p.guidance_low, below = model.boundary }
  end
  params.interval = params.interval or p.guidance_interval
  if params.condition == nil and model.conditions then params.condition = self:conditions(model) end
  if p.step_cache then
    self.step_cache = made_of_values(require("melies.step_cache").make, p.step_cache, self:plugin_params("step_cache"))
    params.cache = self.step_cache
  end
  local predicting = self.work and self.work:recorder(model) or model
  return made_of_values(require("melies.guide").make, p.guide or "cfg", predicting, params)
end

-- ---- noise and sampling ----------------------------------------------------------------------------

-- Standard normal f32 noise of the job's seed. stream: another number, other noise (a shot, a stage).
function Job:noise(shape, stream)
  return require("melies.tensor").noise(shape, { seed = self.seed, stream = stream or 0 })
end

-- x_0 of a sampler run over sigmas, with a progress bar; a cancel ends it after the step.
-- opts: label=, params= (default: the job's own --sampler.*), seed=, stream=, model=, space=, on_step(i, n, x, info),
-- whole= (all sigmas, where these are a part of a run: prompts that change follow them).
function Job:sample(sampler, denoise, x, sigmas, opts)
  opts = opts or {}
  local params = opts.params or (sampler == self.params.sampler and self:plugin_params("sampler")) or {}
  local model = opts.model or self.model
  local part = self:part(opts.label, model)
  if part and part.result then return part.result end
  local stage = self:progress(opts.label or "sampling", #sigmas - 1)
  local followers = { unpack(self.followers) }
  if model then
    self:apply_loras(model)
    if self.applied and self.applied.varies then followers[#followers + 1] = self.applied end
  end
  if #followers > 0 then denoise = require("melies.prompt").follow(denoise, opts.whole or sigmas, followers) end
  local result = require("melies.sampling").run(sampler, denoise, x, sigmas, {
    params = params, seed = opts.seed or self.seed, stream = opts.stream,
    space = opts.space or (model and model.space) or "flow",
    on_step = function(i, n, now, info)
      stage:step(i)
      if part then part:preview(info.denoised or now, i, n) end
      if opts.on_step then opts.on_step(i, n, now, info) end
    end,
  })
  if part then part:finish(result) end
  return result
end

-- The latent of a film that begins with an image [1, H, W, 3]: given to a model with an input for it (texts.condition),
-- else held by the sampler (melies.consistency). opts: last= (image), label=, stream= as in job:sample.
function Job:sample_from_image(model, texts, noise, image, opts)
  local p, consistency, known = self.params, require "melies.consistency", nil
  opts = opts or {}
  if model.image_input then
    texts.condition = self:conditions(model, noise.shape, image, opts.last)
  else
    known = model:encode_video(image)
  end
  local denoise = self:guide(model, texts)
  if known then denoise = consistency.hold_first(denoise, model, known, noise) end
  local latent = self:sample(p.sampler, denoise, noise, self:sigmas(model), { label = opts.label, stream = opts.stream })
  return known and consistency.set_first(latent, known) or latent
end

-- Frames of a latent, with a progress bar.
function Job:decode(model, latent)
  local stage, parts = self:progress("decoding", latent.shape[2]), {}
  model:decode_stream(latent, function(frames, i)
    parts[#parts + 1] = frames
    stage:step(i)
  end)
  return #parts == 1 and parts[1] or require("melies.tensor").concat(parts, 1)
end

-- ---- the output ------------------------------------------------------------------------------------

local function plain(value)
  if type(value) == "table" and value.kind then return value.name end
  if type(value) == "table" then
    local out = {}
    for k, v in pairs(value) do out[k] = plain(v) end
    return out
  end
  return value
end

-- What `melies info` shows of a film: recipe, parameters, seed, model, version.
function Job:metadata()
  local json = require "melies.json"
  local params = plain(self.params)
  for _, name in ipairs { "output", "latents", "save_latents", "reuse", "job", "fresh", "jobs", "report",
    "report_checks" } do
    params[name] = nil
  end
  return {
    melies_recipe = self.recipe.name,
    melies_params = json.encode(params),
    melies_seed = ("%.0f"):format(self.seed),
    melies_model = self.model and self.model.name or tostring(self.params.model or ""),
    melies_version = ffi.string(lib.C.mel_version()),
  }
end

-- What media.save and media.writer are told: the job's parameters, its sound where the format holds one, then opts.
function Job:output_settings(opts)
  local p = self.params
  local settings = { fps = p.fps, quality = p.quality, bitrate = p.bitrate, codec = p.codec, metadata = self:metadata() }
  local path = opts and opts.output or self.output
  if p.audio and path and require("melies.media").holds_sound(path, opts and opts.format) then
    settings.audio, settings.audio_from = p.audio, p.audio_from
  end
  for key, value in pairs(opts or {}) do settings[key] = value end
  settings.output = nil
  return settings
end

-- Writes frames [T, H, W, 3] to the job's output and returns its path; without an output (a call from Lua) nothing
-- is written. opts: output=, and what media.save takes.
function Job:save(frames, opts)
  local path = (opts and opts.output) or self.output
  if not path then return nil end
  self:check_cancel()
  local settings = self:output_settings(opts)
  local stage = self:progress("writing " .. path, 1)
  self:check(require("melies.media").save(path, frames, settings))
  stage:step(1)
  self.saved = path
  return path
end

-- A writer for frames that come one by one: writer:write(frames), writer:close(). The job aborts it if it fails.
function Job:writer(opts)
  local path = (opts and opts.output) or self.output
  if not path then return nil end
  local settings = self:output_settings(opts)
  local writer = self:check(require("melies.media").writer(path, settings))
  self.writers[#self.writers + 1] = writer
  self.saved = path
  return writer
end

-- A place that cannot take the output, and a format that is not known, are told before the work, not after it.
local function check_output(path, settings)
  local ok, writer, message = pcall(require("melies.media").writer, path, settings)
  if not ok then writer, message = nil, (tostring(writer):gsub("^[^\n]-%.lua:%d+: ", "")) end
  if not writer then recipe.fail(message) end
  writer:abort()
end

-- ---- latents that are kept -------------------------------------------------------------------------

-- Parameters that do not change a latent.
local after_sampling = { output = true, fps = true, quality = true, bitrate = true, codec = true, latents = true,
  save_latents = true, reuse = true, seconds = true, strict = true }

-- --latents FILE: the latent, and the parameters that it was made with in place of the job's.
local function load_latent(job, path)
  local f, message = require("melies.weights").open(path)
  if not f then recipe.fail(message) end
  if not f:has "latent" then recipe.fail(path .. ": there is no tensor 'latent' in it") end
  local latent, stored = f:get("latent", "f32"):clone(), {}
  local text = f.metadata.melies_params
  f:close()
  if latent.ndim ~= 4 then recipe.fail(("%s: the latent has %d dimensions, not [C, T, H, W]"):format(path, latent.ndim)) end
  local ok, decoded = pcall(require("melies.json").decode, text or "{}")
  if ok and type(decoded) == "table" then stored = decoded end
  local known = recipe.params(job.recipe)
  for key, value in pairs(stored) do
    local name = key:match "^([%w_]+)%."
    if (known[key] or known[name]) and (not after_sampling[key] or job.params[key] == nil) and key ~= "lora"
      and (key ~= "model" or job.params.model == known.model.default) then
      job.params[key] = value
    end
  end
  job.film_latent, job.seed = latent, tonumber(job.params.seed) or job.seed
end

-- The hash of each part's files, its configuration and the LoRAs; nil where the files cannot be named.
local function model_identity(job, model)
  local cache, fields = require "melies.cache", { loras = {} }
  for i, lora in ipairs(job.loras) do fields.loras[i] = { cache.identity(lora.file), lora.strength } end
  local parts = { "dit", "text_encoder", "autoencoder", model.sources and model.sources.image_encoder and "image_encoder" }
  for _, part in ipairs(parts) do
    for i, weights in ipairs(model.sources and require("melies.budget").files(model.sources[part].weights) or { false }) do
      local files = weights and weights:files()
      if not files then return nil end
      fields[part .. i] = cache.identity(files)
    end
    fields["config_" .. part] = model.config[part]
  end
  return fields
end

-- The job's next part in its folder, nil where it has none. What the bits depend on is compared with what is there.
function Job:part(label, model)
  local work = self.work
  if not work then return nil end
  if not work.bound then
    local fields = model and model_identity(self, model) or {}
    fields.compute = model and model.dit and model.dit.dtype
    for name, spec in pairs(recipe.params(self.recipe)) do
      local value = self.params[name]
      if type(value) == "string" then
        if spec[1] == "image" or spec[1] == "video" or (spec[1] == "file" and name ~= "latents") then
          fields["file_" .. name] = require("melies.cache").identity(value)
        elseif spec[1] == "sampler" or spec[1] == "schedule" or spec[1] == "guide" then
          local entry = require("melies.registry").find(spec[1], value)
          fields["plugin_" .. name] = entry and entry.path and require("melies.cache").identity(entry.path)
        end
      end
    end
    self:check(work:bind(fields))
    work.bound = true
  end
  return work:part(label)
end

-- Everything that the latent depends on, or nil where that cannot be said: a plugin given as a table.
local function latent_key(job, model, disk)
  local cache, registry = require "melies.cache", require "melies.registry"
  local fields, all = { recipe = job.recipe.name, seed = job.seed, compute = model.dit.dtype }, recipe.params(job.recipe)
  for key, value in pairs(job.params) do
    local kind = all[key] and all[key][1]
    if type(value) == "table" and (value.kind or kind == "list") then return nil end
    if kind == "image" or kind == "video" or kind == "file" then value = cache.identity(value) end
    if kind == "sampler" or kind == "schedule" or kind == "guide" then
      local entry = registry.find(kind, value)
      value = { value, entry and entry.path and cache.identity(entry.path) }
    end
    if not after_sampling[key] then fields[key] = value end
  end
  local identity = model_identity(job, model)
  if not identity then return nil end
  fields.lora = nil
  for name, value in pairs(identity) do fields[name] = value end
  local ok, key = pcall(disk.key, disk, "latent", fields)
  return ok and key or nil
end

-- The latent of the film: that of --latents, where --reuse allows it the one that the same job made before, else
-- make(). --save-latents keeps it in a file, before it is decoded.
function Job:latent(model, make)
  local p, latent = self.params, self.film_latent
  local disk = p.reuse and not latent and require("melies.cache").default()
  local key = disk and latent_key(self, model, disk)
  local found = key and disk:get("latent", key)
  if found then
    latent = found.latent
    self:notice("the latent of the same job was kept: nothing is sampled")
  end
  if not latent then
    latent = make()
    if key then disk:put("latent", key, { latent = latent }, { prompt = p.prompt }) end
  end
  if p.save_latents then
    local metadata = self:metadata()
    self:check(require("melies.weights").save(p.save_latents, { latent = latent }, metadata))
  end
  return latent
end

-- ---- beginning and end -----------------------------------------------------------------------------

-- plugin, values and opts as recipe.run takes them.
function M.new(plugin, values, opts)
  local params = {}
  for key, value in pairs(values) do params[key] = value end
  local job = setmetatable({
    recipe = plugin, params = params, opts = opts, given = values, kept = params.job ~= nil, notices = {}, writers = {},
    followers = {}, loras = { unpack(values.lora or {}) },
    seed = opts.seed or params.seed or 0,
    output = opts.output or params.output,
    make_stage = factory_of(opts.progress),
  }, Job)
  params.seed = job.seed
  return job
end

-- The folder that keeps the job while it is unfinished: --job, or beside the output where the program runs it.
function Job:open_work()
  local p, durable = self.params, require "melies.durable"
  local folder = p.job or (self.opts.keep == false and self.output and self.output .. ".job")
  local fresh = p.fresh
  if not recipe.params(self.recipe).job then return end
  p.job, p.fresh = nil, nil
  if not folder or self.film_latent then return end
  if self.opts.worker then
    self.work = self:check(durable.join(folder))
    return
  end
  local values = {}
  for name, value in pairs(self.given) do values[name] = value end
  values.seed, values.output = self.seed, self.output
  local work, message, busy = durable.open(folder, { recipe = self.recipe.path or self.recipe.name, values = values },
    { fresh = fresh })
  if not work and not self.kept and not busy and not require("melies.fs").stat(folder) then return end -- cannot be written
  self.work = self:check(work, message)
  if self.output then durable.remove_partials(self.output) end
  if not work.begun then self:notice("going on with the job in %s", folder) end
end

-- Called by the runner before the recipe's own function.
function Job:begin()
  local p = self.params
  if p.latents then load_latent(self, p.latents) end
  if p.save_latents then
    local box = ffi.new("mel_weights_writer*[1]")
    self:check(lib.try(lib.C.mel_weights_writer_create, p.save_latents, box))
    lib.C.mel_weights_writer_free(box[0])
  end
  if self.output and recipe.params(self.recipe).output[1] == "output" then -- else the recipe writes no film
    local settings = self:output_settings()
    settings.metadata, settings.fps = nil, nil
    check_output(self.output, settings)
    if p.audio and not settings.audio then self:notice("%s: this format holds no sound; MP4 and WebM do", self.output) end
  end
  self:open_work()
end

-- Called by the runner: ends bars, drops unfinished writers, frees what the job made but for `result`.
function Job:finish(ok)
  self:end_stage()
  for _, writer in ipairs(self.writers) do
    if not ok and writer.abort then writer:abort() end
  end
  if self.work then
    if self.opts.worker then self.work:close()
    elseif ok then self.work:finish(self.kept)
    else self.work:abandon() end
  end
  if self.limit_before then lib.C.mel_mem_set_limit(self.limit_before) end
  self.model, self.writers, self.film_latent, self.streamed, self.work = nil, {}, nil, nil, nil
  collectgarbage()
  collectgarbage()
end

require("melies.job_film")(Job)

M.Job = Job
return M
