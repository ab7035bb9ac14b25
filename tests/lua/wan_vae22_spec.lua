-- The autoencoder of Wan 2.2 TI2V-5B against a slow one of plain loops over plain tables. It follows the order of the
-- original (Wan-Video/Wan2.2, wan/modules/vae2_2.py): channels first, one list of caches that is walked from the start at
-- every chunk, padding by what a cache lacks. It shares no code with lua/melies.
local t = require "harness"
local melies = require "melies"
local T = melies.tensor
local vae = require "melies.models.wan_vae22"

-- ---- the slow autoencoder: arrays { c, t, h, w, [1..n] = values } ---------------------------------------------------

local function array(c, n, h, w)
  local x = { c = c, t = n, h = h, w = w }
  for i = 1, c * n * h * w do x[i] = 0 end
  return x
end
local function at(x, c, n, h, w) return ((c * x.t + n) * x.h + h) * x.w + w + 1 end
local function each(x, fn)
  for c = 0, x.c - 1 do
    for n = 0, x.t - 1 do
      for h = 0, x.h - 1 do
        for w = 0, x.w - 1 do x[at(x, c, n, h, w)] = fn(c, n, h, w) end
      end
    end
  end
  return x
end
local function frames(x, first, last) -- from 0
  return each(array(x.c, last - first + 1, x.h, x.w), function(c, n, h, w) return x[at(x, c, first + n, h, w)] end)
end
local function join(a, b)
  return each(array(a.c, a.t + b.t, a.h, a.w), function(c, n, h, w)
    if n < a.t then return a[at(a, c, n, h, w)] end
    return b[at(b, c, n - a.t, h, w)]
  end)
end
local function add(a, b) return each(array(a.c, a.t, a.h, a.w), function(...) return a[at(a, ...)] + b[at(b, ...)] end) end

-- weight { o, i, kt, kh, kw, values }; pad: frames in front, rows and columns on { before, after }.
local function conv(x, weight, bias, stride, front, pad)
  local s = weight.shape
  local o, i, kt, kh, kw = s[1], s[2], s[3], s[4], s[5]
  local n = math.floor((x.t + front - kt) / stride[1]) + 1
  local h = math.floor((x.h + pad[1] + pad[2] - kh) / stride[2]) + 1
  local w = math.floor((x.w + pad[1] + pad[2] - kw) / stride[2]) + 1
  return each(array(o, n, h, w), function(c, tt, hh, ww)
    local sum = bias[c + 1]
    for ci = 0, i - 1 do
      for a = 0, kt - 1 do
        local ti = tt * stride[1] + a - front
        for b = 0, kh - 1 do
          local hi = hh * stride[2] + b - pad[1]
          for d = 0, kw - 1 do
            local wi = ww * stride[2] + d - pad[1]
            if ti >= 0 and hi >= 0 and hi < x.h and wi >= 0 and wi < x.w then
              sum = sum + x[at(x, ci, ti, hi, wi)] * weight[(((c * i + ci) * kt + a) * kh + b) * kw + d + 1]
            end
          end
        end
      end
    end
    return sum
  end)
end

local function norm(x, gamma, silu)
  local out = array(x.c, x.t, x.h, x.w)
  for n = 0, x.t - 1 do
    for h = 0, x.h - 1 do
      for w = 0, x.w - 1 do
        local sum = 0
        for c = 0, x.c - 1 do sum = sum + x[at(x, c, n, h, w)] ^ 2 end
        local scale = math.sqrt(x.c) / math.max(math.sqrt(sum), 1e-12)
        for c = 0, x.c - 1 do
          local y = x[at(x, c, n, h, w)] * scale * gamma[c + 1]
          out[at(x, c, n, h, w)] = silu and y / (1 + math.exp(-y)) or y
        end
      end
    end
  end
  return out
end

local Slow = {}
Slow.__index = Slow

function Slow:weight(name) return self.w[name .. ".weight"], self.w[name .. ".bias"] end

