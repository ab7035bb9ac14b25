-- melies-api: 1
-- For models distilled to few steps: estimate, then noise the estimate.
-- Consistency models (Song et al. 2023, Algorithm 1), LCM, and on flow the few-step loop of Self-Forcing (with the
-- schedule fewstep).
local melies = require "melies"
local T, S = melies.tensor, melies.sampling

return {
  kind = "sampler", name = "lcm",
  params = { s_noise = { "number", default = 1, min = 0, help = "strength of the noise" } },
  evals = function(n) return n end,
  run = function(denoise, x, sigmas, params, step, noise)
    for i = 1, #sigmas - 1 do
      local sigma, next_sigma = sigmas[i], sigmas[i + 1]
      local x0 = denoise(x, sigma)
      x = x0
      if next_sigma > 0 then
        x = T.lincomb { S.alpha(params.space, next_sigma), x0, next_sigma * params.s_noise, noise(sigma, next_sigma) }
      end
      step(i, x, { sigma = sigma, denoised = x0 })
    end
    return x
  end,
}
