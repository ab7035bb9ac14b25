-- melies-api: 1
-- A shaking camera made calm.
-- Between neighbours a similarity (shift, turn, zoom) is fitted to the optical flow, z -> a z + b in complex numbers, by
-- least squares, reweighted to leave out what moves by itself. The path P_t, their product, is smoothed over `seconds` by a
-- Gaussian, log a and b apart; the frame is shown through P_t S_t^-1, enlarged by `zoom` to hide the borders.
-- Keeps the frames of `seconds` to come.
local melies = require "melies"

-- The similarity about the centre that fits flow best: re a, im a, re b, im b.
local function fit(flow)
  local h, w = flow.shape[1], flow.shape[2]
  local p = flow:ptr()
  local step = math.max(1, math.floor(math.min(h, w) / 24))
  local ar, ai, br, bi = 1, 0, 0, 0
  for round = 1, 6 do
    local n, zr, zi, qr, qi, zz, zqr, zqi = 0, 0, 0, 0, 0, 0, 0, 0
    for y = step, h - 1 - step, step do
      for x = step, w - 1 - step, step do
        local i = 2 * (y * w + x)
        local u, v = p[i], p[i + 1]
        local dx, dy = x - (w - 1) / 2, y - (h - 1) / 2
        local tx, ty = dx + u, dy + v
        local k = 1
        if round > 1 then
          local ex, ey = ar * dx - ai * dy + br - tx, ai * dx + ar * dy + bi - ty
          k = 1 / (0.05 + ex * ex + ey * ey)
        end
        n = n + k
        zr, zi, qr, qi = zr + k * dx, zi + k * dy, qr + k * tx, qi + k * ty
        zz = zz + k * (dx * dx + dy * dy)
        zqr = zqr + k * (dx * tx + dy * ty) -- conj(z) q
        zqi = zqi + k * (dx * ty - dy * tx)
      end
    end
    if n == 0 then break end
    local spread = zz - (zr * zr + zi * zi) / n
    if spread < 1e-9 then break end
    ar = (zqr - (zr * qr + zi * qi) / n) / spread
    ai = (zqi - (zr * qi - zi * qr) / n) / spread
    br, bi = (qr - (ar * zr - ai * zi)) / n, (qi - (ai * zr + ar * zi)) / n
  end
  return ar, ai, br, bi
end

return {
  kind = "pass", name = "stabilise",
  of_shots = function() return true end,
  params = {
    seconds = { "number", default = 0.6, min = 0.05, max = 5, help = "how slow the path may change" },
    zoom = { "number", default = 1.05, min = 1, max = 2, help = "enlargement that hides the borders" },
    size = { "integer", default = 240, min = 64, max = 1024, help = "long side at which motion is followed" },
  },
  new = function(p, info)
    local video = melies.video
    local reach = math.max(1, math.floor(p.seconds * info.fps + 0.5))
    local queue, waiting, last, scale = {}, 0, nil, 1
    local function show(at)
      local here = queue[at]
      local sums, total = { 0, 0, 0, 0 }, 0
      -- As many frames before as after: a steady pan is then left as it is, also near the ends.
      local span = math.min(reach, at - 1, #queue - at)
      for d = -span, span do
        local k = math.exp(-2 * (d / (reach + 1)) ^ 2)
        for c = 1, 4 do sums[c] = sums[c] + k * queue[at + d].path[c] end
        total = total + k
      end
      for c = 1, 4 do sums[c] = sums[c] / total end
      local own, frame = here.path, here.frame
      here.frame = nil
      -- Shown at q: what was at a / a' (q - b') + b.
      local size, turn = math.exp(own[1] - sums[1]) / p.zoom, own[2] - sums[2]
      local re, im = size * math.cos(turn), size * math.sin(turn)
      local bx, by = sums[3] * p.zoom, sums[4] * p.zoom
      local x, y = own[3] - (re * bx - im * by), own[4] - (im * bx + re * by)
      local h, w = frame.shape[1], frame.shape[2]
      local room_x, room_y = w * (1 - 1 / p.zoom) / 2, h * (1 - 1 / p.zoom) / 2
      x, y = math.max(-room_x, math.min(room_x, x / scale)), math.max(-room_y, math.min(room_y, y / scale))
      return video.warp(frame, video.affine(h, w, { re, -im, x, im, re, y }))
    end
    local pass = {}
    function pass.push(_, frame)
      local small
      small, scale = video.reduce(frame, p.size)
      local path = { 0, 0, 0, 0 } -- log of the size, turn, shift of the first frame's centre
      if last then
        local ar, ai, br, bi = fit(video.flow(last, small))
        local before = queue[#queue].path
        path[1] = before[1] + 0.5 * math.log(math.max(1e-6, ar * ar + ai * ai))
        path[2] = before[2] + math.atan2(ai, ar)
        path[3] = ar * before[3] - ai * before[4] + br
        path[4] = ai * before[3] + ar * before[4] + bi
      end
      last = small
      queue[#queue + 1] = { frame = frame, path = path }
      waiting = waiting + 1
      local ready = {}
      if waiting > reach then
        ready[1] = show(#queue - waiting + 1)
        waiting = waiting - 1
        while #queue > waiting + reach do table.remove(queue, 1) end
      end
      return ready
    end
    function pass.cut()
      local ready = {}
      while waiting > 0 do
        ready[#ready + 1] = show(#queue - waiting + 1)
        waiting = waiting - 1
      end
      queue, last = {}, nil
      return ready
    end
    pass.finish = pass.cut
    return pass
  end,
}
