-- melies-api: 1
-- The video autoencoders of LTX-Video (Lightricks/LTX-Video, ltx_video/models/autoencoders: facts only): the layout of
-- 0.9, and that of 0.9.1 and later with residual resampling and a decoder that is told a timestep.
--
--   net:encode(video) -> latent              video [T, H, W, 3], T = 1 + 8k; latent [C, t, h, w] f32, normalised
--   net:decode(latent, { timestep =, tile =, overlap = }) -> video
--   net:decoder({ timestep = }) -> stream    stream:push(latent frames) -> video frames that are ready, perhaps none;
--                                            stream:finish() -> the frames that waited for the end, or nil
--
-- The published decoders look ahead in time (causal_decoder = false): a layer gives a frame when it has seen the next
-- one, and at the end the last frame stands for it. Layers keep what they wait for, so that a stream needs bounded memory
-- and gives the bits of a whole decode. The encoder is causal: the first frame is repeated in front.
--
-- What the tensors cannot tell comes from config, as the files' own metadata hold it (or under `vae` there): timestep
-- (decode_timestep, 0.05 where the decoder takes one), causal_decoder (false), spatial_padding_mode ("zeros", or
-- "replicate" where the encoder has residual resampling), residual (of the decoder's up-sampling: by default where one of
-- them gives fewer channels than it takes), noise_seed (0) of decoders with noise in their layers.
-- Strides come from the widths of neighbouring layers, all from 1 to 2 in time and in both directions of space.
local melies = require "melies"
local kit = require "melies.modelkit"
local ditkit = require "melies.ditkit"
local lib = require "melies.ffi.lib"
local T = melies.tensor

local NAME = "ltx_vae"
local EPS = 1e-8
local Net, Stream = {}, {}
Net.__index = Net
Stream.__index = Stream

-- A layer is a function (x, state, run) -> y. x [1, n, H, W, C] or nil: nothing has come; y likewise: nothing is ready.
-- state: the layer's table for one clip; run: { last = true at the end of the clip, timestep = embeddings }.

local function frames_of(x, first, last) return x:slice(2, first, last) end
local function join(a, b)
  if not a or not b then return a or b end
  return T.concat({ a, b }, 2)
end

-- Takes as many frames from the front of state[name] (with x behind it) as y has.
local function waiting(state, name, x, y)
  local all = join(state[name], x)
  if not y then
    state[name] = all
    return nil
  end
  local n, total = y.shape[2], all.shape[2]
  state[name] = n < total and frames_of(all, n + 1, total):clone() or nil
  return frames_of(all, 1, n)
end

-- ---- layers -----------------------------------------------------------------------------------------------------

-- 3x3x3 with edge frames repeated in time: two in front where causal, else one on each side. options: stride of three,
-- causal, replicate (edges repeated in space too, else zeros).
local function load_conv(r, name, outputs, inputs, options)
  local stride = options.stride or { 1, 1, 1 }
  local pad = options.replicate and { 0, 0 } or { 1, 1 }
  local conv = r:conv(name .. ".conv", { outputs, inputs, 3, 3, 3 },
    { compute = options.compute, stride = stride, pad = { { 0, 0 }, pad, pad } })
  local front, behind = options.causal and 2 or 1, options.causal and 0 or 1
  return function(x, state, run, call)
    if not x and not (run.last and state.past) then return nil end
    if x and not state.past then
      local s = x.shape
      local edge = frames_of(x, 1, 1):expand { 1, front, s[3], s[4], s[5] }
      x = T.concat({ edge, x }, 2)
    else
      x = join(state.past, x)
    end
    local n = x.shape[2]
    if run.last and behind > 0 then x, n = T.concat({ x, frames_of(x, n, n) }, 2), n + 1 end
    local ready = math.floor((n - 3) / stride[1]) + 1
    if ready < 1 then
      state.past = x
      return nil
    end
    state.past = frames_of(x, math.min(ready * stride[1] + 1, n), n):clone()
    x = frames_of(x, 1, (ready - 1) * stride[1] + 3)
    if options.replicate then x = x:pad(3, 1, 1, "edge"):pad(4, 1, 1, "edge") end
    return conv(x, call)
  end
