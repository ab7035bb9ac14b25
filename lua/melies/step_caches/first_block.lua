-- melies-api: 1
-- Leaves the later blocks out while what the first block adds has changed little since they last ran (the first-block
-- cache of ParaAttention; facts only). threshold: relative mean absolute change.
local step_cache = require "melies.step_cache"

return {
  kind = "step_cache", name = "first_block",
  params = step_cache.params {
    threshold = { "number", default = 0.1, min = 0, max = 10, help = "relative change that is still left out" },
  },
  decide = function(state, seen, params)
    return state.first ~= nil and step_cache.change(seen.first, state.first) < params.threshold
  end,
  computed = function(state, seen) state.first = seen.first end,
}
