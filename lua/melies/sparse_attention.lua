-- Self-attention that leaves out what is far away: masks by blocks over the grid of a clip's tokens, and the text by
-- which a model is told of them.
--
--   "s8"                    scores in 8 bits
--   "s8-values"             scores and the product with the values in 8 bits
--   "tiles:3x3x3"           sliding tiles (Zhang et al. 2025, STA): a tile sees a window of 3x3x3 tiles around it,
--                           in time, rows and columns; at a border the window is moved inwards, never cut
--   "radial:0.5"            radial (Li et al. 2025): what a tile sees is narrower the farther it is in time: in frames
--                           d away, what is nearer than 0.5 / 2^floor(log2 d) of the frame; at d = 0 that over 1.
--                           The same place and the first frame are always seen.
--   "tiles:3x3x3@4x4x4"     with tiles of 4x4x4 tokens (tiles; by default 4x4x4, radial 1x8x8)
--   "s8,radial:1"           both
--
-- Tokens of a tile lie side by side: mask.order holds, for each place, the token (row-major, from 0) that stands there,
-- mask.inverse the place of each token. Attention skips blocks of 64 places; where a grid does not divide into tiles of
-- 64, a block that touches several tiles sees what any of them does, so that a mask is never narrower than asked.
local lib = require "melies.ffi.lib"
local T = require "melies.tensor"

local sparse = {}
local BLOCK = tonumber(lib.C.MEL_ATTENTION_BLOCK)
local kinds = { tiles = { 4, 4, 4 }, radial = { 1, 8, 8 } } -- and the tiles they have by default

local function fail(format, ...) error("attention: " .. format:format(...), 0) end

local function triple(text, what)
  local a, b, c = text:match "^(%d+)x(%d+)x(%d+)$"
  local out = { tonumber(a), tonumber(b), tonumber(c) }
  if #out ~= 3 or math.min(unpack(out)) < 1 or math.max(unpack(out)) > 4096 then
    fail("%s is '%s'; it should be three sizes from 1 on, such as 3x3x3", what, text)
  end
  return out
end

-- sparse.parse(text) -> { scores = "s8" or nil, values = "s8" or nil, mask = { kind=, tile=, window= or reach= } or nil }.
-- Raises one line without a position. A table is given back as it is.
function sparse.parse(text)
  if type(text) == "table" then return text end
  if type(text) ~= "string" then fail("a text is wanted, not a %s", type(text)) end
  local out = {}
  for word in (text .. ","):gmatch "%s*([^,]*),%s*" do
    local kind, rest = word:match "^(%a+):(.+)$"
    if word == "s8" then
      out.scores = "s8"
    elseif word == "s8-values" then
      out.scores, out.values = "s8", "s8"
    elseif kinds[kind] then
      if out.mask then fail("'%s' has two masks", text) end
      local value, tile = rest:match "^(.-)@(.*)$"
      value = value or rest
      local mask = { kind = kind, tile = tile and triple(tile, "the tile") or kinds[kind] }
      if kind == "tiles" then
        mask.window = triple(value, "the window of tiles")
      else
        mask.reach = tonumber(value)
        if not mask.reach or not (mask.reach > 0 and mask.reach <= 64) then
          fail("the reach of radial is '%s'; it should be a number above 0 and to 64", value)
        end
      end
      out.mask = mask
    else
      fail("'%s' is not known%s; there are s8, s8-values, tiles:TxHxW and radial:REACH", word, lib.suggest(kind or word, { "s8",
        "s8-values", "tiles", "radial" }))
    end
  end
  return out
end

-- Where the parts of an axis begin, nearly equal and none longer than size; the end of the last stands behind them.
local function cuts(length, size)
  local parts, out = math.ceil(length / size), {}
  for i = 0, parts do out[i] = math.floor(i * length / parts) end
  return out, parts
end

