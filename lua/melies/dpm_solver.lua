-- Single steps of DPM-Solver (Lu et al. 2022, arXiv 2206.00927), which dpm_fast and dpm_adaptive are made of.
-- They work on y = x / alpha with t = -log(sigma / alpha), where VE and flow are the same problem:
-- y' = y - k' (e^h - 1) eps to first order, with k = e^-t and eps = (y - x0) / k.
local T = require "melies.tensor"
local sampling = require "melies.sampling"

local Solver = {}
Solver.__index = Solver

-- denoise and space as a sampler has them.
local function new(denoise, space) return setmetatable({ denoise = denoise, space = space }, Solver) end

function Solver:time(sigma)
  return sampling.lambda(self.space, sampling.finite_start(self.space, sigma))
end
function Solver:sigma(t) return sampling.sigma_at(self.space, t) end

-- Between x at time t and y.
function Solver:to_y(x, t) return T.lincomb { 1 / sampling.alpha(self.space, self:sigma(t)), x } end
function Solver:to_x(y, t) return T.lincomb { sampling.alpha(self.space, self:sigma(t)), y } end

-- eps at (y, t), kept in cache under key; the second result is the estimate of x0.
function Solver:eps(cache, key, y, t)
  if not cache[key] then
    local x0 = self.denoise(self:to_x(y, t), self:sigma(t))
    cache[key] = T.lincomb { math.exp(t), y, -math.exp(t), x0 }
    cache.denoised = cache.denoised or x0
  end
  return cache[key]
end

local function expm1(h) return math.exp(h) - 1 end

function Solver:step_1(y, t, to, cache)
  return T.lincomb { 1, y, -math.exp(-to) * expm1(to - t), self:eps(cache, "eps", y, t) }
end

function Solver:step_2(y, t, to, cache, r1)
  local h, k = to - t, math.exp(-to)
  local eps = self:eps(cache, "eps", y, t)
  local s1 = t + r1 * h
  local eps_1 = cache.eps_1 or self:eps(cache, "eps_1", T.lincomb { 1, y, -math.exp(-s1) * expm1(r1 * h), eps }, s1)
  local full, part = -k * expm1(h), -k / (2 * r1) * expm1(h)
  return T.lincomb { 1, y, full - part, eps, part, eps_1 }
end

function Solver:step_3(y, t, to, cache)
  local h, k, r1, r2 = to - t, math.exp(-to), 1 / 3, 2 / 3
  local eps = self:eps(cache, "eps", y, t)
  local s1, s2 = t + r1 * h, t + r2 * h
  local eps_1 = cache.eps_1 or self:eps(cache, "eps_1", T.lincomb { 1, y, -math.exp(-s1) * expm1(r1 * h), eps }, s1)
  local full, part = -math.exp(-s2) * expm1(r2 * h), -math.exp(-s2) * (r2 / r1) * (expm1(r2 * h) / (r2 * h) - 1)
  local eps_2 = self:eps(cache, "eps_2", T.lincomb { 1, y, full - part, eps, part, eps_1 }, s2)
  full, part = -k * expm1(h), -k / r2 * (expm1(h) / h - 1)
  return T.lincomb { 1, y, full - part, eps, part, eps_2 }
end

-- Where to step down to and how much noise to add (in y) for an ancestral step from t to `to`, not past t_end.
function Solver.ancestral(t, to, t_end, eta)
  if eta == 0 then return to, 0 end
  local down = sampling.ancestral_step("ve", math.exp(-t), math.exp(-to), eta)
  local reach = math.min(t_end, -math.log(down))
  return reach, math.sqrt(math.max(0, math.exp(-2 * to) - math.exp(-2 * reach)))
end

return { new = new }
