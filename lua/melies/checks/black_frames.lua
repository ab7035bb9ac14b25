-- melies-api: 1
-- Frames with nothing to see.
-- Those whose luma is below `level` on all but one pixel in fifty. value is how many there are.
local melies = require "melies"

return {
  kind = "check", name = "black_frames",
  params = {
    threshold = { "integer", default = 0, min = 0, help = "the most frames that pass" },
    level = { "number", default = 0.06, min = 0, max = 1, help = "luma that counts as black" },
  },
  new = function(p)
    local series, self, count = melies.check.series(), {}, 0
    function self.push(_, here)
      local y = here:luma()
      local bright = ((y - p.level) * 1e6):clamp(0, 1):mean()
      local black = not (bright > 0.02)
      if black then count = count + 1 end
      series:add(here, black and 1 or 0, black and "black" or nil)
    end
    function self.finish()
      return { value = count, pass = count <= p.threshold, threshold = p.threshold, better = "low", series = series,
        where = series:worst("high", 0.5), remedy = { seed = true } }
    end
    return self
  end,
}
