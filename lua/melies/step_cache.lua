-- Step caches: a transformer's later blocks change little from one step to the next, so what they add (the "rest": the
-- last block's output less the first's) can be kept, or continued, instead of computed. A cache is a plugin that decides:
--
--   decide(state, seen, params) -> true where this call may use the kept rest
--   rest(state, seen, params) -> the tensor to add (optional; by default the kept one)
--   computed(state, seen, rest, params)   told of every rest that was computed (optional)
--
-- seen: { first = what the first block added [B, L, dim], time = the timestep's modulation [B, ..., dim], sigma = };
-- state: a table that the plugin fills, new for every run; state.kept is the kept rest, state.calls counts calls.
local registry = require "melies.registry"

local step_cache = {}
local Cache = {}
Cache.__index = Cache

-- What every cache takes besides its own parameters: a plugin declares params = step_cache.params { its own }.
local common = {
  warmup = { "integer", default = 3, min = 0, max = 1000, help = "first steps that are always computed" },
  most = { "integer", default = 4, min = 1, max = 1000, help = "steps in a row that may be left out" },
  tail = { "number", default = 0.06, min = 0, max = 1, help = "below this sigma all is computed" },
}

function step_cache.params(own)
  local all = {}
  for key, spec in pairs(common) do all[key] = spec end
  for key, spec in pairs(own or {}) do all[key] = spec end
  return all
end

-- step_cache.make(name or plugin, params) -> cache for forward(..., { cache = cache, sigma = sigma }).
function step_cache.make(name, values)
  local plugin, message = name, nil
  if type(name) == "string" then plugin, message = registry.get("step_cache", name) end
  if type(plugin) ~= "table" or type(plugin.decide) ~= "function" then
    error(message or ("a step cache is a name or a table with decide, not a " .. type(name)), 2)
  end
  local params
  params, message = registry.resolve_params(plugin, values or {})
  if not params then error(message, 2) end
  return setmetatable({ plugin = plugin, params = params, computed = 0, reused = 0, runs = {} }, Cache)
end

-- The state of a batch of this shape: guidance with and without its second branch are two series. A sigma that rises is
-- a new run; a series that begins below another's sigma goes on with its run, whose warm-up is over or not.
function Cache:state_of(seen)
  local key = table.concat(seen.first.shape, "x")
  local run = self.runs[key]
  if not run or seen.sigma > run.sigma then
    local calls = 0
    for other, r in pairs(self.runs) do
      if other ~= key and r.sigma >= seen.sigma then
        calls = math.max(calls, r.sigma > seen.sigma and r.calls or r.calls - 1)
      end
    end
    run = { sigma = seen.sigma, calls = calls, left_out = 0, state = { calls = calls } }
    self.runs[key] = run
  end
  run.sigma = seen.sigma
  return run
end

-- The rest to add, or nil where the blocks have to run; then keep(seen, rest) follows.
function Cache:reuse(seen)
  local run, p = self:state_of(seen), self.params
  run.calls = run.calls + 1
  run.state.calls = run.calls
  local may = self.plugin.decide(run.state, seen, p)
  if may and run.state.kept and run.calls > p.warmup and run.left_out < p.most and seen.sigma >= p.tail then
    run.left_out, self.reused = run.left_out + 1, self.reused + 1
    return self.plugin.rest and self.plugin.rest(run.state, seen, p) or run.state.kept
  end
end

function Cache:keep(seen, rest)
  local run = self:state_of(seen)
  run.left_out, self.computed = 0, self.computed + 1
  run.state.kept = rest
  if self.plugin.computed then self.plugin.computed(run.state, seen, rest, self.params) end
end

-- Mean of |a - b| over mean of |b|: how the plugins measure change.
function step_cache.change(a, b)
  local size = b:abs():mean()
  return size > 0 and (a - b):abs():mean() / size or math.huge
end

return step_cache
