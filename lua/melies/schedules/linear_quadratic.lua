-- melies-api: 1
-- Linear at high noise, then quadratic: Mochi's schedule.
-- Linear down to 1 - threshold over half of the steps, then quadratic (genmo's infer.py).
local S = require("melies").schedule

return {
  kind = "schedule", name = "linear_quadratic",
  params = S.with_range {
    threshold = { "number", default = 0.025, min = 0.0001, max = 0.5, help = "noise removed by the linear part" },
    linear_steps = { "integer", min = 1, help = "steps of the linear part (default: half)" },
  },
  sigmas = function(n, params)
    local _, high = S.range(params)
    if n == 1 then return { high, 0 } end
    local linear = math.min(params.linear_steps or math.floor(n / 2), n - 1)
    local rest, list = n - linear, {}
    local gap = linear - params.threshold * n
    local square = gap / (linear * rest ^ 2)
    local slope = params.threshold / linear - 2 * gap / rest ^ 2
    for i = 0, n - 1 do
      local done = i < linear and i * params.threshold / linear or square * i ^ 2 + slope * i + square * linear ^ 2
      list[i + 1] = (1 - done) * high
    end
    return S.append_zero(list)
  end,
}
