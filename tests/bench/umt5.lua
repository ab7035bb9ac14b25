-- A prompt through the whole of UMT5-XXL: all 24 layers, 11.4 GB of bf16 weights read once where they lie, in a file that
-- is in the page cache.
--   melies fake-checkpoint umt5-xxl DIR
--   build/melies run tests/bench/umt5.lua DIR/umt5-xxl.safetensors [ROUNDS [TOKENS]]        5 rounds of 30 tokens
-- Prints the seconds of loading, of each round (the first one also maps the file's pages), their median, and what they
-- come to in GB a second.
local melies = require "melies"

local path, rounds, tokens = arg[1], tonumber(arg[2] or 5), tonumber(arg[3] or 30)
assert(path, "usage: umt5.lua FILE [ROUNDS [TOKENS]]")
local start = melies.seconds()
local net = melies["models.t5"].load(assert(melies.checkpoint.open(path)), { heads = 64 }, { compute = "bf16", lazy = true })
print(("loading: %.2f s"):format(melies.seconds() - start))

local ids = {}
for i = 1, tokens do ids[i] = 1 + i * 7919 % 250000 end
local bytes = 24 * 2 * (4 * 4096 * 4096 + 3 * 4096 * 10240) -- the layers; of the table of words only some rows
local times = {}
for i = 1, rounds do
  start = melies.seconds()
  net:encode(ids)
  times[i] = melies.seconds() - start
  print(("round %d: %.2f s, %.1f GB/s"):format(i, times[i], bytes / times[i] / 1e9))
end
table.sort(times)
local middle = times[math.ceil(rounds / 2)]
print(("median: %.2f s, %.1f GB/s"):format(middle, bytes / middle / 1e9))
