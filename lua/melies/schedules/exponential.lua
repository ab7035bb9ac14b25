-- melies-api: 1
-- Evenly spaced in log sigma.
-- k-diffusion's get_sigmas_exponential.
local S = require("melies").schedule

return {
  kind = "schedule", name = "exponential", params = S.with_range(),
  sigmas = function(n, params)
    local low, high = S.range(params)
    local list = S.linspace(math.log(high), math.log(low), n)
    for i, x in ipairs(list) do list[i] = math.exp(x) end
    return S.append_zero(list)
  end,
}
