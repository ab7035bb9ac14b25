-- Films whose first steps are made at a smaller size.
local t = require "harness"
local melies = require "melies"
local c2f = require "melies.coarse_to_fine"
local T = melies.tensor

local model = assert(melies.pipeline.load "starter")
local full = assert(model:latent_shape {})

t.test("sigmas: the coarse run ends with 0, the fine one begins where the schedule goes on", function()
  local sigmas = { 1, 0.9, 0.7, 0.4, 0 }
  local function said(...)
    local coarse, fine, steps = c2f.split(sigmas, ...)
    return table.concat(coarse, " ") .. " | " .. table.concat(fine, " ") .. " | " .. steps
  end
  t.eq(said(0.5), "1 0.9 0 | 0.7 0.4 0 | 2")
  t.eq(said(1), "1 0.9 0.7 0 | 0.4 0 | 3", "at least one step at full size")
  t.eq(said(0), "0 | 1 0.9 0.7 0.4 0 | 0")
  t.eq(said(0.5, 0.8), "1 0.9 0 | 0.8 0.7 0.4 0 | 2", "noised again to more")
  t.eq(said(0.5, 0.5), "1 0.9 0 | 0.5 0.4 0 | 2", "or to less")
end)

t.test("shapes fit the model's patches; a smaller one is always smaller", function()
  local fake = { patch = { 1, 2, 2 } }
  t.eq(table.concat(c2f.shape(fake, { 16, 5, 32, 32 }, 0.5), " "), "16 5 16 16")
  t.eq(table.concat(c2f.shape(fake, { 16, 5, 60, 104 }, 0.4), " "), "16 5 24 42")
  t.eq(c2f.shape(fake, { 16, 5, 2, 2 }, 0.5), nil)
  t.eq(table.concat(c2f.shape(fake, { 16, 5, 2, 8 }, 0.5), " "), "16 5 2 4")
  local up = c2f.enlarge(T.full({ 4, 2, 3, 5 }, 2), { 4, 2, 6, 9 })
  t.eq(up:shape_text(), "[4, 2, 6, 9]")
  t.near(up:amin(), 2, 1e-6)
end)

-- The recipe with a model that counts the tokens of each call, and fails after `limit` calls.
local function run(values, limit, path)
  local recipe = assert(melies.recipe.find "coarse_to_fine")
  local seen, plugin = {}, {}
  for k, v in pairs(recipe) do plugin[k] = v end
  plugin.run = function(p, job)
    local loaded = job:load(path)
    job.model = setmetatable({ predict = function(_, x, sigma, texts, options)
      if #seen == limit then melies.recipe.fail "the power went" end
      seen[#seen + 1] = x.shape[3] * x.shape[4]
      seen.changed = seen.changed or seen.text and seen.text ~= texts[1] and #seen
      seen.text = texts[1]
      return loaded:predict(x, sigma, texts, options)
    end }, { __index = loaded })
    job.load = function() return job.model end
    return recipe.run(p, job)
  end
  local all = { prompt = "a big red ball rolls to the right over the grass", steps = 6, frames = 5, seed = 2 }
  for k, v in pairs(values or {}) do all[k] = v end
  local frames, message = melies.recipe.run(plugin, assert(melies.recipe.check(plugin, all)), { progress = false,
    notice = function() end })
  return frames, seen, message
end

t.test("the first steps see fewer tokens; the film has the full size, the same from the same seed", function()
  local frames, seen = run { coarse = 0.5 }
  t.eq(#seen, 6)
  for i = 1, 3 do t.ok(seen[i] < full[3] * full[4], "coarse") end
  for i = 4, 6 do t.eq(seen[i], full[3] * full[4], "fine") end
  t.eq(frames:shape_text(), ("[5, %d, %d, 3]"):format(model.defaults.height, model.defaults.width))
  t.eq(frames:nonfinite(), 0)
  t.close(run { coarse = 0.5 }, frames, 0, 0)
  t.ok((run { coarse = 0.5, seed = 3 } - frames):abs():mean() > 1e-3, "another seed")
  t.ok((run { coarse = 0.2 } - frames):abs():mean() > 1e-4, "another share")
  t.ok((run { coarse = 0.5, renoise = 0.9 } - frames):abs():mean() > 1e-4, "more noise at the change")
  local plain = assert(melies.run("text_to_video", { prompt = "a big red ball rolls to the right over the grass", steps = 6,
    frames = 5, seed = 2 }))
  t.close(run { coarse = 0 }, plain, 0, 0, "without coarse steps it is text_to_video")
end)

t.test("any sampler, guide, cache and prompt that changes over the steps", function()
  for _, values in ipairs {
    { sampler = "dpmpp_2m", guide = "apg", guidance = 4 }, { sampler = "uni_pc", guide = "cfg_zero_star", guidance = 3 },
    { sampler = "euler_ancestral", step_cache = "taylor" }, { sampler = "heun", prompt = "a [red ball:blue cube:0.8]" },
  } do
    local frames, _, message = run(values)
    t.ok(frames, message)
    t.eq(frames:nonfinite(), 0)
  end
  local _, seen = run { coarse = 0.5, prompt = "a [red ball:blue cube:4]" }
  t.eq(seen.changed, 5, "a place in the run is one of the whole run")
  local guide = melies.guide.make("cfg_zero_star", { predict = function(_, x) return { x, x * 2 } end, to_x0 =
    function(_, x, s, p) return T.lincomb { 1, x, -s, p } end, encode = function() return "rows" end },
    { text = T.zeros { 1, 1 }, negative = T.zeros { 1, 1 }, scale = 2, after = 3 })
  local x = T.full({ 1, 1, 2, 2 }, 1)
  t.ok((guide(x, 0.5) - x):norm() > 0.1, "the first noise levels, where it gives nothing, are behind")
end)

t.test("a broken run goes on to the same bits, from either part", function()
  local before = melies.durable.interval
  melies.durable.interval = 0
  local values = { coarse = 0.5, guide = "cfg_zero_star", sampler = "dpmpp_3m_sde" }
  local whole = run(values)
  for _, calls in ipairs { 2, 3, 5 } do
    values.job = t.folder() .. "/job"
    local _, _, message = run(values, calls)
    t.eq(message, "the power went")
    local frames, seen = run(values)
    t.eq(#seen, 6 - calls)
    t.close(frames, whole, 0, 0)
  end
  melies.durable.interval = before
end)

t.test("a Wan checkpoint; a size that has no smaller one", function()
  local folder = t.folder()
  for _, name in ipairs { "wan2.1-t2v-1.3b-tiny", "umt5-xxl-tiny", "wan2.1-vae-tiny" } do
    assert(melies.fake.make(name, folder))
  end
  local frames, seen = run({ width = 96, height = 64, steps = 2, scale = 0.6 }, nil, folder)
  t.eq(frames:shape_text(), "[5, 64, 96, 3]")
  t.eq(table.concat(seen, " "), "32 96")
  local _, all = run({ width = 16, height = 16, steps = 2 }, nil, folder)
  t.eq(table.concat(all, " "), "4 4")
end)

t.finish()
