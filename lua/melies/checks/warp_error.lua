-- melies-api: 1
-- What the motion does not explain: 0 is best.
-- Sum over pairs inside shots of M |f_t - W(f_t+1)|^2 / sum of M: W moves the next frame back along the optical flow, M is
-- the forward-backward check, |.|^2 is summed over the channels (0..1).
local melies = require "melies"

return {
  kind = "check", name = "warp_error",
  params = { threshold = { "number", default = 0.002, min = 0, max = 3, help = "the most that passes" } },
  new = function(p)
    local series, self = melies.check.series(), {}
    local total, weight = 0, 0
    function self.push(_, here)
      if not here.previous or here.cut then return end
      local mask = here:sure()
      local sure = mask:sum()
      if sure < 1 then return end
      local e = ((here.previous.frame - melies.video.warp(here.frame, here:flow())):square():sum(3) * mask):sum()
      total, weight = total + e, weight + sure
      series:add(here, e / sure)
    end
    function self.finish()
      if weight == 0 then return { note = "no pair of frames", threshold = p.threshold, better = "low" } end
      local value = total / weight
      return { value = value, pass = value <= p.threshold, threshold = p.threshold, better = "low", series = series,
        where = series:worst("high", p.threshold), remedy = { pass = "deflicker" } }
    end
    return self
  end,
}
