-- What of a frame neither of its neighbours explains: blocks that are in none of them, wherever they may have moved.
--
--   misfit.planes(frame) -> planes                 frame: [H, W, 3] f32
--   misfit.measure(now, { [-2] =, [-1] =, [1] =, [2] = }) -> sum, blocks { { x, y, excess } } (pixels from 0)
--     the planes of a frame and of those around it; those at 2 frames' distance may be missing
--
-- Blocks of 8x8 pixels, 4 apart. D(p, A -> B) = min over v of mean |A(p) - B(p + v)|, over luma and half of G - (R + B) / 2; v
-- goes over a reach of a 24th of the long side around 0 and around the shift of the whole picture. For each block
--   excess = min(D(now -> before), D(now -> after)) - 0.02 - g / 4 - 1.5 e
-- g is the block's mean gradient (what half a pixel of motion may cost), e the largest disagreement of the frames around it
-- among themselves in the 5x5 blocks there: D(before <-> after), D(2 before <-> before), D(after <-> 2 after); where the
-- scene itself changes fast, nothing is said. Where e is more than 0.02, a block that is found in either neighbour within a
-- fifth of the long side is something that jumped, and counts nothing. The sum of what stays is divided by the long side
-- over 64: damage along a line counts the same at every size.
local ffi = require "ffi"

local abs, min, max, floor = math.abs, math.min, math.max, math.floor

local M = {}

local SIDE, STEP = 8, 4
local FLOOR, SOFT, OWN, AROUND, MOVES = 0.02, 0.25, 1.5, 2, 0.02

function M.planes(frame)
  local h, w = frame.shape[1], frame.shape[2]
  frame = frame:contiguous()
  local p, y, c = frame:ptr(), ffi.new("float[?]", h * w), ffi.new("float[?]", h * w)
  for i = 0, h * w - 1 do
    local r, g, b = p[3 * i], p[3 * i + 1], p[3 * i + 2]
    y[i] = 0.299 * r + 0.587 * g + 0.114 * b
    c[i] = 0.5 * g - 0.25 * (r + b)
  end
  return { h = h, w = w, y = y, c = c, shifts = setmetatable({}, { __mode = "k" }) }
end

