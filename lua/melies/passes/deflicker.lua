-- melies-api: 1
-- Flicker of light and colour taken out along the motion; detail stays as sharp as it was.
-- For frame t and its neighbours n within `radius`: D = sum_n w_n M_n (W_n(n) - t) / sum_n w_n M_n, where W_n moves n to t by
-- optical flow, M_n is the forward-backward check and w_n = exp(-(n - t)^2 / (2 (radius / 2)^2)). D, made at a small size
-- and blurred, is added to the frame: only what is smooth in the picture changes, so that nothing is slowed. Neighbours count
-- in pairs, before and after: light that grows steadily is no flicker, and a shot's first and last frame stay as they are.
-- Keeps 2 radius + 1 small frames and radius + 1 frames.
local melies = require "melies"

return {
  kind = "pass", name = "deflicker",
  of_shots = function() return true end,
  params = {
    radius = { "integer", default = 4, min = 1, max = 16, help = "frames to either side" },
    strength = { "number", default = 1, min = 0, max = 1, help = "share of the correction" },
    blur = { "number", default = 0.08, min = 0.002, max = 1, help = "smoothness of the correction, of the long side" },
    size = { "integer", default = 160, min = 32, max = 1024, help = "long side at which motion is followed" },
  },
  new = function(p)
    local video = melies.video
    local queue, waiting, index = {}, 0, 0 -- { frame =, small = }; the last `waiting` of them have not come out
    -- Asked for twice: for either frame's own correction. The later one keeps both ways.
    local function flow(a, b)
      local keeper, key = a.index > b.index and a or b, a.index * 64 + b.index - a.index
      local made = keeper.flows[key] or video.flow(a.small, b.small, { finest = 2 })
      keeper.flows[key] = made
      return made
    end
    local function correct(at)
      local here = queue[at]
      local sum, weights
      local reach = math.min(p.radius, at - 1, #queue - at)
      for i = at - reach, at + reach do
        local other, d = queue[i], i - at
        if d ~= 0 then
          local there, back = flow(here, other), flow(other, here)
          local mask = video.consistent(there, back, 0.02, 0.6):unsqueeze(3) * math.exp(-2 * (d / p.radius) ^ 2)
          local moved = (video.warp(other.small, there) - here.small) * mask
          sum = sum and sum + moved or moved
          weights = weights and weights + mask or mask
        end
      end
      local frame = here.frame
      here.frame = nil
      if not sum then return frame end
      -- Where little is known of a place, its surroundings speak: both sums are blurred before the division.
      local h, w = frame.shape[1], frame.shape[2]
      local sigma = p.blur * math.max(here.small.shape[1], here.small.shape[2])
      local delta = video.blur(sum, sigma) / (video.blur(weights, sigma) + 1)
      return (frame + delta:resize(1, h):resize(2, w) * p.strength):clamp(0, 1)
    end
    local function trim()
      while #queue > waiting + p.radius do table.remove(queue, 1) end
    end
    local pass = {}
    function pass.push(_, frame)
      index = index + 1
      queue[#queue + 1] = { index = index, frame = frame, small = video.reduce(frame, p.size), flows = {} }
      waiting = waiting + 1
      local ready = {}
      if waiting > p.radius then
        ready[1] = correct(#queue - waiting + 1)
        waiting = waiting - 1
        trim()
      end
      return ready
    end
    function pass.cut()
      local ready = {}
      while waiting > 0 do
        ready[#ready + 1] = correct(#queue - waiting + 1)
        waiting = waiting - 1
      end
      queue = {}
      return ready
    end
    pass.finish = pass.cut
    return pass
  end,
}
