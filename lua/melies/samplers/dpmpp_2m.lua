-- melies-api: 1
-- DPM-Solver++(2M), second order, one model call a step.
-- Lu et al. 2022 (DPM-Solver++), Algorithm 2, as in k-diffusion's sample_dpmpp_2m; on flow with
-- lambda = log((1 - sigma) / sigma).
local melies = require "melies"
local T, S = melies.tensor, melies.sampling

return {
  kind = "sampler", name = "dpmpp_2m", params = {},
  evals = function(n) return n end,
  run = function(denoise, x, sigmas, params, step)
    local last_x0, last_h
    for i = 1, #sigmas - 1 do
      local sigma, next_sigma = sigmas[i], sigmas[i + 1]
      local x0 = denoise(x, sigma)
      local keep = next_sigma / sigma
      local h = S.lambda(params.space, next_sigma) - S.lambda(params.space, sigma)
      if last_x0 and next_sigma > 0 then
        local ahead = h / (2 * last_h) -- 0 where the last step began at alpha = 0
        local gain = S.alpha(params.space, next_sigma) * (1 - math.exp(-h))
        x = T.lincomb { keep, x, gain * (1 + ahead), x0, -gain * ahead, last_x0 }
      else
        x = T.lincomb { keep, x, S.alpha(params.space, next_sigma) * (1 - math.exp(-h)), x0 }
      end
      last_x0, last_h = x0, h
      step(i, x, { sigma = sigma, denoised = x0 })
    end
    return x
  end,
}
