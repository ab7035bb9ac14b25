-- What can be read off single frames and pairs of them: light, sharpness, motion, cuts, perceptual hashes.
-- Frames are u8 [H, W, 3]; the numbers do not depend on how many threads there are.
local ffi = require "ffi"
local bit = require "bit"
local min, max, abs, floor, sqrt = math.min, math.max, math.abs, math.floor, math.sqrt

local look = {}

local SIDE = 64         -- of the grey thumbnail that frames are compared by
local LEVELS = 12       -- of each colour, in the histogram
local BINS = 3 * LEVELS
local STEP = (LEVELS - 1) / 255.001
local EDGE = 0.16       -- a step of grey that counts as an edge
local SURE = 100         -- edges in a thumbnail that make the edge change ratio count in full
local NEAR = 2          -- pixels of the thumbnail within which two edges are the same

-- Grey of a frame in grey (0..1), its SIDE x SIDE thumbnail of averages, and a histogram of colours that sums to 1.
local function reduce(p, h, w, grey, thumb, hist)
  for i = 0, SIDE * SIDE - 1 do thumb[i] = 0 end
  for i = 0, BINS - 1 do hist[i] = 0 end
  for y = 0, h - 1 do
    local row = floor(y * SIDE / h) * SIDE
    for x = 0, w - 1 do
      local at = y * w + x
      local r, g, b = p[3 * at], p[3 * at + 1], p[3 * at + 2]
      local v = (0.299 * r + 0.587 * g + 0.114 * b) / 255
      grey[at] = v
      local cell = row + floor(x * SIDE / w)
      thumb[cell] = thumb[cell] + v
      -- between two levels a value counts for both, so that a slow change of light moves little
      local kr, kg, kb = r * STEP, g * STEP, b * STEP
      local ir, ig, ib = floor(kr), floor(kg), floor(kb)
      hist[ir], hist[ir + 1] = hist[ir] + ir + 1 - kr, hist[ir + 1] + kr - ir
      ig, kg = ig + LEVELS, kg + LEVELS
      hist[ig], hist[ig + 1] = hist[ig] + ig + 1 - kg, hist[ig + 1] + kg - ig
      ib, kb = ib + 2 * LEVELS, kb + 2 * LEVELS
      hist[ib], hist[ib + 1] = hist[ib] + ib + 1 - kb, hist[ib + 1] + kb - ib
    end
  end
  for i = 0, BINS - 1 do hist[i] = hist[i] / (3 * w * h) end
  for ty = 0, SIDE - 1 do
    local rows = math.ceil((ty + 1) * h / SIDE) - math.ceil(ty * h / SIDE)
    for tx = 0, SIDE - 1 do
      local columns = math.ceil((tx + 1) * w / SIDE) - math.ceil(tx * w / SIDE)
      local n = rows * columns
      local at = ty * SIDE + tx
      -- a cell that no pixel falls in (a frame smaller than the thumbnail) shows the nearest pixel
      thumb[at] = n > 0 and thumb[at] / n
        or grey[min(h - 1, floor(ty * h / SIDE)) * w + min(w - 1, floor(tx * w / SIDE))]
    end
  end
end

-- Variance of the four-neighbour Laplacian, on grey of 0..255: Pech-Pacheco et al. 2000.
local function laplacian_variance(grey, h, w)
  if h < 3 or w < 3 then return 0 end
  local sum, squares = 0, 0
  for y = 1, h - 2 do
    for x = 1, w - 2 do
      local at = y * w + x
      local v = 255 * (grey[at - 1] + grey[at + 1] + grey[at - w] + grey[at + w] - 4 * grey[at])
      sum = sum + v
      squares = squares + v * v
    end
  end
  local n = (h - 2) * (w - 2)
  return squares / n - (sum / n) * (sum / n)
end

-- Edges of a thumbnail (Sobel), and the same grown by NEAR pixels.
local function edges(thumb, edge, grown)
  ffi.fill(edge, SIDE * SIDE)
  ffi.fill(grown, SIDE * SIDE)
  local count = 0
  for y = 1, SIDE - 2 do
    for x = 1, SIDE - 2 do
      local at = y * SIDE + x
      local gx = thumb[at - SIDE + 1] + 2 * thumb[at + 1] + thumb[at + SIDE + 1]
        - thumb[at - SIDE - 1] - 2 * thumb[at - 1] - thumb[at + SIDE - 1]
      local gy = thumb[at + SIDE - 1] + 2 * thumb[at + SIDE] + thumb[at + SIDE + 1]
        - thumb[at - SIDE - 1] - 2 * thumb[at - SIDE] - thumb[at - SIDE + 1]
      if sqrt(gx * gx + gy * gy) > 4 * EDGE then
        edge[at] = 1
        count = count + 1
        for v = max(0, y - NEAR), min(SIDE - 1, y + NEAR) do
          for u = max(0, x - NEAR), min(SIDE - 1, x + NEAR) do grown[v * SIDE + u] = 1 end
        end
      end
    end
  end
  return count
