-- melies-api: 1
-- The starter's autoencoder in TAEHV's layout (the decoder is the "super" one). It begins as the linear code of blocks.lua:
-- every convolution is filled so that the whole is that code and its inverse, by principal axes of smaller blocks on the
-- way; a signed number that has to pass a ReLU goes as two channels, itself and its negative. From there the decoder
-- learns what a linear one cannot know: edges, what the neighbours and the frame before look like. The encoder stays, so
-- latents stay what the transformer was trained on.
--
-- Frames in a block of 8 x 8 x 4: index (frame, row, column, colour), each split in halves on the way down: row = 4 a + 2 b
-- + c, frame = 2 u + v.
local melies = require "melies"
local taehv, muon = melies["grad.taehv"], melies.muon
local T, grad = melies.tensor, melies.grad

local autoencoder = {}
autoencoder.sizes = { latent = 48, width = 96, widths = { 64, 96, 48, 24 }, super = true }
local LATENT, MIDDLE, SMALL = 48, 48, 24 -- values of a block of 8x8x4, 4x4x4, 2x2x4

-- ---- matrices as Lua tables of rows ----------------------------------------------------------------------------------

local function rows_of(tensor)
  local list, n, k = {}, tensor.shape[1], tensor.shape[2]
  local p = tensor:ptr()
  for i = 0, n - 1 do
    list[i] = {}
    for j = 0, k - 1 do list[i][j] = p[i * k + j] end
  end
  return list
end

local function index(side, f, r, c, colour) return ((f * side + r) * side + c) * 3 + colour end

-- The moments of blocks of half the side inside blocks of `side`, averaged over the four.
local function inner_moments(m, side)
  local half, n = side / 2, 4 * (side / 2) ^ 2 * 3
  local out = T.zeros { n, n }
  local to, from, big = out:ptr(), m:ptr(), 4 * side * side * 3
  local at = {}
  for a = 0, 1 do
    for b = 0, 1 do
      for f = 0, 3 do
        for r = 0, half - 1 do
          for c = 0, half - 1 do
            for colour = 0, 2 do
              at[index(half, f, r, c, colour)] = index(side, f, a * half + r, b * half + c, colour)
            end
          end
        end
      end
      for i = 0, n - 1 do
        for j = 0, n - 1 do to[i * n + j] = to[i * n + j] + from[at[i] * big + at[j]] / 4 end
      end
    end
  end
  return out
end

-- ---- filling convolutions ----------------------------------------------------------------------------------------------

-- Sets the first rows of a weight [O, I, k, k]; what is not given is 0. The rows behind keep their random values: room to
-- learn in, read by nobody yet.
local function filler(params, name)
  local value = params[name .. ".weight"].value
  local s, p = value.shape, value:ptr()
  local bias = params[name .. ".bias"] and params[name .. ".bias"].value:ptr()
  local k = s[3]
  return {
    clear = function(count) for i = 0, count * s[2] * k * k - 1 do p[i] = 0 end end,
    set = function(o, i, x, dy, dx)
      dy, dx = dy or (k - 1) / 2, dx or (k - 1) / 2
      p[((o * s[2] + i) * k + dy) * k + dx] = x
    end,
    bias = function(o, x) bias[o] = x end,
  }
end

