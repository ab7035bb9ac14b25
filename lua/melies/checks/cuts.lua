-- melies-api: 1
-- Where shots begin, against where they should.
-- With `expected` (seconds): value is the number of expected cuts that none is near (within `tolerance`), and of cuts that
-- nobody expected. Without: the number of shots shorter than `shortest`.
local melies = require "melies"

return {
  kind = "check", name = "cuts",
  params = {
    expected = { "list", of = "number", help = "times of the cuts in seconds" },
    tolerance = { "number", default = 0.1, min = 0, max = 60, help = "seconds" },
    shortest = { "number", default = 0.3, min = 0, max = 3600, help = "seconds a shot lasts at least" },
    threshold = { "integer", default = 0, min = 0, help = "the most mistakes that pass" },
  },
  new = function(p, info)
    local series, self, cuts = melies.check.series(), {}, {}
    function self.push(_, here)
      if here.cut then cuts[#cuts + 1] = { index = here.index, time = here.time, shot = here.shot } end
    end
    function self.finish(_, shots)
      local wrong = 0
      local function mistake(here, what)
        wrong = wrong + 1
        series:add(here, 1, what)
      end
      if p.expected then
        local taken = {}
        for _, time in ipairs(p.expected) do
          local nearest
          for i, here in ipairs(cuts) do
            local d = math.abs(here.time - time)
            if not taken[i] and d <= p.tolerance + 1e-9 and (not nearest or d < math.abs(cuts[nearest].time - time)) then
              nearest = i
            end
          end
          if nearest then taken[nearest] = true
          else
            mistake({ index = math.floor(time * info.fps) + 1, time = time, shot = 1 }, "no cut here")
          end
        end
        for i, here in ipairs(cuts) do
          if not taken[i] then mistake(here, "a cut that is not expected") end
        end
      else
        for i, shot in ipairs(shots) do
          local seconds = (shot.last - shot.first + 1) / info.fps
          if #shots > 1 and seconds < p.shortest then
            mistake({ index = shot.first, time = (shot.first - 1) / info.fps, shot = i }, "a short shot")
          end
        end
      end
      local times = {}
      for i, here in ipairs(cuts) do times[i] = ("%.2f"):format(here.time) end
      return { value = wrong, pass = wrong <= p.threshold, threshold = p.threshold, better = "low", series = series,
        where = series:worst("high", 0.5), remedy = { seed = true },
        note = #times == 0 and "no cut" or "at " .. table.concat(times, ", ") .. " s" }
    end
    return self
  end,
}
