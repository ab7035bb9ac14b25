-- `melies fake-checkpoint`: files with random values in the exact layouts of published models, for trying what the real
-- ones need of time and memory. Values depend on the model's name, the seed, the tensor's canonical name and the place
-- in it alone, so every layout and precision of one model holds the same ones.
--
--   fake.make(name, folder, options) -> { path, ... } | nil, message
--   options: layout ("wan", "comfyui", "diffusers"), dtype (as melies convert; quantised types write GGUF), format
--   ("gguf": GGUF in a plain type too), seed (0), shard (bytes of a shard, diffusers only: 5 GB), label (progress)
--   fake.names() -> every model, each also as NAME-tiny
--
-- Matrices and kernels are uniform with standard deviation 1/sqrt(inputs), norms near one, biases small: activations
-- stay of the size that real ones have.
local checkpoint = require "melies.checkpoint"
local convert = require "melies.convert"
local json = require "melies.json"
local keys = require "melies.checkpoint.keys"
local lib = require "melies.ffi.lib"
local T = require "melies.tensor"

local fake = {}

-- ---- models ----------------------------------------------------------------------------------------------------------

local function wan(dim, layers, ffn, more)
  local c = { dim = dim, layers = layers, ffn = ffn, text_dim = 4096, freq_dim = 256, in_channels = 16, out_channels = 16,
    patch = { 1, 2, 2 }, heads = dim / 128 }
  for key, value in pairs(more or {}) do c[key] = value end
  return c
end
local image = { in_channels = 36, image_dim = 1280 }
local first_last = { in_channels = 36, image_dim = 1280, image_tokens = 514 }

