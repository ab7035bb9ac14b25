-- Samplers by property, on a target where everything is known: x0 ~ N(mu, c^2) in every element. Then the best estimate
-- is linear in x, the probability-flow ODE has a closed form, and a stochastic sampler must end with mean mu and
-- deviation c.
local t = require "harness"
local melies = require "melies"
local T, sampling, schedule = melies.tensor, melies.sampling, melies.schedule

local MU, C = 0.7, 0.6

local function alpha(space, s) return sampling.alpha(space, s) end
-- Deviation of x at sigma.
local function spread(space, s) return math.sqrt((alpha(space, s) * C) ^ 2 + s * s) end

-- E[x0 | x] = mu + gain (x - alpha mu), gain = alpha c^2 / spread^2.
local function denoiser(space, ones)
  return function(x, s)
    local gain = alpha(space, s) * C * C / spread(space, s) ^ 2
    return T.lincomb { gain, x, MU * (1 - gain * alpha(space, s)), ones }
  end
end

-- ---- orders -------------------------------------------------------------------------------------

local START = { -1.7, -0.4, 0.3, 0.9, 2.1 } -- in deviations of x

-- Sigmas from high to low in n smooth steps, not down to 0 (where every sampler takes a first-order step).
local function grid(space, n)
  local list = schedule.linspace(0, 1, n + 1)
  for i, u in ipairs(list) do
    if space == "flow" then list[i] = 0.95 - 0.85 * u else list[i] = (8 ^ (1 / 3) + (0.4 ^ (1 / 3) - 8 ^ (1 / 3)) * u) ^ 3 end
  end
  return list
end

