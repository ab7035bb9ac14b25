-- melies-api: 1
-- DPM-Solver++(2S) that steps too far down and adds noise back.
-- Two model calls a step: k-diffusion's sample_dpmpp_2s_ancestral; on flow ComfyUI's sample_dpmpp_2s_ancestral_RF.
local melies = require "melies"
local T, S = melies.tensor, melies.sampling

return {
  kind = "sampler", name = "dpmpp_2s_ancestral",
  params = {
    eta = { "number", default = 1, min = 0, max = 1, help = "share of noise drawn anew; 0 is the ODE" },
    s_noise = { "number", default = 1, min = 0, help = "strength of that noise" },
  },
  evals = function(n) return 2 * n - 1 end,
  run = function(denoise, x, sigmas, params, step, noise)
    local space = params.space
    for i = 1, #sigmas - 1 do
      local sigma = sigmas[i]
      local x0 = denoise(x, sigma)
      local down, up, scale = S.ancestral_step(space, sigma, sigmas[i + 1], params.eta)
      if down > 0 then
        local from = S.lambda(space, sigma)
        local middle = from == -math.huge and S.finite_start(space, sigma)
          or S.sigma_at(space, (from + S.lambda(space, down)) / 2)
        local keep = middle / sigma
        local x0_half = denoise(T.lincomb { keep, x, 1 - keep, x0 }, middle)
        keep = down / sigma
        if up > 0 then
          x = T.lincomb { scale * keep, x, scale * (1 - keep), x0_half, up * params.s_noise, noise(sigma, sigmas[i + 1]) }
        else
          x = T.lincomb { keep, x, 1 - keep, x0_half }
        end
      else
        x = x0
      end
      step(i, x, { sigma = sigma, denoised = x0 })
    end
    return x
  end,
}
