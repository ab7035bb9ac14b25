-- melies-api: 1
-- Linear multistep of up to four slopes, one model call a step.
-- Adams-Bashforth on the sigmas as they are: k-diffusion's sample_lms.
local melies = require "melies"
local T = melies.tensor

-- Integral over [a, b] of the Lagrange polynomial that is 1 at nodes[j] and 0 at the other nodes. Its degree is at most
-- 3, for which two Gauss points are exact.
local function weight(nodes, j, a, b)
  local sum, middle, half = 0, (a + b) / 2, (b - a) / 2
  for _, g in ipairs { -1 / math.sqrt(3), 1 / math.sqrt(3) } do
    local tau, product = middle + half * g, 1
    for k = 1, #nodes do
      if k ~= j then product = product * (tau - nodes[k]) / (nodes[j] - nodes[k]) end
    end
    sum = sum + product
  end
  return sum * half
end

return {
  kind = "sampler", name = "lms",
  params = { order = { "integer", default = 4, min = 1, max = 4, help = "how many derivatives are kept" } },
  evals = function(n) return n end,
  run = function(denoise, x, sigmas, params, step)
    local slopes, nodes = {}, {} -- newest first
    for i = 1, #sigmas - 1 do
      local sigma = sigmas[i]
      local x0 = denoise(x, sigma)
      table.insert(slopes, 1, T.lincomb { 1 / sigma, x, -1 / sigma, x0 })
      table.insert(nodes, 1, sigma)
      slopes[params.order + 1], nodes[params.order + 1] = nil, nil
      local terms = { 1, x }
      for j = 1, #nodes do
        terms[#terms + 1] = weight(nodes, j, sigma, sigmas[i + 1])
        terms[#terms + 1] = slopes[j]
      end
      x = T.lincomb(terms)
      step(i, x, { sigma = sigma, denoised = x0 })
    end
    return x
  end,
}
