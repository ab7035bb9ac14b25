-- What the checks of steadiness share: whether a region of the picture stays itself inside shots.
-- Mean over sampled frames of (max(0, cos(f_t, f_t-1)) + max(0, cos(f_t, f_1))) / 2 over features of the region
-- (video.features: hues, edges and low frequencies; no network), f_1 being the shot's first frame. 1 is unchanged.
local melies = require "melies"

-- steadiness(name, region): the check of that name; region is one of video.features.
return function(name, region)
  return {
    kind = "check", name = name,
    params = {
      threshold = { "number", default = 0.85, min = 0, max = 1, help = "the least mean of a shot that passes" },
      rate = { "number", default = 4, min = 0.1, max = 60, help = "samples a second" },
    },
    new = function(p, info)
      local series, self = melies.check.series(), {}
      local every = math.max(1, math.floor(info.fps / p.rate + 0.5))
      local first, last, since
      local shots, order = {}, {}
      function self.push(_, here)
        local likeness = melies.video.likeness
        if here.cut or not first then
          first, since = here:features(region), 0
          last = first
          return
        end
        since = since + 1
        if since % every ~= 0 then return end
        local f = here:features(region)
        local value = (math.max(0, likeness(f, last)) + math.max(0, likeness(f, first))) / 2
        last = f
        series:add(here, value)
        local shot = shots[here.shot]
        if not shot then
          shot = { sum = 0, count = 0 }
          shots[here.shot], order[#order + 1] = shot, shot
        end
        shot.sum, shot.count = shot.sum + value, shot.count + 1
      end
      function self.finish()
        local value = series:mean()
        if not value then return { note = "no shot is long enough", threshold = p.threshold, better = "high" } end
        local least = 1
        for _, shot in ipairs(order) do least = math.min(least, shot.sum / shot.count) end
        return { value = value, pass = least >= p.threshold, threshold = p.threshold, better = "high", series = series,
          where = series:worst("low", least >= p.threshold and p.threshold or 1), remedy = { seed = true },
          note = #order > 1 and ("the least shot has %.3f"):format(least) or nil }
      end
      return self
    end,
  }
end
