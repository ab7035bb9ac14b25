-- A whole job gives the same bits for any number of threads, in every compute dtype.
local t = require "harness"
local melies = require "melies"

local function film(threads, compute)
  melies.threads(threads)
  melies.set_compute(compute)
  melies.pipeline.forget()
  return assert(melies.run("text_to_video", { prompt = "a large yellow cube bounces in the desert", steps = 4, seed = 5 }))
end

for _, compute in ipairs { "bf16", "f32", "s8" } do
  t.test("one, two and three threads: " .. compute, function()
    local one = film(1, compute)
    for _, threads in ipairs { 2, 3 } do t.close(film(threads, compute), one, 0, 0, threads .. " threads") end
  end)
end

t.test("a larger size, where every operation is shared out", function()
  local function run(threads)
    melies.threads(threads)
    melies.set_compute "bf16"
    melies.pipeline.forget()
    return assert(melies.run("text_to_video", { prompt = "a red ball", steps = 1, width = 256, height = 256, frames = 17 }))
  end
  local one = run(1)
  t.close(run(2), one, 0, 0)
  t.close(run(3), one, 0, 0)
end)
melies.threads(0)
t.finish()