end

-- look.frame(frame): { light (mean grey 0..1), sharp, thumb, hist, edge, grown, edges }, to be handed to look.pair.
function look.frame(frame)
  local h, w = frame.shape[1], frame.shape[2]
  local grey = ffi.new("float[?]", h * w)
  local f = { thumb = ffi.new("double[?]", SIDE * SIDE), hist = ffi.new("double[?]", BINS),
    edge = ffi.new("uint8_t[?]", SIDE * SIDE), grown = ffi.new("uint8_t[?]", SIDE * SIDE) }
  frame = frame:contiguous()
  reduce(frame:ptr(), h, w, grey, f.thumb, f.hist)
  local sum = 0
  for i = 0, SIDE * SIDE - 1 do sum = sum + f.thumb[i] end
  f.light = sum / (SIDE * SIDE)
  f.sharp = laplacian_variance(grey, h, w)
  f.edges = edges(f.thumb, f.edge, f.grown)
  return f
end

local function strays(edge, grown, count)
  if count == 0 then return 0 end
  local n = 0
  for i = 0, SIDE * SIDE - 1 do
    if edge[i] == 1 and grown[i] == 0 then n = n + 1 end
  end
  return n / count
end

-- look.pair(a, b) of two frames that follow each other: motion (mean difference of grey, 0..1), and how much the picture
-- is another one, 0..1: half of it by the histograms of the colours, half by the edge change ratio (Zabih et al. 1995).
function look.pair(a, b)
  local motion, common = 0, 0
  for i = 0, SIDE * SIDE - 1 do motion = motion + abs(a.thumb[i] - b.thumb[i]) end
  for i = 0, BINS - 1 do common = common + min(a.hist[i], b.hist[i]) end
  local change = max(strays(a.edge, b.grown, a.edges), strays(b.edge, a.grown, b.edges))
    * min(1, max(a.edges, b.edges) / SURE) -- of few edges a few strays say nothing
  return motion / (SIDE * SIDE), 0.5 * (1 - common) + 0.5 * change
end

-- ---- perceptual hash -----------------------------------------------------------------------------

local cosines = ffi.new("double[8][32]")
for u = 0, 7 do
  for x = 0, 31 do cosines[u][x] = math.cos((2 * x + 1) * u * math.pi / 64) end
end

-- look.hash(f) of what look.frame gave: 64 bits as 16 hexadecimal digits. The 8 x 8 lowest coefficients of the cosine
-- transform of a 32 x 32 grey picture, each above or below their median (the first, the mean, does not count for it).
function look.hash(f)
  local rows = ffi.new("double[8][32]") -- transformed along x, for each y
  for y = 0, 31 do
    for u = 0, 7 do
      local sum = 0
      for x = 0, 31 do
        local at = 2 * y * SIDE + 2 * x
        sum = sum + cosines[u][x] * (f.thumb[at] + f.thumb[at + 1] + f.thumb[at + SIDE] + f.thumb[at + SIDE + 1])
      end
      rows[u][y] = sum
    end
  end
  local values, sorted = {}, {}
  for v = 0, 7 do
    for u = 0, 7 do
      local sum = 0
      for y = 0, 31 do sum = sum + cosines[v][y] * rows[u][y] end
      values[#values + 1] = sum
      if u + v > 0 then sorted[#sorted + 1] = sum end
    end
  end
  table.sort(sorted)
  local middle, hex = sorted[32], {}
  for i = 1, 64, 4 do
    local n = 0
    for k = 0, 3 do n = n * 2 + (values[i + k] > middle and 1 or 0) end
    hex[#hex + 1] = ("%x"):format(n)
  end
  return table.concat(hex)
end

local function ones(x)
  x = x - bit.band(bit.rshift(x, 1), 0x55555555)
  x = bit.band(x, 0x33333333) + bit.band(bit.rshift(x, 2), 0x33333333)
  x = bit.band(x + bit.rshift(x, 4), 0x0f0f0f0f)
  return bit.band(x + bit.rshift(x, 8) + bit.rshift(x, 16) + bit.rshift(x, 24), 0xff)
end

-- look.distance(a, b): bits in which two hashes differ.
function look.distance(a, b)
  local n = 0
  for i = 1, 16, 4 do n = n + ones(bit.bxor(tonumber(a:sub(i, i + 3), 16), tonumber(b:sub(i, i + 3), 16))) end
  return n
end

return look
