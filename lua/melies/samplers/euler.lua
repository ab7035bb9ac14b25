-- melies-api: 1
-- Euler's method, first order: plain and sturdy.
-- Karras et al. 2022, Algorithm 2 without the correction; s_churn adds noise back.
local melies = require "melies"
local T, S = melies.tensor, melies.sampling

return {
  kind = "sampler", name = "euler", params = S.churn_params,
  evals = function(n) return n end,
  run = function(denoise, x, sigmas, params, step, noise)
    local n = #sigmas - 1
    for i = 1, n do
      local sigma
      x, sigma = S.churn(x, sigmas[i], n, params, noise)
      local x0 = denoise(x, sigma)
      local keep = sigmas[i + 1] / sigma
      x = T.lincomb { keep, x, 1 - keep, x0 }
      step(i, x, { sigma = sigma, denoised = x0 })
    end
    return x
  end,
}
