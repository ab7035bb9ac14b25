-- melies-api: 1
-- Levels for models distilled to few steps.
-- Times out of 1000, shifted (Self-Forcing: 1000, 750, 500, 250 and shift 5; use the sampler lcm). Without times, n
-- even ones from 1000.
local S = require("melies").schedule

return {
  kind = "schedule", name = "fewstep",
  params = {
    shift = { "number", default = 5, min = 0.01, max = 100, help = "more steps at high noise above 1" },
    times = { "list", of = "number", help = "descending times, 1000 to 1; their count stands in place of the steps" },
  },
  sigmas = function(n, params)
    local list = {}
    for i, t in ipairs(params.times or S.linspace(1000, 1000 / n, n)) do list[i] = S.shift(t / 1000, params.shift) end
    return S.append_zero(list)
  end,
}