end

-- linear, SiLU, linear over the sinusoid of a timestep.
local function load_time(r, name, outputs)
  local at = name .. ".timestep_embedder.linear_"
  local width = r:shape(at .. "1.weight")[2]
  local first = r:linear(at .. 1, outputs, width, { compute = "f32" })
  local second = r:linear(at .. 2, outputs, outputs, { compute = "f32" })
  return function(t) return second(first(ditkit.sinusoid_f32({ t }, width), { act = "silu" })) end
end

-- table [n, C] + embedding, as n tensors [C]; nil where nothing is conditioned.
local function modulation(values, embedding)
  if not values then return {} end
  local sum, out = values + embedding:reshape(values.shape), {}
  for i = 1, values.shape[1] do out[i] = sum:select(1, i):contiguous() end
  return out
end

-- Noise of one frame's size, the same for every frame, times a scale for each channel.
local function load_noise(r, name, width, net)
  if not r:has(name) then return function(x) return x end end
  local scale = r:take_f32(name, { width, 1, 1 }):reshape(width)
  net.noise_layers = net.noise_layers + 1
  local stream = net.noise_layers
  return function(x)
    local noise = melies.noise({ 1, 1, x.shape[3], x.shape[4], 1 }, { seed = net.noise_seed, stream = stream })
    x:add_((noise * scale):to(x.dtype))
    return x
  end
end

-- time: embeds a timestep for four values a channel (shift, scale, twice), or nil.
local function load_residual(r, name, net, options, time)
  local shape = r:shape(name .. ".conv1.conv.weight")
  local width, inputs = shape[1], shape[2]
  local conv1, conv2 = load_conv(r, name .. ".conv1", width, inputs, options),
    load_conv(r, name .. ".conv2", width, width, options)
  local noise1, noise2 = load_noise(r, name .. ".per_channel_scale1", width, net),
    load_noise(r, name .. ".per_channel_scale2", width, net)
  local values = time and r:take_f32(name .. ".scale_shift_table", { 4, inputs }) or nil
  local norm, shortcut
  if r:has(name .. ".conv_shortcut.weight") then
    norm = { weight = r:take_f32(name .. ".norm3.norm.weight", { inputs }), eps = 1e-6,
      bias = r:take_f32(name .. ".norm3.norm.bias", { inputs }) }
    shortcut = r:conv(name .. ".conv_shortcut", { width, inputs, 1, 1, 1 }, { compute = options.compute })
  end
  return function(x, state, run, embedding)
    state.first, state.second = state.first or {}, state.second or {}
    local m = modulation(values, embedding)
    local y = x and x:rms_norm { eps = EPS, shift = m[1], scale = m[2], act = "silu" }
    y = conv1(y, state.first, run)
    if y then y = noise1(y):rms_norm { eps = EPS, shift = m[3], scale = m[4], act = "silu" } end
    y = conv2(y, state.second, run)
    local beside = waiting(state, "beside", x, y)
    if not y then return nil end
    if shortcut then beside = shortcut(beside:layer_norm(norm)) end
    y = noise2(y)
    y:add_(beside)
    return y
  end
end

local function load_group(r, name, net, options)
  local time, blocks = nil, {}
  local width = r:shape(name .. ".res_blocks.0.conv1.conv.weight")[2]
  if r:has(name .. ".time_embedder.timestep_embedder.linear_1.weight") then
    time = load_time(r, name .. ".time_embedder", 4 * width)
  end
  for i = 0, r:count(name .. ".res_blocks.%d.conv1.conv.weight") - 1 do
    blocks[i + 1] = load_residual(r, ("%s.res_blocks.%d"):format(name, i), net, options, time)
  end
  return function(x, state, run)
    local embedding = time and time(run.timestep)
    for i, block in ipairs(blocks) do
      state[i] = state[i] or {}
      x = block(x, state[i], run, embedding)
    end
    return x
  end
end

