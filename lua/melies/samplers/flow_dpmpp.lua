-- melies-api: 1
-- Wan's DPM-Solver++, order 1 to 3, one model call a step.
-- Lu et al. 2022 (arXiv 2211.01095), as an ODE or stochastic, in the form of Wan2.1's FlowDPMSolverMultistepScheduler
-- (fm_solvers.py) and diffusers' DPMSolverMultistepScheduler.
local melies = require "melies"
local T, S = melies.tensor, melies.sampling

return {
  kind = "sampler", name = "flow_dpmpp",
  params = {
    order = { "integer", default = 2, min = 1, max = 3, help = "order; the stochastic one has at most 2" },
    solver = { "enum", choices = { "midpoint", "heun" }, default = "midpoint", help = "how the second order is taken" },
    algorithm = { "enum", choices = { "dpmsolver++", "sde-dpmsolver++" }, default = "dpmsolver++", help = "ODE or stochastic" },
    lower_order_final = { "boolean", default = true, help = "lower order over the last two steps of fewer than 15" },
  },
  evals = function(n) return n end,
  run = function(denoise, x, sigmas, params, step, noise)
    local space, n = params.space, #sigmas - 1
    local sde = params.algorithm == "sde-dpmsolver++"
    local most = sde and math.min(2, params.order) or params.order
    local x0_1, x0_2, h_1, h_2
    for i = 1, n do
      local sigma, next_sigma = sigmas[i], sigmas[i + 1]
      local x0 = denoise(x, sigma)
      local order = math.min(most, i)
      if params.lower_order_final and n < 15 and i == n - 1 then order = math.min(order, 2) end
      if next_sigma == 0 then order = 1 end

      local h = S.lambda(space, next_sigma) - S.lambda(space, sigma)
      local alpha = S.alpha(space, next_sigma)
      local fade = sde and math.exp(-h) or 1
      local h_eta = sde and 2 * h or h
      local gain = alpha * (1 - math.exp(-h_eta))
      local c0, c1, c2 = gain, 0, 0 -- of x0 and the two estimates before it
      if order >= 2 then
        local r0 = h_1 / h -- infinite after a step from alpha = 0, which leaves order 1
        local first = (order == 3 or params.solver == "heun") and alpha - gain / h_eta or gain / 2
        if order == 2 then
          c0, c1 = c0 + first / r0, -first / r0
        else
          local r1 = h_2 / h
          local second = (gain - alpha * h) / h ^ 2 + alpha / 2 -- alpha h^2 phi_3
          -- D1 = a + r0 / (r0 + r1) (a - b), D2 = (a - b) / (r0 + r1), with a, b the two divided differences
          local on_a = first * (1 + r0 / (r0 + r1)) + second / (r0 + r1)
          local on_b = -(first * r0 + second) / (r0 + r1)
          c0, c1, c2 = c0 + on_a / r0, on_b / r1 - on_a / r0, -on_b / r1
        end
      end
      local terms = { next_sigma / sigma * fade, x, c0, x0 }
      if order >= 2 then terms[#terms + 1] = c1 terms[#terms + 1] = x0_1 end
      if order == 3 then terms[#terms + 1] = c2 terms[#terms + 1] = x0_2 end
      if sde and next_sigma > 0 then
        terms[#terms + 1] = next_sigma * math.sqrt(1 - fade ^ 2)
        terms[#terms + 1] = noise(sigma, next_sigma)
      end
      x = T.lincomb(terms)
      x0_1, x0_2, h_1, h_2 = x0, x0_1, h, h_1
      step(i, x, { sigma = sigma, denoised = x0 })
    end
    return x
  end,
}
