-- melies-api: 1
-- Whether something moves: the share of frames with real motion.
-- A frame counts as dynamic where the mean of the top 5% of its flow's lengths, taken over an eighth of a second, is more
-- than 6 min(h, w) / 256 pixels. Fails where the share of such frames is below `threshold`.
local melies = require "melies"

return {
  kind = "check", name = "dynamic_degree",
  params = {
    threshold = { "number", default = 0.25, min = 0, max = 1, help = "the least share that passes" },
    length = { "number", default = 6, min = 0, max = 256, help = "pixels in an eighth of a second at 256 lines" },
  },
  new = function(p, info)
    local lengths, self = melies.check.series(), {}
    local limit
    function self.push(_, here)
      limit = limit or p.length * math.min(here.frame.shape[1], here.frame.shape[2]) / 256
      if not here.previous or here.cut then return end
      local sizes = here:flow():square():sum(3):sqrt():list()
      table.sort(sizes)
      local from, sum = math.max(1, math.floor(#sizes * 0.95)), 0
      for i = from, #sizes do sum = sum + sizes[i] end
      lengths:add(here, sum / (#sizes - from + 1) * info.fps / 8)
    end
    function self.finish()
      local n = #lengths.values
      if n == 0 then return { note = "a single frame", threshold = p.threshold, better = "high" } end
      local dynamic = 0
      for _, length in ipairs(lengths.values) do dynamic = dynamic + (length > limit and 1 or 0) end
      local value = dynamic / n
      return { value = value, pass = value >= p.threshold, threshold = p.threshold, better = "high", series = lengths,
        where = lengths:worst("low", limit, 3), remedy = { seed = true } }
    end
    return self
  end,
}
