-- melies-api: 1
-- How well a frame is foretold by its neighbours: 1 is perfectly smooth.
-- (255 - mean |f_t - between(f_t-1, f_t+1)|) / 255, where between is the motion-compensated frame half way; the mean over every
-- second frame with both neighbours in its shot. One frame below `worst` fails too: a jump in a smooth film.
local melies = require "melies"

return {
  kind = "check", name = "motion_smoothness",
  params = {
    threshold = { "number", default = 0.97, min = 0, max = 1, help = "the least mean that passes" },
    worst = { "number", default = 0.93, min = 0, max = 1, help = "the least single value that passes" },
  },
  new = function(p)
    local series, self = melies.check.series(), {}
    local before, middle, odd
    function self.push(_, here)
      if here.cut then before, middle, odd = nil, nil, false end
      odd = not odd
      if before and middle and odd then
        local made = melies.video.between(before.frame, here.frame, 0.5)
        series:add(middle, 1 - (made - middle.frame):abs():mean())
      end
      before, middle = middle, here
    end
    function self.finish()
      local value = series:mean()
      if not value then return { note = "fewer than three frames", threshold = p.threshold, better = "high" } end
      local least = series:least()
      return { value = value, pass = value >= p.threshold and least >= p.worst, threshold = p.threshold, better = "high",
        series = series, where = series:worst("low", math.max(p.threshold, p.worst)), remedy = { seed = true },
        note = least < p.worst and ("one frame has %.3f"):format(least) or nil }
    end
    return self
  end,
}
