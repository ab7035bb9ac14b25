-- What bf16 and 8 bits cost at full size, all thirty blocks of Wan 1.3B with random weights, against float32: the relative
-- error of the velocity at each step from the point where the float32 path stands, that of the latent at the end of each
-- way's own path, and the PSNR of its frames, decoded by the Wan VAE with random weights.
--   build/melies run tests/bench/full_size_error.lua [STEPS [LATENT ROWS [BLOCKS]]]        4, 32 (256x256, 17 frames), 30
-- Takes 9 GB of memory and a few minutes.
local melies = require "melies"
local fake = require "melies.fake"
local T = melies.tensor

local steps, rows, blocks = tonumber(arg[1] or 4), tonumber(arg[2] or 32), tonumber(arg[3] or 30)
local shape = { 16, 5, rows, rows }
local sigmas = melies.schedule.flow(steps, { shift = 3 })
local text, noise = T.noise({ 30, 4096 }, { seed = 3 }), T.noise(shape, { seed = 7 })

local weights, config = fake.weights("wan2.1-t2v-1.3b", { layers = blocks })
local function load(compute)
  local net = melies["models.wan_dit"].load(weights, { heads = config.heads }, { compute = compute })
  local context = net:context { text }
  return function(x, i) return net:forward(x:unsqueeze(1), sigmas[i] * 1000, context):select(1, 1) end
end
local function step(x, v, i) return T.lincomb { 1, x, sigmas[i + 1] - sigmas[i], v } end

local vae = melies["models.wan_vae"].load((fake.weights "wan2.1-vae"), {}, { compute = "bf16" })
local function apart(x, y) return (x - y):norm() / y:norm() end

print(("Wan 1.3B, %d blocks, %d tokens, %d steps: against float32"):format(blocks, shape[2] * rows * rows / 4, steps))
local path, want, x = {}, {}, noise
do
  local exact = load "f32"
  for i = 1, steps do
    path[i], want[i] = x, exact(x, i)
    x = step(x, want[i], i)
  end
end
local latent, frames = x, vae:decode(x)
for _, compute in ipairs { "bf16", "s8" } do
  collectgarbage()
  local net, errors = load(compute), {}
  x = noise
  for i = 1, steps do
    errors[i] = ("%.2f%%"):format(100 * apart(net(path[i], i), want[i]))
    x = step(x, net(x, i), i)
  end
  local mse = (vae:decode(x) - frames):square():mean()
  print(("%-5s velocity %s; latent %.2f%%; frames %.1f dB"):format(compute, table.concat(errors, ", "),
    100 * apart(x, latent), -10 * math.log10(mse)))
end
