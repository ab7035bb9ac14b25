-- melies-api: 1
-- DPM-Solver++(3M) with noise, one model call a step.
-- k-diffusion's sample_dpmpp_3m_sde, in ComfyUI's form for any alpha.
local melies = require "melies"
local T, S = melies.tensor, melies.sampling

return {
  kind = "sampler", name = "dpmpp_3m_sde",
  params = {
    eta = { "number", default = 1, min = 0, max = 1, help = "share of noise drawn anew; 0 is the ODE" },
    s_noise = { "number", default = 1, min = 0, help = "strength of that noise" },
  },
  evals = function(n) return n end,
  run = function(denoise, x, sigmas, params, step, noise)
    local eta, space = params.eta, params.space
    local x0_1, x0_2, h_1, h_2
    for i = 1, #sigmas - 1 do
      local sigma, next_sigma = sigmas[i], sigmas[i + 1]
      local x0 = denoise(x, sigma)
      if next_sigma > 0 then
        local h = S.lambda(space, next_sigma) - S.lambda(space, sigma)
        local fade = eta > 0 and math.exp(-h * eta) or 1
        local alpha, h_eta = S.alpha(space, next_sigma), h * (1 + eta)
        local gain = alpha * (1 - math.exp(-h_eta))
        local phi_2 = alpha - gain / h_eta
        local c0, c1, c2 = gain, 0, 0 -- of x0 and the two estimates before it
        if h_2 then
          local phi_3 = phi_2 / h_eta - alpha / 2
          local r0, r1 = h_1 / h, h_2 / h
          -- d1 = a + (a - b) r0 / (r0 + r1), d2 = (a - b) / (r0 + r1), with a, b the two divided differences
          local on_a = phi_2 * (1 + r0 / (r0 + r1)) - phi_3 / (r0 + r1)
          local on_b = (phi_3 - phi_2 * r0) / (r0 + r1)
          c0, c1, c2 = c0 + on_a / r0, on_b / r1 - on_a / r0, -on_b / r1
        elseif h_1 then
          local slope = phi_2 * h / h_1
          c0, c1 = c0 + slope, -slope
        end
        local up = next_sigma * math.sqrt(1 - fade ^ 2) * params.s_noise
        local terms = { next_sigma / sigma * fade, x, c0, x0 }
        if h_1 then terms[#terms + 1] = c1 terms[#terms + 1] = x0_1 end
        if h_2 then terms[#terms + 1] = c2 terms[#terms + 1] = x0_2 end
        if up > 0 then terms[#terms + 1] = up terms[#terms + 1] = noise(sigma, next_sigma) end
        x = T.lincomb(terms)
        x0_1, x0_2 = x0, x0_1
        h_1, h_2 = h, h_1
        if h == math.huge then h_1 = nil end -- a step from alpha = 0 says nothing about the slope
      else
        x = x0
      end
      step(i, x, { sigma = sigma, denoised = x0 })
    end
    return x
  end,
}