-- Offsets within a reach, the nearest first.
local rings = {}
local function ring(reach)
  if rings[reach] then return rings[reach] end
  local list = {}
  for dy = -reach, reach do
    for dx = -reach, reach do list[#list + 1] = { dx, dy, dx * dx + dy * dy } end
  end
  table.sort(list, function(p, q)
    if p[3] ~= q[3] then return p[3] < q[3] end
    if p[2] ~= q[2] then return p[2] < q[2] end
    return p[1] < q[1]
  end)
  local xs, ys = ffi.new("int[?]", #list), ffi.new("int[?]", #list)
  for i, at in ipairs(list) do xs[i - 1], ys[i - 1] = at[1], at[2] end
  rings[reach] = { n = #list, x = xs, y = ys }
  return rings[reach]
end

-- The mean difference of the block of a at (x, y) to that of b at dx, dy from there; no less than `best` where it passes that.
local function distance(a, b, x, y, dx, dy, best)
  local w, sum, stop = a.w, 0, best * SIDE * SIDE
  local ay, ac, by, bc = a.y, a.c, b.y, b.c
  for r = 0, SIDE - 1 do
    local i = (y + r) * w + x
    local j = i + dy * w + dx
    for k = 0, SIDE - 1 do sum = sum + abs(ay[i + k] - by[j + k]) + abs(ac[i + k] - bc[j + k]) end
    if sum >= stop then break end
  end
  return sum / (SIDE * SIDE)
end

-- The least distance around (cx, cy) or `best`; the search ends at the first one that is `enough`.
local function search(a, b, x, y, reach, enough, best, cx, cy)
  local list, right, bottom = ring(reach), a.w - SIDE, a.h - SIDE
  local bx, by = cx, cy
  for i = 0, list.n - 1 do
    local dx, dy = cx + list.x[i], cy + list.y[i]
    local u, v = x + dx, y + dy
    if u >= 0 and v >= 0 and u <= right and v <= bottom then
      local d = distance(a, b, x, y, dx, dy, best)
      if d < best then
        best, bx, by = d, dx, dy
        if best <= enough then break end
      end
    end
  end
  return best, bx, by
end

-- The shift of the whole of a in b, to two pixels: what most of the picture does where the camera moves.
local function shift(a, b)
  local known = a.shifts[b]
  if known then return known[1], known[2] end
  local w, h = a.w, a.h
  local ay, by = a.y, b.y
  local function cost(dx, dy)
    local sum, n = 0, 0
    for y = max(0, -dy), min(h, h - dy) - 1, 4 do
      for x = max(0, -dx), min(w, w - dx) - 1, 4 do
        sum, n = sum + abs(ay[y * w + x] - by[(y + dy) * w + x + dx]), n + 1
      end
    end
    return sum / n
  end
  local best, bx, by_ = cost(0, 0), 0, 0
  for dy = -floor(h / 6), floor(h / 6), 2 do
    for dx = -floor(w / 4), floor(w / 4), 2 do
      local d = cost(dx, dy)
      if d < 0.9 * best then best, bx, by_ = d, dx, dy end
    end
  end
  a.shifts[b] = { bx, by_ }
  return bx, by_
end

-- D(p, a -> b); also where it was found, which is tried first for the next block.
local function match(a, b, x, y, reach, enough, px, py)
  local best, bx, by = 1e9, 0, 0
  if px and x + px >= 0 and y + py >= 0 and x + px + SIDE <= a.w and y + py + SIDE <= a.h then
    best, bx, by = distance(a, b, x, y, px, py, 1e9), px, py
    if best <= enough then return best, bx, by end
  end
  local d, dx, dy = search(a, b, x, y, reach, enough, best, 0, 0)
  if d < best then best, bx, by = d, dx, dy end
  if best <= enough then return best, bx, by end
  local sx, sy = shift(a, b)
  if sx ~= 0 or sy ~= 0 then
    d, dx, dy = search(a, b, x, y, reach, enough, best, sx, sy)
    if d < best then best, bx, by = d, dx, dy end
  end
  return best, bx, by
end

local function gradient(a, x, y)
  local sum, w, p, q = 0, a.w, a.y, a.c
  for r = 0, SIDE - 2 do
    for k = 0, SIDE - 2 do
      local j = (y + r) * w + x + k
      sum = sum + max(abs(p[j + 1] - p[j]) + abs(q[j + 1] - q[j]), abs(p[j + w] - p[j]) + abs(q[j + w] - q[j]))
    end
  end
  return sum / ((SIDE - 1) * (SIDE - 1))
end

function M.measure(now, frames)
  local before, after = frames[-1], frames[1]
  local w, h = now.w, now.h
  if w < SIDE or h < SIDE then return 0, {} end
  local long = max(w, h)
  local reach, far = max(3, floor(long / 24)), floor(long / 5)
  local cols, rows = floor((w - SIDE) / STEP) + 1, floor((h - SIDE) / STEP) + 1
  local function both(a, b, x, y)
    return max((match(a, b, x, y, reach, FLOOR)), (match(b, a, x, y, reach, FLOOR)))
  end
  local own = {}
  local function disagreement(i, j)
    local key = j * cols + i
    if not own[key] then
      local x, y = i * STEP, j * STEP
      own[key] = max(both(before, after, x, y), frames[-2] and both(frames[-2], before, x, y) or 0,
        frames[2] and both(after, frames[2], x, y) or 0)
    end
    return own[key]
  end
  local sum, blocks = 0, {}
  local px, py, qx, qy = 0, 0, 0, 0
  for j = 0, rows - 1 do
    for i = 0, cols - 1 do
      local x, y = i * STEP, j * STEP
      local allowed = FLOOR + SOFT * gradient(now, x, y)
      local d, d2
      d, px, py = match(now, before, x, y, reach, allowed, px, py)
      if d > allowed then
        d2, qx, qy = match(now, after, x, y, reach, allowed, qx, qy)
        d = min(d, d2)
      end
      if d > allowed then
        local e = 0
        for v = max(0, j - AROUND), min(rows - 1, j + AROUND) do
          for u = max(0, i - AROUND), min(cols - 1, i + AROUND) do e = max(e, disagreement(u, v)) end
        end
        allowed = allowed + OWN * e
        if d > allowed and e > MOVES then d = search(now, before, x, y, far, allowed, d, 0, 0) end
        if d > allowed and e > MOVES then d = search(now, after, x, y, far, allowed, d, 0, 0) end
        if d > allowed then
          blocks[#blocks + 1] = { x, y, d - allowed }
          sum = sum + d - allowed
        end
      end
    end
  end
  return sum * 64 / long, blocks
end

return M
