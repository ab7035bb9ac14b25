-- melies-api: 1
-- Euler that steps too far down and adds noise back.
-- k-diffusion's sample_euler_ancestral; on flow ComfyUI's sample_euler_ancestral_RF.
local melies = require "melies"
local T, S = melies.tensor, melies.sampling

return {
  kind = "sampler", name = "euler_ancestral",
  params = {
    eta = { "number", default = 1, min = 0, max = 1, help = "share of noise drawn anew; 0 is euler" },
    s_noise = { "number", default = 1, min = 0, help = "strength of that noise" },
  },
  evals = function(n) return n end,
  run = function(denoise, x, sigmas, params, step, noise)
    for i = 1, #sigmas - 1 do
      local sigma = sigmas[i]
      local x0 = denoise(x, sigma)
      local down, up, scale = S.ancestral_step(params.space, sigma, sigmas[i + 1], params.eta)
      local keep = down / sigma
      if up > 0 then
        x = T.lincomb { scale * keep, x, scale * (1 - keep), x0, up * params.s_noise, noise(sigma, sigmas[i + 1]) }
      else
        x = T.lincomb { keep, x, 1 - keep, x0 }
      end
      step(i, x, { sigma = sigma, denoised = x0 })
    end
    return x
  end,
}
