-- melies-api: 1
-- Computes every n-th step and continues what the later blocks add in between along its last differences, as a
-- polynomial in sigma through the last computed points: the idea of TaylorSeer (Liu et al. 2025, arXiv 2503.06923).
local T = require("melies").tensor
local step_cache = require "melies.step_cache"

return {
  kind = "step_cache", name = "taylor",
  params = step_cache.params {
    every = { "integer", default = 2, min = 1, max = 100, help = "one step in so many is computed" },
    order = { "integer", default = 1, min = 0, max = 2, help = "degree of the polynomial" },
  },
  decide = function(state, _, params)
    state.since = (state.since or 0) + 1
    return state.since < params.every
  end,
  -- Lagrange's form through the kept points.
  rest = function(state, seen, params)
    local points, terms = state.points, {}
    local n = math.min(#points, params.order + 1)
    for i = 1, n do
      local c = 1
      for j = 1, n do
        if j ~= i then c = c * (seen.sigma - points[j].sigma) / (points[i].sigma - points[j].sigma) end
      end
      terms[2 * i - 1], terms[2 * i] = c, points[i].rest
    end
    return T.lincomb(terms)
  end,
  computed = function(state, seen, rest)
    state.since = 0
    state.points = state.points or {}
    if state.points[1] and state.points[1].sigma == seen.sigma then table.remove(state.points, 1) end
    table.insert(state.points, 1, { sigma = seen.sigma, rest = rest })
    state.points[4] = nil
  end,
}
