-- melies-api: 1
-- UniPC predictor and corrector, one model call a step; Wan's default.
-- Zhao et al. 2023, in the B(h) form of diffusers' UniPCMultistepScheduler. With the schedule wan_unipc it is Wan's
-- FlowUniPC. solver: B(h) = expm1(-h) (bh2) or -h (bh1).
local melies = require "melies"
local T, S = melies.tensor, melies.sampling

-- Solves A y = b for small square A (rows), by Gaussian elimination with pivoting. A and b are used up.
local function solve(A, b)
  local n = #b
  for i = 1, n do
    local best = i
    for r = i + 1, n do
      if math.abs(A[r][i]) > math.abs(A[best][i]) then best = r end
    end
    A[i], A[best], b[i], b[best] = A[best], A[i], b[best], b[i]
    for r = i + 1, n do
      local f = A[r][i] / A[i][i]
      for c = i, n do A[r][c] = A[r][c] - f * A[i][c] end
      b[r] = b[r] - f * b[i]
    end
  end
  for i = n, 1, -1 do
    for c = i + 1, n do b[i] = b[i] - A[i][c] * b[c] end
    b[i] = b[i] / A[i][i]
  end
  return b
end

-- Weights of the divided differences D_k = (m_k - m_0) / r_k: r is the list of r_k, h = lambda' - lambda of the step.
-- Rows r^(j-1), right side j! phi_{j+1}(-h) (-h)^... / B(h).
local function weights(r, h, B)
  local hh, A, b = -h, {}, {}
  local phi, factorial = (math.exp(hh) - 1) / hh - 1, 1
  for j = 1, #r do
    A[j] = {}
    for k = 1, #r do A[j][k] = r[k] ^ (j - 1) end
    b[j] = phi * factorial / B
    factorial = factorial * (j + 1)
    phi = phi / hh - 1 / factorial
  end
  return solve(A, b)
end

return {
  kind = "sampler", name = "uni_pc",
  params = {
    order = { "integer", default = 2, min = 1, max = 3, help = "order of the predictor; the corrector adds one" },
    solver = { "enum", choices = { "bh1", "bh2" }, default = "bh2", help = "the function B(h)" },
    lower_order_final = { "boolean", default = true, help = "fall to lower orders over the last steps" },
  },
  evals = function(n) return n end,
  run = function(denoise, x, sigmas, params, step)
    local space, n = params.space, #sigmas - 1
    local function lambda(i) return S.lambda(space, sigmas[i]) end
    local estimates = {} -- index -> estimate of x0 there
    local first = 1      -- the first index whose estimate counts as history
    local order, start   -- of the last predictor, and x before it

    -- From index s to s + 1: x_start, differences to the estimates before s, and to x0_ahead where it corrects.
    local function update(x_start, s, use, x0_ahead)
      local target = sigmas[s + 1]
      local h, alpha = lambda(s + 1) - lambda(s), S.alpha(space, target)
      local gain = alpha * (math.exp(-h) - 1) -- alpha h phi_1
      local r, terms = {}, {}
      local on_base = -gain
      if use > 1 or x0_ahead then
        local B = params.solver == "bh1" and -h or math.exp(-h) - 1
        for k = 1, use - 1 do r[k] = (lambda(s - k) - lambda(s)) / h end
        local rho
        if x0_ahead then
          r[use] = 1
          rho = use == 1 and { 0.5 } or weights(r, h, B)
        else
          rho = use == 2 and { 0.5 } or weights(r, h, B)
        end
        for k = 1, #r do
          local c = -alpha * B * rho[k] / r[k]
          terms[#terms + 1] = c
          terms[#terms + 1] = k < use and estimates[s - k] or x0_ahead
          on_base = on_base - c
        end
      end
      return T.lincomb { target / sigmas[s], x_start, on_base, estimates[s], unpack(terms) }
    end

    for i = 1, n do
      local x0 = denoise(x, sigmas[i])
      if start then x = update(start, i - 1, order, x0) end
      estimates[i] = x0
      estimates[i - 3] = nil
      order = math.min(params.order, i - first + 1, params.lower_order_final and n - i + 1 or params.order)
      start = x
      if sigmas[i + 1] == 0 then
        x = x0
      else
        if lambda(i) == -math.huge then first, start = i + 1, nil end -- from alpha = 0: nothing to extrapolate or correct
        x = update(x, i, order)
      end
      step(i, x, { sigma = sigmas[i], denoised = x0 })
    end
    return x
  end,
}
