-- The causal video autoencoders of Wan: layers, chunks, streams. models/wan_vae.lua and models/wan_vae22.lua describe the
-- two of them (Wan-Video/Wan2.1, wan/modules/vae.py and Wan-Video/Wan2.2, wan/modules/vae2_2.py: facts only).
--
-- A clip goes through in chunks: 1 frame, then 4 at a time, a latent frame each. A layer is a function (x, state) -> y
-- over activations [1, T, H, W, C]; state is the layer's own table for one clip, empty before the first chunk: the frames
-- that the next chunk needs.
--
-- Memory: what lies at full frame rate (before the first layer that halves it, behind the last one that doubles it) runs
-- frame by frame, and every intermediate is given back as soon as it is used. A layer never changes or frees its input;
-- run frees what a layer has read. What remains is the history: two frames of input for each 3x3x3 convolution.
local melies = require "melies"
local kit = require "melies.modelkit"
local T = melies.tensor

local vae = {}
local Net, Stream = {}, {}
Net.__index = Net
Stream.__index = Stream

-- ---- layers -----------------------------------------------------------------------------------------------------

-- y, with x given back. A view keeps its storage: views are given back as well.
local function used(x, y)
  if not rawequal(x, y) then x:free() end
  return y
end

-- A copy of the frames first to last.
local function copy_frames(x, first, last)
  local view = x:slice(2, first, last)
  return used(view, view:clone())
end

-- 3x3x3, causal in time: two frames of history, zeros before the clip. norm: of x, with SiLU, on its way into the
-- convolution's input, which has the history in front.
function vae.causal(r, name, outputs, inputs, compute, norm)
  local conv = r:conv(name, { outputs, inputs, 3, 3, 3 },
    { compute = compute, pad = { { 0, 0 }, { 1, 1 }, { 1, 1 } } })
  return function(x, state, options)
    local s = x.shape
    local all = T.empty({ 1, s[2] + 2, s[3], s[4], s[5] }, x.dtype)
    local front, rest, last = all:slice(2, 1, 2), all:slice(2, 3), all:slice(2, -2)
    if state.past then
      front:copy_(state.past)
    else
      state.past = T.empty({ 1, 2, s[3], s[4], s[5] }, x.dtype)
      front:fill_(0)
    end
    if norm then x:l2_norm { weight = norm, act = "silu", into = rest } else rest:copy_(x) end
    state.past:copy_(last)
    for _, view in ipairs { front, rest, last } do view:free() end
    return used(all, conv(all, options))
  end
end

function vae.point(r, name, outputs, inputs, compute)
  return r:conv(name, { outputs, inputs, 1, 1, 1 }, { compute = compute })
end

-- x / |x| * sqrt(C) * gamma over channels. gamma is stored as [C, 1, 1] or [C, 1, 1, 1].
local function load_norm(r, name, width)
  local shape = r:shape(name .. ".gamma")
  local wanted = { width }
  for i = 2, #shape do wanted[i] = 1 end
  return r:take_f32(name .. ".gamma", wanted):reshape(width)
end

function vae.residual(r, name, compute)
  local shape = r:shape(name .. ".residual.2.weight")
  local width, inputs = shape[1], shape[2]
  local norm1, norm2 = load_norm(r, name .. ".residual.0", inputs), load_norm(r, name .. ".residual.3", width)
  local conv1 = vae.causal(r, name .. ".residual.2", width, inputs, compute, norm1)
  local conv2 = vae.causal(r, name .. ".residual.6", width, width, compute, norm2)
  local shortcut = width ~= inputs and vae.point(r, name .. ".shortcut", width, inputs, compute)
  return function(x, state)
    state.first, state.second = state.first or {}, state.second or {}
    local y = conv1(x, state.first)
    y = used(y, conv2(y, state.second))
    local beside = shortcut and shortcut(x) or x
    y:add_(beside)
    if shortcut then beside:free() end
    return y
  end
end

