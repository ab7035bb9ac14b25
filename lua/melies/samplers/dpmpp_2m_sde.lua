-- melies-api: 1
-- DPM-Solver++(2M) with noise, one model call a step.
-- k-diffusion's sample_dpmpp_2m_sde, in ComfyUI's form for any alpha.
local melies = require "melies"
local T, S = melies.tensor, melies.sampling

return {
  kind = "sampler", name = "dpmpp_2m_sde",
  params = {
    eta = { "number", default = 1, min = 0, max = 1, help = "share of noise drawn anew; 0 is the ODE" },
    s_noise = { "number", default = 1, min = 0, help = "strength of that noise" },
    solver = { "enum", choices = { "midpoint", "heun" }, default = "midpoint", help = "how the second order is taken" },
  },
  evals = function(n) return n end,
  run = function(denoise, x, sigmas, params, step, noise)
    local eta, space = params.eta, params.space
    local last_x0, last_h
    for i = 1, #sigmas - 1 do
      local sigma, next_sigma = sigmas[i], sigmas[i + 1]
      local x0 = denoise(x, sigma)
      if next_sigma > 0 then
        local h = S.lambda(space, next_sigma) - S.lambda(space, sigma)
        local fade = eta > 0 and math.exp(-h * eta) or 1 -- h is infinite where the step begins at alpha = 0
        local alpha, h_eta = S.alpha(space, next_sigma), h * (1 + eta)
        local gain = alpha * (1 - math.exp(-h_eta))
        local terms = { next_sigma / sigma * fade, x }
        local slope = 0 -- of x0, times the step it stands for
        if last_x0 then
          slope = (params.solver == "heun" and alpha - gain / h_eta or gain / 2) * h / last_h
          terms[5], terms[6] = -slope, last_x0
        end
        terms[3], terms[4] = gain + slope, x0
        local up = next_sigma * math.sqrt(1 - fade ^ 2) * params.s_noise
        if up > 0 then
          terms[#terms + 1] = up
          terms[#terms + 1] = noise(sigma, next_sigma)
        end
        x = T.lincomb(terms)
        last_h = h
      else
        x = x0
      end
      last_x0 = x0
      step(i, x, { sigma = sigma, denoised = x0 })
    end
    return x
  end,
}
