-- The autoencoders of Wan 2.1 (16 channels, stride 4 x 8 x 8) and 2.2 (48 channels, stride 4 x 16 x 16: pixels in
-- patches of 2 x 2, blocks with averaging shortcuts, which have no tensors). Canonical: Wan-Video/Wan2.1,
-- wan/modules/vae.py, and Wan-Video/Wan2.2, wan/modules/vae2_2.py. diffusers (AutoencoderKLWan): huggingface/diffusers,
-- scripts/convert_wan_to_diffusers.py, convert_vae and convert_vae_22. Facts only.
local keys = require "melies.checkpoint.keys"

local inside = {
  { "%.residual%.0%.gamma$", ".norm1.gamma" }, { "%.residual%.3%.gamma$", ".norm2.gamma" },
  { "%.residual%.2%.", ".conv1." }, { "%.residual%.6%.", ".conv2." }, { "%.shortcut%.", ".conv_shortcut." },
}
local around = {
  { "^conv1%.", "quant_conv." }, { "^conv2%.", "post_quant_conv." },
  { "^(%l+coder)%.conv1%.", "%1.conv_in." },
  { "%.middle%.0%.", ".mid_block.resnets.0." }, { "%.middle%.2%.", ".mid_block.resnets.1." },
  { "%.middle%.1%.", ".mid_block.attentions.0." },
  { "%.head%.0%.gamma$", ".norm_out.gamma" }, { "%.head%.2%.", ".conv_out." },
}