-- Within each frame, one head as wide as the channels.
function vae.attention(r, name, compute)
  local width = r:shape(name .. ".proj.weight")[1]
  local norm = load_norm(r, name .. ".norm", width)
  local qkv = melies.nn.linear(r:take(name .. ".to_qkv.weight", { 3 * width, width, 1, 1 }):reshape(3 * width, width),
    r:take(name .. ".to_qkv.bias", { 3 * width }), { compute = compute })
  local proj = melies.nn.linear(r:take(name .. ".proj.weight", { width, width, 1, 1 }):reshape(width, width),
    r:take(name .. ".proj.bias", { width }), { compute = compute })
  return function(x)
    local s = x.shape
    local all = x:l2_norm { weight = norm }
    all = used(all, all:reshape(s[2], s[3] * s[4], 1, width))
    all = used(all, qkv(all))
    local function part(i) return all:slice(4, (i - 1) * width + 1, i * width) end
    local y = T.attention(part(1), part(2), part(3), { scale = 1 / math.sqrt(width) })
    all:free()
    y = used(y, proj(y))
    y = used(y, y:reshape(s[1], s[2], s[3], s[4], s[5]))
    y:add_(x)
    return y
  end
end

-- A 2D convolution on every frame.
local function per_frame(conv, x)
  local s = x.shape
  local y = x:reshape(s[2], s[3], s[4], s[5])
  y = used(y, conv(y))
  return used(y, y:reshape(1, s[2], y.shape[2], y.shape[3], y.shape[4]))
end

-- Halves height and width; with a time_conv also the frames, but for the first chunk. The spatial padding stands right
-- and below only; the time convolution sees one frame of history.
function vae.down(r, name, compute)
  local width = r:shape(name .. ".resample.1.weight")[1]
  local space = r:conv(name .. ".resample.1", { width, width, 3, 3 },
    { compute = compute, stride = 2, pad = { { 0, 1 }, { 0, 1 } } })
  local time = r:has(name .. ".time_conv.weight") and r:conv(name .. ".time_conv", { width, width, 3, 1, 1 },
    { compute = compute, stride = { 2, 1, 1 } })
  return function(x, state)
    x = per_frame(space, x)
    if not time then return x end
    local past, n = state.past, x.shape[2]
    state.past = copy_frames(x, n, n)
    if not past then return x end
    local y = used(past, T.concat({ past, x }, 2))
    x:free()
    return used(y, time(y))
  end
end

-- Doubles height and width (nearest, then a convolution to half the channels); with a time_conv also the frames, but
-- for the first chunk, which that convolution never sees: at the second its history is zeros.
function vae.up(r, name, compute)
  local shape = r:shape(name .. ".resample.1.weight")
  local width = shape[2]
  local space = r:conv(name .. ".resample.1", { shape[1], width, 3, 3 }, { compute = compute, pad = 1 })
  local time = r:has(name .. ".time_conv.weight") and r:conv(name .. ".time_conv", { 2 * width, width, 3, 1, 1 },
    { compute = compute })
  return function(x, state)
    local s = x.shape
    local doubled
    if time and not state.started then
      state.started = true
    elseif time then
      local n = s[2]
      local past = state.past or T.zeros({ 1, 2, s[3], s[4], width }, x.dtype)
      local y = used(past, T.concat({ past, x }, 2))
      state.past = copy_frames(y, n + 1, n + 2)
      y = used(y, time(y))
      y = used(y, y:reshape(n, s[3], s[4], 2, width))
      y = used(y, y:permute(1, 4, 2, 3, 5))
      doubled = used(y, y:reshape(1, 2 * n, s[3], s[4], width))
      x = doubled
    end
    s = x.shape
    local y = x:reshape(s[2], s[3], 1, s[4], 1, s[5])
    y = used(y, y:expand { s[2], s[3], 2, s[4], 2, s[5] })
    y = used(y, y:reshape(1, s[2], 2 * s[3], 2 * s[4], s[5]))
    if doubled then doubled:free() end
    return used(y, per_frame(space, y))
  end
end

