-- melies-api: 1
-- DDIM, first order; eta draws noise anew.
-- Song et al. 2020, equation 12, with sigma / alpha as the noise level. eta = 0 is euler; eta = 1 has the variance of
-- DDPM.
local melies = require "melies"
local T, S = melies.tensor, melies.sampling

return {
  kind = "sampler", name = "ddim",
  params = {
    eta = { "number", default = 0, min = 0, max = 1, help = "share of noise drawn anew" },
    s_noise = { "number", default = 1, min = 0, help = "strength of that noise" },
  },
  evals = function(n) return n end,
  run = function(denoise, x, sigmas, params, step, noise)
    local space, eta = params.space, params.eta
    for i = 1, #sigmas - 1 do
      local sigma, next_sigma = sigmas[i], sigmas[i + 1]
      local x0 = denoise(x, sigma)
      -- x = alpha x0 + sigma eps gives eps; then x' = alpha' x0 + down eps + up noise, down^2 + up^2 = sigma'^2.
      local alpha, alpha_next = S.alpha(space, sigma), S.alpha(space, next_sigma)
      local left = alpha * next_sigma / (alpha_next * sigma)
      local up = eta * next_sigma * math.sqrt(math.max(0, 1 - left ^ 2))
      local keep = math.sqrt(next_sigma ^ 2 - up ^ 2) / sigma
      if up > 0 then
        x = T.lincomb { keep, x, alpha_next - keep * alpha, x0, up * params.s_noise, noise(sigma, next_sigma) }
      else
        x = T.lincomb { keep, x, alpha_next - keep * alpha, x0 }
      end
      step(i, x, { sigma = sigma, denoised = x0 })
    end
    return x
  end,
}
