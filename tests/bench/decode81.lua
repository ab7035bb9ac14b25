-- Decodes 81 frames of 832x480 from noise with a model's autoencoder, streaming into an MP4; prints time and peak memory.
--   melies --memory 3200M run tests/bench/decode81.lua MODEL
local melies = require "melies"
local model = assert(melies.pipeline.load(arg[1] or error("usage: decode81.lua MODEL", 0)))
local latent = melies.noise({ 16, 21, 60, 104 }, { seed = 1 })
local path = os.tmpname()
local writer = assert(melies.media.writer(path .. ".mp4", { fps = 16 }))
local start, count = melies.seconds(), 0
model:decode_stream(latent, function(frames)
  writer:write(frames)
  count = count + frames.shape[1]
  print(("%2d frames %6.1f s, %.2f GiB of tensors at most"):format(count, melies.seconds() - start,
    melies.memory().peak / 2 ^ 30))
end)
writer:finish()
os.remove(path)
os.remove(path .. ".mp4")
local f = io.open("/proc/self/status")
if f then
  print("resident at most: " .. f:read("*a"):match "VmHWM:%s*([^\n]*)")
  f:close()
end
