-- melies-api: 1
-- Heun's method, second order, two model calls a step.
-- Karras et al. 2022, Algorithm 2; s_churn adds noise back.
local melies = require "melies"
local T, S = melies.tensor, melies.sampling

return {
  kind = "sampler", name = "heun", params = S.churn_params,
  evals = function(n) return 2 * n - 1 end,
  run = function(denoise, x, sigmas, params, step, noise)
    local n = #sigmas - 1
    for i = 1, n do
      local sigma
      x, sigma = S.churn(x, sigmas[i], n, params, noise)
      local next_sigma = sigmas[i + 1]
      local x0 = denoise(x, sigma)
      local keep = next_sigma / sigma
      local euler = T.lincomb { keep, x, 1 - keep, x0 }
      if next_sigma > 0 then
        local half = (next_sigma - sigma) / 2
        local a, b = half / sigma, half / next_sigma
        x = T.lincomb { 1 + a, x, -a, x0, b, euler, -b, denoise(euler, next_sigma) }
      else
        x = euler -- the derivative is 0/0 at sigma 0
      end
      step(i, x, { sigma = sigma, denoised = x0 })
    end
    return x
  end,
}