-- ---- the two halves ---------------------------------------------------------------------------------------------

-- layout.stage(r, name, side, compute): the layer of that name (as in "decoder.upsamples.3") or nil, and whether it
-- changes the number of frames. Layers with their names in the trace: { name or false, run }. Returns them, with `whole`
-- the first and last of those that see a chunk at once: encoder: whole to the end; decoder: from the start.
local function load_half(r, side, layout, compute)
  local layers, down = {}, side == "encoder"
  local short = down and "enc_" or "dec_"
  local function add(name, run, in_time)
    layers[#layers + 1] = { name and short .. name, run }
    if in_time and down then layers.first_whole = layers.first_whole or #layers end
    if in_time and not down then layers.last_whole = #layers end
  end
  local first = r:shape(side .. ".conv1.weight")
  add("conv1", vae.causal(r, side .. ".conv1", first[1], first[2], compute))
  local function stages()
    local prefix = side .. (down and ".downsamples" or ".upsamples")
    local index = 0
    while true do
      local run, in_time = layout.stage(r, ("%s.%d"):format(prefix, index), side, compute)
      if not run then break end
      add((down and "down" or "up") .. index, run, in_time)
      index = index + 1
    end
    if index == 0 then r:shape(prefix .. layout.first_stage) end
  end
  local function middle()
    add(false, vae.residual(r, side .. ".middle.0", compute))
    add("mid_attn", vae.attention(r, side .. ".middle.1", compute))
    add("middle", vae.residual(r, side .. ".middle.2", compute))
  end
  if down then stages() middle() else middle() stages() end
  local last = r:shape(side .. ".head.2.weight")
  local norm = load_norm(r, side .. ".head.0", last[2])
  local conv = vae.causal(r, side .. ".head.2", last[1], last[2], compute, norm)
  local call = { dtype = "f32" }
  add("head", function(x, state) return conv(x, state, call) end)
  layers.first_whole, layers.last_whole = layers.first_whole or 1, layers.last_whole or #layers
  return layers
end

function Net:note(name, x)
  if self.trace then self.trace(name, x:reshape(x.shape[2], x.shape[3], x.shape[4], x.shape[5])) end
end

-- Layers first to last over the frames of x, which is given back. seen: what the trace gets, by layer.
local function run_layers(layers, first, last, x, states, seen)
  for i = first, last do
    states[i] = states[i] or {}
    local y = layers[i][2](x, states[i])
    x = used(x, y)
    if seen and layers[i][1] then
      seen[i] = seen[i] or {}
      table.insert(seen[i], x:clone())
    end
  end
  return x
end

-- The same frame by frame.
local function run_frames(layers, first, last, x, states, seen)
  local n = x.shape[2]
  if n == 1 or first > last then return run_layers(layers, first, last, x, states, seen) end
  local out = {}
  for t = 1, n do out[t] = run_layers(layers, first, last, x:slice(2, t, t), states, seen) end
  x:free()
  local y = T.concat(out, 2)
  for t = 1, n do out[t]:free() end
  return y
end

-- One chunk x [1, T, H, W, C], which is given back.
function Net:run(layers, x, states)
  local seen = self.trace and {}
  x = run_frames(layers, 1, layers.first_whole - 1, x, states, seen)
  x = run_layers(layers, layers.first_whole, layers.last_whole, x, states, seen)
  x = run_frames(layers, layers.last_whole + 1, #layers, x, states, seen)
  for i = 1, seen and #layers or 0 do
    if seen[i] then self:note(layers[i][1], T.concat(seen[i], 2)) end
  end
  return x
end

function Net:encode(video)
  if not self.encoder_layers then error(self.name .. ": these weights have no encoder", 2) end
  local x = kit.frames(self.name, video, self.stride[2], 2)
  local frames = x.shape[1]
  if frames % 4 ~= 1 then
    error(("%s: a clip of %d frames cannot be encoded: wanted 1 + 4k (%d or %d)"):format(self.name, frames,
      math.max(1, frames - (frames - 1) % 4), frames + -(frames - 1) % 4), 2)
  end
  local states, out = {}, {}
  local first = 1
  while first <= frames do
    local last = first == 1 and 1 or first + 3
    local y = kit.patchify(x:slice(1, first, last) * 2 - 1, self.pixel_patch):unsqueeze(1)
    y = self:run(self.encoder_layers, y:to(self.dtype), states)
    -- The first half is the mean, the other the logarithm of the variance.
    y = used(y, self.encoder_out(y)):slice(5, 1, self.latent_channels)
    self:note("latent_unscaled", y)
    out[#out + 1] = (y - self.mean) / self.std
    first = last + 1
  end
  local y = #out == 1 and out[1] or T.concat(out, 2)
  return y:squeeze(1):permute(4, 1, 2, 3):contiguous()
end

function Net:decoder()
  if not self.decoder_layers then error(self.name .. ": these weights have no decoder", 2) end
  return setmetatable({ net = self, states = {} }, Stream)
end

function Stream:push(latent)
  local net, out = self.net, {}
  local x = kit.latent_frames(net.name, latent, net.latent_channels, 2)
  x = (x * net.std + net.mean):unsqueeze(1)
  for t = 1, x.shape[2] do
    local y = net.decoder_in(x:slice(2, t, t))
    net:note("dec_conv2", y)
    y = net:run(net.decoder_layers, net.dtype == "f32" and y or used(y, y:to(net.dtype)), self.states)
    net:note("decoded_unclamped", y)
    y = used(y, kit.unpatchify(y:squeeze(1), net.pixel_patch))
    y = used(y, (y + 1))
    y = used(y, y * 0.5)
    out[t] = used(y, y:clamp(0, 1))
  end
  return #out == 1 and out[1] or T.concat(out, 1)
end

-- options: tile, overlap (kit.decode_tiles), else the whole frame at once.
function Net:decode(latent, options)
  kit.latent_frames(self.name, latent, self.latent_channels, 2)
  return kit.decode(self, latent, options)
end

-- layout: { name, mean, std, pixel_patch, stage, first_stage }. weights, config, options: as a model's load.
function vae.load(layout, weights, config, options)
  config = config or {}
  local name = layout.name
  local compute, trace = kit.options(name, options)
  local r = kit.reader(name, weights, { anchor = "decoder.head.2.weight" })
  local net = setmetatable({ name = name, dtype = compute, trace = trace, pixel_patch = layout.pixel_patch }, Net)
  local channels
  local exact = "f32" -- the 1x1x1 layers at the latent's edge
  if r:has("decoder.conv1.weight") or not r:has("encoder.conv1.weight") then
    channels = r:shape("decoder.conv1.weight")[2]
    net.decoder_in = vae.point(r, "conv2", channels, channels, exact)
    net.decoder_layers = load_half(r, "decoder", layout, compute)
  end
  if r:has("encoder.conv1.weight") then
    local doubled = r:shape("conv1.weight")[1]
    if channels and doubled ~= 2 * channels then
      error(("%s: tensor 'conv1.weight' has %d rows, wanted %d: twice the latent's channels"):format(name, doubled,
        2 * channels), 0)
    end
    channels = doubled / 2
    net.encoder_out = vae.point(r, "conv1", doubled, doubled, exact)
    net.encoder_layers = load_half(r, "encoder", layout, compute)
  end
  net.latent_channels = kit.agree(name, config, { "z_dim", "latent" }, channels, "the file")
  local mean, std = config.mean or layout.mean, config.std or layout.std
  if #mean ~= channels or #std ~= channels then
    error(("%s: %d latent channels, but mean and std have %d and %d values; the configuration must give them"):format(
      name, channels, #mean, #std), 0)
  end
  net.stride = { 4, 8 * layout.pixel_patch, 8 * layout.pixel_patch } -- pixels to one latent value
  net.mean, net.std = T.of(mean, { channels }), T.of(std, { channels })
  r:finish()
  return net
end

return vae
