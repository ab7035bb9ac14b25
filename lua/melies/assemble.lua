-- A model from published checkpoints: a file or a folder of them, whose parts are seen from what they hold
-- (melies.checkpoint), with single parts given by the user in place of the folder's.
--
--   assemble.open(path, { text_encoder=, autoencoder=, image_encoder=, tokenizer= }) -> set | nil, message
--
-- set: { folder, config (as in a model folder's config.json), parts = { dit, text_encoder, autoencoder, image_encoder =
-- { module, weights, settings } }, tokenizer (a path) }

local assemble = {}

-- What each variant is sampled with: Wan2.1 and Wan2.2, wan/configs and README, facts only. width and height are those of 480p.
local wan21 = { frames = 81, fps = 16, width = 832, height = 480, steps = 50, sampler = "uni_pc", schedule = "wan_unipc",
  shift = 5, guidance = 5 }
local function with(base, more)
  local out = {}
  for key, value in pairs(base) do out[key] = value end
  for key, value in pairs(more) do out[key] = value end
  return out
end
local samples = {
  { "self%-forcing", with(wan21, { steps = 4, sampler = "lcm", schedule = "fewstep", guidance = 1 }) },
  { "^wan.*%-ti2v", with(wan21, { frames = 121, fps = 24, width = 1280, height = 704 }) },
  { "^wan2.2%-i2v", with(wan21, { steps = 40, guidance = 3.5 }) },
  { "^wan.*%-i2v", with(wan21, { steps = 40, shift = 3 }) },
  { "^wan.*%-flf2v", with(wan21, { shift = 16 }) },
  { "^wan2.2", with(wan21, { steps = 40, shift = 12, guidance = 4, guidance_low = 3 }) },
  { "^wan", wan21 },
  -- Lightricks/LTX-Video, inference.py and schedulers/rf.py: the shift goes by the number of tokens.
  { "^ltx", { frames = 121, fps = 25, width = 704, height = 480, steps = 40, sampler = "euler", schedule = "flow",
    guidance = 3 }, { dynamic = true, terminal = 0.1 } },
}

-- What a part takes that its tensors do not tell.
local inputs = {
  wan_dit = function(c) c.first_frame = c.out_channels == 48 or nil end, -- TI2V-5B
  ltx_dit = function(c) c.first_frame, c.takes_fps, c.text_len = true, true, 128 end,
  -- A decoder that is told a timestep gets as much noise (Lightricks/LTX-Video, configs: decode_noise_scale).
  ltx_vae = function(c) c.decode_noise, c.decode_timestep = c.timed and 0.025 or nil, 0.05 end,
}

-- What LTX-Video's own files say in their metadata; without it, the first versions count the first frame as eight, those
-- whose encoder passes its input around the down-sampling (0.9.5 and later) as the one that it is.
local function ltx_settings(set)
  local dit, vae = set.parts.dit, set.parts.autoencoder
  local deep = false
  for _, block in ipairs(vae.settings.down or {}) do deep = deep or (block.kind == "size" and block.conv == "conv.conv") end
  local said = {}
  for _, part in ipairs { dit, vae } do
    local ok, config = pcall(require("melies.json").decode, part.weights.metadata.config or "{}")
    for key, value in pairs(ok and type(config) == "table" and config or {}) do said[key] = value end
  end
  local transformer, coder = type(said.transformer) == "table" and said.transformer or {},
    type(said.vae) == "table" and said.vae or {}
  dit.settings.causal_fix = deep
  if transformer.causal_temporal_positioning ~= nil then
    dit.settings.causal_fix = transformer.causal_temporal_positioning == true
  end
  vae.settings.causal_decoder, vae.settings.spatial_padding_mode = coder.causal_decoder, coder.spatial_padding_mode
end

local function sample_of(variant)
  for _, row in ipairs(samples) do
    if variant:lower():find(row[1]) then return row[2], row[3] end
  end
end