-- What tile b's distance from tile a is on one axis: tokens between them.
local function gap(cut, a, b)
  if a == b then return 0 end
  return math.max(cut[b] - cut[a + 1], cut[a] - cut[b + 1]) + 1
end

-- Whether tile b is in the window of w tiles around a, which stays inside the n there are.
local function in_window(a, b, w, n)
  local first = math.max(0, math.min(a - math.floor(w / 2), n - w))
  return b >= first and b < first + w
end

local function rule(spec, grid, cut, parts)
  if spec.kind == "tiles" then
    local w = spec.window
    return function(a, b)
      return in_window(a[1], b[1], w[1], parts[1]) and in_window(a[2], b[2], w[2], parts[2])
        and in_window(a[3], b[3], w[3], parts[3])
    end
  end
  return function(a, b)
    if b[1] == 0 then return true end
    local d = gap(cut[1], a[1], b[1])
    local near = math.max(gap(cut[2], a[2], b[2]) / grid[2], gap(cut[3], a[3], b[3]) / grid[3])
    return near == 0 or near < spec.reach / 2 ^ math.floor(math.log(math.max(d, 1)) / math.log(2) + 1e-9)
  end
end

-- sparse.mask(spec, frames, rows, columns) -> { offsets, blocks, order, inverse: tensors, tile, density: the share of
-- pairs of tokens that are computed }. spec: the mask of sparse.parse.
function sparse.mask(spec, frames, rows, columns)
  local grid, cut, parts = { frames, rows, columns }, {}, {}
  for axis = 1, 3 do cut[axis], parts[axis] = cuts(grid[axis], spec.tile[axis]) end
  local length = frames * rows * columns
  local order, inverse = T.empty({ length }, "s32"), T.empty({ length }, "s32")
  local places, tokens = order:ptr(), inverse:ptr()
  local tiles, tile_at, place = {}, {}, 0
  for a = 0, parts[1] - 1 do for b = 0, parts[2] - 1 do for c = 0, parts[3] - 1 do
    tiles[#tiles + 1] = { a, b, c }
    for t = cut[1][a], cut[1][a + 1] - 1 do
      for h = cut[2][b], cut[2][b + 1] - 1 do
        for w = cut[3][c], cut[3][c + 1] - 1 do
          local token = (t * rows + h) * columns + w
          places[place], tokens[token], tile_at[place] = token, place, #tiles
          place = place + 1
        end
      end
    end
  end end end

  local allowed = rule(spec, grid, cut, parts)
  local count = math.ceil(length / BLOCK)
  local function first_tile(block) return tile_at[block * BLOCK] end
  local function last_tile(block) return tile_at[math.min(block * BLOCK + BLOCK, length) - 1] end
  local offsets, blocks, pairs_seen = { 0 }, {}, 0
  local function size(block) return math.min(BLOCK, length - block * BLOCK) end
  for i = 0, count - 1 do
    local seen = {}
    for a = first_tile(i), last_tile(i) do
      for b = 1, #tiles do seen[b] = seen[b] or allowed(tiles[a], tiles[b]) end
    end
    for j = 0, count - 1 do
      local any = false
      for b = first_tile(j), last_tile(j) do any = any or seen[b] end
      if any then
        blocks[#blocks + 1] = j
        pairs_seen = pairs_seen + size(i) * size(j)
      end
    end
    offsets[#offsets + 1] = #blocks
  end
  return { offsets = T.of(offsets, { #offsets }, "s32"), blocks = T.of(blocks, { #blocks }, "s32"), order = order,
    inverse = inverse, tile = spec.tile, density = pairs_seen / length ^ 2 }
end

-- Tokens of x [B, L, ...] at places given by ids: mask.order puts them into the mask's order, mask.inverse back.
function sparse.reorder(x, ids)
  if x.shape[1] == 1 then return T.gather(x:squeeze(1), ids):unsqueeze(1) end
  local out = {}
  for b = 1, x.shape[1] do out[b] = T.gather(x:select(1, b), ids) end
  return T.stack(out, 1)
end

return sparse
