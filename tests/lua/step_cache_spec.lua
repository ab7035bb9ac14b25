-- Step caches: when they leave work out, what they add instead, and a run with them.
local t = require "harness"
local melies = require "melies"
local T, step_cache = melies.tensor, melies.step_cache

-- Feeds a cache the firsts of a run with falling sigmas; the rest of step i is a tensor of i. Returns which steps were
-- left out and what was added then.
local function drive(cache, firsts, sigma_of)
  local out = {}
  for i, value in ipairs(firsts) do
    local seen = { first = T.full({ 1, 2, 3 }, value), time = T.full({ 1, 1, 6, 3 }, value),
      sigma = sigma_of and sigma_of(i) or 1 - (i - 1) / #firsts }
    local rest = cache:reuse(seen)
    if rest then out[#out + 1] = i .. "=" .. ("%.3g"):format(rest:get(1))
    else cache:keep(seen, T.full({ 1, 2, 3 }, i)) end
  end
  return table.concat(out, " ")
end

t.test("first_block leaves out small changes, after the warm-up, not too many in a row", function()
  local function cache(p) return step_cache.make("first_block", p) end
  t.eq(drive(cache { threshold = 0.1, warmup = 1, tail = 0 }, { 1, 1.05, 1.09, 1.2, 1.21 }), "2=1 3=1 5=4")
  t.eq(drive(cache { threshold = 0.1, warmup = 3, tail = 0 }, { 1, 1, 1, 1, 1 }), "4=3 5=3")
  t.eq(drive(cache { threshold = 0.1, warmup = 1, most = 2, tail = 0 }, { 1, 1, 1, 1, 1, 1, 1 }), "2=1 3=1 5=4 6=4")
  t.eq(drive(cache { threshold = 0.1, warmup = 1, tail = 0.5 }, { 1, 1, 1, 1 }), "2=1 3=1")
  t.eq(drive(cache { threshold = 0, warmup = 0 }, { 1, 1, 1 }), "")
end)

t.test("time_embedding adds changes up", function()
  t.eq(drive(step_cache.make("time_embedding", { threshold = 0.25, warmup = 0, tail = 0 }), { 1, 1.1, 1.21, 1.331, 1.4641 }),
    "2=1 3=1 5=4")
end)

t.test("taylor continues what it saw", function()
  local linear = step_cache.make("taylor", { every = 2, order = 1, warmup = 3, tail = 0 })
  -- rests grow by one a step on an even grid of sigmas: a line continues them exactly
  t.eq(drive(linear, { 1, 1, 1, 1, 1, 1 }), "4=4 6=6")
  local constant = step_cache.make("taylor", { every = 2, order = 0, warmup = 3, tail = 0 })
  t.eq(drive(constant, { 1, 1, 1, 1, 1, 1 }), "4=3 6=5")
end)

t.test("a sigma that rises begins a new run; other shapes are other series", function()
  local cache = step_cache.make("first_block", { threshold = 1, warmup = 1, tail = 0 })
  local sigmas = { 0.9, 0.8, 0.9, 0.8 }
  t.eq(drive(cache, { 1, 1, 1, 1 }, function(i) return sigmas[i] end), "2=1 4=3")
  t.eq(cache:reuse { first = T.full({ 2, 2, 3 }, 1), sigma = 0.7 }, nil)
end)

t.test("a batch that changes its shape in mid-run warms up no second time", function()
  local cache = step_cache.make("first_block", { threshold = 1, warmup = 3, tail = 0 })
  t.eq(drive(cache, { 1, 1, 1, 1 }, function(i) return 1 - 0.1 * i end), "4=3")
  local function single(sigma, rest) -- as guidance that ends
    local seen = { first = T.full({ 1, 1, 3 }, 1), time = T.full({ 1, 1, 6, 3 }, 1), sigma = sigma }
    local kept = cache:reuse(seen)
    if not kept then cache:keep(seen, T.full({ 1, 1, 3 }, rest)) end
    return kept and kept:get(1)
  end
  t.eq(single(0.5, 7), nil) -- nothing is kept for this shape yet
  t.eq(single(0.4, 8), 7)
  t.eq(drive(cache, { 1, 1, 1, 1 }, function(i) return 1 - 0.1 * i end), "4=3") -- a new run does
  t.eq(single(0.9, 9), nil)
end)

t.test("parameters are checked", function()
  t.raises(function() step_cache.make("first_blok") end, "did you mean 'first_block'")
  t.raises(function() step_cache.make("taylor", { evry = 2 }) end, "evry")
end)

t.test("a film with a cache: fewer blocks run, the film stays close", function()
  local function run(more)
    local p = { prompt = "a big red ball rolls over the grass", steps = 12, seed = 3 }
    for key, value in pairs(more or {}) do p[key] = value end
    return assert(melies.run("text_to_video", p))
  end
  local plain = run()
  local same = run { step_cache = "first_block", ["step_cache.threshold"] = 0 }
  t.close(same, plain, 0, 0, "a threshold of 0 changes nothing")
  local cached = run { step_cache = "taylor", ["step_cache.every"] = 2 }
  local mse = (cached - plain):square():mean()
  t.ok(mse > 0 and mse < 0.02, "mean square error " .. mse)
end)

t.test("8 bits: close to bf16", function()
  local p = { prompt = "a big red ball rolls over the grass", steps = 8, seed = 3 }
  local plain = assert(melies.run("text_to_video", p))
  melies.set_compute "s8"
  t.eq(melies.compute(), "s8")
  local eight = assert(melies.run("text_to_video", p))
  melies.set_compute "bf16"
  local mse = (eight - plain):square():mean()
  t.ok(mse > 0 and mse < 2e-3, "mean square error " .. mse)
end)

t.finish()
