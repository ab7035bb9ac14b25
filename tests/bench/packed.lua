-- What it costs to have a transformer's packed layers: packed from its file, and read from the cache.
--   build/melies run tests/bench/packed.lua FILE [s8|bf16|f32] [ROUNDS]
-- FILE: a Wan transformer, such as `melies fake-checkpoint wan2.1-t2v-1.3b DIR` makes. The first round packs and writes
-- the cache's entry, the others are in turns. Seconds, and those of all threads; the file should be in the page cache.
local melies = require "melies"

local path, compute, rounds = arg[1], arg[2] or "bf16", tonumber(arg[3] or 3)
assert(path, "usage: packed.lua FILE [s8|bf16|f32] [ROUNDS]")
melies.set_compute(compute)
local folder = os.tmpname()
os.remove(folder)
local on = melies.cache.at(folder, { limit = 2 ^ 40 })

local function round(cache)
  melies.cache.use(cache)
  local weights = assert(melies.checkpoint.open(path))
  local net = require("melies.models.wan_dit").load(weights, {}, { compute = compute, lazy = true })
  local model = { name = "bench", dit = net, patch = net.patch, text_len = 512, stride = { 4, 8, 8 },
    autoencoder = { name = "linear_blocks", stride = { 4, 8, 8 } }, frame_count = function(_, n) return 4 * n - 3 end,
    sources = { dit = { weights = weights, options = { compute = compute } }, autoencoder = {} } }
  local plan = assert(melies.budget.plan(model, { shape = { 16, 5, 32, 32 }, batch = 2 }))
  local before = melies.memory().live
  local wall, cpu = melies.seconds(), os.clock()
  melies.budget.apply(model, plan)
  wall, cpu = melies.seconds() - wall, os.clock() - cpu
  return wall, cpu, melies.memory().live - before, net:forward(melies.noise { 1, 16, 2, 16, 16 }, 500,
    net:context { melies.noise({ 8, 4096 }, { seed = 1 }) })
end

local function line(what, wall, cpu, bytes)
  print(("%-22s %7.2f s  %7.2f s of all threads  %6.0f MiB of memory"):format(what, wall, cpu, bytes / 2 ^ 20))
end
local wall, cpu, bytes, want = round(on)
line("packed and written", wall, cpu, bytes)
for _ = 1, rounds do
  wall, cpu, bytes = round(nil)
  line("packed", wall, cpu, bytes)
  local got
  wall, cpu, bytes, got = round(on)
  line("from the cache", wall, cpu, bytes)
  assert((got - want):abs():amax() == 0, "the cache gave other layers")
end
os.execute("rm -rf '" .. folder .. "'")
