-- melies-api: 1
-- Trained levels at quantiles of a beta distribution: dense at both ends.
-- Lee et al. 2024 (arXiv 2407.12173), as ComfyUI's beta_scheduler (its beta57 is alpha 0.5, beta 0.7). Levels that
-- come up twice are taken once.
local S = require("melies").schedule

-- Log of the gamma function by Lanczos (g = 7, 9 terms), for x > 0.
local lanczos = { 0.99999999999980993, 676.5203681218851, -1259.1392167224028, 771.32342877765313, -176.61502916214059,
  12.507343278686905, -0.13857109526572012, 9.9843695780195716e-6, 1.5056327351493116e-7 }
local function log_gamma(x)
  if x < 0.5 then return math.log(math.pi / math.sin(math.pi * x)) - log_gamma(1 - x) end
  x = x - 1
  local sum, t = lanczos[1], x + 7.5
  for i = 1, 8 do sum = sum + lanczos[i + 1] / (x + i) end
  return 0.5 * math.log(2 * math.pi) + (x + 0.5) * math.log(t) - t + math.log(sum)
end

-- Regularised incomplete beta function by its continued fraction (Lentz's method).
local function incomplete_beta(x, a, b)
  if x <= 0 then return 0 elseif x >= 1 then return 1 end
  if x > (a + 1) / (a + b + 2) then return 1 - incomplete_beta(1 - x, b, a) end
  local front = math.exp(log_gamma(a + b) - log_gamma(a) - log_gamma(b) + a * math.log(x) + b * math.log(1 - x)) / a
  local tiny = 1e-300
  local c, d = 1, 1 - (a + b) * x / (a + 1)
  d = 1 / (math.abs(d) < tiny and tiny or d)
  local f = d
  for m = 1, 300 do
    local function turn(numerator)
      d = 1 + numerator * d
      c = 1 + numerator / c
      d = 1 / (math.abs(d) < tiny and tiny or d)
      c = math.abs(c) < tiny and tiny or c
      f = f * c * d
    end
    turn(m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)))
    turn(-(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)))
    if math.abs(c * d - 1) < 1e-14 then break end
  end
  return front * f
end

local function quantile(p, a, b)
  local low, high = 0, 1
  for _ = 1, 80 do
    local middle = (low + high) / 2
    if incomplete_beta(middle, a, b) < p then low = middle else high = middle end
  end
  return (low + high) / 2
end

return {
  kind = "schedule", name = "beta",
  params = {
    alpha = { "number", default = 0.6, min = 0.05, max = 20, help = "shape at the low-noise end" },
    beta = { "number", default = 0.6, min = 0.05, max = 20, help = "shape at the high-noise end" },
    shift = S.shift_param,
  },
  sigmas = function(n, params)
    local levels, list, last = S.levels(params), {}, nil
    for i = 1, n do
      local t = quantile(1 - (i - 1) / n, params.alpha, params.beta) * (#levels - 1)
      local k = math.floor(t + 0.5)
      if k ~= last then list[#list + 1] = levels[k + 1] end
      last = k
    end
    return S.append_zero(list)
  end,
}
