-- melies-api: 1
-- The continuous variance-preserving schedule.
-- Song et al. 2021; k-diffusion's get_sigmas_vp. Its levels are sigma / alpha, which flow sees as k / (1 + k).
local S = require("melies").schedule

return {
  kind = "schedule", name = "vp",
  params = {
    beta_d = { "number", default = 19.9, min = 0.01, help = "slope of beta(t)" },
    beta_min = { "number", default = 0.1, min = 0.0001, help = "beta(0)" },
    eps_s = { "number", default = 0.001, min = 1e-6, max = 0.5, help = "last time before 0" },
  },
  sigmas = function(n, params)
    local list = S.linspace(1, params.eps_s, n)
    for i, t in ipairs(list) do
      local k = math.sqrt(math.exp(params.beta_d * t * t / 2 + params.beta_min * t) - 1)
      list[i] = params.space == "flow" and k / (1 + k) or k
    end
    return S.append_zero(list)
  end,
}
