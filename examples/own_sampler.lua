-- A sampler written on the spot: Euler steps, with a little of the noise kept fresh on the way. The same table in a
-- file of ~/.config/melies/samplers/ is found by name everywhere.
-- Usage: own_sampler.lua [OUTPUT] [STEPS]
local melies = require "melies"

local output, steps = arg and arg[1] or "own-sampler.mp4", tonumber(arg and arg[2])

local wobble = {
  kind = "sampler", name = "wobble",
  params = { amount = { "number", default = 0.1, min = 0, max = 1 } },
  run = function(denoise, x, sigmas, params, step)
    for i = 1, #sigmas - 1 do
      local s, s_next = sigmas[i], sigmas[i + 1]
      local x0 = denoise(x, s)
      local noise = (x - x0 * (1 - s)) / s -- flow: x = (1 - s) x0 + s noise
      local fresh = melies.noise(x.shape, { seed = 7, stream = i })
      local a = params.amount
      noise = noise * math.sqrt(1 - a) + fresh * math.sqrt(a)
      x = x0 * (1 - s_next) + noise * s_next
      step(i, x)
    end
    return x
  end,
}

local frames, message = melies.run("text_to_video", {
  prompt = "a big orange cube comes closer over the ocean, cartoon",
  sampler = wobble, ["sampler.amount"] = 0.05, steps = steps, output = output,
})
if not frames then error(message, 0) end
print(("%s: %d frames"):format(output, frames.shape[1]))
