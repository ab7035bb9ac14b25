-- melies-api: 1
-- How much the shots of a film look like one film: 1 is the same picture.
-- For every shot after the first, the cosine of the features of its first frame and those of the most like earlier shot's
-- first frame; half of it from the middle of the picture (who), half from around it (where). The mean over shots.
local melies = require "melies"

return {
  kind = "check", name = "shot_likeness",
  params = { threshold = { "number", default = 0.65, min = 0, max = 1, help = "the least mean that passes" } },
  new = function(p)
    local series, self, seen = melies.check.series(), {}, {}
    function self.push(_, here)
      if #seen > 0 and not here.cut then return end
      local look = { here:features "centre", here:features "border" }
      local best = 0
      for _, other in ipairs(seen) do
        best = math.max(best, (melies.video.likeness(look[1], other[1]) + melies.video.likeness(look[2], other[2])) / 2)
      end
      if #seen > 0 then series:add(here, best) end
      seen[#seen + 1] = look
    end
    function self.finish()
      local value = series:mean()
      if not value then return { note = "a single shot", threshold = p.threshold, better = "high" } end
      return { value = value, pass = value >= p.threshold, threshold = p.threshold, better = "high", series = series,
        where = series:worst("low", p.threshold), remedy = { pass = { "color_match", scope = "film" } } }
    end
    return self
  end,
}
