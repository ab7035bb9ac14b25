-- Schedules: lists of noise levels that descend to 0. A schedule is a plugin with sigmas(n, params) -> list; this
-- module finds them, checks their parameters and results, and holds the formulas that several share.
--
--   schedule.make("karras", 20, { rho = 5 })     -> { sigma_1, ..., sigma_20, 0 }
--   schedule.flow(20, { shift = 3 })             the same for any name: schedule.NAME(n, params)
--
-- params.space ("flow", the default, or "ve") says which noise levels the model knows; see sampling.lua.
local registry = require "melies.registry"

local schedule = {}

-- ---- formulas -----------------------------------------------------------------------------------

-- n numbers from a to b, both included exactly; { a } for n = 1.
function schedule.linspace(a, b, n)
  local list = { a }
  for i = 2, n - 1 do list[i] = a + (b - a) * (i - 1) / (n - 1) end
  if n > 1 then list[n] = b end
  return list
end

-- Static shift of flow: more of the steps at high noise for shift > 1 (Esser et al. 2024, equation 23).
function schedule.shift(sigma, shift) return shift * sigma / (1 + (shift - 1) * sigma) end

-- Dynamic shift: e^mu / (e^mu + 1/sigma - 1); the static one with shift = e^mu.
function schedule.shift_mu(sigma, mu)
  if sigma <= 0 then return 0 end
  return math.exp(mu) / (math.exp(mu) + (1 / sigma - 1)) -- 1 stays 1
end

-- mu for a number of tokens, on the line through (base_tokens, base_shift) and (max_tokens, max_shift).
function schedule.mu(tokens, base_tokens, max_tokens, base_shift, max_shift)
  return base_shift + (max_shift - base_shift) * (tokens - base_tokens) / (max_tokens - base_tokens)
end

-- Stretches a list so that its last entry is terminal (LTX-Video's rf.py).
function schedule.stretch_to(sigmas, terminal)
  local last = sigmas[#sigmas]
  for i, s in ipairs(sigmas) do sigmas[i] = 1 - (1 - s) * (1 - terminal) / (1 - last) end
  return sigmas
end

function schedule.append_zero(sigmas)
  sigmas[#sigmas + 1] = 0
  return sigmas
end

-- The 1000 noise levels that a model was trained on, rising; a function from a place among them (0 to 999, not rounded)
-- to sigma; and the place where ComfyUI's schedules over time end. Flow: k/1000, shifted; ComfyUI takes the shifted
-- lowest level for a time, and so do we. VE: Stable Diffusion's scaled linear betas from 0.00085 to 0.012.
local ve_table
function schedule.levels(params)
  local count = 1000
  if params.space == "flow" then
    local shift = params.shift or 1
    local list = {}
    for k = 1, count do list[k] = schedule.shift(k / count, shift) end
    return list, function(t) return schedule.shift((t + 1) / count, shift) end, list[1] * count - 1
  end
  if not ve_table then
    ve_table = {}
    local product = 1
    for k, root in ipairs(schedule.linspace(math.sqrt(0.00085), math.sqrt(0.012), count)) do
      product = product * (1 - root * root)
      ve_table[k] = math.sqrt((1 - product) / product)
    end
  end
  return ve_table, function(t)
    local low = math.max(0, math.min(count - 1, math.floor(t)))
    local high = math.min(count - 1, low + 1)
    local a, b = math.log(ve_table[low + 1]), math.log(ve_table[high + 1])
    return math.exp(a + (b - a) * (t - low))
  end, 0
end

-- sigma_min and sigma_max of params, or the trained levels' own ends.
function schedule.range(params)
  if params.sigma_min and params.sigma_max then return params.sigma_min, params.sigma_max end
  local list = schedule.levels(params)
  return params.sigma_min or list[1], params.sigma_max or list[#list]
end

-- Declarations that several schedules use.
schedule.range_params = {
  sigma_min = { "number", min = 1e-6, help = "last noise level before 0 (default: the model's)" },
  sigma_max = { "number", min = 1e-6, help = "first noise level (default: the model's)" },
  shift = { "number", default = 1, min = 0.01, max = 100, help = "flow: shift of the model's own ends" },
}
schedule.shift_param = { "number", default = 1, min = 0.01, max = 100, help = "flow: more steps at high noise above 1" }

-- A copy of range_params with more in it.
function schedule.with_range(more)
  local params = {}
  for name, spec in pairs(schedule.range_params) do params[name] = spec end
  for name, spec in pairs(more or {}) do params[name] = spec end
  return params
end

-- ---- finding and running ------------------------------------------------------------------------

-- The sigmas of a schedule (a name or a plugin's table) for n steps. params are checked against its declaration; space
-- comes from params, or the model where one is given. Some schedules may give fewer than n steps (beta drops doubles).
function schedule.make(name, n, params, model)
  local plugin, message = name, nil
  if type(name) == "string" then plugin, message = registry.get("schedule", name) end
  if type(plugin) ~= "table" or type(plugin.sigmas) ~= "function" then
    error(message or ("a schedule is a name or a table with sigmas, not a " .. type(name)), 2)
  end
  if type(n) ~= "number" or n % 1 ~= 0 or n < 1 or n > 100000 then
    error(("schedule %s: the number of steps is %s, must be a whole number from 1"):format(plugin.name or "?", tostring(n)), 2)
  end
  local given, space = {}, model and model.space or "flow"
  for key, value in pairs(params or {}) do
    if key == "space" then space = value else given[key] = value end
  end
  if space ~= "flow" and space ~= "ve" then error(("space is '%s', must be flow or ve"):format(tostring(space)), 2) end
  local resolved
  resolved, message = registry.resolve_params(plugin, given)
  if not resolved then error(message, 2) end
  if resolved.sigma_min and resolved.sigma_max and resolved.sigma_min >= resolved.sigma_max then
    error(("schedule %s: sigma_min is %g, must be below sigma_max %g"):format(plugin.name, resolved.sigma_min,
      resolved.sigma_max), 2)
  end
  resolved.space = space
  local list = plugin.sigmas(n, resolved)
  if type(list) ~= "table" or #list < 2 or list[#list] ~= 0 then
    error(("schedule %s: sigmas must return a list that ends with 0"):format(plugin.name or "?"), 2)
  end
  for i = 2, #list do
    if list[i] >= list[i - 1] or list[i] ~= list[i] then
      error(("schedule %s: %s at %d does not descend from %s"):format(plugin.name or "?", tostring(list[i]), i,
        tostring(list[i - 1])), 2)
    end
  end
  return list
end

return setmetatable(schedule, {
  __index = function(_, name)
    if type(name) ~= "string" then return nil end
    local plugin, message = registry.get("schedule", name)
    if not plugin then error(message, 2) end
    return function(n, params, model) return schedule.make(plugin, n, params, model) end
  end,
})