-- LTX-Video's autoencoder: 0.9, or 0.9.1 with a decoder that is told a timestep. Lightricks' configurations, facts only.
local function ltx_vae(base, z, timed)
  local list
  local function res(width, count)
    list[#list + 1] = { kind = "res", width = width, count = count, timed = timed and list.decoder and 256 or nil }
  end
  local function size(inputs, outputs, conv)
    list[#list + 1] = { kind = "size", shape = { outputs, inputs, 3, 3, 3 }, conv = conv }
  end
  local function wider(inputs, outputs) list[#list + 1] = { kind = "wider", shape = { outputs, inputs, 3, 3, 3 } } end
  local b = base
  local down, up = {}, { decoder = true }
  list = down
  res(b, 4); size(b, b, "conv"); wider(b, 2 * b)
  res(2 * b, 3); size(2 * b, 2 * b, "conv"); wider(2 * b, 4 * b)
  res(4 * b, 3); size(4 * b, 4 * b, "conv"); res(4 * b, 3); res(4 * b, 4)
  list = up
  if timed then
    res(8 * b, 5); size(8 * b, 32 * b, "conv.conv"); res(4 * b, 6); size(4 * b, 16 * b, "conv.conv")
    res(2 * b, 7); size(2 * b, 8 * b, "conv.conv"); res(b, 8)
  else
    res(4 * b, 4); res(4 * b, 3); size(4 * b, 32 * b, "conv.conv"); res(4 * b, 3); wider(4 * b, 2 * b)
    size(2 * b, 16 * b, "conv.conv"); res(2 * b, 3); wider(2 * b, b); size(b, 8 * b, "conv.conv"); res(b, 4)
  end
  return { down = down, up = up, latent = z, encoder_in = { b, 48, 3, 3, 3 }, encoder_out = { z + 1, 4 * b, 3, 3, 3 },
    decoder_in = { timed and 8 * b or 4 * b, z, 3, 3, 3 }, decoder_out = { 48, b, 3, 3, 3 }, timed = timed and 256 or nil,
    multiplier = timed and { 1 } or nil }
end

-- Sizes: the configurations in Wan-Video/Wan2.1 and Wan2.2, wan/configs; umt5-xxl: wan/modules/t5.py; the image encoder:
-- wan/modules/clip.py, clip_xlm_roberta_vit_h_14; taew2_1: madebyollin/taehv. Facts only.
local models = {
  ["wan2.1-t2v-1.3b"] = { "wan_dit", wan(1536, 30, 8960) },
  ["wan2.1-t2v-14b"] = { "wan_dit", wan(5120, 40, 13824) },
  ["wan2.1-i2v-14b"] = { "wan_dit", wan(5120, 40, 13824, image) },
  ["wan2.1-flf2v-14b"] = { "wan_dit", wan(5120, 40, 13824, first_last) },
  ["wan2.2-ti2v-5b"] = { "wan_dit", wan(3072, 30, 14336, { in_channels = 48, out_channels = 48 }) },
  ["wan2.2-a14b"] = { "wan_dit", wan(5120, 40, 13824), experts = true },
  ["wan2.2-i2v-a14b"] = { "wan_dit", wan(5120, 40, 13824, { in_channels = 36 }), experts = true },
  ["umt5-xxl"] = { "t5", { vocab = 256384, dim = 4096, dim_attn = 4096, dim_ffn = 10240, heads = 64, layers = 24,
    buckets = 32 } },
  ["t5-v1.1-xxl"] = { "t5", { vocab = 32128, dim = 4096, dim_attn = 4096, dim_ffn = 10240, heads = 64, layers = 24,
    buckets = 32, shared_pos = true } },
  ["wan2.1-vae"] = { "wan_vae", { dim = 96, decoder_dim = 96, z = 16 } },
  ["wan2.2-vae"] = { "wan_vae_22", { dim = 160, decoder_dim = 256, z = 48 } },
  ["taew2_1"] = { "taehv", { encoder = 64, decoder = { 256, 128, 64, 64 }, latent = 16, patch = 1, pool = { 2, 2, 1 },
    grow = { 1, 2, 2 } } },
  ["taew2_2"] = { "taehv", { encoder = 64, decoder = { 256, 128, 64, 64 }, latent = 48, patch = 2, pool = { 2, 2, 1 },
    grow = { 1, 2, 2 } } },
  ["ltx-video-2b"] = { "ltx_dit", { dim = 2048, layers = 28, ffn = 8192, in_channels = 128, out_channels = 128,
    text_dim = 4096, freq_dim = 256, heads = 32 } },
  ["ltx-vae-0.9"] = { "ltx_vae", ltx_vae(128, 128, false) },
  ["ltx-vae-0.9.1"] = { "ltx_vae", ltx_vae(128, 128, true) },
  ["clip-vision"] = { "clip_vision", { width = 1280, patch = 14, tokens = 257, layers = 32, mlp = 5120, out = 1024 } },
}

-- Small enough for tests, wide enough that every kind of tensor has whole blocks of 256.
local tiny = {
  wan_dit = function(c)
    local image_dim = c.image_dim and 160
    return wan(256, 2, 512, { text_dim = 64, freq_dim = 64, in_channels = c.in_channels, out_channels = c.out_channels,
      image_dim = image_dim, image_tokens = c.image_tokens and 34 })
  end,
  t5 = function(c)
    return { vocab = 512, dim = 64, dim_attn = 64, dim_ffn = 256, heads = 4, layers = 2, buckets = 32,
      shared_pos = c.shared_pos }
  end,
  wan_vae = function() return { dim = 8, decoder_dim = 8, z = 16 } end,
  wan_vae_22 = function() return { dim = 8, decoder_dim = 8, z = 48 } end,
  taehv = function(c)
    return { encoder = 8, decoder = { 16, 16, 8, 8 }, latent = c.latent, patch = c.patch, pool = c.pool, grow = c.grow }
  end,
  ltx_dit = function()
    return { dim = 256, layers = 2, ffn = 512, in_channels = 16, out_channels = 16, text_dim = 64, freq_dim = 256, heads = 4 }
  end,
  ltx_vae = function(c) return ltx_vae(4, 16, c.timed ~= nil) end,
  clip_vision = function() return { width = 160, patch = 7, tokens = 17, layers = 3, mlp = 256, out = 32 } end,
}

function fake.names()
  local out = {}
  for name in pairs(models) do out[#out + 1] = name end
  table.sort(out)
  return out
end

-- The architecture and configuration of a name, "-tiny" at its end included.
function fake.model(name)
  local base = name:match "^(.*)%-tiny$"
  local model = models[base or name]
  if not model then
    -- "wan2.1-t2v-tiny": the size left out
    if base then
      for _, full in ipairs(fake.names()) do if full:sub(1, #base + 1) == base .. "-" then model = models[full] break end end
    end
    if not model then
      return nil, ("no model '%s'%s (%s; each also as NAME-tiny)"):format(name, lib.suggest(name, fake.names()),
        table.concat(fake.names(), ", "))
    end
  end
  local architecture = checkpoint.architecture(model[1])
  local config = base and tiny[model[1]](model[2]) or model[2]
  return { name = name, architecture = architecture, config = config, experts = model.experts }
end

-- ---- values ----------------------------------------------------------------------------------------------------------

-- FNV-1a, 32 bits.
local function hash(text)
  local bit = require "bit"
  local h = bit.tobit(2166136261)
  for i = 1, #text do
    h = bit.bxor(h, text:byte(i))
    -- * 16777619 = 2^24 + 403, modulo 2^32
    h = bit.tobit(bit.lshift(h, 24) + (h % 2 ^ 32 * 403) % 2 ^ 32)
  end
  return h % 2 ^ 32
end

-- Mean and standard deviation of an entry's values.
local function spread(e)
  if e.kind == "norm" then return 1, 0.05 end
  if e.kind == "bias" then return 0, 0.02 end
  if e.kind == "embedding" then return 0, 1 end
  if e.kind == "modulation" then return 0, 1 / math.sqrt(e.shape[#e.shape]) end
  if e.kind == "position" then return 0, 0.1 end
  return 0, (e.scale or 1) / math.sqrt(math.max(1, keys.numel(e.shape) / e.shape[1]))
end

-- Rows first..last of an entry, f32.
local function generator(e, seed)
  local mean, deviation = spread(e)
  local reach = math.sqrt(3) * deviation
  local stream = hash(e.name)
  local columns = keys.numel(e.shape) / math.max(1, e.shape[1] or 1)
  return function(first, last)
    local shape = #e.shape == 0 and {} or { last - first + 1, unpack(e.shape, 2) }
    local x = T.empty(shape, "f32")
    lib.call(lib.C.mel_noise_hash_uniform, seed, stream, (first - 1) * columns, mean - reach, mean + reach, x.handle)
    return x
  end
end

local function entries_of(model, seed)
  local list = model.architecture.tensors(model.config)
  for _, e in ipairs(list) do e.read, e.dtype = generator(e, seed), "f32" end
  return list
end

-- fake.weights(name, config): the same values in memory, made as they are taken; config overrides sizes (layers = 2).
function fake.weights(name, config)
  local model, message = fake.model(name)
  if not model then error(message, 2) end
  local sizes = {}
  for key, value in pairs(model.config) do sizes[key] = value end
  for key, value in pairs(config or {}) do sizes[key] = value end
  local entries, names = {}, {}
  for i, e in ipairs(entries_of({ architecture = model.architecture, config = sizes }, 0)) do
    entries[e.name], names[i] = e, e.name
  end
  local out = {}
  function out:names() return names end
  function out:has(key) return entries[key] ~= nil end
  function out:shape(key) return entries[key].shape end
  function out:get(key) return entries[key].read(1, entries[key].shape[1] or 1) end
  return out, sizes
end

-- ---- files -----------------------------------------------------------------------------------------------------------

local function write_text(path, text)
  local f, message = io.open(path, "wb")
  if not f then return nil, message end
  f:write(text)
  f:close()
  return true
end

-- Where diffusers keeps a part, and what its files are called.
local places = {
  dit = { "transformer", "diffusion_pytorch_model" }, text_encoder = { "text_encoder", "model" },
  autoencoder = { "vae", "diffusion_pytorch_model" }, image_encoder = { "image_encoder", "model" },
}

-- The part's config.json: what loaders look for.
local function config_text(model)
  local c, kind = model.config, model.architecture.name
  if kind == "wan_dit" then
    return json.encode { _class_name = "WanTransformer3DModel", num_attention_heads = c.heads, attention_head_dim =
      c.dim / c.heads, in_channels = c.in_channels, out_channels = c.out_channels, num_layers = c.layers, ffn_dim = c.ffn,
      text_dim = c.text_dim, freq_dim = c.freq_dim, patch_size = c.patch, image_dim = c.image_dim }
  elseif kind == "t5" then
    return json.encode { architectures = { c.shared_pos and "T5EncoderModel" or "UMT5EncoderModel" }, d_model = c.dim,
      num_heads = c.heads, d_ff = c.dim_ffn, num_layers = c.layers, vocab_size = c.vocab }
  elseif kind == "ltx_dit" then
    return json.encode { _class_name = "LTXVideoTransformer3DModel", num_attention_heads = c.heads, attention_head_dim =
      c.dim / c.heads, in_channels = c.in_channels, num_layers = c.layers, caption_channels = c.text_dim }
  elseif kind == "ltx_vae" then
    return json.encode { _class_name = "AutoencoderKLLTXVideo", timestep_conditioning = c.timed ~= nil }
  end
  return json.encode { _class_name = kind:find "^wan_vae" and "AutoencoderKLWan" or "CLIPVisionModelWithProjection" }
end

-- Shards of at most `limit` bytes and their index.
local function write_shards(folder, stem, entries, options, limit)
  local shards, sizes, total = { {} }, { 0 }, 0
  for _, e in ipairs(entries) do
    local bytes = convert.bytes_of(e, options)
    if sizes[#sizes] > 0 and sizes[#sizes] + bytes > limit then shards[#shards + 1], sizes[#sizes + 1] = {}, 0 end
    local last = shards[#shards]
    last[#last + 1], sizes[#sizes], total = e, sizes[#sizes] + bytes, total + bytes
  end
  local paths, map = {}, {}
  for i, shard in ipairs(shards) do
    local name = #shards == 1 and stem .. ".safetensors" or ("%s-%05d-of-%05d.safetensors"):format(stem, i, #shards)
    paths[i] = folder .. "/" .. name
    local facts, message = convert.write(paths[i], shard, options)
    if not facts then return nil, message end
    for _, e in ipairs(shard) do map[e.name] = name end
  end
  if #shards > 1 then
    local index = ("%s/%s.safetensors.index.json"):format(folder, stem)
    local ok, message = write_text(index, json.encode { metadata = { total_size = total }, weight_map = map })
    if not ok then return nil, message end
    paths[#paths + 1] = index
  end
  return paths
end

local known = { layout = true, dtype = true, seed = true, shard = true, label = true, format = true }

-- One model's tensors into one folder. stem: of a single file.
local function write_model(model, folder, stem, seed, options)
  local rename, prefix = convert.naming(model.architecture, options.layout, model.config)
  if not rename then return nil, ("%s: layout %s: %s"):format(model.name, options.layout, prefix) end
  local entries, message = convert.renamed(entries_of(model, seed), rename, prefix)
  if not entries then return nil, ("%s: layout %s: %s"):format(model.name, options.layout, message) end
  local ok
  ok, message = require("melies.fs").make(folder)
  if not ok then return nil, message end
  local settings = { format = options.format, dtype = options.dtype, quick = true, label = options.label,
    architecture = convert.gguf_name(model.architecture.name) }
  if options.layout == "diffusers" and options.format == "safetensors" then
    ok, message = write_text(folder .. "/config.json", config_text(model))
    if not ok then return nil, message end
    return write_shards(folder, places[model.architecture.part][2], entries, settings, options.shard or 5e9)
  end
  local path = ("%s/%s.%s"):format(folder, stem, options.format)
  local facts
  facts, message = convert.write(path, entries, settings)
  if not facts then return nil, message end
  return { path }
end

function fake.make(name, folder, given)
  given = given or {}
  lib.check_options("fake.make", given, known)
  local model, message = fake.model(name)
  if not model then return nil, message end
  local options = { layout = given.layout or "wan", label = given.label, shard = given.shard }
  if given.dtype then
    options.dtype, message = convert.dtype(given.dtype)
    if not options.dtype then return nil, message end
  else
    options.dtype = given.format == "gguf" and "q8_0" or "bf16"
  end
  local quantised = options.dtype:find "^q" ~= nil
  if given.format == "safetensors" and quantised then return nil, options.dtype .. " is a type of GGUF" end
  options.format = given.format or (quantised and "gguf" or "safetensors")
  local seed, out = given.seed or 0, {}
  local list = { { "", seed, name } }
  if model.experts then
    list = { { "high_noise_model", seed, name .. "-high" }, { "low_noise_model", seed + 1, name .. "-low" } }
  end
  for i, item in ipairs(list) do
    local place = folder
    if options.layout == "diffusers" and options.format == "safetensors" then
      if not places[model.architecture.part] or model.architecture.name == "taehv" then
        return nil, name .. ": diffusers has no folder for it"
      end
      place = place .. "/" .. places[model.architecture.part][1] .. (i > 1 and "_" .. i or "")
    elseif item[1] ~= "" then
      place = place .. "/" .. item[1]
    end
    local stem = item[3] .. (options.format == "gguf" and "-" .. options.dtype or "")
    local paths
    paths, message = write_model(model, place, stem, item[2], options)
    if not paths then return nil, message end
    for _, path in ipairs(paths) do out[#out + 1] = path end
  end
  if model.architecture.part == "text_encoder" and model.config.vocab then
    local place = options.layout == "diffusers" and options.format == "safetensors" and folder .. "/tokenizer" or folder
    local ok
    ok, message = require("melies.fs").make(place)
    if ok then
      ok, message = write_text(place .. "/spiece.model", require "melies.fake_tokenizer"(model.config.vocab))
    end
    if not ok then return nil, message end
    out[#out + 1] = place .. "/spiece.model"
  end
  if options.layout == "diffusers" and options.format == "safetensors" and model.architecture.part == "dit" then
    local ok
    ok, message = write_text(folder .. "/model_index.json", json.encode {
      _class_name = model.architecture.name == "ltx_dit" and "LTXPipeline" or "WanPipeline" })
    if not ok then return nil, message end
  end
  return out
end

-- ---- the command -------------------------------------------------------------------------------------------------------

local function one_of(name, value, list)
  for _, v in ipairs(list) do if v == value then return nil end end
  return ("--%s is '%s'%s (%s)"):format(name, value, lib.suggest(value, list), table.concat(list, ", "))
end

-- Words after `melies fake-checkpoint`. An exit code, and a message where it failed.
function fake.main(words, say)
  local options, values, i = { label = "fake" }, {}, 1
  local scale
  while i <= #words do
    local name, value = words[i]:match "^%-%-([%w-]+)=?(.*)$"
    if name then
      if name ~= "layout" and name ~= "dtype" and name ~= "seed" and name ~= "scale" and name ~= "shard" and name ~= "format"
      then
        return 2, ("fake-checkpoint: unknown option '--%s'%s"):format(name, lib.suggest(name, { "layout", "dtype", "seed",
          "scale", "shard", "format" }))
      end
      if value == "" then
        i = i + 1
        value = words[i]
      end
      if not value then return 2, "--" .. name .. " wants a value" end
      local message
      if name == "layout" then message = one_of(name, value, convert.layouts)
      elseif name == "scale" then message = one_of(name, value, { "full", "tiny" })
      elseif name == "format" then message = one_of(name, value, { "safetensors", "gguf" })
      elseif name == "seed" then
        value = tonumber(value)
        if not value or value < 0 or value % 1 ~= 0 then message = "--seed should be a whole number" end
      elseif name == "shard" then
        value = require("melies.cli").size(value)
        if not value then message = "--shard should be a size such as 5G" end
      end
      if message then return 2, message end
      if name == "scale" then scale = value else options[name] = value end
    else
      values[#values + 1] = words[i]
    end
    i = i + 1
  end
  if #values ~= 2 then
    return 2, "usage: melies fake-checkpoint NAME DIR; the names: " .. table.concat(fake.names(), ", ")
  end
  local name = values[1]
  if scale == "tiny" and not name:find "%-tiny$" then name = name .. "-tiny" end
  local model, why = fake.model(name)
  if not model then return 2, why end
  local paths, message = fake.make(name, values[2], options)
  if not paths then return 1, message end
  say(table.concat(paths, "\n"))
  return 0
end

return fake