local function scan(path)
  local checkpoint = require "melies.checkpoint"
  local folder = require "melies.checkpoint.folder"
  if folder.is_folder(path) then return checkpoint.scan(path) end
  local weights, message = require("melies.weights").open(path)
  if not weights then return nil, message end
  local parts
  parts, message = checkpoint.parts(weights)
  if not parts then return nil, message end
  return { path = path, parts = parts }
end

-- The part of a kind that path holds.
local function part_of(path, kind)
  local found, message = scan(path)
  if not found then return nil, message end
  for _, part in ipairs(found.parts) do
    if part.part == kind then return part end
  end
  local held = {}
  for i, part in ipairs(found.parts) do held[i] = part.part end
  return nil, ("%s: holds no %s but %s"):format(path, kind:gsub("_", " "), table.concat(held, ", "))
end

local missing = {
  dit = { "a diffusion transformer", "" }, text_encoder = { "a text encoder", ": give --text-encoder FILE" },
  autoencoder = { "an autoencoder", ": give --vae FILE" },
}

function assemble.open(path, given)
  given = given or {}
  local checkpoint = require "melies.checkpoint"
  local found, message = scan(path)
  if not found then return nil, message end
  local chosen = {}
  for _, part in ipairs(found.parts) do
    local other = chosen[part.part]
    if other and not given[part.part] and missing[part.part] then
      return nil, ("%s: holds more than one %s: %s and %s; name one"):format(path, missing[part.part][1]:gsub("^an? ", ""),
        other.path, part.path)
    end
    chosen[part.part] = other or part
  end
  for _, kind in ipairs { "text_encoder", "autoencoder", "image_encoder" } do
    if given[kind] then
      chosen[kind], message = part_of(given[kind], kind)
      if not chosen[kind] then return nil, message end
    end
  end
  local set = { folder = path, config = {}, parts = {} }
  for _, kind in ipairs { "dit", "text_encoder", "autoencoder" } do
    if not chosen[kind] then return nil, ("%s: %s is missing%s"):format(path, missing[kind][1], missing[kind][2]) end
  end
  local variant = chosen.dit.variant or chosen.dit.title
  for _, kind in ipairs { "dit", "dit_low", "text_encoder", "autoencoder", "image_encoder" } do
    local part = chosen[kind]
    if part then
      message = checkpoint.problems(part)
      if message then return nil, message end
      if not part.model then return nil, ("%s: %s is recognised, but nothing here runs it"):format(part.path, part.title) end
      local settings = {}
      for key, value in pairs(part.config or {}) do settings[key] = value end
      if kind == "dit" and settings.heads == nil then
        return nil, ("%s: the width %s says nothing of its heads: a config.json beside it must give num_attention_heads")
          :format(part.path, tostring(settings.dim))
      end
      if inputs[part.model] then inputs[part.model](settings) end
      set.parts[kind] = { module = require("melies.models." .. part.model), weights = checkpoint.view(part),
        settings = settings }
      set.config[kind] = settings
    end
  end
  -- The two experts of A14B as one transformer.
  if set.parts.dit_low then
    local low = set.parts.dit_low
    set.parts.dit = { module = require "melies.models.wan_experts", settings = set.parts.dit.settings,
      weights = { high = set.parts.dit.weights, low = low.weights } }
    set.parts.dit_low, set.config.dit_low = nil, nil
  end
  local tokenizer = given.tokenizer or found.tokenizer
  if not tokenizer and given.text_encoder then
    local beside = scan(given.text_encoder:match "^(.*)/[^/]*$" or ".")
    tokenizer = beside and beside.tokenizer
  end
  if not tokenizer then
    return nil, ("%s: there is no tokenizer (spiece.model or tokenizer.json): give --tokenizer FILE"):format(path)
  end
  set.tokenizer = tokenizer
  set.config.sample, set.config.schedule = sample_of(variant)
  if chosen.dit.model == "ltx_dit" and chosen.autoencoder.model == "ltx_vae" then ltx_settings(set) end
  if not set.config.sample then
    return nil, ("%s: %s is recognised, but melies has no pipeline for it"):format(path, variant)
  end
  set.variant = variant
  return set
end

return assemble
