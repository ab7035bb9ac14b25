-- The autoencoder of models/taehv.lua for training: the same tensors under the same names, the same arithmetic, for a
-- batch of clips at once; the base decoder, or the "super" one with depthwise convolutions.
--
--   local params = taehv.init({ latent = 16, width = 64, widths = { 256, 128, 64, 64 } }, seed)
--   local net = taehv.net(params)
--   local latent = net:encode(video [B, T, H, W, 3] in [0, 1])          [B, T / 4, H / 8, W / 8, latent], a variable
--   local frames = net:decode(latent)                                   [B, 4 T', 8 H', 8 W', 3], not clamped
--
-- Channels last throughout; models/taehv.lua gives latents as [C, t, h, w]. T is a multiple of 4 (of the product of the
-- pools), frames are cut into squares of patch where the weights have one. A decoder's first 3 frames belong to the
-- time before the clip, as the model drops them.
local melies = require "melies"
local grad = require "melies.grad"
local lib = require "melies.ffi.lib"
local T = melies.tensor

local taehv = {}
local Net = {}
Net.__index = Net

local init_known = { latent = true, width = true, widths = true, patch = true, pools = true, grows = true,
  quiet = true, super = true }
-- Fresh parameters: He's scale for what a ReLU follows. width: of the encoder; widths: of the decoder's stages and its end.
-- pools, grows: how many frames a stage makes one of, or one frame becomes ({ 1, 2, 2 } both; pools in the order of the
-- encoder, grows of the decoder). quiet (true): the last convolution of each memory block starts at zero. super: the
-- decoder is the "super" one.
function taehv.init(c, seed)
  lib.check_options("taehv.init", c, init_known)
  local stream, params, patch = 0, {}, c.patch or 1
  local pools, grows, widths = c.pools or { 2, 2, 1 }, c.grows or { 1, 2, 2 }, c.widths
  local function conv(name, o, i, k, options)
    options = options or {}
    stream = stream + 1
    local scale = options.zero and 0 or math.sqrt((options.gain or 2) / (i * k * k))
    params[name .. ".weight"] = grad.param(T.noise({ o, i, k, k }, { seed = seed or 0, stream = stream }) * scale)
    if options.bias ~= false then params[name .. ".bias"] = grad.param(T.zeros { o }) end
  end
  local function block(name, n)
    conv(name .. ".conv.0", n, 2 * n, 3)
    conv(name .. ".conv.2", n, n, 3)
    conv(name .. ".conv.4", n, n, 3, { zero = c.quiet ~= false })
  end
  local w = c.width
  conv("encoder.0", w, 3 * patch * patch, 3)
  for stage = 0, 2 do
    local at = 2 + 5 * stage
    conv(("encoder.%d.conv"):format(at), w, w * pools[stage + 1], 1, { bias = false, gain = 1 })
    conv("encoder." .. at + 1, w, w, 3, { bias = false, gain = 1 })
    for i = 2, 4 do block("encoder." .. at + i, w) end
  end
  conv("encoder.17", c.latent, w, 3, { gain = 1 })
  if c.super then
    conv("decoder.0", widths[1], c.latent, 1, { gain = 1 })
    for stage = 0, 2 do
      local at, n, after = 1 + 7 * stage, widths[stage + 1], widths[stage + 2]
      for i = 0, 2 do
        local name = "decoder." .. at + i
        stream = stream + 1
        params[name .. ".conv.0.weight"] = grad.param(T.noise({ 2 * n, 1, 7, 7 }, { seed = seed or 0, stream = stream }) / 7)
        params[name .. ".conv.0.bias"] = grad.param(T.zeros { 2 * n })
        conv(name .. ".conv.1", 2 * n, 2 * n, 1)
        conv(name .. ".conv.3", n, 2 * n, 1, { zero = c.quiet ~= false })
      end
      conv("decoder." .. at + 3, 4 * after, n, 3)
      conv(("decoder.%d.conv"):format(at + 6), after * grows[stage + 1], after, 1, { bias = false, gain = 1 })
    end
    conv("decoder.22", 3 * patch * patch, widths[4], 3, { gain = 1 })
    return params
  end
  conv("decoder.1", widths[1], c.latent, 3)
  for stage = 0, 2 do
    local at, n = 3 + 6 * stage, widths[stage + 1]
    for i = 0, 2 do block("decoder." .. at + i, n) end
    conv(("decoder.%d.conv"):format(at + 4), n * grows[stage + 1], n, 1, { bias = false, gain = 1 })
    conv("decoder." .. at + 5, widths[stage + 2], n, 3, { bias = false, gain = stage == 2 and 2 or 1 })
  end
  conv("decoder.22", 3 * patch * patch, widths[4], 3, { gain = 1 })
  return params
end

function taehv.net(params, o)
  o = o or {}
  lib.check_options("taehv.net", o, { compute = true })
  local out = params["decoder.22.weight"]
  if not out then error("taehv.net: decoder.22.weight is missing", 2) end
  return setmetatable({ params = params, dtype = o.compute or melies.compute(), patch = math.sqrt(out.shape[1] / 3) },
    Net)
end

function Net:conv(x, name, o)
  o = o or {}
  local w = self.params[name .. ".weight"]
  return grad.conv(x, w, self.params[name .. ".bias"], { act = o.act, dtype = o.dtype, stride = o.stride,
    pad = (w.shape[3] - 1) / 2, groups = o.groups, compute = self.dtype })
end

-- Frames x [B, T, H, W, C], each beside the one before it, zeros before the first.
function Net:block(x, name)
  local b, t, h, w, c = unpack(x.shape)
  local past = t > 1 and grad.pad(grad.slice(x, 2, 1, t - 1), 2, 1, 0, 0) or T.zeros(x.shape, x.dtype)
  local y = grad.concat({ x, past }, 5):reshape(b * t, h, w, 2 * c)
  if not self.params[name .. ".conv.4.weight"] then -- super
    y = self:conv(self:conv(y, name .. ".conv.0", { groups = 2 * c }), name .. ".conv.1", { act = "relu" })
    return grad.add(self:conv(y, name .. ".conv.3"):reshape(b, t, h, w, c), x)
  end
  y = self:conv(y, name .. ".conv.0", { act = "relu" })
  y = self:conv(self:conv(y, name .. ".conv.2", { act = "relu" }), name .. ".conv.4")
  return grad.relu(grad.add(y:reshape(b, t, h, w, c), x))
end

-- A convolution of each frame alone.
function Net:frames(x, name, o)
  local b, t, h, w, c = unpack(x.shape)
  local y = self:conv(x:reshape(b * t, h, w, c), name, o)
  return y:reshape(b, t, y.shape[2], y.shape[3], y.shape[4])
end

function Net:encode(video)
  local x = grad.is(video) and video or grad.const(video)
  local b, t, h, w = unpack(x.shape)
  x = x:reshape(b * t, h, w, 3):pixel_unshuffle(self.patch):to(self.dtype)
  x = x:reshape(b, t, x.shape[2], x.shape[3], x.shape[4])
  x = self:frames(x, "encoder.0", { act = "relu" })
  for stage = 0, 2 do
    local at = 2 + 5 * stage
    local weight, s = self.params[("encoder.%d.conv.weight"):format(at)].shape, x.shape
    local n = weight[2] / weight[1]
    if s[2] % n ~= 0 then error(("taehv: %d frames do not divide by %d"):format(s[2], n), 2) end
    if n > 1 then
      x = x:reshape(s[1] * s[2] / n, n, s[3], s[4], s[5]):permute(1, 3, 4, 2, 5)
      x = x:reshape(s[1], s[2] / n, s[3], s[4], n * s[5])
    end
    x = self:frames(x, ("encoder.%d.conv"):format(at))
    x = self:frames(x, "encoder." .. at + 1, { stride = 2 })
    for i = 2, 4 do x = self:block(x, "encoder." .. at + i) end
  end
  return self:frames(x, "encoder.17", { dtype = "f32" })
end

local function upsample(x)
  local b, t, h, w, c = unpack(x.shape)
  return x:reshape(b, t, h, 1, w, 1, c):expand({ b, t, h, 2, w, 2, c }):reshape(b, t, 2 * h, 2 * w, c)
end

-- Channels that n frames share become n frames, the first of them the earlier.
local function spread(x, n)
  if n == 1 then return x end
  local s = x.shape
  x = x:reshape(s[1] * s[2], s[3], s[4], n, s[5] / n):permute(1, 4, 2, 3, 5)
  return x:reshape(s[1], s[2] * n, s[3], s[4], s[5] / n)
end

function Net:pixels(x)
  x = self:frames(x, "decoder.22", { dtype = "f32" })
  local b, t, h, w, c = unpack(x.shape)
  x = x:reshape(b * t, h, w, c):pixel_shuffle(self.patch)
  return x:reshape(b, t, h * self.patch, w * self.patch, 3)
end

function Net:decode_super(x)
  x = self:frames(x, "decoder.0", { dtype = self.dtype })
  for stage = 0, 2 do
    local at = 1 + 7 * stage
    for i = 0, 2 do x = self:block(x, "decoder." .. at + i) end
    x = self:frames(x, "decoder." .. at + 3, { act = "relu" })
    local grow = self.params[("decoder.%d.conv.weight"):format(at + 6)].shape
    local b, t, h, w, c = unpack(x.shape)
    x = x:reshape(b * t, h, w, c):pixel_shuffle(math.sqrt(c / grow[2]))
    x = x:reshape(b, t, x.shape[2], x.shape[3], grow[2])
    x = spread(self:frames(x, ("decoder.%d.conv"):format(at + 6)), grow[1] / grow[2])
  end
  return self:pixels(x)
end

function Net:decode(latent)
  local x = grad.is(latent) and latent or grad.const(latent)
  if self.params["decoder.0.weight"] then return self:decode_super(x) end
  x = grad.mul(grad.tanh(grad.mul(x, 1 / 3)), 3):to(self.dtype)
  x = self:frames(x, "decoder.1", { act = "relu" })
  for stage = 0, 2 do
    local at = 3 + 6 * stage
    for i = 0, 2 do x = self:block(x, "decoder." .. at + i) end
    x = self:frames(upsample(x), ("decoder.%d.conv"):format(at + 4))
    local weight = self.params[("decoder.%d.conv.weight"):format(at + 4)].shape
    x = spread(x, weight[1] / weight[2])
    x = self:frames(x, "decoder." .. at + 5, { act = stage == 2 and "relu" or nil })
  end
  return self:pixels(x)
end

return taehv
