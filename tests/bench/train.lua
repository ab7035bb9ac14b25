-- Training speed at the starter's size: a transformer of Wan's layout with 7.0 M parameters, 32 samples of 80 latent and 33
-- text tokens a step (rectified flow's forward and backward pass, clipping, AdamW, moving average), against the fastest
-- matrix product of this processor. Times are of the processor (all threads together), the best of several steps.
--   luajit tests/bench/train.lua [threads = 1] [f32 | bf16] [steps = 8]
-- with the environment that ctest sets (LUA_PATH, MELIES_LIB).
local melies = require "melies"
local grad, optim = melies.grad, melies.optim
local wan = require "melies.grad.wan_dit"
local T = melies.tensor

local threads, compute, steps = tonumber(arg[1] or 1), arg[2] or melies.compute(), tonumber(arg[3] or 8)
melies.threads(1)
melies.set_compute(compute)

local function best(n, fn)
  local cpu, wall = math.huge, math.huge
  for _ = 1, n do
    local c, w = os.clock(), melies.seconds()
    fn()
    cpu, wall = math.min(cpu, os.clock() - c), math.min(wall, melies.seconds() - w)
  end
  return cpu, wall
end

-- The peak of one core: packed weights, the best of some shapes.
local peak = 0
for _, s in ipairs { { 2560, 256, 256 }, { 2560, 1024, 256 }, { 2048, 1024, 1024 } } do
  local m, n, k = unpack(s)
  local layer = melies.nn.linear(T.noise { n, k }, nil, { compute = compute })
  local x = T.noise({ m, k }):to(compute)
  peak = math.max(peak, 2 * m * n * k / best(12, function() layer(x) end) * 1e-9)
end
melies.threads(threads)

local dim, ffn, layers, batch, tokens, words, channels = 256, 1024, 6, 32, 80, 33, 16
local params = wan.init { dim = dim, heads = 4, ffn = ffn, layers = layers, channels = channels, text_dim = 256 }
local net = wan.net(params, { heads = 4, compute = compute })
local optimiser = optim.adamw(params, { lr = 1e-4, ema = 0.999 })
local latent, noise = T.noise({ batch, channels, 5, 8, 8 }, { seed = 1 }), T.noise({ batch, channels, 5, 8, 8 })
local text, times, count = T.noise({ batch, words, 256 }, { seed = 2 }), {}, 0
for i = 1, batch do times[i] = 30 * i end
for _, p in pairs(params) do count = count + p:numel() end

-- Floating-point operations of the matrix products: forward, twice that backward; attention's scores once more.
local attention = layers * 4 * batch * tokens * dim * (tokens + words)
local forward = 2 * batch * (tokens * (2 * channels * 4 * dim + layers * (6 * dim * dim + 2 * dim * ffn)) +
  words * (2 * dim * dim + layers * 2 * dim * dim))
local flop = 3 * forward + 3.5 * attention

local function step()
  local loss = grad.mse(net:forward(latent, times, text), noise)
  grad.backward(loss)
  assert(optimiser:step { clip = 1 })
end
step()
step()
local cpu, wall = best(steps, step)
print(("%.1f M parameters, %s, %d threads: %.3f s of processor a step, %.3f s on the clock"):format(count * 1e-6, compute,
  threads, cpu, wall))
print(("%.1f samples a second of processor, %.1f on the clock"):format(batch / cpu, batch / wall))
print(("%.1f GFLOP a step: %.0f GFLOP/s a core, %.0f%% of the peak of %.0f"):format(flop * 1e-9, flop / cpu * 1e-9,
  100 * flop / cpu * 1e-9 / peak, peak))
