-- Decoding in tiles: a decoder for each tile of the latent, their frames joined with blended seams. Works for every
-- autoencoder that has decoder(), in space only; time is streamed already.
--
--   tiles.decoder(net, { tile = { h, w }, overlap = n, stride = { t, h, w } })  -> stream with push(latent [C, n, H, W])
--                                                                                 and finish()
--
-- h, w, n in latent values. Neighbours share `overlap` values, where they are mixed by ramps that add up to 1.
local T = require "melies.tensor"

local M = {}
local Stream = {}
Stream.__index = Stream

-- First value and length of each tile on an axis: as many as needed, equally long and spread evenly.
local function cuts(size, tile, overlap)
  if tile >= size then return { { 1, size } } end
  local count = math.ceil((size - overlap) / (tile - overlap))
  local length = math.ceil((size + (count - 1) * overlap) / count)
  local out = {}
  for i = 1, count do
    out[i] = { 1 + math.floor((size - length) * (i - 1) / (count - 1) + 0.5), length }
  end
  return out
end

-- Weights [length of the tile in pixels] of one tile on an axis: ramps over what it shares with its neighbours.
local function ramps(all, i, scale)
  local first, length = all[i][1], all[i][2]
  local out = T.full({ length * scale }, 1)
  local p = out:ptr()
  local function mix(shared, value)
    for k = 0, shared * scale - 1 do value(k, (k + 0.5) / (shared * scale)) end
  end
  local before, after = all[i - 1], all[i + 1]
  if before then mix(before[1] + before[2] - first, function(k, r) p[k] = r end) end
  if after then
    local n = length * scale
    local shared = first + length - after[1]
    mix(shared, function(k, r) p[n - shared * scale + k] = 1 - r end)
  end
  return out
end

function M.decoder(net, opts)
  local tile, overlap = opts.tile, opts.overlap or 4
  if tile[1] < 3 * overlap or tile[2] < 3 * overlap then
    error(("tiles: %dx%d with %d shared by neighbours; a tile is three times that at least"):format(tile[1], tile[2],
      overlap), 2)
  end
  return setmetatable({ net = net, tile = tile, overlap = overlap, stride = opts.stride or net.stride }, Stream)
end

function Stream:start(h, w)
  local rows, columns = cuts(h, self.tile[1], self.overlap), cuts(w, self.tile[2], self.overlap)
  self.size, self.parts = { h, w }, {}
  for i, row in ipairs(rows) do
    for j, column in ipairs(columns) do
      self.parts[#self.parts + 1] = { row = row, column = column, decoder = self.net:decoder(),
        mask = ramps(rows, i, self.stride[2]):reshape(1, -1, 1, 1) * ramps(columns, j, self.stride[3]):reshape(1, 1, -1, 1) }
    end
  end
end

-- The frames of every tile, step(part), joined; nil where there are none.
function Stream:join(step)
  local out
  for _, part in ipairs(self.parts) do
    local frames = step(part)
    if frames and frames.shape[1] > 0 then
      out = out or T.zeros { frames.shape[1], self.size[1] * self.stride[2], self.size[2] * self.stride[3], 3 }
      local top, left = (part.row[1] - 1) * self.stride[2], (part.column[1] - 1) * self.stride[3]
      local place = out:slice(2, top + 1, top + frames.shape[2]):slice(3, left + 1, left + frames.shape[3])
      local weighted = frames * part.mask
      place:add_(weighted)
      weighted:free()
      frames:free()
    end
  end
  return out
end

function Stream:push(latent)
  local s = latent.shape
  if not self.parts then self:start(s[3], s[4]) end
  if s[3] ~= self.size[1] or s[4] ~= self.size[2] then
    error(("tiles: this latent is %dx%d, the ones before were %dx%d"):format(s[3], s[4], self.size[1], self.size[2]), 2)
  end
  if #self.parts == 1 then return self.parts[1].decoder:push(latent) end
  return self:join(function(part)
    local y, x = part.row, part.column
    return part.decoder:push(latent:slice(3, y[1], y[1] + y[2] - 1):slice(4, x[1], x[1] + x[2] - 1):contiguous())
  end) or T.zeros { 0, s[3] * self.stride[2], s[4] * self.stride[3], 3 }
end

-- The last frames of decoders that look ahead, nil where there are none.
function Stream:finish()
  if not self.parts or not self.parts[1].decoder.finish then return nil end
  if #self.parts == 1 then return self.parts[1].decoder:finish() end
  return self:join(function(part) return part.decoder:finish() end)
end

M.cuts, M.ramps = cuts, ramps
return M
