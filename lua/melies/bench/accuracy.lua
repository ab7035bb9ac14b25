-- What each way to save work saves and costs: the same films made with it and without, on the starter model. Every
-- way that has a strength is shown at three. Time is the process' own on all cores, so that a busy machine changes it
-- little: the least of three runs.
local ways = {
  { name = "bf16" },
  { name = "s8", compute = "s8" },
  { name = "s8, calibrated (melies run quantize)", compute = "s8", calibrated = true },
}
local function way(w) ways[#ways + 1] = w end
for _, low in ipairs { 0.3, 0.5, 0.7 } do
  way { name = ("guidance at sigma %g..1"):format(low), interval = { low, 1 } }
end
for _, of in ipairs { { "first_block", 0.1, 0.2, 0.4 }, { "time_embedding", 0.05, 0.1, 0.2 } } do
  local name = of[1]
  for i = 2, 4 do
    local threshold = of[i]
    way { name = ("%s, threshold %g"):format(name, threshold), cache = { name, { threshold = threshold } } }
  end
end
for _, every in ipairs { 2, 3, 4 } do
  way { name = ("taylor, every %d"):format(every), cache = { "taylor", { every = every } } }
end
for _, share in ipairs { 0.2, 0.4, 0.6 } do
  way { name = ("coarse_to_fine, %.0f%% of the steps at half size"):format(share * 100), coarse = share }
end
way { name = "s8, guidance 0.7..1, taylor every 2", compute = "s8", interval = { 0.7, 1 },
  cache = { "taylor", { every = 2 } } }

local prompts = {
  "a big red ball rolls to the right over the grass, cartoon style",
  "a small blue star spins in the night sky, realistic", "a large yellow cube bounces in the desert, 3d render",
  "a green triangle rises in a white room, cartoon",
}

-- What samples under a way: denoise of a new run, and its cache.
local function denoiser(w, model, prompt)
  local melies = require "melies"
  local cache = w.cache and melies.step_cache.make(w.cache[1], w.cache[2])
  return melies.guide.cfg(model, { text = model:encode(prompt), negative = model:encode "",
    scale = model.defaults.guidance, interval = w.interval, cache = cache }), cache
end

-- One film's latent and frames, CPU seconds of its sampling, its cache, and its path: { x, sigma, estimate } a step.
local function film(w, prompt, seed, steps)
  local melies = require "melies"
  melies.set_compute(w.compute or "bf16")
  local model = assert(melies.pipeline.load("starter", w.calibrated and { quantization = w.calibrated }))
  local shape = assert(model:latent_shape {})
  local noise = melies.noise(shape, { seed = seed })
  local sigmas = melies.schedule.flow(steps, { shift = model.defaults.shift })
  denoiser(w, model, prompt)(noise, sigmas[1]) -- packs, makes primitives
  local path = {}
  local function sample(x, list)
    local denoise, cache = denoiser(w, model, prompt)
    return melies.sampling.run("euler", function(at, sigma)
      local x0 = denoise(at, sigma)
      if not w.coarse then path[#path + 1] = { at, sigma, x0 } end
      return x0
    end, x, list, { space = model.space }), cache
  end
  local start = os.clock()
  local latent, cache
  if w.coarse then
    local c2f = melies.coarse_to_fine
    local coarse, fine, count = c2f.split(sigmas, w.coarse)
    local small, x = assert(c2f.shape(model, shape, 0.5), "the model's films have no half size"), noise
    if count > 0 then
      local estimate = sample(melies.noise(small, { seed = seed, stream = 1 }), coarse)
      x = model:add_noise(c2f.enlarge(estimate, shape), noise, fine[1])
    end
    latent = sample(x, fine)
  else
    latent, cache = sample(noise, sigmas)
  end
  return { latent = latent, seconds = os.clock() - start, frames = model:decode(latent), cache = cache, path = path }
end

-- Root mean square over the steps of the relative error of the velocity, at the places where the full run was.
local function velocity_error(w, prompt, path)
  local model = assert(require("melies").pipeline.load("starter", w.calibrated and { quantization = w.calibrated }))
  local denoise, sum = denoiser(w, model, prompt), 0
  for _, at in ipairs(path) do
    local x, sigma, x0 = unpack(at)
    sum = sum + (denoise(x, sigma) - x0):sumsq() / (x - x0):sumsq() / #path -- v = (x - x0) / sigma
  end
  return sum
end

-- accuracy{ steps =, json = path }: prints a table to stdout and returns it; nil and a message where it cannot be
-- written.
return function(options)
  local melies = require "melies"
  local steps = options.steps or 20
  local before = melies.compute()
  melies.set_compute "bf16"
  local calibration = os.tmpname()
  local model = assert(melies.pipeline.load "starter")
  assert(melies.quantize.write(calibration, assert(melies.quantize.calibrate(model, prompts))))
  for _, w in ipairs(ways) do
    if w.calibrated then w.calibrated = calibration end
  end
  local base, plain = {}, {} -- f32; CPU seconds in bf16 without anything else, which speed is measured against
  for i, prompt in ipairs(prompts) do base[i] = film({ compute = "f32" }, prompt, i, steps) end
  local out = { steps = steps, prompts = #prompts, ways = {} }
  print(("starter model, %d steps, guidance %g, %d prompts; errors and PSNR against f32, speed (CPU time) against bf16")
    :format(steps, model.defaults.guidance, #prompts))
  print(("%-48s %8s %9s %9s %8s %8s"):format("way", "speed", "left out", "velocity", "latent", "PSNR dB"))
  for _, w in ipairs(ways) do
    local seconds, reference, velocity2, error2, norm2, psnr, reused, calls = 0, 0, 0, 0, 0, 0, 0, 0
    for i, prompt in ipairs(prompts) do
      local made, full = film(w, prompt, i, steps), base[i]
      for _ = 2, 3 do made.seconds = math.min(made.seconds, film(w, prompt, i, steps).seconds) end
      plain[i] = plain[i] or made.seconds
      seconds, reference = seconds + made.seconds, reference + plain[i]
      error2, norm2 = error2 + (made.latent - full.latent):sumsq(), norm2 + full.latent:sumsq()
      local mse = (made.frames - full.frames):square():mean()
      psnr = psnr + 10 * math.log10(1 / math.max(mse, 1e-12)) / #prompts
      if not w.coarse then velocity2 = velocity2 + velocity_error(w, prompt, full.path) / #prompts end
      if made.cache then
        reused, calls = reused + made.cache.reused, calls + made.cache.reused + made.cache.computed
      end
    end
    local row = { name = w.name, speed = reference / seconds, error = math.sqrt(error2 / norm2), psnr = psnr,
      velocity = not w.coarse and math.sqrt(velocity2) or nil, left_out = calls > 0 and reused / calls or nil }
    out.ways[#out.ways + 1] = row
    local function cell(format, value) return value and format:format(value) or "" end
    print(("%-48s %7.2fx %9s %9s %8.3f %8.1f"):format(row.name, row.speed,
      cell("%.0f%%", row.left_out and row.left_out * 100), cell("%.3f", row.velocity), row.error, row.psnr))
    collectgarbage()
  end
  melies.set_compute(before)
  os.remove(calibration)
  if options.json then
    local ok, message = require("melies.json").write(options.json, out)
    if not ok then return nil, message end
  end
  return out
end
