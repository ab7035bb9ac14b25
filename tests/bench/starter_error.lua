-- What the starter's transformer knows at each level of noise: the squared error of its estimate of the clean latent, on
-- clips of the world that it was not trained on, beside the variance of those latents and what a table would do that
-- knows the mean latent of every place, light and style (what a model ought to see in a caption at least, at sigma 1).
--   melies run tests/bench/starter_error.lua [MODEL [CLIPS]]        the shipped model, 48 clips
local melies = require "melies"
local T = melies.tensor

local here = debug.getinfo(1, "S").source:match "^@(.*)/[^/]*$" or "."
local world = dofile(here .. "/../../recipes/starter/world/init.lua")
local model = assert(melies.pipeline.load(arg and arg[1] or "starter"))
local count = tonumber(arg and arg[2] or 48)
local size, known = model.defaults.width, 1000

local function draw(seed, index)
  local clip = world.clip { seed = seed, index = index, size = size, frames = 17 }
  return clip, model:encode_video(melies.media.to_f32(clip.frames))
end
local function kind(clip)
  local a = clip.attributes
  return a.place .. a.light .. a.style
end

local sums, numbers = {}, {}
for index = 1, known do
  local clip, latent = draw(11, index)
  local k = kind(clip)
  sums[k], numbers[k] = sums[k] or T.zeros(latent.shape), (numbers[k] or 0) + 1
  sums[k]:add_(latent)
end

local sigmas = { 0.15, 0.3, 0.5, 0.7, 0.85, 0.95, 1 }
local table_error, power, mean = 0, 0, nil
local latents, texts = {}, {}
for i = 1, count do
  local clip, latent = draw(12, i)
  latents[i], texts[i] = latent, assert(model:encode(clip.caption))
  mean = mean and mean + latent or latent
  local k = kind(clip)
  table_error = table_error + (sums[k] and latent - sums[k] * (1 / numbers[k]) or latent):square():mean() / count
end
for i = 1, count do power = power + (latents[i] - mean * (1 / count)):square():mean() / count end
print(("%d clips: variance %.3f, about the means of a table %.3f"):format(count, power, table_error))
for _, sigma in ipairs(sigmas) do
  local sum = 0
  for i = 1, count do
    local x = model:add_noise(latents[i], T.noise(latents[i].shape, { seed = 5, stream = i }), sigma)
    local x0 = model:to_x0(x, sigma, model:predict(x, sigma, { texts[i] })[1])
    sum = sum + (x0 - latents[i]):square():mean() / count
  end
  print(("sigma %.2f: %.4f"):format(sigma, sum))
end
