-- melies-api: 1
-- The video autoencoder of Wan 2.2 TI2V-5B (Wan-Video/Wan2.2, wan/modules/vae2_2.py, commit 42bf4cf: facts only): causal,
-- stride 4 x 16 x 16, 48 channels. Interface, chunks and memory are those of wan_vae.
--
-- Pixels enter and leave as patches of 2x2. A stage of the encoder or decoder is a block: residual layers and, but for
-- the last stage, a resampling that keeps the width; beside all of them a path without weights: groups of the values that
-- become one are averaged on the way down, values are repeated on the way up.
--
-- Sizes come from the tensors; config: mean and std, lists of C numbers (by default those of the 48 channels).
local layers = require "melies.wan_vae_layers"

local MEAN = { -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
  0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
  -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
  -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667 }
local STD = { 0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
  0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
  0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
  0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744 }

local layout = { name = "wan_vae22", mean = MEAN, std = STD, pixel_patch = 2,
  first_stage = ".0.downsamples.0.residual.2.weight" }

-- x [1, n, H, W, C] to [1, n / ft, H / fs, W / fs, width]: the values of a block of ft x fs x fs stand side by side
-- (channel slowest, then frame, row, column), and each run of C * ft * fs * fs / width of them is averaged. Frames that
-- lack in front of the first block are zeros.
local function average_down(x, width, ft, fs)
  local s = x.shape
  local missing = -s[2] % ft
  if missing > 0 then x = x:pad(2, missing, 0, 0) end
  local n, h, w, c = (s[2] + missing) / ft, s[3] / fs, s[4] / fs, s[5]
  local y = x:reshape(n, ft, h, fs, w, fs, c):permute(1, 3, 5, 7, 2, 4, 6)
  return y:reshape(1, n, h, w, width, c * ft * fs * fs / width):mean(6)
end

-- x [1, n, H, W, C] to [1, n * ft, H * fs, W * fs, width]: every channel is repeated width * ft * fs * fs / C times, then
-- channels become blocks (channel slowest, then frame, row, column). Of a clip's first chunk only the last frame of its
-- block is kept.
local function repeat_up(x, width, ft, fs, first)
  local s = x.shape
  local n, h, w, c = s[2], s[3], s[4], s[5]
  local repeats = width * ft * fs * fs / c
  local y = x:reshape(n, h, w, c, 1):expand { n, h, w, c, repeats }:reshape(n, h, w, width, ft, fs, fs)
  y = y:permute(1, 5, 2, 6, 3, 7, 4):reshape(1, n * ft, h * fs, w * fs, width)
  return first and ft > 1 and y:slice(2, ft, n * ft) or y
end

function layout.stage(r, name, side, compute)
  local down = side == "encoder"
  local list = name .. (down and ".downsamples.%d" or ".upsamples.%d")
  local parts, in_time, in_space = {}, false, false
  while true do
    local at = list:format(#parts)
    if r:has(at .. ".residual.2.weight") then parts[#parts + 1] = layers.residual(r, at, compute)
    elseif r:has(at .. ".resample.1.weight") then
      in_space, in_time = true, r:has(at .. ".time_conv.weight")
      parts[#parts + 1] = (down and layers.down or layers.up)(r, at, compute)
    else break end
  end
  if #parts == 0 then return nil end
  local first = r:shape(list:format(0) .. ".residual.2.weight")
  local width, inputs = first[1], first[2]
  local ft, fs = in_time and 2 or 1, in_space and 2 or 1
  local block = ft * fs * fs
  if (down and inputs * block % width ~= 0) or (not down and in_space and width * block % inputs ~= 0) then
    error(("%s: %s: %d channels cannot become %d"):format(layout.name, name, inputs, width), 0)
  end
  return function(x, state)
    local y = x
    for i, part in ipairs(parts) do
      state[i] = state[i] or {}
      local z = part(y, state[i])
      if not rawequal(y, x) and not rawequal(y, z) then y:free() end
      y = z
    end
    local beside
    if down then beside = average_down(x, width, ft, fs)
    elseif in_space then beside = repeat_up(x, width, ft, fs, not state.started) end
    state.started = true
    if beside then
      y:add_(beside)
      beside:free()
    end
    return y
  end, in_time
end

local function load(weights, config, options) return layers.load(layout, weights, config, options) end

return {
  kind = "model", name = layout.name, help = "Wan 2.2 TI2V-5B video autoencoder", params = {}, load = load,
  average_down = average_down, repeat_up = repeat_up,
}
