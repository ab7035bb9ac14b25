-- melies-api: 1
-- First part of the starter's training: a TAEHV autoencoder of the world's clips.
--
-- A step sees windows of 12 frames, 9 of which the decoder gives back (the first three belong to the time before). The
-- loss is the squared error, more where a subject is; noise on the latent makes the decoder forgive what a diffusion
-- model gets slightly wrong, and a term on its size keeps the mean square at 1.
local melies = require "melies"
local taehv = require "melies.grad.taehv"
local muon = require "melies.muon"
local T, grad = melies.tensor, melies.grad

local autoencoder = {}

autoencoder.sizes = { latent = 64, width = 64, widths = { 160, 96, 64, 48 }, patch = 2 }
local WINDOW, SHOWN = 12, 9

local function floats(u8) return u8:to("f32") * (1 / 255) end

-- A window of a clip: frames [12, H, W, 3] and weights of the 9 frames that come back [9, H, W, 1].
local function window(world, o, index, at)
  local clip = world.clip { seed = o.world_seed, index = index, size = o.size, frames = 17, split = o.split }
  local first = 1 + math.floor(at * 6)
  return floats(clip.frames:slice(1, first, first + WINDOW - 1)),
    floats(clip.mask:slice(1, first, first + SHOWN - 1)):unsqueeze(-1)
end

local function batch(world, o, first, step)
  local frames, masks = {}, {}
  for i = 1, o.batch do
    frames[i], masks[i] = window(world, o, first + i - 1, step:random())
  end
  return T.stack(frames, 1), T.stack(masks, 1)
end

-- Mean squared error of whole clips through the autoencoder, as PSNR in dB, frames of every clip weighted alike.
function autoencoder.psnr(net, world, o)
  local total, count = 0, 0
  for index = 1, o.count do
    local clip = world.clip { seed = o.seed or 3, index = index, size = o.size, frames = 17, split = "heldout" }
    local frames = floats(clip.frames)
    local back = grad.no_grad(function()
      local padded = frames:pad(1, 0, 3, "edge"):unsqueeze(1)
      return net:decode(net:encode(padded))
    end)
    local off = back.value:select(1, 1):slice(1, 4, 20):clamp(0, 1) - frames
    total, count = total + off:sumsq(), count + off:numel()
  end
  return -10 * math.log10(total / count)
end

-- Scales the fresh layers so that what they give has a size of 1 on some frames: without norms the signal fades otherwise,
-- and the first hundreds of steps are spent on that. What begins from the pixels and at the latent is centred too.
local function calibrate(net, frames)
  local plain = net.frames
  local centred = { ["encoder.0"] = true, ["encoder.17"] = true, ["decoder.1"] = true }
  function net:frames(x, name, o)
    local weight, bias = self.params[name .. ".weight"], self.params[name .. ".bias"]
    local y = plain(self, x, name, { stride = o and o.stride, dtype = "f32" }).value
    local c = y.shape[#y.shape]
    local rows = y:reshape(y:numel() / c, c)
    if centred[name] then
      local mean = rows:mean(1)
      local spread = (rows - mean):square():mean(1):sqrt() + 1e-3
      weight.value:copy_(weight.value / spread:reshape(c, 1, 1, 1))
      bias.value:copy_(mean / spread * -1)
    else
      local wanted = name == "decoder.22" and 0.3 or 1
      weight.value:copy_(weight.value * (wanted / math.sqrt(rows:sumsq() / rows:numel())))
    end
    weight.half = nil
    return plain(self, x, name, o)
  end
  grad.no_grad(function() return net:decode(net:encode(frames)) end)
  net.frames = nil
  net.params["decoder.22.bias"].value:fill_(0.45)
end

-- autoencoder.train(job, world, o) -> run or nil, message. o: folder, steps, batch, size, lr, seed, log
function autoencoder.train(world, o)
  local params = taehv.init(autoencoder.sizes, o.seed)
  local net = taehv.net(params)
  local data = { world_seed = o.world_seed or 1, size = o.size, batch = o.batch }
  calibrate(net, (batch(world, data, 0, { random = function() return 0.5 end })))
  local run, message
  run, message = melies.train.new {
    params = params, steps = o.steps, lr = o.lr, schedule = "cosine", warmup = 50, final = 0.02, clip = 0.5,
    optimiser = muon.new, ema = 0.998, weight_decay = 0.001, seed = o.seed, folder = o.folder, every = o.every or 250,
    config = { sizes = autoencoder.sizes, size = o.size, batch = o.batch }, may_differ = { "steps", "lr" },
    loss = function(step)
      local frames, masks = batch(world, data, (step.index - 1) * o.batch, step)
      local z = net:encode(frames)
      local noise = step:noise(z.shape) * 0.1
      local back = grad.slice(net:decode(grad.add(z, noise)), 2, 4, WINDOW)
      local weights = masks * 3 + 1
      local wanted = frames:slice(2, 1, SHOWN):contiguous()
      local error = grad.mse(back, wanted, weights)
      local size = grad.mean(grad.square(z))
      local plain = back.value - wanted
      return grad.add(error, grad.mul(grad.square(grad.add(size, -1)), 1e-3)),
        { square = plain:sumsq() / plain:numel(), size = size:item() }
    end,
    on_step = function(record)
      if o.check and record.step % o.check == 0 then
        local average = {}
        for name, value in pairs(run:weights(true)) do average[name] = value end
        record.psnr = autoencoder.psnr(taehv.net(average), world, { size = o.size, count = 8 })
      end
      o.on_step(record)
    end,
  }
  if not run then return nil, message end
  return run, net
end

return autoencoder
