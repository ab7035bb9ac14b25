-- melies-api: 1
-- Evenly spaced in sigma^(1/rho): more steps at low noise.
-- Karras et al. 2022, equation 5.
local S = require("melies").schedule

return {
  kind = "schedule", name = "karras",
  params = S.with_range { rho = { "number", default = 7, min = 0.1, max = 100, help = "more steps at low noise when higher" } },
  sigmas = function(n, params)
    local low, high = S.range(params)
    local list = S.linspace(high ^ (1 / params.rho), low ^ (1 / params.rho), n)
    for i, root in ipairs(list) do list[i] = root ^ params.rho end
    return S.append_zero(list)
  end,
}