-- [1, n, H, W, C * p1 * p2 * p3] to [1, n * p1, H * p2, W * p3, C]: the channel slowest, then frame, row, column.
local function to_space(x, p)
  local s = x.shape
  local c = s[5] / (p[1] * p[2] * p[3])
  return x:reshape(s[2], s[3], s[4], c, p[1], p[2], p[3]):permute(1, 5, 2, 6, 3, 7, 4)
    :reshape(1, s[2] * p[1], s[3] * p[2], s[4] * p[3], c)
end
local function to_depth(x, p)
  local s = x.shape
  local n, h, w = s[2] / p[1], s[3] / p[2], s[4] / p[3]
  return x:reshape(n, p[1], h, p[2], w, p[3], s[5]):permute(1, 3, 5, 7, 2, 4, 6)
    :reshape(1, n, h, w, s[5] * p[1] * p[2] * p[3])
end

-- The original's three ways to resample, by how many values become one.
local STRIDES = { [2] = { 2, 1, 1 }, [4] = { 1, 2, 2 }, [8] = { 2, 2, 2 } }
local function stride_of(values, name)
  return STRIDES[values] or error(("%s: %s resamples by %s values, wanted 2, 4 or 8"):format(NAME, name,
    tostring(values)), 0)
end

-- Channels to space; of a doubled clip the very first frame is dropped. Residual: the input's own values, repeated.
local function load_up(r, name, options, following, residual)
  local shape = r:shape(name .. ".conv.conv.weight")
  local p = stride_of(shape[1] / following, name)
  local conv = load_conv(r, name .. ".conv", shape[1], shape[2], options)
  local repeats = following * p[1] * p[2] * p[3] / shape[2]
  return function(x, state, run)
    state.conv = state.conv or {}
    local y = conv(x, state.conv, run)
    local beside = residual and waiting(state, "beside", x, y)
    if not y then return nil end
    y = to_space(y, p)
    if residual then
      beside = to_space(beside, p)
      if repeats > 1 then
        local all = {}
        for i = 1, repeats do all[i] = beside end
        beside = T.concat(all, 5)
      end
      y:add_(beside)
    end
    if p[1] == 2 and not state.started then
      state.started = true
      y = frames_of(y, 2, y.shape[2]):contiguous()
    end
    return y
  end, p
end

-- Space to channels after a convolution, plus the mean of groups of the input's; in time the first frame stands twice.
local function load_down_residual(r, name, options, following)
  local shape = r:shape(name .. ".conv.conv.weight")
  local p = stride_of(following / shape[1], name)
  local conv = load_conv(r, name .. ".conv", shape[1], shape[2], options)
  local group = shape[2] * p[1] * p[2] * p[3] / following
  return function(x, state, run)
    state.conv = state.conv or {}
    if p[1] == 2 and not state.started then
      state.started = true
      x = T.concat({ frames_of(x, 1, 1), x }, 2)
    end
    local beside = to_depth(x, p)
    local s = beside.shape
    beside = beside:reshape(1, s[2], s[3], s[4], following, group):mean(6)
    local y = to_depth(conv(x, state.conv, run), p)
    y:add_(beside)
    return y
  end, p
end

-- ---- the two halves ---------------------------------------------------------------------------------------------

-- Channels that a numbered block, or what stands behind the last one, takes.
local function inputs_of(r, list, index, behind)
  local at = ("%s.%d."):format(list, index)
  for _, name in ipairs { "res_blocks.0.conv1.conv.weight", "conv1.conv.weight", "conv.conv.weight", "conv.weight" } do
    if r:has(at .. name) then return r:shape(at .. name)[2] end
  end
  return r:shape(behind)[2]
end

-- Does one of the decoder's up-sampling blocks give fewer channels than it takes?
local function narrows(r)
  for index = 0, 64 do
    local at = ("decoder.up_blocks.%d.conv.conv.weight"):format(index)
    if r:has(at) and inputs_of(r, "decoder.up_blocks", index + 1, "decoder.conv_out.conv.weight") < r:shape(at)[2] then
      return true
    end
  end
  return false
end

