-- melies-api: 1
-- The video autoencoder of Wan 2.1 (Wan-Video/Wan2.1, wan/modules/vae.py: facts only): causal, stride 4 x 8 x 8.
--
--   net:encode(video) -> latent       video [T, H, W, 3], T = 1 + 4k, u8 or float in [0, 1]; latent [C, t, h, w] f32,
--                                     the mean of the distribution, normalised by the mean and std of each channel
--   net:decode(latent) -> video       f32 in [0, 1]
--   net:decoder() -> stream           stream:push(latent frames [C, n, h, w]) -> video frames, in memory that does not
--                                     grow; the same bits as decode
--
-- Both ways go in chunks: 1 frame, then 4 at a time; a latent frame each. Each layer keeps the frames that the next
-- chunk needs. Activations are [1, T, H, W, C]. Sizes come from the tensors; config: mean and std, lists of C numbers
-- (by default those of Wan 2.1's 16 channels). Values inside are [-1, 1].
local melies = require "melies"
local kit = require "melies.modelkit"
local T = melies.tensor

local NAME = "wan_vae"
local Net, Stream = {}, {}
Net.__index = Net
Stream.__index = Stream

local MEAN = { -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517, -0.3632,
  -0.1922, -0.9497, 0.2503, -0.2921 }
local STD = { 2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579, 1.6382,
  1.1253, 2.8251, 1.9160 }

-- A layer is a function (x, state) -> y; state is the layer's own table for one clip, empty before the first chunk.

-- ---- layers -----------------------------------------------------------------------------------------------------

-- 3x3x3, causal in time: two frames of history, zeros before the clip.
local function load_causal(r, name, outputs, inputs, compute)
  local conv = r:conv(name, { outputs, inputs, 3, 3, 3 },
    { compute = compute, pad = { { 0, 0 }, { 1, 1 }, { 1, 1 } } })
  return function(x, state, options)
    local s = x.shape
    local past = state.past or T.zeros({ 1, 2, s[3], s[4], s[5] }, x.dtype)
    x = T.concat({ past, x }, 2)
    state.past = x:slice(2, s[2] + 1, s[2] + 2):clone()
    return conv(x, options)
  end
end

local function load_point(r, name, outputs, inputs, compute)
  return r:conv(name, { outputs, inputs, 1, 1, 1 }, { compute = compute })
end

-- x / |x| * sqrt(C) * gamma over channels. gamma is stored as [C, 1, 1] or [C, 1, 1, 1].
local function load_norm(r, name, width)
  local shape = r:shape(name .. ".gamma")
  local wanted = { width }
  for i = 2, #shape do wanted[i] = 1 end
  return r:take_f32(name .. ".gamma", wanted):reshape(width)
end

local function load_residual(r, name, compute)
  local shape = r:shape(name .. ".residual.2.weight")
  local width, inputs = shape[1], shape[2]
  local norm1, norm2 = load_norm(r, name .. ".residual.0", inputs), load_norm(r, name .. ".residual.3", width)
  local conv1 = load_causal(r, name .. ".residual.2", width, inputs, compute)
  local conv2 = load_causal(r, name .. ".residual.6", width, width, compute)
  local shortcut = width ~= inputs and load_point(r, name .. ".shortcut", width, inputs, compute)
  return function(x, state)
    state.first, state.second = state.first or {}, state.second or {}
    local y = conv1(x:l2_norm { weight = norm1, act = "silu" }, state.first)
    y = conv2(y:l2_norm { weight = norm2, act = "silu" }, state.second)
    y:add_(shortcut and shortcut(x) or x)
    return y
  end
end

-- Within each frame, one head as wide as the channels.
local function load_attention(r, name, compute)
  local width = r:shape(name .. ".proj.weight")[1]
  local norm = load_norm(r, name .. ".norm", width)
  local qkv = melies.nn.linear(r:take(name .. ".to_qkv.weight", { 3 * width, width, 1, 1 }):reshape(3 * width, width),
    r:take(name .. ".to_qkv.bias", { 3 * width }), { compute = compute })
  local proj = melies.nn.linear(r:take(name .. ".proj.weight", { width, width, 1, 1 }):reshape(width, width),
    r:take(name .. ".proj.bias", { width }), { compute = compute })
  return function(x)
    local s = x.shape
    local all = qkv(x:l2_norm { weight = norm }:reshape(s[2], s[3] * s[4], 1, width))
    local function part(i) return all:slice(4, (i - 1) * width + 1, i * width) end
    local y = T.attention(part(1), part(2), part(3), { scale = 1 / math.sqrt(width) })
    y = proj(y):reshape(s[1], s[2], s[3], s[4], s[5])
    y:add_(x)
    return y
  end
end

-- A 2D convolution on every frame.
local function per_frame(conv, x)
  local s = x.shape
  local y = conv(x:reshape(s[2], s[3], s[4], s[5]))
  return y:reshape(1, s[2], y.shape[2], y.shape[3], y.shape[4])
end

-- Halves height and width; with a time_conv also the frames, but for the first chunk. The spatial padding stands right
-- and below only; the time convolution sees one frame of history.
local function load_down(r, name, compute)
  local width = r:shape(name .. ".resample.1.weight")[1]
  local space = r:conv(name .. ".resample.1", { width, width, 3, 3 },
    { compute = compute, stride = 2, pad = { { 0, 1 }, { 0, 1 } } })
  local time = r:has(name .. ".time_conv.weight") and r:conv(name .. ".time_conv", { width, width, 3, 1, 1 },
    { compute = compute, stride = { 2, 1, 1 } })
  return function(x, state)
    x = per_frame(space, x)
    if not time then return x end
    local past, n = state.past, x.shape[2]
    state.past = x:slice(2, n, n):clone()
    if not past then return x end
    return time(T.concat({ past, x }, 2))
  end
end

-- Doubles height and width (nearest, then a convolution to half the channels); with a time_conv also the frames, but
-- for the first chunk, which that convolution never sees: at the second its history is zeros.
local function load_up(r, name, compute)
  local shape = r:shape(name .. ".resample.1.weight")
  local width = shape[2]
  local space = r:conv(name .. ".resample.1", { shape[1], width, 3, 3 }, { compute = compute, pad = 1 })
  local time = r:has(name .. ".time_conv.weight") and r:conv(name .. ".time_conv", { 2 * width, width, 3, 1, 1 },
    { compute = compute })
  return function(x, state)
    local s = x.shape
    if time and not state.started then
      state.started = true
    elseif time then
      local n = s[2]
      local y = T.concat({ state.past or T.zeros({ 1, 2, s[3], s[4], width }, x.dtype), x }, 2)
      state.past = y:slice(2, n + 1, n + 2):clone()
      y = time(y):reshape(n, s[3], s[4], 2, width):permute(1, 4, 2, 3, 5)
      x = y:reshape(1, 2 * n, s[3], s[4], width)
    end
    s = x.shape
    x = x:reshape(s[2], s[3], 1, s[4], 1, s[5]):expand { s[2], s[3], 2, s[4], 2, s[5] }
    return per_frame(space, x:reshape(1, s[2], 2 * s[3], 2 * s[4], s[5]))
  end
end

-- ---- the two halves ---------------------------------------------------------------------------------------------

-- Numbered layers of the encoder ("downsamples") or decoder ("upsamples"), whose kinds the names tell.
local function load_stages(r, prefix, load_resample, compute)
  local out = {}
  while true do
    local name = ("%s.%d"):format(prefix, #out)
    if r:has(name .. ".residual.2.weight") then out[#out + 1] = load_residual(r, name, compute)
    elseif r:has(name .. ".resample.1.weight") then out[#out + 1] = load_resample(r, name, compute)
    elseif r:has(name .. ".to_qkv.weight") then out[#out + 1] = load_attention(r, name, compute)
    else break end
  end
  if #out == 0 then r:shape(prefix .. ".0.residual.2.weight") end
  return out
end

-- Layers with their names in the trace: { { name or false, run }, ... }.
local function load_half(r, side, compute)
  local layers, short = {}, side == "encoder" and "enc" or "dec"
  local function add(name, run) layers[#layers + 1] = { name and short .. "_" .. name, run } end
  local first = r:shape(side .. ".conv1.weight")
  add("conv1", load_causal(r, side .. ".conv1", first[1], first[2], compute))
  local function stages()
    local down = side == "encoder"
    local list = load_stages(r, side .. (down and ".downsamples" or ".upsamples"), down and load_down or load_up,
      compute)
    for i, run in ipairs(list) do add((down and "down" or "up") .. (i - 1), run) end
  end
  local function middle()
    add(false, load_residual(r, side .. ".middle.0", compute))
    add("mid_attn", load_attention(r, side .. ".middle.1", compute))
    add("middle", load_residual(r, side .. ".middle.2", compute))
  end
  if side == "encoder" then stages() middle() else middle() stages() end
  local last = r:shape(side .. ".head.2.weight")
  local norm = load_norm(r, side .. ".head.0", last[2])
  local conv = load_causal(r, side .. ".head.2", last[1], last[2], compute)
  local call = { dtype = "f32" }
  add("head", function(x, state) return conv(x:l2_norm { weight = norm, act = "silu" }, state, call) end)
  return layers
end

function Net:note(name, x)
  if self.trace then self.trace(name, x:reshape(x.shape[2], x.shape[3], x.shape[4], x.shape[5])) end
end

function Net:run(layers, x, states)
  for i, layer in ipairs(layers) do
    states[i] = states[i] or {}
    x = layer[2](x, states[i])
    if layer[1] then self:note(layer[1], x) end
  end
  return x
end

function Net:encode(video)
  if not self.encoder_layers then error(NAME .. ": these weights have no encoder", 2) end
  local x = kit.frames(NAME, video, 8, 2)
  local frames, height, width = x.shape[1], x.shape[2], x.shape[3]
  if frames % 4 ~= 1 then
    error(("%s: a clip of %d frames cannot be encoded: wanted 1 + 4k (%d or %d)"):format(NAME, frames,
      math.max(1, frames - (frames - 1) % 4), frames + -(frames - 1) % 4), 2)
  end
  x = (x * 2 - 1):reshape(1, frames, height, width, 3)
  local states, out = {}, {}
  local first = 1
  while first <= frames do
    local last = first == 1 and 1 or first + 3
    local y = self:run(self.encoder_layers, x:slice(2, first, last):to(self.dtype), states)
    -- The first half is the mean, the other the logarithm of the variance.
    y = self.encoder_out(y):slice(5, 1, self.latent_channels)
    self:note("latent_unscaled", y)
    out[#out + 1] = (y - self.mean) / self.std
    first = last + 1
  end
  local y = #out == 1 and out[1] or T.concat(out, 2)
  return y:squeeze(1):permute(4, 1, 2, 3):contiguous()
end

function Net:decoder()
  if not self.decoder_layers then error(NAME .. ": these weights have no decoder", 2) end
  return setmetatable({ net = self, states = {} }, Stream)
end

function Stream:push(latent)
  local net, out = self.net, {}
  local x = kit.latent_frames(NAME, latent, net.latent_channels, 2)
  x = (x * net.std + net.mean):unsqueeze(1)
  for t = 1, x.shape[2] do
    local y = net.decoder_in(x:slice(2, t, t))
    net:note("dec_conv2", y)
    y = net:run(net.decoder_layers, y:to(net.dtype), self.states)
    net:note("decoded_unclamped", y)
    out[t] = ((y + 1) * 0.5):clamp(0, 1):squeeze(1)
  end
  return #out == 1 and out[1] or T.concat(out, 1)
end

function Net:decode(latent)
  kit.latent_frames(NAME, latent, self.latent_channels, 2)
  return kit.decode_all(self:decoder(), latent)
end

local function load(weights, config, options)
  config = config or {}
  local compute, trace = kit.options(NAME, options)
  local r = kit.reader(NAME, weights, { anchor = "decoder.head.2.weight" })
  local net = setmetatable({ name = NAME, dtype = compute, trace = trace }, Net)
  local channels
  local exact = "f32" -- the 1x1x1 layers at the latent's edge
  if r:has("decoder.conv1.weight") or not r:has("encoder.conv1.weight") then
    channels = r:shape("decoder.conv1.weight")[2]
    net.decoder_in = load_point(r, "conv2", channels, channels, exact)
    net.decoder_layers = load_half(r, "decoder", compute)
  end
  if r:has("encoder.conv1.weight") then
    local doubled = r:shape("conv1.weight")[1]
    if channels and doubled ~= 2 * channels then
      error(("%s: tensor 'conv1.weight' has %d rows, wanted %d: twice the latent's channels"):format(NAME, doubled,
        2 * channels), 0)
    end
    channels = doubled / 2
    net.encoder_out = load_point(r, "conv1", doubled, doubled, exact)
    net.encoder_layers = load_half(r, "encoder", compute)
  end
  net.latent_channels = kit.agree(NAME, config, { "z_dim", "latent" }, channels, "the file")
  local mean, std = config.mean or MEAN, config.std or STD
  if #mean ~= channels or #std ~= channels then
    error(("%s: %d latent channels, but mean and std have %d and %d values; the configuration must give them"):format(
      NAME, channels, #mean, #std), 0)
  end
  net.stride = { 4, 8, 8 } -- pixels to one latent value
  net.mean, net.std = T.of(mean, { channels }), T.of(std, { channels })
  r:finish()
  return net
end

return { kind = "model", name = NAME, help = "Wan 2.1 video autoencoder", params = {}, load = load }
