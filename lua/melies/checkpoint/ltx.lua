-- LTX-Video: transformer and autoencoder, in Lightricks' single file (the transformer under "model.diffusion_model.",
-- the autoencoder under "vae.") or as diffusers folders. Names: Lightricks/LTX-Video, ltx_video/models; diffusers:
-- huggingface/diffusers, scripts/convert_ltx_to_diffusers.py. Facts only.
local keys = require "melies.checkpoint.keys"

-- ---- transformer -----------------------------------------------------------------------------------------------

local function dit_tensors(c)
  local l, d, fixed = keys.list(), c.dim, { kind = "fixed" }
  l:linear("patchify_proj", d, c.in_channels, fixed)
  l:linear("adaln_single.emb.timestep_embedder.linear_1", d, c.freq_dim, fixed)
  l:linear("adaln_single.emb.timestep_embedder.linear_2", d, d, fixed)
  l:linear("adaln_single.linear", 6 * d, d, fixed)
  l:linear("caption_projection.linear_1", d, c.text_dim, fixed):linear("caption_projection.linear_2", d, d, fixed)
  for i = 0, c.layers - 1 do
    l:within(("transformer_blocks.%d."):format(i), i + 1)
    l:add("scale_shift_table", { 6, d }, "modulation")
    for _, a in ipairs { "attn1", "attn2" } do
      l:add(a .. ".q_norm.weight", { d }, "norm"):add(a .. ".k_norm.weight", { d }, "norm")
      for _, name in ipairs { "to_q", "to_k", "to_v", "to_out.0" } do l:linear(a .. "." .. name, d, d) end
    end
    l:linear("ff.net.0.proj", c.ffn, d):linear("ff.net.2", d, c.ffn)
  end
  l:within():add("scale_shift_table", { 2, d }, "modulation")
  return l:linear("proj_out", c.out_channels, d, fixed)
end

