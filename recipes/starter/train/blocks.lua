-- melies-api: 1
-- The latent space of the starter: the best linear code (Karhunen-Loeve) of the world's blocks of 4 frames x 8 x 8 pixels.
--
-- The principal axes come from the covariance of the blocks of some clips by orthogonal iteration. Axis i is divided by
-- the root of its own deviation times a constant, so that the loud ones stay louder (noise then takes the details first)
-- and the mean square over all is 1. Models/linear_blocks.lua reads the file.
local melies = require "melies"
local T = melies.tensor

local blocks = {}
blocks.block, blocks.latent = { 4, 8, 8 }, 48

local function cut(frames) -- u8 [1 + 4k, H, W, 3] -> f32 [blocks, 768]
  local b = blocks.block
  local x = frames:to("f32") * (1 / 255)
  x = x:pad(1, b[1] - 1, 0, "edge")
  local t, h, w = x.shape[1] / b[1], x.shape[2] / b[2], x.shape[3] / b[3]
  return x:reshape(t, b[1], h, b[2], w, b[3], 3):permute(1, 3, 5, 2, 4, 6, 7):reshape(t * h * w, b[1] * b[2] * b[3] * 3)
end

-- Rows of q [k, n] made orthonormal, in order (Gram and Schmidt, twice each for safety).
local function orthonormal(q)
  local k, n = q.shape[1], q.shape[2]
  local p = q:ptr()
  for i = 0, k - 1 do
    for _ = 1, 2 do
      for j = 0, i - 1 do
        local dot = 0
        for x = 0, n - 1 do dot = dot + p[i * n + x] * p[j * n + x] end
        for x = 0, n - 1 do p[i * n + x] = p[i * n + x] - dot * p[j * n + x] end
      end
    end
    local square = 0
    for x = 0, n - 1 do square = square + p[i * n + x] ^ 2 end
    for x = 0, n - 1 do p[i * n + x] = p[i * n + x] / math.sqrt(square) end
  end
end

-- The `count` principal axes [count, n] of moments [n, n], the loudest first.
function blocks.axes(moments, count)
  local axes = T.noise({ count, moments.shape[1] }, { seed = 1 })
  orthonormal(axes)
  for _ = 1, 60 do
    axes = axes:matmul(moments)
    orthonormal(axes)
  end
  return axes
end

-- Over the blocks [n, 768] of clips 1 .. count of a seed.
local function each(world, o)
  local index = 0
  return function()
    index = index + 1
    if index > o.count then return nil end
    return cut(world.clip({ seed = o.seed, index = index, size = o.size, frames = 17, split = o.split }).frames), index
  end
end
local MADE_OF, HELD_OUT = 4, 3 -- seeds of clips; the starter's own are others

-- In f32, on clips that no code was made of.
local function held_out_psnr(world, size, tensors)
  local off, values = 0, 0
  for x in each(world, { seed = HELD_OUT, count = 40, size = size, split = "heldout" }) do
    local z = x:matmul(tensors["encoder.weight"], { transpose = true }) + tensors["encoder.bias"]
    local back = (z:matmul(tensors["decoder.weight"], { transpose = true }) + tensors["decoder.bias"]):clamp(0, 1)
    off, values = off + (back - x):sumsq(), values + x:numel()
  end
  return -10 * math.log10(off / values)
end

