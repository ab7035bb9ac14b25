-- melies-api: 1
-- Midpoint steps, second order, two model calls a step.
-- DPM-Solver-2 (Lu et al. 2022) as in k-diffusion's sample_dpm_2: the midpoint is taken in log sigma. s_churn adds
-- noise back.
local melies = require "melies"
local T, S = melies.tensor, melies.sampling

return {
  kind = "sampler", name = "dpm_2", params = S.churn_params,
  evals = function(n) return 2 * n - 1 end,
  run = function(denoise, x, sigmas, params, step, noise)
    local n = #sigmas - 1
    for i = 1, n do
      local sigma
      x, sigma = S.churn(x, sigmas[i], n, params, noise)
      local next_sigma = sigmas[i + 1]
      local x0 = denoise(x, sigma)
      if next_sigma > 0 then
        local middle = math.sqrt(sigma * next_sigma)
        local keep, b = middle / sigma, (next_sigma - sigma) / middle
        local half = T.lincomb { keep, x, 1 - keep, x0 }
        x = T.lincomb { 1, x, b, half, -b, denoise(half, middle) }
      else
        x = x0
      end
      step(i, x, { sigma = sigma, denoised = x0 })
    end
    return x
  end,
}