local function both(first)
  local all = {}
  for _, rules in ipairs { around, first, inside } do
    for _, rule in ipairs(rules) do all[#all + 1] = rule end
  end
  return keys.rules(all)
end

-- Groups of three residual blocks and, but for the last, an upsampling.
local function upsamples(index)
  local i = tonumber(index)
  if i % 4 == 3 then return ("decoder.up_blocks.%d.upsamplers.0."):format((i - 3) / 4) end
  return ("decoder.up_blocks.%d.resnets.%d."):format(math.floor(i / 4), i % 4)
end

local diffusers_21 = both {
  { "^encoder%.downsamples%.", "encoder.down_blocks." }, { "^decoder%.upsamples%.(%d+)%.", upsamples },
}
local diffusers_22 = both {
  { "^(encoder)%.downsamples%.(%d+)%.downsamples%.%d+%.(%l+_?%l*%.?1?%.%l+)$", function(coder, i, rest)
    if rest:find "^resample" or rest:find "^time_conv" then return coder .. ".down_blocks." .. i .. ".downsampler." .. rest end
  end },
  { "^(decoder)%.upsamples%.(%d+)%.upsamples%.%d+%.(%l+_?%l*%.?1?%.%l+)$", function(coder, i, rest)
    if rest:find "^resample" or rest:find "^time_conv" then return coder .. ".up_blocks." .. i .. ".upsampler." .. rest end
  end },
  { "^encoder%.downsamples%.(%d+)%.downsamples%.", "encoder.down_blocks.%1.resnets." },
  { "^decoder%.upsamples%.(%d+)%.upsamples%.", "decoder.up_blocks.%1.resnets." },
}

-- ---- tensors ---------------------------------------------------------------------------------------------------

local function gamma(l, name, width, axes)
  local shape = { width }
  for _ = 1, axes do shape[#shape + 1] = 1 end
  l:add(name .. ".gamma", shape, "norm")
end

local function residual(l, name, inputs, outputs)
  gamma(l, name .. ".residual.0", inputs, 3)
  l:conv(name .. ".residual.2", { outputs, inputs, 3, 3, 3 })
  gamma(l, name .. ".residual.3", outputs, 3)
  l:conv(name .. ".residual.6", { outputs, outputs, 3, 3, 3 })
  if inputs ~= outputs then l:conv(name .. ".shortcut", { outputs, inputs, 1, 1, 1 }) end
end

local function middle(l, name, width)
  residual(l, name .. ".middle.0", width, width)
  gamma(l, name .. ".middle.1.norm", width, 2)
  l:conv(name .. ".middle.1.to_qkv", { 3 * width, width, 1, 1 }):conv(name .. ".middle.1.proj", { width, width, 1, 1 })
  residual(l, name .. ".middle.2", width, width)
end

local function head(l, name, width, outputs)
  gamma(l, name .. ".head.0", width, 3)
  l:conv(name .. ".head.2", { outputs, width, 3, 3, 3 })
end

-- Widths by stage for multipliers 1, 2, 4, 4; time halves in the stages where c.time says so.
local MULT, RES = { 1, 2, 4, 4 }, 2

local function tensors_21(c)
  local l, d = keys.list(), c.dim
  l:conv("encoder.conv1", { d, 3, 3, 3, 3 })
  local at, width = 0, d
  for stage = 1, 4 do
    for _ = 1, RES do
      residual(l, ("encoder.downsamples.%d"):format(at), width, d * MULT[stage])
      width, at = d * MULT[stage], at + 1
    end
    if stage < 4 then
      local name = ("encoder.downsamples.%d"):format(at)
      l:conv(name .. ".resample.1", { width, width, 3, 3 })
      if stage > 1 then l:conv(name .. ".time_conv", { width, width, 3, 1, 1 }) end
      at = at + 1
    end
  end
  middle(l, "encoder", width)
  head(l, "encoder", width, 2 * c.z)
  l:conv("conv1", { 2 * c.z, 2 * c.z, 1, 1, 1 }):conv("conv2", { c.z, c.z, 1, 1, 1 })
  width = d * 4
  l:conv("decoder.conv1", { width, c.z, 3, 3, 3 })
  middle(l, "decoder", width)
  at = 0
  for stage = 4, 1, -1 do
    for _ = 1, RES + 1 do
      residual(l, ("decoder.upsamples.%d"):format(at), width, d * MULT[stage])
      width, at = d * MULT[stage], at + 1
    end
    if stage > 1 then
      local name = ("decoder.upsamples.%d"):format(at)
      l:conv(name .. ".resample.1", { width / 2, width, 3, 3 })
      if stage > 2 then l:conv(name .. ".time_conv", { 2 * width, width, 3, 1, 1 }) end
      width, at = width / 2, at + 1
    end
  end
  head(l, "decoder", width, 3)
  return l
end

local function tensors_22(c)
  local l, width = keys.list(), c.dim
  l:conv("encoder.conv1", { width, 12, 3, 3, 3 })
  for stage = 1, 4 do
    local name = ("encoder.downsamples.%d.downsamples."):format(stage - 1)
    for i = 0, RES - 1 do
      residual(l, name .. i, width, c.dim * MULT[stage])
      width = c.dim * MULT[stage]
    end
    if stage < 4 then
      l:conv(name .. RES .. ".resample.1", { width, width, 3, 3 })
      if stage > 1 then l:conv(name .. RES .. ".time_conv", { width, width, 3, 1, 1 }) end
    end
  end
  middle(l, "encoder", width)
  head(l, "encoder", width, 2 * c.z)
  l:conv("conv1", { 2 * c.z, 2 * c.z, 1, 1, 1 }):conv("conv2", { c.z, c.z, 1, 1, 1 })
  width = c.decoder_dim * 4
  l:conv("decoder.conv1", { width, c.z, 3, 3, 3 })
  middle(l, "decoder", width)
  for stage = 4, 1, -1 do
    local name = ("decoder.upsamples.%d.upsamples."):format(4 - stage)
    for i = 0, RES do
      residual(l, name .. i, width, c.decoder_dim * MULT[stage])
      width = c.decoder_dim * MULT[stage]
    end
    if stage > 1 then
      l:conv(name .. (RES + 1) .. ".resample.1", { width, width, 3, 3 })
      if stage > 2 then l:conv(name .. (RES + 1) .. ".time_conv", { 2 * width, width, 3, 1, 1 }) end
    end
  end
  head(l, "decoder", width, 12)
  return l
end

local function config(at)
  local encoder, decoder, z = at "encoder.conv1.bias", at "decoder.conv1.bias", at "conv2.bias"
  if not encoder then return nil, "encoder.conv1.bias" end
  if not decoder then return nil, "decoder.conv1.bias" end
  if not z then return nil, "conv2.bias" end
  return { dim = encoder[1], decoder_dim = decoder[1] / 4, z = z[1] }
end

local function architecture(name, model, anchors, tensors, diffusers, variant)
  return {
    name = name, part = "autoencoder", model = model, title = "Wan video autoencoder", anchors = anchors,
    layouts = { { name = "wan", rename = keys.same }, { name = "diffusers", rename = diffusers } },
    config = config, tensors = tensors, variant = variant,
  }
end

local function variant_21(c)
  if c.dim == 96 and c.z == 16 then return "wan2.1-vae" end
  return "wan2.1-vae", ("width %d, %d channels"):format(c.dim, c.z)
end

local function variant_22(c)
  if c.dim == 160 and c.decoder_dim == 256 and c.z == 48 then return "wan2.2-vae" end
  return "wan2.2-vae", ("widths %d and %d, %d channels"):format(c.dim, c.decoder_dim, c.z)
end

return {
  architecture("wan_vae", "wan_vae", { "decoder.upsamples.0.residual.2.weight", "decoder.upsamples.3.resample.1.weight" },
    tensors_21, diffusers_21, variant_21),
  architecture("wan_vae_22", "wan_vae22",
    { "decoder.upsamples.0.upsamples.3.resample.1.weight", "decoder.upsamples.1.upsamples.3.time_conv.weight" },
    tensors_22, diffusers_22, variant_22),
}
