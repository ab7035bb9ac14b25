-- Decoding in tiles: each tile of the latent goes through a decoder of its own from the first frame to the last, then the
-- frames are joined with blended seams. What a decoder remembers between frames, most of the memory of decoding, is that
-- of one tile; the film waits in f16. Works for every autoencoder that has decoder().
--
--   tiles.decode(net, latent [C, T, H, W], { tile = { h, w }, overlap = n, stride = { t, h, w } }, sink, tick) -> frames
--
-- h, w, n in latent values. Neighbours share `overlap` values, where they are mixed by ramps that add up to 1.
-- sink(frames [n, H, W, 3] f32, i) gets the film in order, once for every latent frame i that gave some; tick(done, all)
-- is called after each tile.
local lib = require "melies.ffi.lib"
local T = require "melies.tensor"

local M = {}

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

-- Frames of one tile as a list of parts in f16, by the latent frame that gave them; those of finish() come last.
local function decode_tile(net, latent)
  local decoder, parts, length = net:decoder(), {}, latent.shape[2]
  local function keep(i, frames)
    if frames and frames.shape[1] > 0 then
      parts[i] = frames:to "f16"
      frames:free()
    end
    lib.call(lib.C.mel_check_cancel)
  end
  for i = 1, length do keep(i, decoder:push(latent:slice(2, i, i))) end
  if decoder.finish then keep(length + 1, decoder:finish()) end
  return parts
end

function M.decode(net, latent, opts, sink, tick)
  local tile, overlap, stride = opts.tile, opts.overlap or 4, opts.stride or net.stride
  if tile[1] < 3 * overlap or tile[2] < 3 * overlap then
    error(("tiles: %dx%d with %d shared by neighbours; a tile is three times that at least"):format(tile[1], tile[2],
      overlap), 2)
  end
  local s, count = latent.shape, 0
  local rows, columns = cuts(s[3], tile[1], overlap), cuts(s[4], tile[2], overlap)
  local all = {}
  for i, row in ipairs(rows) do
    for j, column in ipairs(columns) do
      local part = latent:slice(3, row[1], row[1] + row[2] - 1):slice(4, column[1], column[1] + column[2] - 1):contiguous()
      all[#all + 1] = { top = (row[1] - 1) * stride[2], left = (column[1] - 1) * stride[3], frames = decode_tile(net, part),
        mask = ramps(rows, i, stride[2]):reshape(1, -1, 1, 1) * ramps(columns, j, stride[3]):reshape(1, 1, -1, 1) }
      collectgarbage()
      collectgarbage() -- what the decoder remembered goes before the next one begins
      if tick then tick(#all, #rows * #columns) end
    end
  end
  for i = 1, s[2] + 1 do
    local first, out = all[1].frames[i], nil
    if first then out = T.zeros { first.shape[1], s[3] * stride[2], s[4] * stride[3], 3 } end
    for _, one in ipairs(out and all or {}) do
      local frames = one.frames[i]
      local wide = frames:to "f32"
      local weighted = wide * one.mask
      out:slice(2, one.top + 1, one.top + frames.shape[2]):slice(3, one.left + 1, one.left + frames.shape[3])
        :add_(weighted)
      wide:free()
      weighted:free()
      frames:free()
      one.frames[i] = nil
    end
    if out then
      count = count + out.shape[1]
      sink(out, math.min(i, s[2]))
    end
  end
  return count
end

M.cuts, M.ramps = cuts, ramps
return M