-- 3x3x3 with its cache: the last two frames that it was given.
function Slow:causal(name, x)
  self.index = self.index + 1
  local cache = self.cache[self.index]
  local keep = frames(x, math.max(0, x.t - 2), x.t - 1)
  if keep.t < 2 and cache then keep = join(frames(cache, cache.t - 1, cache.t - 1), keep) end
  local front = 2
  if cache then x, front = join(cache, x), 2 - cache.t end
  self.cache[self.index] = keep
  local w, b = self:weight(name)
  return conv(x, w, b, { 1, 1 }, front, { 1, 1 })
end

function Slow:point(name, x)
  local w, b = self:weight(name)
  return conv(x, w, b, { 1, 1 }, 0, { 0, 0 })
end

function Slow:residual(name, x)
  local short = self.w[name .. ".shortcut.weight"] and self:point(name .. ".shortcut", x) or x
  local y = norm(x, self.w[name .. ".residual.0.gamma"], true)
  y = self:causal(name .. ".residual.2", y)
  y = norm(y, self.w[name .. ".residual.3.gamma"], true)
  return add(self:causal(name .. ".residual.6", y), short)
end

function Slow:attention(name, x)
  local qkv = self:point(name .. ".to_qkv", norm(x, self.w[name .. ".norm.gamma"]))
  local c, out = x.c, array(x.c, x.t, x.h, x.w)
  local area = x.h * x.w
  local function value(part, ci, n, p) return qkv[((part * c + ci) * x.t + n) * area + p + 1] end
  for n = 0, x.t - 1 do
    for p = 0, area - 1 do
      local scores, total, most = {}, 0, -math.huge
      for q = 0, area - 1 do
        local dot = 0
        for ci = 0, c - 1 do dot = dot + value(0, ci, n, p) * value(1, ci, n, q) end
        scores[q] = dot / math.sqrt(c)
        most = math.max(most, scores[q])
      end
      for q = 0, area - 1 do
        scores[q] = math.exp(scores[q] - most)
        total = total + scores[q]
      end
      for ci = 0, c - 1 do
        local sum = 0
        for q = 0, area - 1 do sum = sum + scores[q] / total * value(2, ci, n, q) end
        out[(ci * x.t + n) * area + p + 1] = sum
      end
    end
  end
  return add(self:point(name .. ".proj", out), x)
end

function Slow:upsample(name, x)
  local w, b = self:weight(name .. ".time_conv")
  if w then
    self.index = self.index + 1
    local cache = self.cache[self.index]
    if cache == nil then
      self.cache[self.index] = "none yet"
    else
      local keep = frames(x, math.max(0, x.t - 2), x.t - 1)
      if keep.t < 2 then
        local before = cache == "none yet" and array(x.c, 1, x.h, x.w) or frames(cache, cache.t - 1, cache.t - 1)
        keep = join(before, keep)
      end
      local y
      if cache == "none yet" then y = conv(x, w, b, { 1, 1 }, 2, { 0, 0 })
      else y = conv(join(cache, x), w, b, { 1, 1 }, 2 - cache.t, { 0, 0 }) end
      self.cache[self.index] = keep
      x = each(array(x.c, 2 * x.t, x.h, x.w), function(c, n, h, ww)
        return y[at(y, n % 2 * x.c + c, math.floor(n / 2), h, ww)]
      end)
    end
  end
  local big = each(array(x.c, x.t, 2 * x.h, 2 * x.w), function(c, n, h, ww)
    return x[at(x, c, n, math.floor(h / 2), math.floor(ww / 2))]
  end)
  w, b = self:weight(name .. ".resample.1")
  return conv(big, w, b, { 1, 1 }, 0, { 1, 1 })
end

function Slow:downsample(name, x)
  local w, b = self:weight(name .. ".resample.1")
  x = conv(x, w, b, { 1, 2 }, 0, { 0, 1 })
  w, b = self:weight(name .. ".time_conv")
  if not w then return x end
  self.index = self.index + 1
  local cache = self.cache[self.index]
  self.cache[self.index] = frames(x, x.t - 1, x.t - 1)
  if not cache then return x end
  return conv(join(cache, x), w, b, { 2, 1 }, 0, { 0, 0 })
