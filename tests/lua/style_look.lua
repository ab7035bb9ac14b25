-- A look that no model knows, and how far films are from it: for the test and the measurement of LoRA training.
local melies = require "melies"
local T = melies.tensor

local M = {}

-- Frames [T, H, W, 3] u8 or f32 as a print in two inks: dark blue to cream in five tones, the dark ones hatched. u8.
function M.print(frames)
  local x = frames.dtype == "u8" and melies.media.to_f32(frames) or frames:to("f32")
  local s = x.shape
  local function channel(i) return x:slice(4, i, i) end
  local light = channel(1) * 0.299 + channel(2) * 0.587 + channel(3) * 0.114
  local tone = (light * 4 + 0.5):floor() * 0.25
  local hatch = {}
  for row = 0, s[2] - 1 do
    for column = 0, s[3] - 1 do hatch[#hatch + 1] = (row + column) % 6 < 2 and 0.25 or 0 end
  end
  local dark = ((0.6 - tone) * 1000):clamp(0, 1)
  tone = (tone - T.of(hatch, { 1, s[2], s[3], 1 }) * dark):clamp(0, 1)
  local inks = { { 0.08, 0.98 }, { 0.10, 0.90 }, { 0.42, 0.68 } }
  local parts = {}
  for i, ink in ipairs(inks) do parts[i] = tone * (ink[2] - ink[1]) + ink[1] end
  return (T.concat(parts, 4) * 255 + 0.5):clamp(0, 255):floor():to("u8")
end

local BINS = 6 -- of each channel

-- What a list of clips looks like: { colours = share of the pixels in each bin, steps = mean difference of neighbours }.
function M.look(clips)
  local colours, total, steps, pairs_of = {}, 0, 0, 0
  for i = 1, BINS ^ 3 do colours[i] = 0 end
  for _, clip in ipairs(clips) do
    local x = clip.dtype == "u8" and melies.media.to_f32(clip) or clip
    local s = x.shape
    for axis = 2, 3 do
      local d = x:slice(axis, 2) - x:slice(axis, 1, s[axis] - 1)
      steps, pairs_of = steps + d:abs():sum(), pairs_of + d:numel()
    end
    local flat = x:contiguous()
    local p, n = flat:ptr(), flat:numel() / 3
    for i = 0, n - 1 do
      local bin = 0
      for c = 0, 2 do bin = bin * BINS + math.max(0, math.min(BINS - 1, math.floor(p[3 * i + c] * BINS))) end
      colours[bin + 1] = colours[bin + 1] + 1
    end
    total = total + n
  end
  for i = 1, #colours do colours[i] = colours[i] / total end
  return { colours = colours, steps = steps / pairs_of }
end

-- colour: the share of pixels that would have to change their bin (0 to 1); texture: ratio of the mean differences of
-- neighbouring pixels, as a logarithm.
function M.distance(a, b)
  local sum = 0
  for i = 1, #a.colours do sum = sum + math.abs(a.colours[i] - b.colours[i]) end
  return { colour = sum / 2, texture = math.abs(math.log(a.steps / b.steps)) }
end

return M
