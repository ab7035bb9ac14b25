-- Fixtures of whole models (golden.lua). bf16 and q8_0: the limits of the relative L2 error of
-- outputs and intermediates in bf16, and in float32 with weights that went through Q8_0.
local melies = require "melies"
local T = melies.tensor

local function source(json)
  local s = json.source or {}
  return (s.repo or "") .. "/" .. (s.file or "")
end
local function called(json, start)
  return type(json["function"]) == "string" and json["function"]:sub(1, #start) == start
end

-- Q8_0 and back, in place: blocks of 32 along a row, as many as a row has (the last may be short), with a scale of f16.
local function through_q8_0(x)
  local rows = x.shape[1]
  local y = x:to("f32"):reshape(rows, -1):clone()
  local p, width = y:ptr(), y.shape[2]
  local blocks = math.ceil(width / 32)
  local scales = T.empty { rows, blocks }
  local s = scales:ptr()
  local function each(fn)
    for row = 0, rows - 1 do
      for block = 0, blocks - 1 do
        fn(row * width + block * 32, row * width + math.min(width, block * 32 + 32) - 1, row * blocks + block)
      end
    end
  end
  each(function(first, last, block)
    local most = 0
    for i = first, last do most = math.max(most, math.abs(p[i])) end
    s[block] = most / 127
  end)
  local rounded = scales:to("f16"):to("f32")
  local d = rounded:ptr()
  each(function(first, last, block)
    local inverse = s[block] > 0 and 1 / s[block] or 0
    for i = first, last do p[i] = math.floor(p[i] * inverse + 0.5) * d[block] end
  end)
  return y:reshape(x.shape)
end

-- The fixture's weights; in q8_0 those of linear layers and convolutions have gone through it.
local function weights_of(fixture)
  local file = fixture:weights()
  if fixture.compute ~= "q8_0" then return file end
  local out = {}
  for _, name in ipairs(file:names()) do
    local x = file:get(name)
    local matrix = x.ndim >= 2 and name:find("%.weight$") and not name:find("embedding%.weight$")
    out[name] = (matrix or name == "visual.patch_embedding.weight") and through_q8_0(x) or x
  end
  return out
end

local function load(fixture, model, config)
  return require("melies.models." .. model).load(weights_of(fixture), config,
    { compute = fixture.compute == "bf16" and "bf16" or "f32" })
end

-- ---- the diffusion transformer ----------------------------------------------------------------------------------

local function wan_dit(fixture)
  local json = fixture.json
  local net = load(fixture, "wan_dit", json.config)
  for number, case in ipairs(json.cases) do
    local at = ("case%d."):format(number - 1)
    local t = fixture:get(at .. "t"):list()
    for sample = 1, #case.latents do
      local here = ("%ssample%d."):format(at, sample - 1)
      local latent, text = fixture:get(here .. "latent"):unsqueeze(1), fixture:get(here .. "text")
      local seen, plain, short = fixture.traced(net, function()
        local a = net:forward(latent, { t[sample] }, net:context({ text }, { plain = true }))
        net.trace = nil
        return a, net:forward(latent, { t[sample] }, net:context { text })
      end)
      -- Rows that only pad the batch of the original are left out.
      local names = {}
      for name in pairs(seen) do names[#names + 1] = name end
      table.sort(names)
      for _, name in ipairs(names) do
        local want, got = fixture:get(at .. name), seen[name][1]
        if want then
          want = want:slice(1, sample, sample)
          if want.shape[2] > got.shape[2] then want = want:slice(2, 1, got.shape[2]) end
          fixture:close(("%s%s[%d]"):format(at, name, sample - 1), got, want)
        end
      end
      local want = fixture:get(here .. "output"):unsqueeze(1)
      fixture:close(here .. "output", plain, want)
      fixture:close(here .. "output, padding as one key", short, want)
    end
  end
  local probe = fixture:get("rope_probe_in")
  if probe then
    local grid = fixture:get("rope_probe_grid"):list()
    local cos, sin = require("melies.models.wan_dit").rope_tables(probe.shape[4], grid[1], grid[2], grid[3], 0)
    fixture:close("rope_probe_out", probe:rope(cos, sin, { interleaved = true }), fixture:get("rope_probe_out"))
  end
end

-- Compares every traced tensor that the fixture has, the first call of each name.
local function compare_traced(fixture, seen)
  local names = {}
  for name in pairs(seen) do names[#names + 1] = name end
  table.sort(names)
  for _, name in ipairs(names) do
    local want = fixture:get(name)
    if want then fixture:close(name, seen[name][1], want) end
  end
end

local function wan_dit_i2v(fixture)
  local net = load(fixture, "wan_dit", fixture.json.config)
  local latent, t = fixture:get("latent"):unsqueeze(1), fixture:get("t"):list()
  local texts = { fixture:get("text") }
  local beside = { image = fixture:get("clip_fea"), condition = fixture:get("y") }
  local want = fixture:get("output"):unsqueeze(1)
  local seen, plain = fixture.traced(net, function()
    return net:forward(latent, t, net:context(texts, { plain = true, image = beside.image,
      condition = beside.condition }))
  end)
  compare_traced(fixture, seen)
  fixture:close("output", plain, want)
  fixture:close("output, padding as one key", net:forward(latent, t, net:context(texts, beside)), want)
end

local function wan_causal(fixture)
  local json = fixture.json
  local net = load(fixture, "wan_causal", json.config)
  local context = net:context { fixture:get("text") }
  for _, case in ipairs(json.cases) do
    local stream = net:causal { frames_per_block = case.fpb, local_frames = case["local"], sink_frames = case.sink }
    for i, call in ipairs(case.calls) do
      local at = ("%s.call%d."):format(case.name, call.call)
      local got = stream:block(fixture:get(at .. "latent"):unsqueeze(1), call.t, context)
      fixture:close(at .. "output", got, fixture:get(at .. "output"):unsqueeze(1))
      local following = case.calls[i + 1]
      if following and following.block > call.block then stream:next() end
    end
  end
end

-- The original's rotary tables come from float32 angles of up to 1.6e4: they are compared within 2e-3, the rest of the
-- model with the stored ones, the whole with its own at 1e-3.
local function ltx_dit(fixture)
  local json = fixture.json
  local config = { fps = json.fps, scale = json.vae_scale_factors, causal_fix = json.causal_fix }
  for name, value in pairs(json.config) do config[name] = value end
  local net = load(fixture, "ltx_dit", config)
  local latent, mask = fixture:get("latent"):unsqueeze(1), fixture:get("text_mask")
  local t = { fixture:get("timestep"):item() * 1000 }
  local real, want = mask:to("f32"):sum(), fixture:get("output"):unsqueeze(1)
  local context = net:context { fixture:get("text"):squeeze(1):slice(1, 1, real) }
  local s = latent.shape
  local cos, sin = net:rope(s[3], s[4], s[5], json.fps)
  local pairs_ = { 1, cos.shape[1], cos.shape[2], 2 }
  local stored = { cos = fixture:get("rope_cos"):reshape(pairs_), sin = fixture:get("rope_sin"):reshape(pairs_) }
  if fixture.compute == "f32" then
    local loose = { atol = 2e-3, rtol = 0 }
    fixture:close("rope_cos", cos, stored.cos:select(4, 1):squeeze(1), loose)
    fixture:close("rope_sin", sin, stored.sin:select(4, 1):squeeze(1), loose)
    fixture:close("output, own rope", net:forward(latent, t, context), want, { atol = 1e-3, rtol = 1e-3 })
  end
  net.rope_cos, net.rope_sin = stored.cos:select(4, 1):squeeze(1):contiguous(),
    stored.sin:select(4, 1):squeeze(1):contiguous()
  local seen, got = fixture.traced(net, function() return net:forward(latent, t, context) end)
  compare_traced(fixture, seen)
  fixture:close("output", got, want)
  local per_token = fixture:get("timestep_per_token"):list()
  for i = 1, #per_token do per_token[i] = per_token[i] * 1000 end
  seen = fixture.traced(net, function() return net:forward(latent, { per_token }, context) end)
  fixture:close("output_tokens_per_token_t", seen.output_tokens[1], fixture:get("output_tokens_per_token_t"))
  fixture:close("caption_projection_out", fixture.traced(net, function()
    net:context { fixture:get("text"):squeeze(1) }
  end).caption_projection_out[1], fixture:get("caption_projection_out"))
end

-- ---- text encoders ----------------------------------------------------------------------------------------------

local function t5(fixture)
  local json = fixture.json
  local module = require "melies.models.t5"
  local net = load(fixture, "t5", json.config)
  local ids, mask = fixture:get("ids"), fixture:get("mask")
  local seen, output = fixture.traced(net, function() return net:forward(ids, mask) end)
  local names = {}
  for name in pairs(seen) do names[#names + 1] = name end
  table.sort(names)
  for _, name in ipairs(names) do
    local want = fixture:get(name)
    if want then fixture:close(name, seen[name][1], want) end
  end
  fixture:close("output", output, fixture:get("output"))
  local lengths = mask:to("f32"):sum(2):list()
  local flat = ids:list()
  for i, length in ipairs(lengths) do
    local one = {}
    for j = 1, length do one[j] = flat[(i - 1) * ids.shape[2] + j] end
    local name = "output_valid_" .. (i - 1)
    fixture:close(name .. ", unpadded", net:encode(one), fixture:get(name))
  end
  fixture:close("long_output", net:encode(fixture:get("long_ids"):list()), fixture:get("long_output"))

  if fixture.compute ~= "f32" then return end
  local offsets, buckets = fixture:get("bucket_rel_pos"), {}
  for i, offset in ipairs(offsets:list()) do buckets[i] = module.bucket(offset, net.buckets, net.max_distance) end
  fixture:equal("bucket_index", T.of(buckets, { #buckets }, "i64"), fixture:get("bucket_index"))
  local file, renamed = fixture:weights(), {}
  for name, hf in pairs(json.hf_key_map or {}) do renamed[hf] = file:get(name) end
  if next(renamed) then
    local again = module.load(renamed, json.config, { compute = "f32" })
    fixture:close("output, Hugging Face's names", again:forward(ids, mask), fixture:get("output"))
  end
end

local function clip_text(fixture)
  local net = load(fixture, "clip_text", fixture.json.config)
  local ids = fixture:get("ids")
  local seen, result = fixture.traced(net, function() return net:forward(ids) end)
  compare_traced(fixture, seen)
  fixture:close("last_hidden", result.last, fixture:get("last_hidden"))
  fixture:close("penultimate", result.penultimate, fixture:get("penultimate"))
  local normed = result.penultimate:layer_norm { weight = net.norm[1], bias = net.norm[2], eps = net.eps }
  fixture:close("penultimate_normed", normed, fixture:get("penultimate_normed"))
  fixture:close("pooled", result.pooled, fixture:get("pooled"))
  fixture:close("text_embeds", result.embeds, fixture:get("text_embeds"))
  local flat = ids:list()
  for i, length in ipairs(fixture.json.lengths_with_bos_eos) do
    local one = {}
    for j = 1, length do one[j] = flat[(i - 1) * ids.shape[2] + j] end
    local alone, row = net:encode(one), i - 1
    fixture:close(("last_hidden[%d], unpadded"):format(row), alone.last,
      fixture:get("last_hidden"):select(1, i):slice(1, 1, length))
    fixture:close(("text_embeds[%d], unpadded"):format(row), alone.embeds, fixture:get("text_embeds"):select(1, i))
  end
end

local function clip_vision(fixture)
  local json = fixture.json
  local config = { mean = json.mean, std = json.std }
  for name, value in pairs(json.config) do config[name] = value end
  local net = load(fixture, "clip_vision", config)
  local picture = (fixture:get("image"):permute(2, 3, 1):contiguous() + 1) * 0.5
  local seen, output = fixture.traced(net, function() return net:encode(picture) end)
  for _, name in ipairs { "resized", "normalised" } do
    fixture:close(name, seen[name][1]:squeeze(1):permute(3, 1, 2), fixture:get(name))
  end
  local want = fixture:get("patch_embedding")
  fixture:close("patch_embedding", seen.patch_embedding[1]:permute(1, 3, 2):reshape(want.shape), want)
  for _, name in ipairs { "after_pre_norm", "block0_out" } do fixture:close(name, seen[name][1], fixture:get(name)) end
  fixture:close("output", output, fixture:get("output"))
  config.skip_last = 0
  fixture:close("output_all_blocks", load(fixture, "clip_vision", config):encode(picture),
    fixture:get("output_all_blocks"))
end

-- ---- autoencoders -----------------------------------------------------------------------------------------------

-- TAEHV's fixtures lie frame, channel, row, column.
local function to_frames(x) return x:permute(1, 3, 4, 2):contiguous() end
local function swap(x) return x:permute(2, 1, 3, 4):contiguous() end

local function compare_frames(fixture, seen, prefix, arrange)
  local names = {}
  for name in pairs(seen) do names[#names + 1] = name end
  table.sort(names)
  for _, name in ipairs(names) do
    local want = fixture:get(prefix .. name)
    if want then
      fixture:close(prefix .. name, arrange(T.concat(seen[name], 1)), want)
    end
    local counts = prefix ~= "" and fixture:get(prefix:gsub("cat", "chunk_frames") .. name)
    if counts and fixture.compute == "f32" then
      local got = {}
      for i, part in ipairs(seen[name]) do got[i] = part.shape[1] end
      fixture:equal(prefix:gsub("cat", "chunk_frames") .. name, T.of(got, { #got }, "i64"), counts)
    end
  end
end

local function taehv(fixture)
  local net = load(fixture, "taehv", {})
  local seen, latent = fixture.traced(net, function() return net:encode(to_frames(fixture:get("video"))) end)
  local channels_second = function(x) return x:permute(1, 4, 2, 3):contiguous() end
  compare_frames(fixture, seen, "", channels_second)
  fixture:close("latent", swap(latent), fixture:get("latent"))
  local decoded
  seen, decoded = fixture.traced(net, function() return net:decode(swap(fixture:get("latent"))) end)
  compare_frames(fixture, seen, "", channels_second)
  fixture:close("decoded", decoded, to_frames(fixture:get("decoded")))
  for _, name in ipairs { "random", "single" } do
    local from = fixture:get(name .. "_latent")
    local want = fixture:get(name .. "_decoded")
    if from then fixture:close(name .. "_decoded", net:decode(swap(from)), to_frames(want)) end
  end
end

-- The Wan VAE's lie channel, frame, row, column, with pixels in [-1, 1].
local function wan_vae(fixture)
  local json = fixture.json
  local net = load(fixture, "wan_vae", { mean = json.mean, std = json.std, z_dim = json.config.z_dim })
  local function video(name) return (fixture:get(name):permute(2, 3, 4, 1):contiguous() + 1) * 0.5 end
  local function channels_first(x) return x:permute(4, 1, 2, 3):contiguous() end

  local seen, latent = fixture.traced(net, function() return net:encode(video "video") end)
  compare_frames(fixture, seen, "encode.cat.", channels_first)
  fixture:close("latent_unscaled", channels_first(T.concat(seen.latent_unscaled, 1)), fixture:get("latent_unscaled"))
  fixture:close("latent", latent, fixture:get("latent"))
  if fixture:get("image") then fixture:close("image_latent", net:encode(video "image"), fixture:get("image_latent")) end

  local function decode(from)
    local parts, frames = fixture.traced(net, function() return net:decode(fixture:get(from)) end)
    return parts, channels_first(T.concat(parts.decoded_unclamped, 1)), channels_first(frames) * 2 - 1
  end
  local raw, clamped
  seen, raw, clamped = decode("latent")
  compare_frames(fixture, seen, "decode.cat.", channels_first)
  fixture:close("decoded_unclamped", raw, fixture:get("decoded_unclamped"))
  fixture:close("decoded", clamped, fixture:get("decoded"))
  for _, name in ipairs { "image", "random" } do
    if fixture:get(name .. "_latent") then
      _, raw = decode(name .. "_latent")
      fixture:close(name .. "_decoded_unclamped", raw, fixture:get(name .. "_decoded_unclamped"))
    end
  end
  -- The original drops the frames past 1 + 4k without a word; here the whole clip is refused and its start agrees.
  if fixture:get("video_t7") then
    local clip, want = video "video_t7", fixture:get("video_t7_latent")
    fixture:refuses("video_t7 as it is", function() return net:encode(clip) end, "1 + 4k")
    fixture:close("video_t7_latent", net:encode(clip:slice(1, 1, 4 * want.shape[2] - 3)), want)
  end
end

local function ltx_vae(fixture)
  local json = fixture.json
  local timestep = json.decode_timestep
  local config = { decode_timestep = type(timestep) == "number" and timestep or nil }
  for name, value in pairs(json.config) do config[name] = value end
  local net = load(fixture, "ltx_vae", config)
  local function channels_first(x) return x:permute(4, 1, 2, 3):contiguous() end
  local video = (fixture:get("video"):permute(2, 3, 4, 1):contiguous() + 1) * 0.5
  local seen, latent = fixture.traced(net, function() return net:encode(video) end)
  compare_frames(fixture, seen, "", channels_first)
  fixture:close("latent", latent, fixture:get("latent"))
  for _, name in ipairs { "", "random_" } do
    local parts = fixture.traced(net, function() return net:decode(fixture:get(name .. "latent")) end)
    if name == "" then compare_frames(fixture, parts, "", channels_first) end
    local got = channels_first(T.concat(parts.decoded_unclamped, 1))
    fixture:close(name .. "decoded", got, fixture:get(name .. "decoded"))
  end
end

return {
  { name = "wan_dit", bf16 = 1e-2, q8_0 = 2.5e-2, run = wan_dit, applies = function(json)
    return called(json, "WanModel.forward") and json.config.model_type == "t2v"
  end },
  { name = "wan_dit_i2v", bf16 = 1e-2, q8_0 = 2.5e-2, run = wan_dit_i2v, applies = function(json)
    return called(json, "WanModel.forward") and json.config.model_type == "i2v"
  end },
  { name = "wan_causal", bf16 = 1e-2, q8_0 = 2.5e-2, run = wan_causal, applies = function(json)
    return called(json, "CausalWanModel.forward")
  end },
  { name = "ltx_dit", bf16 = 1e-2, q8_0 = 2.5e-2, run = ltx_dit, applies = function(json)
    return called(json, "Transformer3DModel.forward")
  end },
  { name = "t5", bf16 = 1.5e-2, q8_0 = 2.5e-2, run = t5, applies = function(json) return called(json, "T5Encoder.forward") end },
  { name = "clip_text", bf16 = 1e-2, q8_0 = 2.5e-2, run = clip_text, applies = function(json)
    return called(json, "text transformer") and json.config.projection ~= nil
  end },
  { name = "clip_vision", bf16 = 1e-2, q8_0 = 2.5e-2, run = clip_vision, applies = function(json)
    return called(json, "CLIPModel.visual")
  end },
  { name = "taehv", bf16 = 3e-2, q8_0 = 6e-2, run = taehv, applies = function(json)
    return source(json) == "madebyollin/taehv/taehv.py"
  end },
  { name = "ltx_vae", bf16 = 3e-2, q8_0 = 6e-2, run = ltx_vae, applies = function(json)
    return json.config and json.config._class_name == "CausalVideoAutoencoder"
  end },
  { name = "wan_vae", bf16 = 3e-2, q8_0 = 6e-2, run = wan_vae, applies = function(json)
    return called(json, "WanVAE_.encode")
  end },
}
