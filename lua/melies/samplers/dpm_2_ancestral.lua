-- melies-api: 1
-- dpm_2 that steps too far down and adds noise back.
-- k-diffusion's sample_dpm_2_ancestral; on flow ComfyUI's sample_dpm_2_ancestral_RF.
local melies = require "melies"
local T, S = melies.tensor, melies.sampling

return {
  kind = "sampler", name = "dpm_2_ancestral",
  params = {
    eta = { "number", default = 1, min = 0, max = 1, help = "share of noise drawn anew; 0 is dpm_2" },
    s_noise = { "number", default = 1, min = 0, help = "strength of that noise" },
  },
  evals = function(n) return 2 * n - 1 end,
  run = function(denoise, x, sigmas, params, step, noise)
    for i = 1, #sigmas - 1 do
      local sigma = sigmas[i]
      local x0 = denoise(x, sigma)
      local down, up, scale = S.ancestral_step(params.space, sigma, sigmas[i + 1], params.eta)
      if down > 0 then
        local middle = math.sqrt(sigma * down)
        local keep, b = middle / sigma, (down - sigma) / middle
        local half = T.lincomb { keep, x, 1 - keep, x0 }
        local x0_half = denoise(half, middle)
        if up > 0 then
          x = T.lincomb { scale, x, scale * b, half, -scale * b, x0_half, up * params.s_noise, noise(sigma, sigmas[i + 1]) }
        else
          x = T.lincomb { 1, x, b, half, -b, x0_half }
        end
      else
        x = x0
      end
      step(i, x, { sigma = sigma, denoised = x0 })
    end
    return x
  end,
}
