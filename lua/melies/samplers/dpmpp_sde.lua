-- melies-api: 1
-- DPM-Solver++ with noise, two model calls a step.
-- k-diffusion's sample_dpmpp_sde, in ComfyUI's form for any alpha: two draws of noise a step. r is where the inner
-- point lies between the two lambdas.
local melies = require "melies"
local T, S = melies.tensor, melies.sampling

return {
  kind = "sampler", name = "dpmpp_sde",
  params = {
    eta = { "number", default = 1, min = 0, max = 1, help = "share of noise drawn anew; 0 is the ODE" },
    s_noise = { "number", default = 1, min = 0, help = "strength of that noise" },
    r = { "number", default = 0.5, min = 0.05, max = 1, help = "place of the inner point" },
  },
  evals = function(n) return 2 * n - 1 end,
  run = function(denoise, x, sigmas, params, step, noise)
    local space = params.space
    -- From sigma to `target` with the estimate: alpha of both, and the ancestral step in sigma / alpha.
    local function move(xt, from, target, terms)
      local alpha, alpha_to = S.alpha(space, from), S.alpha(space, target)
      local ratio = from / alpha
      local down, up = S.ancestral_step("ve", ratio, target / alpha_to, params.eta)
      local keep = down / ratio
      local all = { alpha_to / alpha * keep, xt }
      for k = 1, #terms, 2 do
        all[#all + 1] = alpha_to * (1 - keep) * terms[k]
        all[#all + 1] = terms[k + 1]
      end
      if up * params.s_noise > 0 then
        all[#all + 1] = alpha_to * up * params.s_noise
        all[#all + 1] = noise(from, target)
      end
      return T.lincomb(all)
    end
    for i = 1, #sigmas - 1 do
      local sigma, next_sigma = S.finite_start(space, sigmas[i]), sigmas[i + 1]
      local x0 = denoise(x, sigma)
      if next_sigma > 0 then
        local from, to = S.lambda(space, sigma), S.lambda(space, next_sigma)
        local inner = S.sigma_at(space, from + params.r * (to - from))
        local x0_inner = denoise(move(x, sigma, inner, { 1, x0 }), inner)
        local share = 1 / (2 * params.r)
        x = move(x, sigma, next_sigma, { 1 - share, x0, share, x0_inner })
      else
        x = x0
      end
      step(i, x, { sigma = sigma, denoised = x0 })
    end
    return x
  end,
}