local function load_half(r, side, net, options)
  local short, list = side == "encoder" and "enc_" or "dec_", side == "encoder" and "encoder.down_blocks" or
    "decoder.up_blocks"
  local layers, factor, behind = {}, { 1, 1, 1 }, side .. ".conv_out.conv.weight"
  local first = r:shape(side .. ".conv_in.conv.weight")
  layers[1] = { short .. "conv_in", load_conv(r, side .. ".conv_in", first[1], first[2], options) }
  local index = 0
  while true do
    local at = ("%s.%d"):format(list, index)
    local run, p
    if r:has(at .. ".res_blocks.0.conv1.conv.weight") then run = load_group(r, at, net, options)
    elseif r:has(at .. ".conv1.conv.weight") then run = load_residual(r, at, net, options)
    elseif r:has(at .. ".conv.conv.weight") and side == "decoder" then
      run, p = load_up(r, at, options, inputs_of(r, list, index + 1, behind), net.residual)
    elseif r:has(at .. ".conv.conv.weight") then
      run, p = load_down_residual(r, at, options, inputs_of(r, list, index + 1, behind))
    elseif r:has(at .. ".conv.weight") then
      local shape = r:shape(at .. ".conv.weight")
      p = { 2, 2, 2 }
      run = load_conv(r, at, shape[1], shape[2], { compute = options.compute, causal = options.causal,
        replicate = options.replicate, stride = p })
    else break end
    index = index + 1
    layers[#layers + 1] = { short .. (side == "encoder" and "down" or "up") .. (index - 1), run }
    for i = 1, 3 do factor[i] = factor[i] * (p and p[i] or 1) end
  end
  if index == 0 then r:shape(list .. ".0.res_blocks.0.conv1.conv.weight") end

  local shape = r:shape(behind)
  local time, values
  if r:has(side .. ".last_scale_shift_table") then
    time = load_time(r, side .. ".last_time_embedder", 2 * shape[2])
    values = r:take_f32(side .. ".last_scale_shift_table", { 2, shape[2] })
  end
  local conv, call = load_conv(r, side .. ".conv_out", shape[1], shape[2], options), { dtype = "f32" }
  layers[#layers + 1] = { false, function(x, state, run)
    local m = modulation(values, time and time(run.timestep))
    x = x and x:rms_norm { eps = EPS, shift = m[1], scale = m[2], act = "silu" }
    return conv(x, state, run, call)
  end }
  return layers, factor
end

function Net:run(layers, x, states, run)
  for i, layer in ipairs(layers) do
    states[i] = states[i] or {}
    x = layer[2](x, states[i], run)
    if layer[1] and x and self.trace then self.trace("act." .. layer[1], x:squeeze(1)) end
  end
  return x
end

function Net:encode(video)
  if not self.encoder_layers then error(NAME .. ": these weights have no encoder", 2) end
  local x = kit.frames(NAME, video, self.stride[2], 2)
  local frames, step = x.shape[1], self.stride[1]
  if frames % step ~= 1 % step then
    error(("%s: a clip of %d frames cannot be encoded: wanted 1 + %dk (%d or %d)"):format(NAME, frames, step,
      math.max(1, frames - (frames - 1) % step), frames + -(frames - 1) % step), 2)
  end
  local states, out, run = {}, {}, { last = false }
  for first = 1, frames, step do
    first = math.max(1, first - step + 1)
    local last = first == 1 and 1 or first + step - 1
    local y = kit.patchify(x:slice(1, first, last) * 2 - 1, self.patch):unsqueeze(1):to(self.dtype)
    y = self:run(self.encoder_layers, y, states, run):slice(5, 1, self.latent_channels)
    if self.trace then self.trace("latent_raw", y:squeeze(1)) end
    out[#out + 1] = (y - self.mean) / self.std
  end
  return T.concat(out, 2):squeeze(1):permute(4, 1, 2, 3):contiguous()
end

local decode_options = { timestep = true }
function Net:decoder(options)
  if not self.decoder_layers then error(NAME .. ": these weights have no decoder", 2) end
  lib.check_options(NAME .. ": decoder", options or {}, decode_options)
  return setmetatable({ net = self, states = {}, timestep = (options and options.timestep) or self.timestep }, Stream)
end

function Stream:step(x, last)
  local net = self.net
  local y = net:run(net.decoder_layers, x, self.states, { last = last, timestep = self.timestep * net.time_scale })
  if not y then return nil end
  y = kit.unpatchify(y:squeeze(1), net.patch)
  if net.trace then net.trace("decoded_unclamped", y) end
  return ((y + 1) * 0.5):clamp(0, 1)
end

function Stream:push(latent)
  local net, out = self.net, {}
  if self.ended then error(NAME .. ": push: this stream was finished", 2) end
  local x = kit.latent_frames(NAME, latent, net.latent_channels, 2)
  self.size = { x.shape[2] * net.stride[2], x.shape[3] * net.stride[3] }
  x = (x * net.std + net.mean):unsqueeze(1):to(net.dtype)
  for t = 1, x.shape[2] do out[#out + 1] = self:step(frames_of(x, t, t), false) end
  if #out == 0 then return T.empty { 0, self.size[1], self.size[2], 3 } end
  return #out == 1 and out[1] or T.concat(out, 1)
end

function Stream:finish()
  if self.ended or not self.size then return nil end
  self.ended = true
  return self:step(nil, true)
end

function Net:decode(latent, options)
  kit.latent_frames(NAME, latent, self.latent_channels, 2)
  return kit.decode(self, latent, options)
end

local function load(weights, config, options)
  config = config and config.vae or config or {}
  local compute, trace = kit.options(NAME, options)
  local r = kit.reader(NAME, weights, { anchor = "decoder.conv_in.conv.weight" })
  local net = setmetatable({
    name = NAME, dtype = compute, trace = trace, noise_layers = 0, noise_seed = config.noise_seed or 0,
    timestep = config.timestep or config.decode_timestep or 0.05,
  }, Net)
  local deep = false -- residual down-sampling in the encoder
  for name in pairs(r.names) do deep = deep or name:find("encoder%.down_blocks%.%d+%.conv%.conv%.weight$") ~= nil end
  local replicate = config.spatial_padding_mode == "replicate" or (config.spatial_padding_mode == nil and deep)
  net.residual = config.residual
  if net.residual == nil then net.residual = narrows(r) end
  local stats = "per_channel_statistics."
  local channels = r:shape(stats .. "std-of-means")[1]
  net.latent_channels = kit.agree(NAME, config, { "latent_channels" }, channels, "the file")
  net.std = r:take_f32(stats .. "std-of-means", { channels })
  net.mean = r:has(stats .. "mean-of-means") and r:take_f32(stats .. "mean-of-means", { channels }) or
    T.zeros { channels }
  r:ignore(stats)

  local factor, pixels
  if r:has "decoder.conv_in.conv.weight" or not r:has "encoder.conv_in.conv.weight" then
    net.decoder_layers, factor = load_half(r, "decoder", net, { compute = compute, replicate = replicate,
      causal = config.causal_decoder == true })
    pixels = r:shape("decoder.conv_out.conv.weight")[1]
    net.time_scale = 1000
    local scale = "decoder.timestep_scale_multiplier"
    if r:has(scale) then net.time_scale = r:take_f32(scale, #r:shape(scale) == 0 and {} or { 1 }):item() end
  end
  if r:has "encoder.conv_in.conv.weight" then
    net.encoder_layers, factor = load_half(r, "encoder", net, { compute = compute, replicate = replicate,
      causal = true })
    pixels = r:shape("encoder.conv_in.conv.weight")[2]
  end
  net.patch = math.sqrt(pixels / 3)
  if net.patch % 1 ~= 0 then error(("%s: %d values a patch are not 3 times a square"):format(NAME, pixels), 0) end
  net.stride = { factor[1], factor[2] * net.patch, factor[3] * net.patch } -- pixels to one latent value
  r:finish()
  return net
end

return { kind = "model", name = NAME, help = "LTX-Video autoencoders", params = {}, load = load }
