-- melies-api: 1
-- Leaves the later blocks out while the changes of the timestep's modulation since they last ran add up to little: the idea of
-- TeaCache (Liu et al. 2024, arXiv 2411.19108) without its fitted polynomial. threshold: sum of relative changes.
local step_cache = require "melies.step_cache"

return {
  kind = "step_cache", name = "time_embedding",
  params = step_cache.params {
    threshold = { "number", default = 0.15, min = 0, max = 10, help = "summed relative change that is still left out" },
  },
  decide = function(state, seen, params)
    state.sum = (state.sum or 0) + (state.time and step_cache.change(seen.time, state.time) or 0)
    state.time = seen.time
    return state.sum < params.threshold
  end,
  computed = function(state) state.sum = 0 end,
}
