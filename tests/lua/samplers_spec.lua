-- Samplers against the trajectories of the published code (tests/golden/schedulers.*), and how they are run.
local t = require "harness"
local melies = require "melies"
local T, sampling, registry = melies.tensor, melies.sampling, melies.registry
local ffi = require "ffi"

local root = os.getenv("MELIES_ROOT") .. "/tests/golden/schedulers"

local function read(path)
  local f = assert(io.open(path, "rb"))
  local text = f:read("*a")
  f:close()
  return text
end

-- The fixture, read without the project's own reader: name -> { shape, flat numbers }.
local io_text = read(root .. ".io.safetensors")
local header_size = 0
for i = 8, 1, -1 do header_size = header_size * 256 + io_text:byte(i) end
local golden = {}
for name, body in io_text:sub(9, 8 + header_size):gmatch('"([^"]+)":(%b{})') do
  local first, last = body:match('"data_offsets":%[%s*(%d+),%s*(%d+)')
  local bytes = io_text:sub(9 + header_size + first, 8 + header_size + last)
  local wide = body:find('"I64"', 1, true)
  local p = ffi.cast(wide and "const int64_t*" or "const float*", bytes)
  local values = {}
  for i = 1, #bytes / (wide and 8 or 4) do values[i] = tonumber(p[i - 1]) end
  local shape = {}
  for n in body:match('"shape":%[([^%]]*)'):gmatch("%d+") do shape[#shape + 1] = tonumber(n) end
  golden[name] = { shape = shape, values = values }
end

local SHAPE, SIZE = { 1, 2, 2, 3, 4 }, 48
local function tensor(name) return T.of(golden[name].values, golden[name].shape) end
local function row(name, i)
  local values = {}
  for k = 1, SIZE do values[k] = golden[name].values[(i - 1) * SIZE + k] end
  return T.of(values, SHAPE)
end

local function map(x, fn)
  local list = x:list()
  for i, v in ipairs(list) do list[i] = fn(v) end
  return T.of(list, x.shape)
end
local function tanh(v) return 1 - 2 / (math.exp(2 * v) + 1) end

local function k_denoise(x, s)
  return map(x, function(v) return v / (1 + s * s) + 0.1 * tanh(v) * s / (1 + s) end)
end
local function velocity(x, s)
  return map(x, function(v) return v - 0.4 * tanh(1.5 * v) - 0.3 * s * v end)
end
local function flow_denoise(x, s) return T.lincomb { 1, x, -s, velocity(x, s) } end

local covered = {}

-- Runs a sampler and keeps what the fixtures keep: x at the start of each step (as the model sees it first), the first
-- estimate of each step, the sigmas of all calls, the arguments of all draws.
local function record(name, denoise, x, sigmas, params, space)
  local log = { x = {}, denoised = {}, sigmas = {}, draws = {}, info = {} }
  local fresh = true
  local result = sampling.run(name, function(xt, s)
    local x0 = denoise(xt, s)
    if fresh then log.x[#log.x + 1], log.denoised[#log.denoised + 1], fresh = xt, x0, false end
    log.sigmas[#log.sigmas + 1] = s
    return x0
  end, x, sigmas, { params = params, space = space,
    noise = function(s, s_next)
      log.draws[#log.draws + 1] = { s, s_next }
      -- churn: the original draws at every step, whether it uses the noise or not
      return row("noise", params and params.s_churn and #log.x + 1 or #log.draws)
    end,
    on_step = function(_, _, _, info) fresh = true log.info[#log.info + 1] = info end })
  log.x[#log.x + 1] = result
  return log
end

local function same_rows(list, name, tolerance)
  t.eq(#list, golden[name].shape[1], name .. " rows")
  for i, x in ipairs(list) do t.close(x, row(name, i), tolerance, tolerance, name .. " row " .. i) end
end
local function same_list(list, name, rtol)
  t.eq(#list, #golden[name].values, name .. " length")
  for i, v in ipairs(list) do
    local want = golden[name].values[i]
    t.near(v, want, rtol * math.max(1e-3, math.abs(want)), name .. " " .. i)
  end
end

-- ---- k-diffusion --------------------------------------------------------------------------------

local churn = { s_churn = 8, s_tmin = 0.1, s_tmax = 8, s_noise = 1.003 }
local k_cases = {
  { "k.euler", "euler" }, { "k.heun", "heun" }, { "k.dpm_2", "dpm_2" }, { "k.lms", "lms" },
  { "k.lms_order3", "lms", { order = 3 } }, { "k.euler_ancestral", "euler_ancestral" },
  { "k.euler_ancestral_eta0.6", "euler_ancestral", { eta = 0.6, s_noise = 0.9 } },
  { "k.dpm_2_ancestral", "dpm_2_ancestral" }, { "k.dpmpp_2s_ancestral", "dpmpp_2s_ancestral" },
  { "k.dpmpp_2s_ancestral_eta0", "dpmpp_2s_ancestral", { eta = 0 } }, { "k.dpmpp_2m", "dpmpp_2m" },
  { "k.dpmpp_sde", "dpmpp_sde" }, { "k.dpmpp_sde_eta0.5", "dpmpp_sde", { eta = 0.5 } },
  { "k.dpmpp_2m_sde_midpoint", "dpmpp_2m_sde" }, { "k.dpmpp_2m_sde_heun", "dpmpp_2m_sde", { solver = "heun" } },
  { "k.dpmpp_3m_sde", "dpmpp_3m_sde" }, { "k.euler_churn", "euler", churn }, { "k.heun_churn", "heun", churn },
}
for _, case in ipairs(k_cases) do
  local name, sampler, params = unpack(case, 1, 3)
  covered[name] = true
  t.test(name, function()
    local sigmas = golden["k.sigmas"].values
    local log = record(sampler, k_denoise, tensor("k.x_init"), sigmas, params, "ve")
    same_list(log.sigmas, name .. ".model_sigmas", 1e-5)
    same_rows(log.denoised, name .. ".denoised", 1e-4)
    same_rows(log.x, name .. ".trajectory", 1e-4)
    local plugin = registry.get("sampler", sampler)
    t.eq(plugin.evals(#sigmas - 1, params), #log.sigmas, "evals")
  end)
end

t.test("dpmpp_sde draws between the sigmas that k-diffusion names", function()
  local log = record("dpmpp_sde", k_denoise, tensor("k.x_init"), golden["k.sigmas"].values, {}, "ve")
  t.eq(#log.draws, 18)
  t.near(log.draws[1][1], 14.60000228881836, 1e-4)
  t.near(log.draws[1][2], 11.530804634094238, 1e-4)
  t.near(log.draws[18][2], 0.03, 1e-6)
end)

for _, case in ipairs { { "k.dpm_fast", {}, 10 }, { "k.dpm_fast_eta0.7", { eta = 0.7 }, 11 } } do
  local name, params, calls = unpack(case)
  covered[name] = true
  t.test(name, function()
    local sigmas = melies.schedule.karras(calls, { sigma_min = 0.03, sigma_max = 14.6, space = "ve" })
    sigmas[calls + 1] = nil
    local log = record("dpm_fast", k_denoise, tensor("k.x_init"), sigmas, params, "ve")
    same_list(log.sigmas, name .. ".model_sigmas", 1e-5)
    same_rows(log.denoised, name .. ".denoised", 1e-4)
    same_rows(log.x, name .. ".trajectory", 1e-4)
  end)
end
for _, case in ipairs { { "k.dpm_adaptive", {}, 24 }, { "k.dpm_adaptive_order2", { order = 2, rtol = 0.02 }, 28 } } do
  local name, params, calls = unpack(case)
  covered[name] = true
  t.test(name, function()
    local log = record("dpm_adaptive", k_denoise, tensor("k.x_init"), { 14.6, 0.03 }, params, "ve")
    t.close(log.x[#log.x], tensor(name .. ".final"), 1e-4, 1e-4, name)
    t.eq(#log.sigmas, calls, "model calls")
    local want = golden[name .. ".t_h_error_accept_reject"]
    t.eq(#log.info, want.shape[1], "attempts")
    local accepted = 0
    for i, info in ipairs(log.info) do
      accepted = accepted + (info.accepted and 1 or 0)
      local at = (i - 1) * 5
      for k, got in ipairs { -math.log(info.reached), info.h, info.error } do
        local value = want.values[at + k]
        t.near(got, value, 1e-4 + 3e-4 * math.abs(value), ("t, h, error [%d] of attempt %d"):format(k, i))
      end
      t.eq(accepted, want.values[at + 4], "accepted " .. i)
    end
  end)
end

covered["k.lcm"] = true
t.test("k.lcm", function()
  local log = record("lcm", k_denoise, tensor("k.x_init"), golden["k.lcm.sigmas"].values, {}, "ve")
  same_rows(log.x, "k.lcm.trajectory", 1e-4)
end)

-- ---- flow ---------------------------------------------------------------------------------------

local json = read(root .. ".json")
local names = {}
for name in json:match('"cases": (%b[])'):gmatch('"name": "([^"]+)"') do names[#names + 1] = name end

for _, name in ipairs(names) do
  local solver, order = name:match("^flow%.unipc_(bh%d)_o(%d)")
  if solver then
    covered[name] = true
    t.test(name, function()
      local sigmas = golden[name .. ".sigmas"].values
      local log = record("uni_pc", flow_denoise, tensor("initial_noise"), sigmas,
        { order = tonumber(order), solver = solver }, "flow")
      local rows = golden[name .. ".trajectory"].shape[1]
      -- The model sees x before the correction, the fixture has what each step returned: the same.
      while #log.x > rows do log.x[#log.x] = nil end
      same_rows(log.x, name .. ".trajectory", 1e-4)
    end)
  end
  local algorithm, how, degree = name:match("^flow%.dpm_(.-)_(%a+)_o(%d)")
  if algorithm then
    covered[name] = true
    t.test(name, function()
      local log = record("flow_dpmpp", flow_denoise, tensor("initial_noise"), golden[name .. ".sigmas"].values,
        { order = tonumber(degree), solver = how, algorithm = algorithm }, "flow")
      same_rows(log.x, name .. ".trajectory", 1e-4)
    end)
  end
  if name:find("^flow%.flowmatch_euler") then
    covered[name] = true
    t.test(name, function()
      local log = record("euler", flow_denoise, tensor("initial_noise"), golden[name .. ".sigmas"].values, {}, "flow")
      same_rows(log.x, name .. ".trajectory", 1e-4)
    end)
  end
end

covered["flow.fewstep_x0_renoise.shift5"] = true
t.test("flow.fewstep_x0_renoise.shift5", function()
  local name = "flow.fewstep_x0_renoise.shift5"
  local sigmas = melies.schedule.fewstep(4, { shift = 5 })
  for i = 1, 4 do t.near(sigmas[i] * 1000, golden[name .. ".timesteps"].values[i], 1e-3) end
  local log = record("lcm", flow_denoise, tensor("initial_noise"), sigmas, {}, "flow")
  same_rows(log.denoised, name .. ".x0_predictions", 1e-4)
  same_rows({ log.x[2], log.x[3], log.x[4] }, name .. ".renoised", 1e-4)
end)

-- ---- ddim ---------------------------------------------------------------------------------------

-- diffusers' DDIM works on x / sqrt(1 + sigma^2) with sigma^2 = (1 - a) / a; for "linspace" a step's end is not the
-- next step's start, so each step is a run of its own.
for _, name in ipairs(names) do
  local spacing, prediction, eta = name:match("^ddim%.(%a+)%.([%a_]+)%.eta([%d%.]-)%.n6$")
  if spacing then
    covered[name] = true
    t.test(name, function()
      local a = golden["ddim.alphas_cumprod"].values
      local times, x = golden[name .. ".timesteps"].values, tensor("initial_noise")
      for i, time in ipairs(times) do
        local before = time - math.floor(1000 / 6)
        local alpha, alpha_next = a[time + 1], before >= 0 and a[before + 1] or a[1]
        local function level(al) return math.sqrt((1 - al) / al) end
        local function denoise(xk)
          return map(xk, function(v)
            v = v * math.sqrt(alpha)
            local o = 0.8 * v / (1 + time / 1000) + 0.2 * tanh(v) * (time / 1000)
            if prediction == "epsilon" then return (v - math.sqrt(1 - alpha) * o) / math.sqrt(alpha) end
            if prediction == "v_prediction" then return math.sqrt(alpha) * v - math.sqrt(1 - alpha) * o end
            return o
          end)
        end
        if alpha ~= alpha_next then -- the last step of linspace stays where it is
          local xk = sampling.run("ddim", denoise, T.lincomb { 1 / math.sqrt(alpha), x },
            { level(alpha), level(alpha_next) },
            { params = { eta = tonumber(eta) }, space = "ve", noise = function() return row("noise", i) end })
          x = T.lincomb { math.sqrt(alpha_next), xk }
        end
        t.close(x, row(name .. ".trajectory", i + 1), 1e-4, 1e-4, name .. " step " .. i)
      end
    end)
  end
end

t.test("every case of the fixture is covered", function()
  t.ok(#names == 44, "44 cases")
  for _, name in ipairs(names) do t.ok(covered[name], name) end
end)

t.finish()
