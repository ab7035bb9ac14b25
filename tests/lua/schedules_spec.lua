-- Schedules against the published lists (tests/golden/schedulers.*) and by their properties.
local t = require "harness"
local melies = require "melies"
local ffi = require "ffi"
local S = melies.schedule

local function golden_lists()
  local f = assert(io.open(os.getenv("MELIES_ROOT") .. "/tests/golden/schedulers.io.safetensors", "rb"))
  local text = f:read("*a")
  f:close()
  local size = 0
  for i = 8, 1, -1 do size = size * 256 + text:byte(i) end
  local lists = {}
  for name, body in text:sub(9, 8 + size):gmatch('"([^"]+)":(%b{})') do
    if name:find("schedule") and body:find('"F32"', 1, true) then
      local first, last = body:match('"data_offsets":%[%s*(%d+),%s*(%d+)')
      local p = ffi.cast("const float*", text:sub(9 + size + first, 8 + size + last))
      local values = {}
      for i = 1, (last - first) / 4 do values[i] = p[i - 1] end
      lists[name] = values
    end
  end
  return lists
end
local golden = golden_lists()

local function same(list, name, rtol)
  local want = golden[name]
  t.eq(#list, #want, name .. " length")
  for i, v in ipairs(list) do t.near(v, want[i], (rtol or 1e-6) * math.max(1e-3, math.abs(want[i])), name .. " " .. i) end
end

local covered = 0
local function case(name, make, rtol)
  covered = covered + 1
  t.test(name, function() same(make(), name, rtol) end)
end

local k_range = { sigma_min = 0.03, sigma_max = 14.6, space = "ve" }
local function ranged(more)
  local params = {}
  for k, v in pairs(k_range) do params[k] = v end
  for k, v in pairs(more or {}) do params[k] = v end
  return params
end
case("kschedule.karras", function() return S.karras(10, k_range) end, 3e-6) -- the original computes in float32
case("kschedule.karras_rho7", function() return S.karras(10, ranged { rho = 7 }) end, 3e-6)
case("kschedule.exponential", function() return S.exponential(10, k_range) end)
case("kschedule.polyexponential", function() return S.polyexponential(10, ranged { rho = 0.7 }) end)
case("kschedule.vp", function() return S.vp(10, { space = "ve" }) end, 3e-4) -- exp(x) - 1 in float32 at small x

for name in pairs(golden) do
  local kind, shift, n = name:match("^schedule%.([%w_]+)%.shift(%d+)%.n(%d+)%.sigmas$")
  if kind then
    local plugin = ({ unipc = "wan_unipc", flow_dpm = "flow", flowmatch_euler = "flowmatch_euler" })[kind]
    case(name, function() return S[plugin](tonumber(n), { shift = tonumber(shift) }) end, 2e-6)
  end
  local mu = name:match("dynamic%.mu([%d%.]+)%.n6%.sigmas$")
  if mu then case(name, function() return S.flow(6, { mu = tonumber(mu) }) end, 2e-6) end
  local terminal, mu_t = name:match("terminal([%d%.]+)%.mu([%d%.]+)%.n6%.sigmas$")
  if terminal then
    case(name, function() return S.flow(6, { mu = tonumber(mu_t), terminal = tonumber(terminal) }) end, 2e-6)
  end
  local self_forcing = name:match("selfforcing_1000%.shift(%d+)%.sigmas$")
  if self_forcing then
    case(name, function()
      local list = S.flow(1000, { shift = tonumber(self_forcing) })
      list[1001] = nil
      return list
    end, 1e-5)
  end
end

t.test("all sigma lists of the fixture are covered", function()
  local count = 0
  for name in pairs(golden) do
    if not name:find("timesteps$") then count = count + 1 end
  end
  t.eq(covered, count)
end)

t.test("every schedule descends to 0 in both spaces, for few and many steps", function()
  for _, entry in ipairs(melies.registry.list("schedule")) do
    local params = entry.name == "custom" and { sigmas = { 1, 0.5, 0.1 } } or {}
    for _, space in ipairs { "flow", "ve" } do
      for _, n in ipairs { 1, 2, 5, 20 } do
        params.space = space
        local list = S.make(entry.name, n, params) -- checks that it descends and ends with 0
        if space == "flow" then t.ok(list[1] <= 1, entry.name .. " starts within flow") end
        if entry.name ~= "beta" and entry.name ~= "ddim_uniform" then t.eq(#list, n + 1, entry.name) end
      end
    end
  end
end)

t.test("simple, sgm_uniform, normal, ddim_uniform, beta as ComfyUI has them", function()
  local list = S.simple(4, { shift = 3 })
  for i, k in ipairs { 1000, 750, 500, 250 } do t.near(list[i], S.shift(k / 1000, 3), 1e-12) end
  list = S.sgm_uniform(4, {})
  for i, s in ipairs { 1, 0.75025, 0.5005, 0.25075 } do t.near(list[i], s, 1e-9) end
  list = S.normal(3, {})
  for i, s in ipairs { 1, 0.5005, 0.001 } do t.near(list[i], s, 1e-9) end
  list = S.ddim_uniform(4, {})
  for i, s in ipairs { 0.752, 0.502, 0.252, 0.002 } do t.near(list[i], s, 1e-9) end
  -- scipy.stats.beta.ppf(1 - i/5, 0.6, 0.6) = 1, 0.87708, 0.63730, 0.36270, 0.12292 times 999, rounded
  list = S.beta(5, {})
  for i, s in ipairs { 1, 0.877, 0.638, 0.363, 0.124 } do t.near(list[i], s, 1e-12, "beta " .. i) end
  list = S.simple(2, { space = "ve" })
  t.near(list[1], 14.614642, 1e-4)
  list = S.karras(5, { space = "ve" })
  t.near(list[1], 14.614642, 1e-4)
  t.near(list[5], 0.0291675, 1e-6)
end)

t.test("dynamic shift is linear in tokens and equals a static one", function()
  local dynamic = S.flow(8, { tokens = 1024 })
  local static = S.flow(8, { shift = math.exp(0.95) })
  for i = 1, 9 do t.near(dynamic[i], static[i], 1e-12) end
  t.near(S.mu(2560, 1024, 4096, 0.95, 2.05), 1.5, 1e-12)
  local list = S.flow(8, { shift = 3, terminal = 0.1 })
  t.near(list[8], 0.1, 1e-12)
  t.near(list[1], 1, 1e-12)
end)

t.test("custom lists are taken as they are or resampled", function()
  local list = S.custom(3, { sigmas = { 0.9, 0.3, 0.1, 0 } })
  t.eq(table.concat(list, " "), "0.9 0.3 0.1 0")
  list = S.custom(5, { sigmas = { 0.9, 0.3, 0.1 } })
  t.eq(#list, 6)
  t.near(list[3], 0.3, 1e-12)
  t.near(list[2], math.sqrt(0.27), 1e-12)
  t.raises(function() S.custom(2, { sigmas = { 0.3, 0.9 } }) end, "does not descend")
  t.raises(function() S.custom(2, {}) end, "needs the parameter 'sigmas'")
end)

t.test("misuse is named", function()
  t.raises(function() S.make("karas", 10) end, "did you mean 'karras'")
  t.raises(function() S.karras(10, { roh = 7 }) end, "did you mean 'rho'")
  t.raises(function() S.karras(10, { rho = -1 }) end, "rho is -1, must be 0.1 to 100")
  t.raises(function() S.karras(0) end, "number of steps is 0")
  t.raises(function() S.karras(2.5) end, "number of steps is 2.5")
  t.raises(function() S.karras(10, { sigma_min = 2, sigma_max = 1 }) end, "must be below sigma_max")
  t.raises(function() S.karras(10, { space = "vp" }) end, "must be flow or ve")
end)

t.finish()