end

local function avg_down(x, width, ft, fs)
  local missing = (ft - x.t % ft) % ft
  if missing > 0 then x = join(array(x.c, missing, x.h, x.w), x) end
  local factor = ft * fs * fs
  local group = x.c * factor / width
  return each(array(width, x.t / ft, x.h / fs, x.w / fs), function(c, n, h, w)
    local sum = 0
    for g = 0, group - 1 do
      local flat = c * group + g
      local ci, rest = math.floor(flat / factor), flat % factor
      local a, bc = math.floor(rest / (fs * fs)), rest % (fs * fs)
      sum = sum + x[at(x, ci, n * ft + a, h * fs + math.floor(bc / fs), w * fs + bc % fs)]
    end
    return sum / group
  end)
end

local function dup_up(x, width, ft, fs, first_chunk)
  local factor = ft * fs * fs
  local repeats = width * factor / x.c
  local y = each(array(width, x.t * ft, x.h * fs, x.w * fs), function(c, n, h, w)
    local flat = c * factor + (n % ft * fs + h % fs) * fs + w % fs
    return x[at(x, math.floor(flat / repeats), math.floor(n / ft), math.floor(h / fs), math.floor(w / fs))]
  end)
  return first_chunk and frames(y, ft - 1, y.t - 1) or y
end

function Slow:half(side, x, first_chunk)
  self.index = 0
  local down = side == "encoder"
  x = self:causal(side .. ".conv1", x)
  local function middle()
    x = self:residual(side .. ".middle.0", x)
    x = self:attention(side .. ".middle.1", x)
    x = self:residual(side .. ".middle.2", x)
  end
  if not down then middle() end
  for i, stage in ipairs(self[side]) do
    local name = ("%s.%s.%d."):format(side, down and "downsamples" or "upsamples", i - 1)
    name = name .. (down and "downsamples." or "upsamples.")
    local y = x
    for k = 0, stage.layers - 1 do y = self:residual(name .. k, y) end
    local ft, fs = stage.time and 2 or 1, stage.space and 2 or 1
    if stage.space then y = self[down and "downsample" or "upsample"](self, name .. stage.layers, y) end
    if down then y = add(y, avg_down(x, stage.width, ft, fs))
    elseif stage.space then y = add(y, dup_up(x, stage.width, ft, fs, first_chunk)) end
    x = y
  end
  if down then middle() end
  return self:causal(side .. ".head.2", norm(x, self.w[side .. ".head.0.gamma"], true))
end

function Slow:encode(video) -- [3, T, H, W] in [-1, 1]
  self.cache = {}
  local p = each(array(12, video.t, video.h / 2, video.w / 2), function(c, n, h, w)
    local ci, r, q = math.floor(c / 4), math.floor(c % 4 / 2), c % 2
    return video[at(video, ci, n, h * 2 + q, w * 2 + r)]
  end)
  local out
  for i = 0, (video.t - 1) / 4 do
    local y = self:half("encoder", i == 0 and frames(p, 0, 0) or frames(p, 4 * i - 3, 4 * i))
    out = out and join(out, y) or y
  end
  local y = self:point("conv1", out)
  return each(array(self.z, y.t, y.h, y.w), function(c, ...)
    return (y[at(y, c, ...)] - self.mean[c + 1]) / self.std[c + 1]
  end)
end

function Slow:decode(latent)
  self.cache = {}
  local z = self:point("conv2", each(array(latent.c, latent.t, latent.h, latent.w), function(c, ...)
    return latent[at(latent, c, ...)] * self.std[c + 1] + self.mean[c + 1]
  end))
  local out
  for i = 0, z.t - 1 do
    local y = self:half("decoder", frames(z, i, i), i == 0)
    out = out and join(out, y) or y
  end
  return each(array(3, out.t, out.h * 2, out.w * 2), function(c, n, h, w)
    return out[at(out, c * 4 + w % 2 * 2 + h % 2, n, math.floor(h / 2), math.floor(w / 2))]
  end)
