-- Sections by self-similarity: where what was before and what comes after are each alike and different from each other.
--   sections.novelty(features, opts) -> list                 features: tensor [n, D] f32, rows at an even rate
--   sections.find(features, opts) -> { { first =, last =, label = "A" }, ... }    rows, 1-based; opts: half, least, height,
--   same (see below)
local lib = require "melies.ffi.lib"
local T = require "melies.tensor"

local M = {}

-- Each column less its mean, over its standard deviation, which counts as `floor` at least.
local function standard(features, floor)
  local n = features.shape[1]
  local mean = features:mean(1, true)
  local x = features - mean
  local deviation = T.maximum((x:square():sum(1, true) * (1 / n)):sqrt(), T.full({ 1, features.shape[2] }, floor))
  return x / deviation
end

-- exp(-|a - b|^2 / D) of every two rows.
local function similarity(x)
  local n, d = x.shape[1], x.shape[2]
  local squares = x:square():sum(2, true)
  local distance = squares:expand { n, n } + squares:reshape(1, n):expand { n, n } - x:matmul(x, { transpose = true }) * 2
  return (distance:clamp(0, math.huge) * (-1 / d)):exp():contiguous()
end

local OPTIONS = { half = true, least = true, height = true, same = true, floor = true }

-- Correlation of the self-similarity matrix along its diagonal with a checkerboard of 2 `half` rows under a Gaussian
-- (Foote 2000, Automatic audio segmentation using a measure of audio novelty), over the sum of the Gaussian: 1 where two
-- parts of equal rows that have nothing in common meet. Near the ends the board is cut off evenly on both sides.
function M.novelty(features, opts)
  opts = opts or {}
  lib.check_options("sections.novelty", opts, OPTIONS)
  local half, n = opts.half or 16, features.shape[1]
  local s = similarity(standard(features, opts.floor or 0.05))
  local p = s:ptr()
  local taper = {}
  for k = 0, half - 1 do taper[k] = math.exp(-0.5 * ((k + 0.5) / (half * 0.5)) ^ 2) end
  local out = {}
  for i = 0, n - 1 do -- the border lies before row i
    local reach, sum, weight = math.min(half, i, n - i), 0, 0
    for a = 0, reach - 1 do
      for b = 0, reach - 1 do
        local w = taper[a] * taper[b]
        local before, after = i - 1 - a, i + b
        sum = sum + w * (0.5 * (p[before * n + i - 1 - b] + p[(i + a) * n + after]) - p[before * n + after])
        weight = weight + w
      end
    end
    -- a short reach has seen little
    out[i + 1] = weight > 0 and sum / weight * math.min(1, reach / (half / 2)) or 0
  end
  return out
end

-- opts: half (rows on each side of the checkerboard, 16), least (rows of a section, 12), height (novelty of a border,
-- 0.15), same (two sections whose mean rows are closer than this in mean square over the columns have one label, 0.5).
function M.find(features, opts)
  opts = opts or {}
  lib.check_options("sections.find", opts, OPTIONS)
  local n, least, height = features.shape[1], opts.least or 12, opts.height or 0.15
  local novelty = M.novelty(features, opts)
  local order = {}
  for i = 2, n do
    if novelty[i] >= height and novelty[i] >= novelty[i - 1] and novelty[i] >= (novelty[i + 1] or 0) then
      order[#order + 1] = i
    end
  end
  table.sort(order, function(a, b)
    if novelty[a] ~= novelty[b] then return novelty[a] > novelty[b] end
    return a < b
  end)
  local borders = { 1, n + 1 }
  for _, i in ipairs(order) do
    local free = true
    for _, other in ipairs(borders) do free = free and math.abs(i - other) >= least end
    if free then borders[#borders + 1] = i end
  end
  table.sort(borders)
  local x, d = standard(features, opts.floor or 0.05), features.shape[2]
  local means, out = {}, {}
  for k = 1, #borders - 1 do
    local first, last = borders[k], borders[k + 1] - 1
    local mean, label = x:slice(1, first, last):mean(1):list(), nil
    local nearest = opts.same or 0.5
    for i, other in ipairs(means) do
      local sum = 0
      for c = 1, d do sum = sum + (mean[c] - other[c]) ^ 2 end
      if sum / d < nearest then nearest, label = sum / d, out[i].label end
    end
    out[k] = { first = first, last = last, label = label or false }
    means[k] = mean
    if not label then
      local count, seen = 0, {}
      for i = 1, k - 1 do
        if not seen[out[i].label] then count, seen[out[i].label] = count + 1, true end
      end
      out[k].label = count < 26 and string.char(65 + count) or "Z" .. count - 25
    end
  end
  return out
end

return M
