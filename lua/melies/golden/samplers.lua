-- Fixtures of samplers and schedules: lists of sigmas, and whole trajectories on models given by a formula, with the
-- noise that the original drew (golden.lua).
local melies = require "melies"
local T = melies.tensor

-- ---- the models of the fixture ------------------------------------------------------------------------------------

local function map(x, fn)
  local list = x:list()
  for i, v in ipairs(list) do list[i] = fn(v) end
  return T.of(list, x.shape)
end
local function tanh(v) return 1 - 2 / (math.exp(2 * v) + 1) end
local function k_denoise(x, s)
  return map(x, function(v) return v / (1 + s * s) + 0.1 * tanh(v) * s / (1 + s) end)
end
local function flow_denoise(x, s)
  return map(x, function(v) return v - s * (v - 0.4 * tanh(1.5 * v) - 0.3 * s * v) end)
end

-- ---- running ------------------------------------------------------------------------------------------------------

local function row(tensor, i) return tensor:slice(1, i, i):squeeze(1) end

-- Runs a sampler and keeps what the fixtures keep: x at the start of each step (as the model sees it first) and at the
-- end, the first estimate of each step, the sigmas of all calls.
local function record(fixture, name, denoise, x, sigmas, params, space)
  local log = { x = {}, denoised = {}, sigmas = {}, info = {} }
  local fresh, draws, noise = true, 0, fixture:get("noise")
  local result = melies.sampling.run(name, function(xt, s)
    local x0 = denoise(xt, s)
    if fresh then log.x[#log.x + 1], log.denoised[#log.denoised + 1], fresh = xt, x0, false end
    log.sigmas[#log.sigmas + 1] = s
    return x0
  end, x, sigmas, { params = params, space = space,
    noise = function()
      draws = draws + 1
      -- With churn the original draws at every step, whether it uses the noise or not.
      return row(noise, params and params.s_churn and #log.x + 1 or draws)
    end,
    on_step = function(_, _, _, info) fresh = true log.info[#log.info + 1] = info end })
  log.x[#log.x + 1] = result
  return log
end

local function check_rows(fixture, name, list, count)
  local want = fixture:get(name)
  if not want then return end
  local rows = {}
  for i = 1, count or #list do rows[i] = list[i]:unsqueeze(1) end
  fixture:close(name, T.concat(rows, 1), want)
end
local function check_list(fixture, name, list, rtol)
  local want = fixture:get(name)
  if want then fixture:close(name, T.of(list, { #list }), want:to("f32"), { atol = 1e-3 * rtol, rtol = rtol }) end
end

-- The registered sampler whose name is the longest start of a case's name.
local function sampler_of(case)
  local best
  for _, entry in ipairs(melies.registry.list("sampler")) do
    if case:sub(1, #entry.name) == entry.name and (not best or #entry.name > #best) then best = entry.name end
  end
  return best
end

-- ---- cases --------------------------------------------------------------------------------------------------------

local function k_case(fixture, case)
  local name, json = case.name, fixture.json
  local params = {}
  for key, value in pairs(case.args or {}) do params[key == "solver_type" and "solver" or key] = value end
  local sampler = sampler_of(name:sub(3))
  if not sampler then return fixture:ok(name, false, "no such sampler") end
  local low, high = json.config.sigma_min, json.config.sigma_max
  local sigmas = (fixture:get(name .. ".sigmas") or fixture:get("k.sigmas")):list()
  if sampler == "dpm_fast" then
    sigmas = melies.schedule.karras(case.model_calls, { sigma_min = low, sigma_max = high, space = "ve" })
    sigmas[case.model_calls + 1] = nil
  elseif sampler == "dpm_adaptive" then
    sigmas = { high, low }
  end
  local log = record(fixture, sampler, k_denoise, fixture:get("k.x_init"), sigmas, params, "ve")
  if case.model_calls then
    fixture:ok(name .. " model calls", #log.sigmas == case.model_calls, ("%d, wanted %d"):format(#log.sigmas,
      case.model_calls))
  end
  check_list(fixture, name .. ".model_sigmas", log.sigmas, 1e-5)
  check_rows(fixture, name .. ".denoised", log.denoised)
  check_rows(fixture, name .. ".trajectory", log.x)
  local final = fixture:get(name .. ".final")
  if final then fixture:close(name .. ".final", log.x[#log.x], final) end
end

local function flow_case(fixture, case)
  local name, noise = case.name, fixture:get("initial_noise")
  local stored = fixture:get(name .. ".sigmas")
  local sigmas = stored and stored:list()
  if name:find("^flow%.fewstep") then
    sigmas = melies.schedule.fewstep(4, { shift = tonumber(name:match("shift([%d%.]+)")) })
    local log = record(fixture, "lcm", flow_denoise, noise, sigmas, {}, "flow")
    local times = {}
    for i = 1, 4 do times[i] = 1000 * sigmas[i] end
    check_list(fixture, name .. ".timesteps", times, 1e-6)
    check_rows(fixture, name .. ".x0_predictions", log.denoised)
    return check_rows(fixture, name .. ".renoised", { unpack(log.x, 2, 4) })
  end
  local sampler, params = "euler", {}
  if case.algorithm then
    sampler, params = "flow_dpmpp", { order = case.order, solver = case.solver_type, algorithm = case.algorithm }
  elseif case.order then
    sampler, params = "uni_pc", { order = case.order, solver = case.solver_type }
  end
  local log = record(fixture, sampler, flow_denoise, noise, sigmas, params, "flow")
  local want = fixture:get(name .. ".trajectory")
  check_rows(fixture, name .. ".trajectory", log.x, math.min(#log.x, want.shape[1]))
end

-- diffusers' DDIM works on x / sqrt(1 + sigma^2), sigma^2 = (1 - a) / a; for "linspace" a step's end is not the next
-- one's start, so each step is a run of its own. With set_alpha_to_one false the last step goes to the first alpha.
local function ddim_case(fixture, case)
  local name = case.name
  local prediction, eta, steps = name:match("^ddim%.%a+%.([%a_]+)%.eta([%d%.]+)%.n(%d+)$")
  local alphas = fixture:get("ddim.alphas_cumprod"):list()
  local x, noise, out = fixture:get("initial_noise"), fixture:get("noise"), {}
  out[1] = x
  for i, time in ipairs(fixture:get(name .. ".timesteps"):list()) do
    local before = time - math.floor(#alphas / tonumber(steps))
    local alpha, alpha_next = alphas[time + 1], before >= 0 and alphas[before + 1] or alphas[1]
    local function denoise(scaled)
      return map(scaled, function(v)
        v = v * math.sqrt(alpha)
        local o = 0.8 * v / (1 + time / 1000) + 0.2 * tanh(v) * (time / 1000)
        if prediction == "epsilon" then return (v - math.sqrt(1 - alpha) * o) / math.sqrt(alpha) end
        if prediction == "v_prediction" then return math.sqrt(alpha) * v - math.sqrt(1 - alpha) * o end
        return o
      end)
    end
    local function level(a) return math.sqrt((1 - a) / a) end
    if alpha ~= alpha_next then
      local y = melies.sampling.run("ddim", denoise, x * (1 / math.sqrt(alpha)), { level(alpha), level(alpha_next) },
        { params = { eta = tonumber(eta) }, space = "ve", noise = function() return row(noise, i) end })
      x = y * math.sqrt(alpha_next)
    end
    out[i + 1] = x
  end
  check_rows(fixture, name .. ".trajectory", out)
end

-- ---- schedules ----------------------------------------------------------------------------------------------------

local PLUGIN = { unipc = "wan_unipc", flow_dpm = "flow", flowmatch_euler = "flowmatch_euler" }

-- What makes the list of that name, and the relative error that the original's float32 leaves; nil for other names.
local function schedule_of(name, json)
  local S, c = melies.schedule, json.config
  local range = { sigma_min = c.sigma_min, sigma_max = c.sigma_max, space = "ve" }
  local k = name:match("^kschedule%.(.*)$")
  if k == "karras" or k == "karras_rho7" then return S.karras(c.k_n, range), 3e-6 end
  if k == "exponential" then return S.exponential(c.k_n, range), 1e-6 end
  if k == "polyexponential" then
    range.rho = c.polyexp_rho
    return S.polyexponential(c.k_n, range), 1e-6
  end
  if k == "vp" then return S.vp(c.k_n, { space = "ve" }), 3e-4 end -- exp(x) - 1 at small x
  local kind, shift, n = name:match("^schedule%.([%w_]+)%.shift([%d%.]+)%.n(%d+)%.sigmas$")
  if PLUGIN[kind] then return S[PLUGIN[kind]](tonumber(n), { shift = tonumber(shift) }), 2e-6 end
  local terminal, mu
  mu, n = name:match("_dynamic%.mu([%d%.]+)%.n(%d+)%.sigmas$")
  if mu then return S.flow(tonumber(n), { mu = tonumber(mu) }), 2e-6 end
  terminal, mu, n = name:match("_terminal([%d%.]+)%.mu([%d%.]+)%.n(%d+)%.sigmas$")
  if terminal then return S.flow(tonumber(n), { mu = tonumber(mu), terminal = tonumber(terminal) }), 2e-6 end
  n, shift = name:match("selfforcing_(%d+)%.shift([%d%.]+)%.sigmas$")
  if n then
    local list = S.flow(tonumber(n), { shift = tonumber(shift) })
    list[#list] = nil
    return list, 1e-5
  end
end

local function run(fixture)
  local json = fixture.json
  fixture:get("initial_noise")
  for _, name in ipairs(fixture.io:names()) do
    local list, rtol = schedule_of(name, json)
    if list then check_list(fixture, name, list, rtol) end
  end
  for _, case in ipairs(json.cases) do
    local kind = case.name:match("^(%a+)%.")
    if kind == "k" then k_case(fixture, case)
    elseif kind == "flow" then flow_case(fixture, case)
    elseif kind == "ddim" then ddim_case(fixture, case)
    else fixture:ok(case.name, false, "a case that is not known here") end
  end
end

return {
  { name = "samplers", run = run, applies = function(json)
    return type(json.analytic_model) == "table" and type(json.cases) == "table"
  end },
}