-- code: tensors of blocks.lua (encoder, decoder, mean, moments); axes(moments, count) -> [count, n]
function autoencoder.init(code, axes, seed)
  local params = taehv.init(autoencoder.sizes, seed)
  local W = autoencoder.sizes.width
  local middle = rows_of(axes(inner_moments(code.moments, 8), MIDDLE)) -- [48][192]
  local small = rows_of(axes(inner_moments(inner_moments(code.moments, 8), 4), SMALL)) -- [24][48]
  local E, D = rows_of(code["encoder.weight"]), rows_of(code["decoder.weight"])
  local shift, mean = code["encoder.bias"]:ptr(), code["decoder.bias"]:ptr()

  -- the encoder: 3 colours; 6 with two frames; 24 of 2x2; 48 with four frames; 48 axes of 4x4x4; the latent of 8x8x4
  local f = filler(params, "encoder.0")
  f.clear(3)
  for colour = 0, 2 do f.set(colour, colour, 1) f.bias(colour, 0) end
  f = filler(params, "encoder.2.conv")
  f.clear(6)
  for v = 0, 1 do for colour = 0, 2 do f.set(v * 3 + colour, v * W + colour, 1) end end
  f = filler(params, "encoder.3")
  f.clear(24)
  for dy = 0, 1 do for dx = 0, 1 do for i = 0, 5 do f.set((dy * 2 + dx) * 6 + i, i, 1, 1 + dy, 1 + dx) end end end
  f = filler(params, "encoder.7.conv")
  f.clear(48)
  for u = 0, 1 do for i = 0, 23 do f.set(u * 24 + i, u * W + i, 1) end end
  f = filler(params, "encoder.8")
  f.clear(2 * MIDDLE)
  for o = 0, MIDDLE - 1 do
    for b = 0, 1 do for bx = 0, 1 do for u = 0, 1 do for c = 0, 1 do for cx = 0, 1 do for v = 0, 1 do
      for colour = 0, 2 do
        local x = middle[o][index(4, 2 * u + v, 2 * b + c, 2 * bx + cx, colour)]
        local i = u * 24 + (c * 2 + cx) * 6 + v * 3 + colour
        f.set(o, i, x, 1 + b, 1 + bx)
        f.set(MIDDLE + o, i, -x, 1 + b, 1 + bx)
      end
    end end end end end end
  end
  f = filler(params, "encoder.12.conv")
  f.clear(MIDDLE)
  for i = 0, MIDDLE - 1 do f.set(i, i, 1) f.set(i, MIDDLE + i, -1) end
  f = filler(params, "encoder.13")
  f.clear(2 * LATENT)
  for a = 0, 1 do
    for ax = 0, 1 do
      for k = 0, MIDDLE - 1 do
        for o = 0, LATENT - 1 do
          local x = 0 -- latent o of axis k in this quarter
          for fr = 0, 3 do for r = 0, 3 do for c = 0, 3 do for colour = 0, 2 do
            x = x + E[o][index(8, fr, 4 * a + r, 4 * ax + c, colour)] * middle[k][index(4, fr, r, c, colour)]
          end end end end
          f.set(o, k, x, 1 + a, 1 + ax)
          f.set(LATENT + o, k, -x, 1 + a, 1 + ax)
        end
      end
    end
  end
  f = filler(params, "encoder.17")
  f.clear(LATENT)
  for o = 0, LATENT - 1 do f.set(o, o, 1) f.set(o, LATENT + o, -1) f.bias(o, shift[o]) end

  -- the decoder, the same way back
  f = filler(params, "decoder.0")
  f.clear(LATENT)
  for i = 0, LATENT - 1 do f.set(i, i, 1) f.bias(i, 0) end
  f = filler(params, "decoder.4") -- channel o of the quarter (a, ax) is row 4 o + 2 a + ax
  f.clear(8 * MIDDLE)
  for o = 0, MIDDLE - 1 do
    for a = 0, 1 do
      for ax = 0, 1 do
        local row, opposite, constant = 4 * o + 2 * a + ax, 4 * (MIDDLE + o) + 2 * a + ax, 0
        local sums = {}
        for k = 0, LATENT - 1 do sums[k] = 0 end
        for fr = 0, 3 do for r = 0, 3 do for c = 0, 3 do for colour = 0, 2 do
          local at, x = index(8, fr, 4 * a + r, 4 * ax + c, colour), middle[o][index(4, fr, r, c, colour)]
          constant = constant + x * mean[at]
          for k = 0, LATENT - 1 do sums[k] = sums[k] + x * D[at][k] end
        end end end end
        for k = 0, LATENT - 1 do f.set(row, k, sums[k]) f.set(opposite, k, -sums[k]) end
        f.bias(row, constant)
        f.bias(opposite, -constant)
      end
    end
  end
  f = filler(params, "decoder.7.conv")
  f.clear(MIDDLE)
  for i = 0, MIDDLE - 1 do f.set(i, i, 1) f.set(i, MIDDLE + i, -1) end
  f = filler(params, "decoder.11")
  f.clear(8 * SMALL)
  for o = 0, SMALL - 1 do
    for b = 0, 1 do
      for bx = 0, 1 do
        for k = 0, MIDDLE - 1 do
          local x = 0
          for fr = 0, 3 do for r = 0, 1 do for c = 0, 1 do for colour = 0, 2 do
            x = x + small[o][index(2, fr, r, c, colour)] * middle[k][index(4, fr, 2 * b + r, 2 * bx + c, colour)]
          end end end end
          f.set(4 * o + 2 * b + bx, k, x)
          f.set(4 * (SMALL + o) + 2 * b + bx, k, -x)
        end
        f.bias(4 * o + 2 * b + bx, 0)
        f.bias(4 * (SMALL + o) + 2 * b + bx, 0)
      end
    end
  end
  local after = autoencoder.sizes.widths
  f = filler(params, "decoder.14.conv") -- pixels of 2x2 and two frames, 24 of them, for each half of the time
  for u = 0, 1 do
    for c = 0, 1 do for cx = 0, 1 do for v = 0, 1 do for colour = 0, 2 do
      local o = u * after[3] + (c * 2 + cx) * 6 + v * 3 + colour
      for k = 0, after[3] - 1 do f.set(o, k, 0) end
      for k = 0, SMALL - 1 do
        local x = small[k][index(2, 2 * u + v, c, cx, colour)]
        f.set(o, k, x)
        f.set(o, SMALL + k, -x)
      end
    end end end end
  end
  f = filler(params, "decoder.18") -- pixels are not negative: one channel each
  f.clear(4 * 6)
  for c = 0, 1 do
    for cx = 0, 1 do
      for i = 0, 5 do
        f.set(4 * i + 2 * c + cx, (c * 2 + cx) * 6 + i, 1)
        f.bias(4 * i + 2 * c + cx, 0)
      end
    end
  end
  f = filler(params, "decoder.21.conv")
  for v = 0, 1 do
    for colour = 0, 2 do
      for k = 0, after[4] - 1 do f.set(v * after[4] + colour, k, 0) end
      f.set(v * after[4] + colour, v * 3 + colour, 1)
    end
  end
  f = filler(params, "decoder.22")
  f.clear(3)
  for colour = 0, 2 do f.set(colour, colour, 1) f.bias(colour, 0) end
  return params
