-- melies-api: 1
-- Colours that wander away from how the shot began, in Delta E (CIE 1976), and how fast.
-- Delta E_t = |m_t - m_0| in Lab: m_t the mean colour of the frame (averaged over half a second, so that flicker does not
-- count), m_0 that of the shot's first second. value is the largest over all shots; the slope is that of the least-squares
-- line through Delta E_t over a shot's time, the largest over all shots of more than a second, in Delta E a second.
local melies = require "melies"

return {
  kind = "check", name = "color_drift",
  params = {
    threshold = { "number", default = 8, min = 0, max = 200, help = "the largest distance that passes" },
    slope = { "number", default = 3, min = 0, max = 200, help = "the largest slope that passes, a second" },
  },
  new = function(p, info)
    local series, self = melies.check.series(), {}
    local pace = 1 - math.exp(-1 / math.max(1, 0.25 * info.fps))
    local start, count, now, sums
    local steepest, where = 0, nil
    local function close()
      if sums and sums.n > info.fps then
        local spread = sums.tt - sums.t * sums.t / sums.n
        local slope = spread > 0 and (sums.td - sums.t * sums.d / sums.n) / spread or 0
        if slope > steepest then steepest, where = slope, sums.shot end
      end
    end
    function self.push(_, here)
      local mean = melies.video.lab_stats(here.frame)
      if here.cut or not start then
        close()
        start, count, now = { unpack(mean) }, 1, { unpack(mean) }
        sums = { n = 0, t = 0, d = 0, tt = 0, td = 0, shot = here.shot }
      end
      for c = 1, 3 do now[c] = now[c] + pace * (mean[c] - now[c]) end
      if count < info.fps then
        count = count + 1
        for c = 1, 3 do start[c] = start[c] + (mean[c] - start[c]) / count end
      end
      local d = math.sqrt((now[1] - start[1]) ^ 2 + (now[2] - start[2]) ^ 2 + (now[3] - start[3]) ^ 2)
      sums.n, sums.t, sums.d = sums.n + 1, sums.t + here.time, sums.d + d
      sums.tt, sums.td = sums.tt + here.time ^ 2, sums.td + here.time * d
      series:add(here, d)
    end
    function self.finish()
      close()
      local value = series:most()
      local good = value <= p.threshold and steepest <= p.slope
      return { value = value, slope = steepest, pass = good, threshold = p.threshold, better = "low", series = series,
        where = series:worst("high", good and p.threshold or math.min(p.threshold, value * 0.9)),
        remedy = { pass = { "color_match", scope = "shot" } },
        note = ("slope %.2f a second%s"):format(steepest, where and steepest > p.slope and " in shot " .. where or "") }
    end
    return self
  end,
}
