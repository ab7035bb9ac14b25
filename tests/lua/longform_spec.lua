-- Films longer than the model's window: chunks that go on from each other in flat memory, windows, noise, the anchor.
local t = require "harness"
local melies = require "melies"
local longform = require "melies.longform"
local T = melies.tensor

local folder = t.folder()
local model = assert(melies.pipeline.load "starter")
local prompt = "a big red ball rolls to the right over the grass, cartoon style"

t.test("windows: what covers what, and how it is weighed", function()
  t.eq(table.concat(longform.starts(12, 5, 2), " "), "1 4 7 8")
  t.eq(table.concat(longform.starts(5, 5, 2), " "), "1")
  t.eq(table.concat(longform.weights(5, 2, "pyramid"), " "), "1 2 3 2 1")
  t.eq(table.concat(longform.weights(4, 2, "flat"), " "), "1 1 1 1")
  local w = longform.weights(5, 2, "overlap-linear", true, false)
  t.eq(w[1], 1) t.near(w[4], 2 / 3, 1e-12) t.near(w[5], 1 / 3, 1e-12)
  t.raises(function() longform.weights(4, 1, "pyramyd") end, "did you mean 'pyramid'")
end)

t.test("windows: the fused estimate of a denoiser without a view of time is the denoiser's own", function()
  local x = melies.noise({ 2, 11, 4, 4 }, { seed = 1 })
  local function make() return function(part, sigma) return part * sigma + 1 end end
  for _, fuse in ipairs(longform.fuses) do
    local denoise = longform.windows(make, { length = 5, overlap = 2, fuse = fuse })
    t.close(denoise(x, 0.3), x * 0.3 + 1, 1e-5, 0, fuse)
  end
end)

t.test("FreeNoise: the first window is plain noise, later ones the same frames in another order", function()
  local shape = { 3, 5, 2, 2 }
  t.close(longform.free_noise(shape, 1, { seed = 4 }), T.noise(shape, { seed = 4 }), 0, 0)
  local long = longform.free_noise(shape, 1, { seed = 4, count = 23 })
  t.close(longform.free_noise(shape, 7, { seed = 4 }), long:slice(2, 7, 11), 0, 0, "any place alone")
  local base = T.noise(shape, { seed = 4 })
  local function sums(x) -- of each frame, sorted
    local list = x:permute(2, 1, 3, 4):contiguous():reshape(x.shape[2], -1):sum(2):list()
    table.sort(list)
    return list
  end
  local a, b = sums(base), sums(long:slice(2, 11, 15))
  for i = 1, 5 do t.near(b[i], a[i], 1e-4) end
end)

t.test("a take of chunks: its length, its first chunk, the same from the same seed, colours that stay", function()
  local given = { prompt = prompt, seconds = 8, steps = 8, seed = 2 }
  local take = assert(melies.run("long_take", given))
  t.eq(take.shape[1], 8 * model.defaults.fps)
  t.close(assert(melies.run("long_take", given)), take, 0, 0)
  local one = assert(melies.run("text_to_video", { prompt = prompt, steps = 8, seed = 2 }))
  t.close(take:slice(1, 1, 17), one, 0, 0, "the first chunk is the model's own film")
  -- The seam is no larger a step than others are.
  local function step(i) return (take:select(1, i + 1) - take:select(1, i)):abs():mean() end
  local most = 0
  for i = 1, 16 do most = math.max(most, step(i)) end
  t.ok(step(17) < 1.5 * most, "the seam")
  local a = melies.video.lab_stats(take:select(1, 9))
  local b = melies.video.lab_stats(take:select(1, take.shape[1]))
  for c = 1, 3 do t.near(b[c], a[c], 12, "Lab " .. c) end
end)

t.test("windows, overlaps that are released, more than one latent frame shared", function()
  for _, more in ipairs { { method = "windows", fuse = "overlap-linear" }, { overlap = 2 }, { release = 0.4 },
    { free_noise = false, anchor = 0 } } do
    local given = { prompt = prompt, frames = 33, steps = 4 }
    for k, v in pairs(more) do given[k] = v end
    local take = assert(melies.run("long_take", given))
    t.eq(take.shape[1], 33) t.eq(take:nonfinite(), 0)
  end
  local _, message = melies.run("long_take", { prompt = prompt, frames = 33, steps = 2, overlap = 9 })
  t.ok(message:find("cannot share 9", 1, true), message)
end)

t.test("extend: the frames that were there come first, the new ones go on", function()
  local path = folder .. "/short.webm"
  assert(melies.run("text_to_video", { prompt = prompt, steps = 4, output = path }))
  local before = assert(melies.media.load(path))
  local longer = assert(melies.run("extend", { video = path, prompt = prompt, seconds = 3, steps = 4 }))
  t.eq(longer.shape[1], 17 + 3 * model.defaults.fps)
  t.close(longer:slice(1, 1, 17), before:to("f32") / 255, 1e-6, 0, "untouched")
  local function step(i) return (longer:select(1, i + 1) - longer:select(1, i)):abs():mean() end
  local most = 0
  for i = 1, 32 do most = math.max(most, i ~= 17 and step(i) or 0) end
  t.ok(step(17) < 1.5 * most, ("goes on: %g after %g"):format(step(17), most))
end)

t.test("the memory of 64 chunks is that of 8", function()
  local peaks = {}
  -- Collected at every step, so that the peak is what is held and not what waits for the collector.
  local tidy = { step = function() collectgarbage() collectgarbage() end, finish = function() end }
  for _, chunks in ipairs { 8, 64 } do
    collectgarbage()
    collectgarbage()
    melies.pipeline.forget()
    require("melies.ffi.lib").C.mel_mem_reset_peak()
    local recipe = melies.recipe
    local plugin = assert(recipe.find "long_take")
    local values = assert(recipe.check(plugin, { prompt = prompt, frames = chunks * 16, steps = 2 }))
    assert(recipe.run(plugin, values, { output = folder .. "/long.webp", keep = false,
      progress = function() return tidy end }))
    peaks[#peaks + 1] = melies.memory().peak
  end
  print(("    peak %.1f MB of 8 chunks, %.1f MB of 64"):format(peaks[1] / 1e6, peaks[2] / 1e6))
  t.ok(peaks[2] <= 1.1 * peaks[1], "flat")
end)

t.finish()
