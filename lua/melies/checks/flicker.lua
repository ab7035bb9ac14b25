-- melies-api: 1
-- Flicker where nothing moves: 1 is none.
-- Mean over pairs of frames inside shots of (255 - mean |f_t - f_t+1|) / 255 over static pixels: those whose optical flow is
-- shorter than `still` pixels (at the size of measuring). Pairs with less than 2% of such pixels do not count. With `follow`
-- the second frame is moved along the flow first, and all pixels count whose flow is sure.
local melies = require "melies"

return {
  kind = "check", name = "flicker",
  params = {
    threshold = { "number", default = 0.985, min = 0, max = 1, help = "the least that passes" },
    still = { "number", default = 0.4, min = 0.01, max = 16, help = "pixels of motion that count as none" },
    follow = { "boolean", default = false, help = "measure along the motion, not only where there is none" },
  },
  new = function(p)
    local series, self = melies.check.series(), {}
    function self.push(_, here)
      if not here.previous or here.cut then return end
      local mask, other = here:sure(), here.frame
      if p.follow then other = melies.video.warp(other, here:flow())
      else mask = mask * (1 - (here:flow():square():sum(3) * (1 / p.still ^ 2)):clamp(0, 1):floor()) end
      local share = mask:mean()
      if share < 0.02 then return end
      local apart = ((here.previous.frame - other):abs():mean(3) * mask):mean() / share
      series:add(here, 1 - apart)
    end
    function self.finish()
      local value = series:mean()
      if not value then return { note = "nothing stands still", threshold = p.threshold, better = "high" } end
      return { value = value, pass = value >= p.threshold, threshold = p.threshold, better = "high", series = series,
        where = series:worst("low", p.threshold), remedy = { pass = "deflicker" } }
    end
    return self
  end,
}
