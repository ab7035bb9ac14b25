-- Camera moves while a film is sampled: the scene of the early estimates is moved, and the model draws what comes into view.
-- (The pass `camera` moves pixels that are there; here no border has to be hidden.)
--
--   latent_camera.around(move) -> function(denoise, shape, first) -> denoise      as longform.frames' opts.around
--     move: pan, tilt (shares of the width and height, to the right and downwards), zoom (factor), roll (degrees that
--     the picture turns clockwise), frames (latent frames of the whole move), ease, strength (default 0.8),
--     from (sigma, default 0.4)
--   latent_camera.take(passes) -> moves, the other passes      entries "camera: space=latent"
--
-- x0_t' = x0_t + k (1 - a) (W_t S - mean_t x0): S is the mean over time of the frames as seen from the middle of the move, W_t
-- shows it from where the camera is at frame t. So the mean picture, which stands still, becomes one that moves, and what
-- differs from it stays. a is how much of that is there already: the share of W_t S - mean in x0_t - mean by least squares,
-- 0 to 1. k grows from 0 at sigma `from` to `strength` at sigma 1.
local lib = require "melies.ffi.lib"
local T = require "melies.tensor"
local video = require "melies.video"

local M = {}

local MOVE = { pan = true, tilt = true, zoom = true, roll = true, frames = true, ease = true, strength = true, from = true }

-- The map { a, b, x, c, d, y } of video.affine that shows an h x w picture from the place at u in -0.5 .. 0.5 of the move.
local function map_at(move, u, h, w)
  local size, turn = 1 / (move.zoom or 1) ^ u, math.rad(-(move.roll or 0) * u)
  local re, im = size * math.cos(turn), size * math.sin(turn)
  return { re, -im, (move.pan or 0) * u * w, im, re, (move.tilt or 0) * u * h }
end

local function inverse(m)
  local det = m[1] * m[5] - m[2] * m[4]
  local a, b, c, d = m[5] / det, -m[2] / det, -m[4] / det, m[1] / det
  return { a, b, -(a * m[3] + b * m[6]), c, d, -(c * m[3] + d * m[6]) }
end

-- Frames are [H, W, C] here.
local function moved(frame, map)
  return video.warp(frame, video.affine(frame.shape[1], frame.shape[2], map))
end

function M.around(move)
  lib.check_options("latent_camera.around", move, MOVE)
  local strength, from = move.strength or 0.8, move.from or 0.4
  return function(denoise, shape, first)
    local count, h, w = shape[2], shape[3], shape[4]
    local last = math.max(2, move.frames or count)
    local maps = {}
    for t = 1, count do
      local x = math.min(1, ((first or 1) + t - 2) / (last - 1))
      if move.ease then x = x * x * (3 - 2 * x) end
      maps[t] = map_at(move, x - 0.5, h, w)
    end
    return function(x, sigma)
      local x0 = denoise(x, sigma)
      local k = strength * (sigma - from) / (1 - from)
      if k <= 0 then return x0 end
      local frames = x0:permute(2, 3, 4, 1)
      local sum
      for t = 1, count do
        local seen = moved(frames:select(1, t):contiguous(), inverse(maps[t]))
        if sum then sum:add_(seen) else sum = seen end
      end
      local scene, list = sum * (1 / count), {}
      for t = 1, count do list[t] = moved(scene, maps[t]) end
      local mean = frames:mean(1, true)
      local change = (T.stack(list, 1) - mean):contiguous()
      local there = (frames - mean):contiguous():dot(change) / math.max(1e-12, change:dot(change))
      return x0 + change:permute(4, 1, 2, 3):contiguous() * (k * (1 - math.max(0, math.min(1, there))))
    end
  end
end

function M.take(passes)
  local moves, rest = {}, {}
  for _, entry in ipairs(passes) do
    if type(entry) == "table" and (entry[1] or entry.name) == "camera" and entry.space == "latent" then
      local plugin, values = require("melies.pass").resolve("pass", entry)
      if not plugin then return nil, values end
      if values.dolly ~= 0 then return nil, "camera: a dolly knows no latent space, only pan, tilt, zoom and roll" end
      moves[#moves + 1] = { pan = values.pan, tilt = values.tilt, zoom = values.zoom, roll = values.roll, ease = values.ease }
    else rest[#rest + 1] = entry end
  end
  return moves, rest
end

return M