-- The worst error of any element after any step: along the way, because at a single place two errors may cancel.
local function error_of(name, params, space, n)
  local sigmas = grid(space, n)
  local ones, worst = T.full({ #START }, 1), 0
  local function exact(z, s) return alpha(space, s) * MU + spread(space, s) * z end
  local x = {}
  for i, z in ipairs(START) do x[i] = exact(z, sigmas[1]) end
  sampling.run(name, denoiser(space, ones), T.of(x), sigmas, { params = params, space = space,
    on_step = function(step, _, now)
      for i, v in ipairs(now:list()) do worst = math.max(worst, math.abs(v - exact(START[i], sigmas[step + 1]))) end
    end })
  return worst
end

-- Slope of log(error) against -log(n), by least squares.
local function order(name, params, space, steps)
  local sx, sy, sxx, sxy, k = 0, 0, 0, 0, 0
  for _, n in ipairs(steps) do
    local x, y = -math.log(n), math.log(error_of(name, params, space, n))
    sx, sy, sxx, sxy, k = sx + x, sy + y, sxx + x * x, sxy + x * y, k + 1
  end
  return (k * sxy - sx * sy) / (k * sxx - sx * sx)
end

local low_order, high_order = { 16, 32, 64, 128 }, { 24, 32, 48, 64, 96 }
-- name, parameters, steps, least and greatest order. Multistep methods start with a step of first order, which limits
-- what a higher order later can show.
for _, case in ipairs {
  { "euler", {}, low_order, 0.9, 1.1 },
  { "ddim", {}, low_order, 0.9, 1.1 },
  { "euler_ancestral", { eta = 0 }, low_order, 0.9, 1.1 },
  { "heun", {}, high_order, 1.85, 2.25 },
  { "dpm_2", {}, high_order, 1.85, 2.25 },
  { "dpm_2_ancestral", { eta = 0 }, high_order, 1.85, 2.25 },
  { "dpmpp_2s_ancestral", { eta = 0 }, high_order, 1.85, 2.25 },
  { "dpmpp_sde", { eta = 0 }, high_order, 1.85, 2.25 },
  { "dpmpp_2m", {}, high_order, 1.85, 2.25 },
  { "dpmpp_2m_sde", { eta = 0 }, high_order, 1.85, 2.25 },
  { "dpmpp_2m_sde", { eta = 0, solver = "heun" }, high_order, 1.85, 2.25 },
  { "dpmpp_3m_sde", { eta = 0 }, high_order, 1.9, 3.2 },
  { "lms", { order = 1 }, low_order, 0.9, 1.1 },
  { "lms", { order = 2 }, high_order, 1.85, 2.25 },
  { "lms", {}, high_order, 1.9, 3.2 },
  { "uni_pc", { order = 1 }, high_order, 1.85, 2.25 },
  { "uni_pc", {}, high_order, 1.75, 2.5 },
  { "uni_pc", { solver = "bh1" }, high_order, 1.75, 2.5 },
  { "uni_pc", { order = 3, lower_order_final = false }, high_order, 1.9, 3.2 },
  { "flow_dpmpp", { order = 1 }, low_order, 0.9, 1.1 },
  { "flow_dpmpp", { order = 2 }, high_order, 1.85, 2.25 },
  { "flow_dpmpp", { order = 3 }, high_order, 1.9, 3.2 },
} do
  local name, params, steps, least, most = unpack(case)
  for _, space in ipairs { "ve", "flow" } do
    local text = {}
    for key, value in pairs(params) do text[#text + 1] = key .. "=" .. tostring(value) end
    t.test(("order of %s{%s} on %s"):format(name, table.concat(text, ","), space), function()
      local got = order(name, params, space, steps)
      local far, near = error_of(name, params, space, steps[1]), error_of(name, params, space, steps[#steps])
      print(("     %.2f, errors %.2g to %.2g"):format(got, far, near))
      t.ok(got >= least and got <= most, ("order %.2f, wanted %.2f to %.2f"):format(got, least, most))
    end)
  end
end

t.test("with the same number of model calls a higher order is nearer", function()
  for _, space in ipairs { "ve", "flow" } do
    local euler = error_of("euler", {}, space, 24)
    t.ok(error_of("heun", {}, space, 12) < euler / 2, "heun " .. space)
    t.ok(error_of("dpmpp_2m", {}, space, 24) < euler / 3, "dpmpp_2m " .. space)
    t.ok(error_of("uni_pc", {}, space, 24) < euler / 3, "uni_pc " .. space)
  end
end)

-- ---- from noise to 0 ----------------------------------------------------------------------------

local N = 10000
local ones = T.full({ N }, 1)
local function begin(space, sigma)
  return T.lincomb { alpha(space, sigma) * MU, ones, spread(space, sigma), T.noise({ N }, { seed = 11 }) }
end
local ladders = {
  ve = schedule.karras(160, { space = "ve", sigma_min = 0.02, sigma_max = 20 }),
  flow = schedule.flow(160, { shift = 2 }),
}

-- The whole way, from pure noise (alpha = 0 on flow) to 0: mean and deviation of the result.
for _, entry in ipairs(melies.registry.list("sampler")) do
  local name = entry.name
  for _, space in ipairs { "ve", "flow" } do
    t.test(("%s on %s ends with the target's mean and deviation"):format(name, space), function()
      local sigmas = ladders[space]
      local params = name == "dpm_adaptive" and { rtol = 0.001 } or {}
      local x = sampling.run(name, denoiser(space, ones), begin(space, sigmas[1]), sigmas,
        { params = params, space = space, seed = 5 })
      local mean, square = 0, 0
      for _, v in ipairs(x:list()) do mean, square = mean + v / N, square + v * v / N end
      local deviation = math.sqrt(square - mean * mean)
      print(("     mean %.4f, deviation %.4f (%.1f, %.1f)"):format(mean, deviation, MU, C))
      t.near(mean, MU, 0.02, "mean")
      -- lcm estimates from fresh noise at each step and loses spread with each: it ends at its last estimate's.
      if name == "lcm" then t.ok(deviation < 1.1 * C, "deviation")
      -- dpm_adaptive takes the middle of a long way in one step that its error estimate lets pass.
      else t.near(deviation, C, (name == "dpm_adaptive" and 0.1 or 0.05) * C, "deviation") end
    end)
  end
end

for _, case in ipairs { { "euler", { s_churn = 10 } }, { "heun", { s_churn = 10 } }, { "ddim", { eta = 1 } },
  { "dpm_2", { s_churn = 10 } }, { "euler_ancestral", { eta = 0.5 } }, { "dpm_fast", { eta = 1 } },
  { "flow_dpmpp", { algorithm = "sde-dpmsolver++" } }, { "dpmpp_2m_sde", { solver = "heun" } } } do
  local name, params = unpack(case)
  for _, space in ipairs { "ve", "flow" } do
    t.test(("stochastic %s on %s ends with the target's mean and deviation"):format(name, space), function()
      local sigmas = ladders[space]
      local x = sampling.run(name, denoiser(space, ones), begin(space, sigmas[1]), sigmas,
        { params = params, space = space, seed = 5 })
      local mean, square = 0, 0
      for _, v in ipairs(x:list()) do mean, square = mean + v / N, square + v * v / N end
      print(("     mean %.4f, deviation %.4f"):format(mean, math.sqrt(square - mean * mean)))
      t.near(mean, MU, 0.02, "mean")
      t.near(math.sqrt(square - mean * mean), C, 0.05 * C, "deviation")
    end)
  end
end

-- ---- noise and runs -----------------------------------------------------------------------------

local function bits(x) return table.concat(x:list(), " ") end

t.test("a stochastic run is the same for any thread count, differs by seed and stream", function()
  local shape = { 16, 4, 30, 50 }
  local unit = T.full(shape, 1)
  local function run(opts)
    opts.space = "flow"
    return sampling.run("euler_ancestral", denoiser("flow", unit), T.noise(shape, { seed = 1 }), schedule.flow(6, {}), opts)
  end
  local before = melies.threads()
  melies.threads(1)
  local one = run { seed = 3 }
  melies.threads(3)
  t.ok(bits(run { seed = 3 }) == bits(one), "3 threads")
  melies.threads(before)
  t.ok(bits(run { seed = 4 }) ~= bits(one), "seed")
  t.ok(bits(run { seed = 3, stream = 1 }) ~= bits(one), "stream")
end)

t.test("a run taken up in the middle ends where the whole run ends", function()
  for _, name in ipairs { "euler_ancestral", "dpmpp_sde", "heun" } do
    local unit = T.full({ 8 }, 1)
    local sigmas = schedule.flow(10, { shift = 3 })
    local kept
    local opts = { seed = 9, space = "flow", on_step = function(i, _, x) if i == 4 then kept = x end end }
    local whole = sampling.run(name, denoiser("flow", unit), T.noise({ 8 }, { seed = 2 }), sigmas, opts)
    local rest = sampling.run(name, denoiser("flow", unit), kept, sigmas, { seed = 9, space = "flow", start_step = 5 })
    t.eq(bits(rest), bits(whole), name)
  end
end)

t.test("on_step tells step, steps, x, sigma, estimate and calls", function()
  local seen, unit = {}, T.full({ 4 }, 1)
  sampling.run("heun", denoiser("flow", unit), T.noise({ 4 }), { 1, 0.6, 0.2, 0 }, { on_step = function(i, n, x, info)
    seen[#seen + 1] = ("%d/%d %d/%d %.1f"):format(i, n, info.evals, info.evals_total, info.sigma)
    t.ok(T.is(x) and T.is(info.denoised) and info.seconds >= 0)
  end })
  t.eq(table.concat(seen, ", "), "1/3 2/5 1.0, 2/3 4/5 0.6, 3/3 5/5 0.2")
end)

t.test("cancel ends a run after the step", function()
  local lib = require "melies.ffi.lib"
  local unit, steps = T.full({ 4 }, 1), 0
  local ok, message = pcall(sampling.run, "euler", denoiser("flow", unit), T.noise({ 4 }), schedule.flow(10, {}),
    { on_step = function(i) steps = i if i == 3 then lib.C.mel_cancel() end end })
  lib.C.mel_cancel_clear()
  t.eq(ok, false)
  t.eq(message, lib.canceled)
  t.eq(steps, 3)
end)

t.test("misuse is named", function()
  local denoise = denoiser("flow", T.full({ 2 }, 1))
  local x = T.noise({ 2 })
  local function try(name, sigmas, opts) return function() sampling.run(name, denoise, x, sigmas, opts) end end
  t.raises(try("eular", { 1, 0 }), "did you mean 'euler'")
  t.raises(try("euler_ancestral", { 1, 0 }, { params = { etta = 1 } }), "did you mean 'eta'")
  t.raises(try("euler_ancestral", { 1, 0 }, { params = { eta = 7 } }), "eta is 7, must be 0 to 1")
  t.raises(try("euler", { 1, 0 }, { sed = 1 }), "did you mean 'seed'")
  t.raises(try("euler", { 1 }), "at least two")
  t.raises(try("euler", { 1, 1, 0 }), "does not descend")
  t.raises(try("euler", { 14, 0 }), "flow has 0 to 1")
  t.raises(try("euler", { 1, 0 }, { space = "vp" }), "must be flow or ve")
  t.raises(try("euler", { 1, 0 }, { start_step = 2 }), "must be 1 to 1")
  t.raises(try({ kind = "sampler", name = "none", run = function() end }, { 1, 0 }), "must return x")
  local message = t.raises(try("euler", { 0 }), "sigmas")
  t.ok(message:find("convergence_spec.lua", 1, true), "at the caller's line: " .. message)
end)

t.finish()