-- blocks.train(world, o) -> tensors of linear_blocks with the second moments of the blocks, and the PSNR in dB on clips
-- held out. o: clips, size, progress(done)
function blocks.train(world, o)
  local n = blocks.block[1] * blocks.block[2] * blocks.block[3] * 3
  local compute = melies.compute()
  melies.set_compute "f32"
  local sum, product, count = T.zeros { n }, T.zeros { n, n }, 0
  for x, index in each(world, { seed = MADE_OF, count = o.clips, size = o.size }) do
    sum:add_(x:sum(1))
    product:add_(x:transpose(1, 2):contiguous():matmul(x))
    count = count + x.shape[1]
    o.progress(index)
  end
  local mean = sum * (1 / count)
  local column = mean:reshape(n, 1)
  local covariance = product * (1 / count) - column:matmul(mean:reshape(1, n))
  local axes = blocks.axes(covariance, blocks.latent)
  local deviation = (axes:matmul(covariance) * axes):sum(2):sqrt()
  local gain = deviation ^ -0.5
  local total = (deviation * gain):sumsq() / blocks.latent
  gain = gain * (1 / math.sqrt(total))
  local encoder = (axes * gain:reshape(blocks.latent, 1)):contiguous()
  local decoder = (axes / gain:reshape(blocks.latent, 1)):transpose(1, 2):contiguous()
  local tensors = { ["encoder.weight"] = encoder, ["encoder.bias"] = encoder:matmul(column):reshape(blocks.latent) * -1,
    ["decoder.weight"] = decoder, ["decoder.bias"] = mean, moments = product * (1 / count) }
  local psnr = held_out_psnr(world, o.size, tensors)
  melies.set_compute(compute)
  return tensors, psnr
end

-- blocks.model(tensors) -> the linear code as a model (models/linear_blocks.lua), in f32. tensors: of train or of
function blocks.model(tensors)
  local own = {}
  for name, tensor in pairs(tensors) do
    if name ~= "moments" then own[name] = tensor end
  end
  return melies["models.linear_blocks"].load(melies.weights.from_table(own), { block = blocks.block }, { compute = "f32" })
end

-- blocks.of(net, world, o) -> the tensors and the PSNR of the linear code that the encoder of a model of this recipe is: it
-- is asked for every axis of a block. Without moments. o: size, clips (their mean is the decoder's)
function blocks.of(net, world, o)
  local b, n = blocks.block, blocks.block[1] * blocks.block[2] * blocks.block[3] * 3
  local side = math.ceil(math.sqrt(n))
  local width, height = side * b[3], math.ceil(n / side) * b[2]
  local identity = T.zeros { n, n }
  for i = 0, n - 1 do identity:ptr()[i * (n + 1)] = 1 end
  local probe = identity:pad(1, 0, side * math.ceil(n / side) - n, 0):reshape(height / b[2], side, b[1], b[2], b[3], 3)
  probe = probe:permute(3, 1, 4, 2, 5, 6):reshape(b[1], height, width, 3):pad(1, 1, 0, 0):contiguous()
  local function answer(video) -- of the second latent frame: the first shows one frame alone
    local z = net:encode(video):slice(2, 2, 2):permute(2, 3, 4, 1)
    return z:reshape(z:numel() / blocks.latent, blocks.latent):slice(1, 1, n)
  end
  local bias = answer(probe * 0):slice(1, 1, 1)
  local encoder = (answer(probe) - bias):transpose(1, 2):contiguous()
  local sum, count = T.zeros { n }, 0
  for x in each(world, { seed = MADE_OF, count = o.clips, size = o.size }) do
    sum:add_(x:sum(1))
    count = count + x.shape[1]
  end
  local mean = sum * (1 / count)
  local decoder = (encoder / encoder:square():sum(2, true)):transpose(1, 2):contiguous()
  local compute = melies.compute()
  melies.set_compute "f32"
  -- where the code of the mean is not 0, the mean gives way
  local center = mean - decoder:matmul((encoder:matmul(mean:reshape(n, 1)) + bias:reshape(blocks.latent, 1))):reshape(n)
  local tensors = { ["encoder.weight"] = encoder, ["encoder.bias"] = bias:reshape(blocks.latent):contiguous(),
    ["decoder.weight"] = decoder, ["decoder.bias"] = center }
  local psnr = held_out_psnr(world, o.size, tensors)
  melies.set_compute(compute)
  return tensors, psnr
end

return blocks
