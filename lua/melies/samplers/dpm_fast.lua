-- melies-api: 1
-- Steps of third order for a given number of model calls.
-- DPM-Solver-fast: order 3 and lower ones at the end, evenly spaced in log sigma (Lu et al. 2022, section 3.4;
-- k-diffusion's sample_dpm_fast). Of the sigmas it takes the first, the last above 0 and their count, which is the
-- number of calls; where they end with 0 one more call goes there.
local melies = require "melies"
local T = melies.tensor

return {
  kind = "sampler", name = "dpm_fast",
  params = {
    eta = { "number", default = 0, min = 0, max = 1, help = "share of noise drawn anew" },
    s_noise = { "number", default = 1, min = 0, help = "strength of that noise" },
  },
  evals = function(n) return n + 1 end,
  run = function(denoise, x, sigmas, params, step, noise)
    local solver = melies.dpm_solver.new(denoise, params.space)
    local calls = sigmas[#sigmas] > 0 and #sigmas or #sigmas - 1
    local t_start, t_end = solver:time(sigmas[1]), solver:time(sigmas[calls])
    local steps = math.floor(calls / 3) + 1
    local orders = {}
    for i = 1, steps do orders[i] = 3 end
    if calls % 3 == 0 then
      orders[steps - 1], orders[steps] = 2, 1
    else
      orders[steps] = calls % 3
    end
    local y = solver:to_y(x, t_start)
    for i = 1, steps do
      local t, to = t_start + (t_end - t_start) * (i - 1) / steps, t_start + (t_end - t_start) * i / steps
      local reach, up = solver.ancestral(t, to, t_end, params.eta)
      local cache = {}
      if orders[i] == 1 then y = solver:step_1(y, t, reach, cache)
      elseif orders[i] == 2 then y = solver:step_2(y, t, reach, cache, 1 / 2)
      else y = solver:step_3(y, t, reach, cache) end
      if up > 0 then y = T.lincomb { 1, y, up * params.s_noise, noise(solver:sigma(t), solver:sigma(to)) } end
      x = solver:to_x(y, to)
      step(i, x, { sigma = solver:sigma(t), denoised = cache.denoised })
    end
    if calls < #sigmas then x = denoise(x, sigmas[calls]) end
    return x
  end,
}