end

-- ---- random weights of both ------------------------------------------------------------------------------------------

local function random_weights(z, dim, dec_dim, mult, residuals, time_down)
  local w, count = {}, 0
  local function put(name, shape, scale, offset)
    count = count + 1
    w[name] = melies.noise(shape, { seed = 5, stream = count }) * scale + (offset or 0)
  end
  local function conv_of(name, o, i, ...)
    local fan = i
    for _, k in ipairs { ... } do fan = fan * k end
    put(name .. ".weight", { o, i, ... }, 1 / math.sqrt(fan))
    put(name .. ".bias", { o }, 0.1)
  end
  local function residual(name, i, o)
    put(name .. ".residual.0.gamma", { i, 1, 1, 1 }, 0.2, 1)
    conv_of(name .. ".residual.2", o, i, 3, 3, 3)
    put(name .. ".residual.3.gamma", { o, 1, 1, 1 }, 0.2, 1)
    conv_of(name .. ".residual.6", o, o, 3, 3, 3)
    if i ~= o then conv_of(name .. ".shortcut", o, i, 1, 1, 1) end
  end
  local function middle(side, c)
    residual(side .. ".middle.0", c, c)
    put(side .. ".middle.1.norm.gamma", { c, 1, 1 }, 0.2, 1)
    conv_of(side .. ".middle.1.to_qkv", 3 * c, c, 1, 1)
    conv_of(side .. ".middle.1.proj", c, c, 1, 1)
    residual(side .. ".middle.2", c, c)
  end
  local slow = setmetatable({ w = {}, z = z, encoder = {}, decoder = {} }, Slow)
  local function stages(side, widths, list, layers, times)
    local i = widths[1]
    for s = 1, #widths - 1 do
      local stage = { width = widths[s + 1], layers = layers, space = s < #widths - 1, time = times[s] }
      local name = ("%s.%s.%d.%s."):format(side, list, s - 1, list)
      for k = 0, layers - 1 do
        residual(name .. k, i, stage.width)
        i = stage.width
      end
      if stage.space then
        conv_of(name .. layers .. ".resample.1", i, i, 3, 3)
        if stage.time then
          conv_of(name .. layers .. ".time_conv", side == "encoder" and i or 2 * i, i, 3, 1, 1)
        end
      end
      slow[side][s] = stage
    end
  end
  local down, up = { dim }, { dec_dim * mult[#mult] }
  for i = 1, #mult do down[i + 1], up[i + 1] = dim * mult[i], dec_dim * mult[#mult + 1 - i] end
  local time_up = {}
  for i = 1, #time_down do time_up[i] = time_down[#time_down + 1 - i] end
  conv_of("encoder.conv1", dim, 12, 3, 3, 3)
  stages("encoder", down, "downsamples", residuals, time_down)
  middle("encoder", down[#down])
  put("encoder.head.0.gamma", { down[#down], 1, 1, 1 }, 0.2, 1)
  conv_of("encoder.head.2", 2 * z, down[#down], 3, 3, 3)
  conv_of("conv1", 2 * z, 2 * z, 1, 1, 1)
  conv_of("conv2", z, z, 1, 1, 1)
  conv_of("decoder.conv1", up[1], z, 3, 3, 3)
  middle("decoder", up[1])
  stages("decoder", up, "upsamples", residuals + 1, time_up)
  put("decoder.head.0.gamma", { up[#up], 1, 1, 1 }, 0.2, 1)
  conv_of("decoder.head.2", 12, up[#up], 3, 3, 3)
  local stats = { mean = {}, std = {} }
  for i = 1, z do stats.mean[i], stats.std[i] = 0.1 * i - 0.2, 0.5 + 0.1 * i end
  slow.mean, slow.std = stats.mean, stats.std
  for name, x in pairs(w) do
    local list = x:list()
    -- A 2D convolution is one of a single frame.
    local s = x.shape
    list.shape = #s == 4 and { s[1], s[2], 1, s[3], s[4] } or s
    slow.w[name] = list
  end
  return w, slow, stats
end

local weights, slow, stats = random_weights(3, 4, 4, { 1, 2, 4, 4 }, 1, { false, true, true })
local function load(compute) return vae.load(weights, stats, { compute = compute or "f32" }) end

local function as_array(x) -- a tensor [C, T, H, W]
  local s, out = x.shape, x:list()
  out.c, out.t, out.h, out.w = s[1], s[2], s[3], s[4]
  return out
end
local function as_tensor(x)
  local list = {}
  for i = 1, #x do list[i] = x[i] end
  return T.of(list, { x.c, x.t, x.h, x.w })
end

t.test("shapes: 4 x 16 x 16 pixels a latent value", function()
  local net = load()
  t.eq(table.concat(net.stride, " "), "4 16 16")
  t.raises(function() net:encode(T.zeros { 5, 24, 32, 3 }) end, "multiples of 16")
  t.raises(function() net:encode(T.zeros { 4, 32, 32, 3 }) end, "wanted 1 + 4k (1 or 5)")
end)

t.test("encode is the slow encode", function()
  local video = T.uniform({ 3, 9, 32, 16 }, { seed = 2 }) * 2 - 1
  local want = as_tensor(slow:encode(as_array(video)))
  local got = load():encode((video:permute(2, 3, 4, 1):contiguous() + 1) * 0.5)
  t.eq(got:shape_text(), "[3, 3, 2, 1]")
  t.close(got, want, 5e-5, 5e-5)
end)

t.test("decode is the slow decode; a stream gives the same bits", function()
  local latent = melies.noise({ 3, 3, 1, 2 }, { seed = 4 })
  local want = as_tensor(slow:decode(as_array(latent)))
  local net = load()
  local frames_ = net:decode(latent)
  t.eq(frames_:shape_text(), "[9, 16, 32, 3]")
  t.close(frames_, ((want + 1) * 0.5):clamp(0, 1):permute(2, 3, 4, 1):contiguous(), 5e-5, 5e-5)
  local stream = net:decoder()
  local parts = T.concat({ stream:push(latent:slice(2, 1, 2)), stream:push(latent:slice(2, 3, 3)) }, 1)
  t.close(parts, frames_, 0, 0)
end)

t.test("bf16 differs by rounding only", function()
  local latent = melies.noise({ 3, 2, 2, 2 }, { seed = 4 })
  local _, _, relative = melies.golden.compare(load("bf16"):decode(latent), load():decode(latent), 0, 0)
  t.ok(relative > 1e-5 and relative < 3e-2, tostring(relative))
end)

t.test("the paths beside the layers, one by one", function()
  for _, case in ipairs { { 4, 8, 2, 2, 4 }, { 4, 4, 1, 2, 4 }, { 8, 8, 2, 2, 1 }, { 4, 4, 1, 1, 2 } } do
    local c, width, ft, fs, n = unpack(case)
    local x = melies.noise({ c, n, 4, 2 }, { seed = 9 })
    local last = x:permute(2, 3, 4, 1):contiguous():unsqueeze(1)
    local function first_again(y) return y:squeeze(1):permute(4, 1, 2, 3):contiguous() end
    t.close(first_again(vae.average_down(last, width, ft, fs)), as_tensor(avg_down(as_array(x), width, ft, fs)), 1e-6)
    for _, first in ipairs { false, true } do
      t.close(first_again(vae.repeat_up(last, width, ft, fs, first)), as_tensor(dup_up(as_array(x), width, ft, fs,
        first and ft > 1 and n == 1)), 1e-6)
      if n > 1 then break end
    end
  end
end)

t.test("the means and deviations of the 48 channels are the defaults", function()
  local w = random_weights(48, 2, 2, { 1, 2, 2 }, 1, { true, false })
  local net = vae.load(w, {}, { compute = "f32" })
  t.eq(net.latent_channels, 48)
  t.near(net.mean:get(1), -0.2289, 1e-6)
  t.near(net.std:get(48), 0.7744, 1e-6)
  t.raises(function() vae.load(weights, {}) end, "must give them")
end)

t.finish()
