-- melies-api: 1
-- Chooses its own steps, by tolerance.
-- DPM-Solver-12 and 23 with an adaptive step: two orders are compared and a controller sets the step (Lu et al. 2022,
-- appendix C; k-diffusion's sample_dpm_adaptive). Of the sigmas it takes the first and the last above 0; where they end
-- with 0 one more call goes there. How many calls it makes depends on the model and the tolerances.
local melies = require "melies"
local T = melies.tensor

return {
  kind = "sampler", name = "dpm_adaptive",
  params = {
    order = { "integer", default = 3, min = 2, max = 3, help = "order of the better of the two results" },
    rtol = { "number", default = 0.05, min = 1e-6, max = 1, help = "relative error that a step may make" },
    atol = { "number", default = 0.0078, min = 1e-6, max = 1, help = "absolute error that a step may make" },
    h_init = { "number", default = 0.05, min = 1e-4, max = 10, help = "first step in log sigma" },
    accept_safety = { "number", default = 0.81, min = 0.1, max = 1, help = "redo a step that would shrink by more" },
    eta = { "number", default = 0, min = 0, max = 1, help = "share of noise drawn anew" },
    s_noise = { "number", default = 1, min = 0, help = "strength of that noise" },
  },
  run = function(denoise, x, sigmas, params, step, noise)
    local solver = melies.dpm_solver.new(denoise, params.space)
    local last = sigmas[#sigmas] > 0 and #sigmas or #sigmas - 1
    local t, t_end = solver:time(sigmas[1]), solver:time(sigmas[last])
    local y, h, attempt = solver:to_y(x, t), params.h_init, 0
    local y_before, root = y, math.sqrt(x:numel())
    while t < t_end - 1e-5 do
      attempt = attempt + 1
      local to = math.min(t_end, t + h)
      local reach, up = solver.ancestral(t, to, t_end, params.eta)
      local cache = {}
      local low, high
      if params.order == 2 then
        low = solver:step_1(y, t, reach, cache)
        high = solver:step_2(y, t, reach, cache, 1 / 2)
      else
        low = solver:step_2(y, t, reach, cache, 1 / 3)
        high = solver:step_3(y, t, reach, cache)
      end
      local size = T.maximum(low:abs(), y_before:abs())
      local delta = T.maximum(T.lincomb { params.rtol, size }, params.atol)
      local err = ((low - high) / delta):norm() / root
      -- An integral controller: the factor (1 / error)^(1 / order), limited smoothly.
      local factor = 1 + math.atan((1 / (err + 1e-8)) ^ (1 / (params.eta > 0 and 1.5 or params.order)) - 1)
      local accepted = factor >= params.accept_safety
      local from = t
      if accepted then
        y_before, y, t = low, high, to
        if up > 0 then y = T.lincomb { 1, y, up * params.s_noise, noise(solver:sigma(from), solver:sigma(to)) } end
      end
      h = h * factor
      x = solver:to_x(y, t)
      step(attempt, x, { sigma = solver:sigma(from), denoised = cache.denoised, reached = solver:sigma(t), h = h,
        error = err, accepted = accepted })
    end
    if last < #sigmas then x = denoise(x, sigmas[last]) end
    return x
  end,
}
