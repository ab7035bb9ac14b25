-- What each way to save work costs in accuracy: the same film made with it and without, on the starter model.
local lib = require "melies.ffi.lib"
local C = lib.C

local ways = {
  { name = "bf16" },
  { name = "s8", compute = "s8" },
  { name = "s8, calibrated (melies run quantize)", compute = "s8", calibrated = true },
  { name = "guidance at sigma 0.3..1", interval = { 0.3, 1 } },
  { name = "guidance at sigma 0.5..1", interval = { 0.5, 1 } },
  { name = "guidance at sigma 0.3..0.9", interval = { 0.3, 0.9 } },
}
for _, threshold in ipairs { 0.1, 0.2, 0.4 } do
  ways[#ways + 1] = { name = "first_block threshold " .. threshold, cache = { "first_block", { threshold = threshold } } }
end
for _, threshold in ipairs { 0.1, 0.2, 0.4 } do
  ways[#ways + 1] = { name = "time_embedding threshold " .. threshold,
    cache = { "time_embedding", { threshold = threshold } } }
end
for _, every in ipairs { 2, 3, 4 } do
  ways[#ways + 1] = { name = ("taylor every %d, order 1"):format(every), cache = { "taylor", { every = every } } }
end
ways[#ways + 1] = { name = "s8, guidance 0.3..1, taylor every 2", compute = "s8", interval = { 0.3, 1 },
  cache = { "taylor", { every = 2 } } }

local prompts = {
  "a big red ball rolls to the right over the grass, cartoon style", "a small blue star spins in the night sky, realistic",
  "a large yellow cube bounces in the desert, 3d render", "a green triangle rises in a white room, cartoon",
}

-- Latent, frames and CPU seconds of sampling.
local function film(way, prompt, seed, steps)
  local melies = require "melies"
  melies.set_compute(way.compute or "bf16")
  local model = assert(melies.pipeline.load("starter", way.calibrated and { quantization = way.calibrated }))
  local text, empty = model:encode(prompt), model:encode ""
  local cache = way.cache and melies.step_cache.make(way.cache[1], way.cache[2])
  local denoise = melies.guide.cfg(model, { text = text, negative = empty, scale = 4, interval = way.interval,
    cache = cache })
  local shape = model:latent_shape { frames = 17, width = 64, height = 64 }
  local noise = melies.noise(shape, { seed = seed })
  local sigmas = melies.schedule.flow(steps, { shift = 3 })
  denoise(noise, sigmas[1]) -- packs, makes primitives
  local start = C.mel_seconds()
  local latent = melies.sampling.run("euler", denoise, noise, sigmas, { space = model.space })
  local seconds = C.mel_seconds() - start
  return latent, model:decode(latent), seconds, cache
end

-- accuracy.run(steps): prints a table to stdout and returns it.
return function(steps)
  local melies = require "melies"
  steps = steps or 20
  local before = melies.compute()
  melies.set_compute "bf16"
  local calibration = os.tmpname()
  local model = assert(melies.pipeline.load "starter")
  assert(melies.quantize.write(calibration, assert(melies.quantize.calibrate(model, prompts))))
  for _, way in ipairs(ways) do
    if way.calibrated then way.calibrated = calibration end
  end
  local base = {}
  for i, prompt in ipairs(prompts) do base[i] = { film({ compute = "f32" }, prompt, i, steps) } end
  local plain = {} -- bf16 without anything else: what speed is measured against
  local out = {}
  local head = "starter model, %d steps, guidance 4, %d prompts; error and PSNR against f32, speed against bf16"
  print(head:format(steps, #prompts))
  print(("%-40s %8s %10s %10s %10s"):format("way", "speed", "left out", "error", "PSNR dB"))
  for _, way in ipairs(ways) do
    local seconds, reference, error2, norm2, psnr, reused, calls = 0, 0, 0, 0, 0, 0, 0
    for i, prompt in ipairs(prompts) do
      local latent, frames, s, cache = film(way, prompt, i, steps)
      if not plain[i] then plain[i] = s end
      seconds, reference = seconds + s, reference + plain[i]
      error2, norm2 = error2 + (latent - base[i][1]):sumsq(), norm2 + base[i][1]:sumsq()
      local mse = (frames - base[i][2]):square():mean()
      psnr = psnr + 10 * math.log10(1 / math.max(mse, 1e-12)) / #prompts
      if cache then reused, calls = reused + cache.reused, calls + cache.reused + cache.computed end
    end
    local row = { name = way.name, speed = reference / seconds, error = math.sqrt(error2 / norm2), psnr = psnr,
      left_out = calls > 0 and reused / calls or 0 }
    out[#out + 1] = row
    print(("%-40s %7.2fx %9.0f%% %10.4f %10.1f"):format(row.name, row.speed, row.left_out * 100, row.error, row.psnr))
  end
  melies.set_compute(before)
  os.remove(calibration)
  return out
end
