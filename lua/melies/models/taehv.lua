-- melies-api: 1
-- TAEHV, the tiny video autoencoders (madebyollin/taehv, taehv.py: facts only): taehv, taew2_1 (patch 1), taew2_2,
-- taehv1_5 (patch 2) and the "super" decoders with depthwise convolutions.
--
--   net:encode(video) -> latent       video [T, H, W, 3], u8 or float in [0, 1]; latent [C, t, h, w] f32
--   net:decode(latent) -> video       f32 in [0, 1]
--   net:decoder() -> stream           stream:push(latent frames [C, n, h, w]) -> video frames, in memory that does not
--                                     grow; the frames are bit for bit those of decode
--
-- All widths, the patch, the time factors and the variant are read from the tensors. One latent frame gives 4 frames;
-- the first three of a clip are dropped, so t latent frames are 4t - 3 frames. A clip whose length is not a multiple
-- of 4 is encoded with its last frame repeated, or with its first (config.pad = "front"). Work goes one latent frame at a
-- time, encoding and decoding.
-- config: pad, "front" or "back"; space_upscale, three booleans (true: the layers up-sample; not visible in the tensors of
-- the base variant).
local melies = require "melies"
local kit = require "melies.modelkit"
local T = melies.tensor

local NAME = "taehv"
local Net, Stream = {}, {}
Net.__index = Net
Stream.__index = Stream

-- A layer is a function (x, state) -> y over frames x [n, H, W, C]; state is the layer's own table for one clip.

-- ---- layers -----------------------------------------------------------------------------------------------------

local function convolution(layer, act, dtype)
  local call = { act = act, dtype = dtype }
  return function(x) return layer(x, call) end
end

-- The block sees each frame beside the frame before it (its own input), zeros before the first.
local function memory_block(inner, act)
  return function(x, state)
    local past, n = state.past, x.shape[1]
    past = past or T.zeros({ 1, x.shape[2], x.shape[3], x.shape[4] }, x.dtype)
    state.past = x:slice(1, n, n):clone()
    if n > 1 then past = T.concat({ past, x:slice(1, 1, n - 1) }, 1) end
    local y = inner(T.concat({ x, past }, 4))
    y:add_(x)
    if act then y = y:relu() end
    return y
  end
end

local function load_memory_block(r, name, compute)
  local options = { compute = compute, pad = 1 }
  if #r:shape(name .. ".conv.0.weight") == 4 and r:has(name .. ".conv.4.weight") then
    local width = r:shape(name .. ".conv.0.weight")[1]
    local first = convolution(r:conv(name .. ".conv.0", { width, 2 * width, 3, 3 }, options), "relu")
    local second = convolution(r:conv(name .. ".conv.2", { width, width, 3, 3 }, options), "relu")
    local third = convolution(r:conv(name .. ".conv.4", { width, width, 3, 3 }, options))
    return memory_block(function(x) return third(second(first(x))) end, true)
  end
  -- Super: a 7x7 convolution of each channel alone, then two 1x1; no activation at the end.
  local width = r:shape(name .. ".conv.0.weight")[1]
  local depth = convolution(r:conv(name .. ".conv.0", { width, 1, 7, 7 },
    { compute = compute, pad = 3, groups = width }))
  local wide = convolution(r:conv(name .. ".conv.1", { false, width, 1, 1 }, { compute = compute }), "relu")
  local back = convolution(r:conv(name .. ".conv.3", { width / 2, false, 1, 1 }, { compute = compute }))
  return memory_block(function(x) return back(wide(depth(x))) end, false)
end

-- `stride` frames become one: their channels side by side, the earlier first, through a 1x1 convolution.
local function load_pool(r, name, compute)
  local shape = r:shape(name .. ".conv.weight")
  local stride = shape[2] / shape[1]
  local conv = r:conv(name .. ".conv", { shape[1], shape[1] * stride, 1, 1 }, { compute = compute })
  return function(x)
    local s = x.shape
    if stride > 1 then
      x = x:reshape(s[1] / stride, stride, s[2], s[3], s[4]):permute(1, 3, 4, 2, 5)
      x = x:reshape(s[1] / stride, s[2], s[3], stride * s[4])
    end
    return conv(x)
  end, stride
end

-- One frame becomes `stride`: the first block of channels is the earlier frame.
local function load_grow(r, name, compute)
  local shape = r:shape(name .. ".conv.weight")
  local stride = shape[1] / shape[2]
  local conv = r:conv(name .. ".conv", { shape[2] * stride, shape[2], 1, 1 }, { compute = compute })
  return function(x)
    local y, s = conv(x), x.shape
    if stride == 1 then return y end
    y = y:reshape(s[1], s[2], s[3], stride, s[4]):permute(1, 4, 2, 3, 5)
    return y:reshape(s[1] * stride, s[2], s[3], s[4])
  end, stride