local function dit_config(at)
  local shapes = {}
  for _, name in ipairs { "patchify_proj.weight", "proj_out.weight", "transformer_blocks.0.ff.net.0.proj.weight",
    "caption_projection.linear_1.weight", "adaln_single.emb.timestep_embedder.linear_1.weight" } do
    shapes[#shapes + 1] = at(name)
    if not at(name) then return nil, name end
  end
  local patch, out, ffn, caption, time = unpack(shapes)
  return { dim = patch[1], in_channels = patch[2], out_channels = out[1], ffn = ffn[1], text_dim = caption[2],
    freq_dim = time[2], layers = at.count(), heads = patch[1] % 64 == 0 and patch[1] / 64 or nil }
end

local dit = {
  name = "ltx_dit", part = "dit", model = "ltx_dit", title = "LTX-Video transformer",
  anchors = { "adaln_single.linear.weight", "patchify_proj.weight" },
  layouts = {
    { name = "ltx", rename = keys.same, block = "^transformer_blocks%.(%d+)%." },
    { name = "diffusers", block = "^transformer_blocks%.(%d+)%.", rename = keys.rules {
      { "^patchify_proj%.", "proj_in." }, { "^adaln_single%.", "time_embed." },
      { "%.q_norm%.", ".norm_q." }, { "%.k_norm%.", ".norm_k." } } },
  },
  config = dit_config, tensors = dit_tensors,
  variant = function(c)
    if c.dim == 2048 and c.layers == 28 then return "ltx-video-2b" end
    if c.dim == 4096 and c.layers == 48 then return "ltx-video-13b" end
    return "ltx-video", ("width %d, %d blocks"):format(c.dim, c.layers)
  end,
}

-- ---- autoencoder -----------------------------------------------------------------------------------------------

-- Blocks are a list; what a block is shows in its tensors: residual blocks, one convolution (a change of size), or one
-- residual block that changes the width.
local function blocks(at, side)
  local out = {}
  for i = 0, 30 do
    local name = ("%s.%d."):format(side, i)
    local one, wider = at(name .. "res_blocks.0.conv1.conv.weight"), at(name .. "conv1.conv.weight")
    local conv = at(name .. "conv.conv.weight") and "conv.conv" or "conv"
    local sized = at(name .. conv .. ".weight")
    if one then
      local n = 1
      while at((name .. "res_blocks.%d.conv1.conv.weight"):format(n)) do n = n + 1 end
      local first = name .. "res_blocks.0."
      local timed = at(name .. "time_embedder.timestep_embedder.linear_1.weight")
      out[#out + 1] = { kind = "res", width = one[1], count = n, timed = timed and timed[2],
        noise = at(first .. "per_channel_scale1") ~= nil }
    elseif sized then
      out[#out + 1] = { kind = "size", shape = sized, conv = conv }
    elseif wider then
      out[#out + 1] = { kind = "wider", shape = wider }
    else
      break
    end
  end
  return out
end

local function embedder(l, name, width, freq)
  l:linear(name .. ".timestep_embedder.linear_1", width, freq, { kind = "fixed" })
  l:linear(name .. ".timestep_embedder.linear_2", width, width, { kind = "fixed" })
end

local function side_tensors(l, side, list)
  for i, block in ipairs(list) do
    local name = ("%s.%d."):format(side, i - 1)
    if block.kind == "res" then
      for k = 0, block.count - 1 do
        local at, w = name .. "res_blocks." .. k .. ".", block.width
        l:conv(at .. "conv1.conv", { w, w, 3, 3, 3 }):conv(at .. "conv2.conv", { w, w, 3, 3, 3 })
        if block.timed then l:add(at .. "scale_shift_table", { 4, w }, "modulation") end
        if block.noise then
          l:add(at .. "per_channel_scale1", { w, 1, 1 }, "bias"):add(at .. "per_channel_scale2", { w, 1, 1 }, "bias")
        end
      end
      if block.timed then embedder(l, name .. "time_embedder", 4 * block.width, block.timed) end
    elseif block.kind == "size" then
      l:conv(name .. block.conv, block.shape)
    else
      local s = block.shape
      l:conv(name .. "conv1.conv", s):conv(name .. "conv2.conv", { s[1], s[1], 3, 3, 3 })
      l:conv(name .. "conv_shortcut", { s[1], s[2], 1, 1, 1 }):layer_norm(name .. "norm3.norm", s[2])
    end
  end
end

local function vae_config(at)
  local encoder_in, encoder_out = at "encoder.conv_in.conv.weight", at "encoder.conv_out.conv.weight"
  local decoder_in, decoder_out = at "decoder.conv_in.conv.weight", at "decoder.conv_out.conv.weight"
  if not encoder_in or not encoder_out then return nil, "encoder.conv_in.conv.weight" end
  if not decoder_in or not decoder_out then return nil, "decoder.conv_in.conv.weight" end
  local last = at "decoder.last_time_embedder.timestep_embedder.linear_1.weight"
  return { down = blocks(at, "encoder.down_blocks"), up = blocks(at, "decoder.up_blocks"),
    latent = decoder_in[2], encoder_in = encoder_in, encoder_out = encoder_out, decoder_in = decoder_in,
    decoder_out = decoder_out, timed = last and last[2],
    multiplier = at "decoder.timestep_scale_multiplier" }
end

local function vae_tensors(c)
  local l = keys.list()
  l:conv("encoder.conv_in.conv", c.encoder_in)
  side_tensors(l, "encoder.down_blocks", c.down)
  l:conv("encoder.conv_out.conv", c.encoder_out):conv("decoder.conv_in.conv", c.decoder_in)
  side_tensors(l, "decoder.up_blocks", c.up)
  l:conv("decoder.conv_out.conv", c.decoder_out)
  if c.timed then
    local width = c.decoder_out[2]
    l:add("decoder.last_scale_shift_table", { 2, width }, "modulation")
    embedder(l, "decoder.last_time_embedder", 2 * width, c.timed)
    l:add("decoder.timestep_scale_multiplier", c.multiplier or {}, "bias", { optional = true })
  end
  l:add("per_channel_statistics.mean-of-means", { c.latent }, "bias")
  return l:add("per_channel_statistics.std-of-means", { c.latent }, "norm")
end

-- Original block number -> diffusers' name.
local up_090 = { [0] = "mid_block", "up_blocks.0", "up_blocks.1.upsamplers.0", "up_blocks.1", "up_blocks.2.conv_in",
  "up_blocks.2.upsamplers.0", "up_blocks.2", "up_blocks.3.conv_in", "up_blocks.3.upsamplers.0", "up_blocks.3" }
local up_091 = { [0] = "mid_block", "up_blocks.0.upsamplers.0", "up_blocks.0", "up_blocks.1.upsamplers.0",
  "up_blocks.1", "up_blocks.2.upsamplers.0", "up_blocks.2", "up_blocks.3.upsamplers.0", "up_blocks.3" }
local down = { [0] = "down_blocks.0", "down_blocks.0.downsamplers.0", "down_blocks.0.conv_out", "down_blocks.1",
  "down_blocks.1.downsamplers.0", "down_blocks.1.conv_out", "down_blocks.2", "down_blocks.2.downsamplers.0",
  "down_blocks.3", "mid_block" }

local function by_number(word, names)
  return { "(%l+coder%.)" .. word .. "%.(%d+)%.", function(side, i)
    return names[tonumber(i)] and side .. names[tonumber(i)] .. "."
  end }
end

local function vae_diffusers(up)
  return keys.rules {
    by_number("up_blocks", up), by_number("down_blocks", down),
    { "%.conv_shortcut%.", ".conv_shortcut.conv." }, { "%.res_blocks%.", ".resnets." }, { "%.norm3%.norm%.", ".norm3." },
    { "%.last_time_embedder%.", ".time_embedder." }, { "%.last_scale_shift_table$", ".scale_shift_table" },
    { "%.per_channel_scale(%d)$", ".scale%1" }, { "^decoder%.timestep_scale_multiplier$", "timestep_scale_multiplier" },
    { "^per_channel_statistics%.mean%-of%-means$", "latents_mean" },
    { "^per_channel_statistics%.std%-of%-means$", "latents_std" },
  }
end

local statistics = { "^per_channel_statistics%." }

local vae = {
  name = "ltx_vae", part = "autoencoder", model = "ltx_vae", title = "LTX-Video autoencoder",
  anchors = { "decoder.up_blocks.0.res_blocks.0.conv1.conv.weight" },
  layouts = {
    { name = "ltx", rename = keys.same, ignore = statistics },
    { name = "diffusers", rename = vae_diffusers(up_091), ignore = statistics,
      anchors = { "decoder.time_embedder.timestep_embedder.linear_1.weight" } },
    { name = "diffusers", rename = vae_diffusers(up_090), ignore = statistics,
      anchors = { "decoder.up_blocks.2.conv_in.conv1.conv.weight" } },
  },
  config = vae_config, tensors = vae_tensors,
  variant = function(c)
    local name = c.timed and "ltx-vae-0.9.1" or "ltx-vae-0.9"
    return name, c.latent ~= 128 and ("%d channels"):format(c.latent) or nil
  end,
}

return { dit, vae }
