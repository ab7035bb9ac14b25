-- melies-api: 1
-- A picture that stands still by mistake.
-- A frame is frozen where its mean difference to the one before is below `same`. value is the longest run, in seconds.
local melies = require "melies"

return {
  kind = "check", name = "frozen_frames",
  params = {
    threshold = { "number", default = 0.2, min = 0, max = 3600, help = "the longest run that passes, in seconds" },
    same = { "number", default = 0.0004, min = 0, max = 1, help = "the difference that counts as none, of full range" },
  },
  new = function(p, info)
    local series, self = melies.check.series(), {}
    local run, longest = 0, 0
    function self.push(_, here)
      local frozen = false
      if here.previous and not here.cut then
        frozen = (here.frame - here.previous.frame):abs():mean() < p.same
      end
      run = frozen and run + 1 or 0
      longest = math.max(longest, run)
      series:add(here, run / info.fps, frozen and "still for" or nil)
    end
    function self.finish()
      local value = longest / info.fps
      return { value = value, pass = value <= p.threshold, threshold = p.threshold, better = "low", series = series,
        where = series:worst("high", p.threshold), remedy = { seed = true } }
    end
    return self
  end,
}