end

local function upsample(x)
  local s = x.shape
  local y = x:reshape(s[1], s[2], 1, s[3], 1, s[4]):expand { s[1], s[2], 2, s[3], 2, s[4] }
  return y:reshape(s[1], 2 * s[2], 2 * s[3], s[4])
end

local function clamp3(x) return (x * (1 / 3)):tanh() * 3 end -- of a float32 latent

-- ---- the two halves ---------------------------------------------------------------------------------------------

-- Layers are kept with their number in the file, for the trace: { { index, run }, ... }. The latent is float32 on both
-- sides and so is the decoder's last layer: pixels are not rounded to bf16.
local function load_encoder(r, compute)
  local layers, times = {}, 1
  local function add(index, run) layers[#layers + 1] = { index, run } end
  local width = r:shape("encoder.0.weight")[1]
  local down = { compute = compute, stride = 2, pad = 1 }
  add(0, convolution(r:conv("encoder.0", { width, false, 3, 3 }, { compute = compute, pad = 1 }), "relu"))
  for stage = 0, 2 do
    local first = 2 + 5 * stage
    local pool, stride = load_pool(r, "encoder." .. first, compute)
    times = times * stride
    add(first, pool)
    add(first + 1, convolution(r:conv("encoder." .. first + 1, { width, width, 3, 3 }, down)))
    for i = 2, 4 do add(first + i, load_memory_block(r, "encoder." .. first + i, compute)) end
  end
  add(17, convolution(r:conv("encoder.17", { false, width, 3, 3 }, { compute = compute, pad = 1 }), nil, "f32"))
  return layers, times
end

local function load_base_decoder(r, compute, space)
  local layers, times = {}, 1
  local function add(index, run) layers[#layers + 1] = { index, run } end
  local pad = { compute = compute, pad = 1 }
  add(0, function(x) return clamp3(x):to(compute) end)
  add(1, convolution(r:conv("decoder.1", { false, false, 3, 3 }, pad)))
  add(2, function(x) return x:relu() end)
  local width = r:shape("decoder.1.weight")[1]
  for stage = 0, 2 do
    local first = 3 + 6 * stage
    for i = 0, 2 do add(first + i, load_memory_block(r, "decoder." .. first + i, compute)) end
    add(first + 3, space[stage + 1] and upsample or function(x) return x end)
    local grow, stride = load_grow(r, "decoder." .. first + 4, compute)
    times = times * stride
    add(first + 4, grow)
    local conv = r:conv("decoder." .. first + 5, { false, width, 3, 3 }, pad)
    width = r:shape(("decoder.%d.weight"):format(first + 5))[1]
    add(first + 5, convolution(conv, stage == 2 and "relu" or nil))
  end
  add(22, convolution(r:conv("decoder.22", { false, width, 3, 3 }, pad), nil, "f32"))
  return layers, times
end

-- Up-sampling is a convolution to four times the channels, ReLU, then a pixel shuffle.
local function load_super_decoder(r, compute)
  local layers, times = {}, 1
  local function add(index, run) layers[#layers + 1] = { index, run } end
  local pad = { compute = compute, pad = 1 }
  add(0, convolution(r:conv("decoder.0", { false, false, 1, 1 }, { compute = compute }), nil, compute))
  local width = r:shape("decoder.0.weight")[1]
  for stage = 0, 2 do
    local first = 1 + 7 * stage
    for i = 0, 2 do add(first + i, load_memory_block(r, "decoder." .. first + i, compute)) end
    local conv = r:conv("decoder." .. first + 3, { false, width, 3, 3 }, pad)
    local grow, stride = load_grow(r, "decoder." .. first + 6, compute)
    width = r:shape(("decoder.%d.conv.weight"):format(first + 6))[2]
    local block = math.sqrt(r:shape(("decoder.%d.weight"):format(first + 3))[1] / width)
    if block % 1 ~= 0 then
      error(("%s: tensor 'decoder.%d.weight' has %d rows, wanted %d times a square"):format(NAME, first + 3,
        width * block * block, width), 0)
    end
    times = times * stride
    local plain = convolution(conv)
    add(first + 3, plain)
    add(first + 5, function(x) return T.pixel_shuffle(x:relu(), block) end)
    add(first + 6, grow)
  end
  add(22, convolution(r:conv("decoder.22", { false, width, 3, 3 }, pad), nil, "f32"))
  return layers, times
end

-- ---- running ----------------------------------------------------------------------------------------------------

-- One pass of frames through the layers; states: a table a layer, filled by the layers.
function Net:run(tag, layers, x, states)
  for i, layer in ipairs(layers) do
    states[i] = states[i] or {}
    x = layer[2](x, states[i])
    if self.trace then self.trace(("act.%s.%d"):format(tag, layer[1]), x) end
  end
  return x
end

function Net:encode(video)
  if not self.encoder_layers then error(NAME .. ": these weights have no encoder", 2) end
  local x = kit.frames(NAME, video, self.block, 2)
  local step = self.time_down
  local count = x.shape[1]
  local missing = -count % step
  if missing > 0 then
    if self.pad == "front" then x = x:pad(1, missing, 0, "edge") else x = x:pad(1, 0, missing, "edge") end
  end
  local states, out = {}, {}
  for first = 1, count + missing, step do
    local frames = T.pixel_unshuffle(x:slice(1, first, first + step - 1), self.patch):to(self.dtype)
    out[#out + 1] = self:run("enc", self.encoder_layers, frames, states)
  end
  local latent = #out == 1 and out[1] or T.concat(out, 1)
  return latent:permute(4, 1, 2, 3):contiguous()
end

function Net:decoder()
  if not self.decoder_layers then error(NAME .. ": these weights have no decoder", 2) end
  return setmetatable({ net = self, states = {}, drop = self.time_up - 1 }, Stream)
end

function Stream:push(latent)
  local net, out = self.net, {}
  local x = kit.latent_frames(NAME, latent, net.latent_channels, 2)
  for t = 1, x.shape[1] do
    local y = net:run("dec", net.decoder_layers, x:slice(1, t, t), self.states)
    if net.trace then net.trace("decoder_raw", y) end
    y = T.pixel_shuffle(y, net.patch):clamp(0, 1)
    local n = y.shape[1]
    local first = math.min(self.drop, n)
    self.drop = self.drop - first
    if first < n then out[#out + 1] = first > 0 and y:slice(1, first + 1, n) or y end
  end
  return #out == 1 and out[1]:contiguous() or T.concat(out, 1)
end

function Net:decode(latent, options)
  kit.latent_frames(NAME, latent, self.latent_channels, 2)
  return kit.decode(self, latent, options)
end

local function load(weights, config, options)
  config = config or {}
  local compute, trace = kit.options(NAME, options)
  local pad = config.pad or "back"
  if pad ~= "back" and pad ~= "front" then
    error(("%s: config.pad is '%s', wanted front or back"):format(NAME, tostring(pad)), 0)
  end
  local r = kit.reader(NAME, weights, { anchor = "decoder.22.weight" })
  local net = setmetatable({ name = NAME, dtype = compute, trace = trace, pad = pad }, Net)
  local pixels, encoded, decoded
  if r:has("decoder.22.weight") then
    if r:has("decoder.0.weight") then
      net.decoder_layers, net.time_up = load_super_decoder(r, compute)
      decoded = r:shape("decoder.0.weight")[2]
    else
      net.decoder_layers, net.time_up = load_base_decoder(r, compute, config.space_upscale or { true, true, true })
      decoded = r:shape("decoder.1.weight")[2]
    end
    pixels = r:shape("decoder.22.weight")[1]
  end
  if r:has("encoder.0.weight") or not net.decoder_layers then
    net.encoder_layers, net.time_down = load_encoder(r, compute)
    encoded = r:shape("encoder.17.weight")[1]
    local found = r:shape("encoder.0.weight")[2]
    if pixels and pixels ~= found then
      error(("%s: encoder.0.weight takes %d values a patch, decoder.22.weight gives %d"):format(NAME, found, pixels), 0)
    end
    pixels = found
  end
  if encoded and decoded and encoded ~= decoded then
    error(("%s: encoder.17.weight gives %d latent channels, the decoder takes %d"):format(NAME, encoded, decoded), 0)
  end
  net.latent_channels = kit.agree(NAME, config, { "latent_channels", "latent" }, decoded or encoded, "the file")
  net.patch = math.sqrt(pixels / 3)
  if net.patch % 1 ~= 0 then error(("%s: %d values a patch are not 3 times a square"):format(NAME, pixels), 0) end
  kit.agree(NAME, config, { "patch_size" }, net.patch, "the file")
  net.block = 8 * net.patch
  net.stride = { net.time_up or net.time_down, net.block, net.block } -- pixels to one latent value
  r:finish()
  return net
end

return { kind = "model", name = NAME, help = "TAEHV, tiny video autoencoders", params = {}, load = load }
