-- melies-api: 1
-- A power of a ramp in log sigma.
-- k-diffusion's get_sigmas_polyexponential. rho = 1 is exponential.
local S = require("melies").schedule

return {
  kind = "schedule", name = "polyexponential",
  params = S.with_range { rho = { "number", default = 1, min = 0.01, max = 100, help = "above 1: more steps at low noise" } },
  sigmas = function(n, params)
    local low, high = S.range(params)
    local list = S.linspace(1, 0, n)
    for i, ramp in ipairs(list) do list[i] = math.exp(ramp ^ params.rho * math.log(high / low) + math.log(low)) end
    return S.append_zero(list)
  end,
}