end

-- ---- learning -----------------------------------------------------------------------------------------------------------

-- A clip as pixels [T, H, W, 3] in 0..1, its latent under the linear code [t, h, w, C] and the subject's mask [T, H, W, 1].
local function sample(world, linear, o)
  local clip = world.clip(o)
  return clip.frames:to("f32") * (1 / 255), linear:encode(clip.frames):permute(2, 3, 4, 1):contiguous(),
    clip.mask:to("f32"):unsqueeze(-1) * (1 / 255)
end

-- PSNR in dB of `count` whole held-out clips through encoder and decoder.
function autoencoder.psnr(net, world, o)
  local off, values = 0, 0
  for i = 1, o.count do
    local clip = world.clip { seed = 3, index = i, size = o.size, frames = 17, split = "heldout" }
    local frames = clip.frames:to("f32") * (1 / 255)
    local back = grad.no_grad(function()
      return net:decode(net:encode(frames:pad(1, 3, 0, "edge"):unsqueeze(1)))
    end).value:select(1, 1):slice(1, 4):clamp(0, 1)
    off, values = off + (back - frames):sumsq(), values + frames:numel()
  end
  return -10 * math.log10(off / values)
end

-- autoencoder.train(world, o) -> run, all parameters (the encoder's too); or nil and a message.
--   o: params (autoencoder.init), linear (the model of the code), folder, size, steps, batch, lr, seed, on_step
function autoencoder.train(world, o)
  local learning = {}
  for name, p in pairs(o.params) do
    if name:find "^decoder" then learning[name] = p end
  end
  local net = taehv.net(learning)
  return melies.train.new {
    params = learning, steps = o.steps, lr = o.lr, schedule = "cosine", warmup = 50, final = 0.02, clip = 0.2,
    optimiser = muon.new, ema = 0.998, weight_decay = 0, seed = o.seed, folder = o.folder, every = o.every or 250,
    config = { sizes = autoencoder.sizes, size = o.size, batch = o.batch }, may_differ = { "steps", "lr" },
    on_step = o.on_step,
    loss = function(step)
      local frames, latents, masks = {}, {}, {}
      for i = 1, o.batch do
        frames[i], latents[i], masks[i] = sample(world, o.linear,
          { seed = 5, index = (step.index - 1) * o.batch + i, size = o.size, frames = 17 })
      end
      local z = T.stack(latents, 1)
      -- a little noise: what the transformer gives is not exact either
      local back = grad.slice(net:decode(z + step:noise(z.shape) * 0.03), 2, 4, 20)
      return grad.mse(back, T.stack(frames, 1), T.stack(masks, 1) + 1)
    end,
  }
end

return autoencoder
