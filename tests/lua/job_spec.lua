-- Jobs: seeds, defaults, notices, metadata, holding frames, memory.
local t = require "harness"
local melies = require "melies"
local recipe = melies.recipe
local T = melies.tensor

local function in_job(given, run, opts)
  local plugin = { kind = "recipe", name = "probe", params = recipe.generation { prompt = { "text", default = "a ball" } },
    run = run }
  local values = assert(recipe.check(plugin, given))
  local result, message = recipe.run(plugin, values, opts)
  return t.ok(result, message)
end

t.test("defaults come from the model, seconds and size become frames, width and height", function()
  in_job({ seconds = 2, size = "96x64", steps = 3 }, function(_, job)
    local model = job:load()
    local p = job:defaults(model)
    t.eq(p.steps, 3) t.eq(p.sampler, model.defaults.sampler) t.eq(p.fps, model.defaults.fps)
    t.eq(p.frames, math.floor(2 * p.fps + 0.5)) t.eq(p.width, 96) t.eq(p.height, 64) t.eq(p.size, nil)
    return true
  end)
end)

t.test("a length off the grid is rounded with a notice", function()
  local said = {}
  in_job({ frames = 16 }, function(_, job)
    local model = job:load()
    job:defaults(model)
    job:shape(model)
    t.eq(job.params.frames, model:frame_count(model:latent_shape({ frames = 16 })[2]))
    return true
  end, { notice = function(text) said[#said + 1] = text end })
  t.eq(#said, 1) t.ok(said[1]:find("16 frames are rounded to 17", 1, true), said[1])
end)

t.test("the seed alone decides the noise; streams differ", function()
  local a = in_job({ seed = 5 }, function(_, job) return job:noise({ 4, 8 }) end)
  local b = in_job({ seed = 5 }, function(_, job) return job:noise({ 4, 8 }) end)
  local c = in_job({ seed = 6 }, function(_, job) return job:noise({ 4, 8 }) end)
  local d = in_job({ seed = 5 }, function(_, job) return job:noise({ 4, 8 }, 1) end)
  t.close(a, b, 0, 0, "same seed")
  t.ok((a - c):abs():amax() > 0.1 and (a - d):abs():amax() > 0.1)
end)

t.test("metadata says how it was made", function()
  local meta = in_job({ seed = 12, steps = 2, sampler = "euler" }, function(_, job)
    job:defaults(job:load())
    return job:metadata()
  end)
  t.eq(meta.melies_recipe, "probe") t.eq(meta.melies_seed, "12") t.eq(meta.melies_model, "starter")
  local params = melies.json.decode(meta.melies_params)
  t.eq(params.steps, 2) t.eq(params.sampler, "euler") t.eq(params.prompt, "a ball") t.eq(params.output, nil)
  t.ok(meta.melies_version:find("^%d+%.%d+"))
end)

t.test("sampler parameters: checked against the sampler's own declaration", function()
  local plugin = { kind = "recipe", name = "probe", params = recipe.generation { prompt = { "text", default = "" } },
    run = function(_, job) return job:plugin_params("sampler") end }
  local got = recipe.run(plugin, assert(recipe.parse(plugin, { "--sampler", "euler_ancestral", "--sampler.eta", "0.5" })))
  t.eq(got.eta, 0.5)
  local none, message, code = recipe.parse(plugin, { "--sampler", "euler_ancestral", "--sampler.etta", "0.5" })
  t.eq(none, nil) t.eq(code, 2) t.ok(message:find("sampler.eta", 1, true), message)
  none, message = recipe.parse(plugin, { "--sampler", "eulr" })
  t.eq(none, nil) t.ok(message:find("euler", 1, true), message)
end)

t.test("held frames stay on the path, and come out as they went in", function()
  local space = { add_noise = function(_, z, n, s) return T.lincomb { 1 - s, z, s, n } end }
  local z, n = T.noise({ 3, 1, 4, 4 }, { seed = 1 }), T.noise({ 3, 4, 4, 4 }, { seed = 2 })
  local sigmas = melies.schedule.flow(6, { shift = 3 })
  -- A model that knows nothing: x0 is 0.
  local seen = {}
  local denoise = melies.consistency.hold_first(function(x, sigma)
    seen[#seen + 1] = (x:slice(2, 1, 1) - space:add_noise(z, n:slice(2, 1, 1), sigma)):abs():amax()
    return x * 0
  end, space, z, n)
  for _, sampler in ipairs { "euler", "heun", "dpmpp_2m", "euler_ancestral" } do
    local out = melies.sampling.run(sampler, denoise, n, sigmas, { space = "flow", seed = 1 })
    t.close(out:slice(2, 1, 1):contiguous(), z, 1e-4, 0, sampler)
    t.eq(table.concat(out.shape, " "), "3 4 4 4")
  end
  for _, off in ipairs(seen) do t.ok(off < 1e-6, "the held frame was off its path by " .. off) end
end)

t.test("jobs leave nothing behind", function()
  local C = require("melies.ffi.lib").C
  local function work(p, job)
    local x = job:noise({ 64, 1024 })
    for _ = 1, 20 do x = x * 1.01 end
    if p.prompt == "fail" then job:check(nil, "no") end
    return true
  end
  in_job({}, work)
  local before = tonumber(C.mel_mem_live())
  in_job({}, work)
  local plugin = { kind = "recipe", name = "probe", params = recipe.generation {}, run = work }
  recipe.run(plugin, assert(recipe.check(plugin, { prompt = "fail" })))
  t.eq(tonumber(C.mel_mem_live()), before, "live bytes")
end)

t.finish()
