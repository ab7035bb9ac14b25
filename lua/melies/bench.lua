-- Measures this machine's peak and the parts of melies against it. Every part is timed in turns with the peak's own
-- probe, so that a spell of noise hits both; what is printed are medians and ratios.
local lib = require "melies.ffi.lib"
local tensor = require "melies.tensor"
local nn = require "melies.nn"
local C = lib.C
local T = tensor

local bench = {}

local function median(values)
  local v = { unpack(values) }
  table.sort(v)
  local n = #v
  return n % 2 == 1 and v[(n + 1) / 2] or (v[n / 2] + v[n / 2 + 1]) / 2
end

local function seconds(fn)
  local start = C.mel_seconds()
  fn()
  return C.mel_seconds() - start
end

-- ---- the peak --------------------------------------------------------------------------------------

-- The best of what a product with packed weights reaches: GFLOP/s. It is what "peak" means here. bf16 and f32 are
-- oneDNN's, 8 bits our own kernel's, with the quantisation of its input.
local function peak_probe(dtype)
  local m, n, k = 1280, 2048, 2048
  local layer = nn.linear(T.noise({ n, k }, { seed = 1 }), nil, { compute = dtype })
  local x = T.noise({ m, k }, { seed = 2 }):to(dtype == "s8" and "bf16" or dtype)
  local flop = 2 * m * n * k
  layer(x):free()
  return function() return flop / seconds(function() layer(x):free() end) / 1e9 end
end

-- Bytes moved per second by a copy that does not fit any cache, in GB/s (read plus write).
local function bandwidth_probe()
  local a, b = T.full({ 32 * 2 ^ 20 }, 1), T.full({ 32 * 2 ^ 20 }, 2)
  return function() return 2 * a:bytes() / seconds(function() b:copy_(a) end) / 1e9 end
end

-- ---- the parts -------------------------------------------------------------------------------------

-- Each: name, dtype whose peak it stands beside, flop and bytes of one run, setup() -> run(), bytes of what only counts
-- its flop. For the roofline: roof (default: dtype), work (flop of what is bound by memory), label.
local parts = {}
local function part(p) parts[#parts + 1] = p end

local sizes = { { 1536, 1536 }, { 1536, 8960 }, { 8960, 1536 } } -- Wan 1.3B: attention, ffn up, ffn down
for _, dtype in ipairs { "bf16", "f32" } do
  local size = dtype == "bf16" and 2 or 4
  for _, tokens in ipairs { 1280, 5120 } do
    for _, kn in ipairs(sizes) do
      local k, n = unpack(kn)
      part { name = ("linear %s %dx%dx%d"):format(dtype, tokens, k, n), dtype = dtype, flop = 2 * tokens * k * n,
        label = tokens == 1280 and k > n and "linear, 8,960 to 1,536" or nil,
        bytes = size * (tokens * k + k * n + tokens * n), setup = function()
          local layer = nn.linear(T.noise({ n, k }, { seed = 1 }), T.zeros { n }, { compute = dtype })
          local x = T.noise({ tokens, k }, { seed = 2 }):to(dtype)
          return function() layer(x):free() end
        end }
    end
    part { name = ("attention %s %d tokens, 12 heads of 128"):format(dtype, tokens), dtype = dtype,
      flop = 4 * tokens * tokens * 1536, bytes = 4 * size * tokens * 1536,
      label = tokens == 5120 and "attention, 5,120 tokens" or dtype == "bf16" and "attention, 1,280 tokens" or nil,
      setup = function()
        local qkv = {}
        for i = 1, 3 do qkv[i] = T.noise({ 1, tokens, 12, 128 }, { seed = i }):to(dtype) end
        return function() T.attention(qkv[1], qkv[2], qkv[3]):free() end
      end }
  end
end
for _, kn in ipairs { sizes[2], sizes[3] } do
  local k, n = unpack(kn)
  part { name = ("linear s8 1280x%dx%d"):format(k, n), dtype = "s8", flop = 2 * 1280 * k * n,
    label = k > n and "linear, 8,960 to 1,536" or nil, bytes = 2 * 1280 * (k + n) + k * n, setup = function()
      local layer = nn.linear(T.noise({ n, k }, { seed = 1 }), T.zeros { n }, { compute = "s8" })
      local x = T.noise({ 1280, k }, { seed = 2 }):to "bf16"
      return function() layer(x):free() end
    end }
end
part { name = "conv3d bf16 3x3x3 96 channels, 4x128x128", dtype = "bf16", flop = 2 * 4 * 128 * 128 * 96 * 96 * 27,
  bytes = 2 * 2 * 4 * 128 * 128 * 96, label = "convolution 3x3x3, 96", setup = function()
    local layer = nn.conv(T.noise({ 96, 96, 3, 3, 3 }, { seed = 1 }), T.zeros { 96 }, { pad = 1, causal = true,
      compute = "bf16" })
    local x = T.noise({ 1, 4, 128, 128, 96 }, { seed = 2 }):to "bf16"
    return function() layer(x):free() end
  end }
part { name = "layer_norm f32 -> bf16 with scale and shift, 5120x1536", bytes = 6 * 5120 * 1536, work = 9 * 5120 * 1536,
  roof = "f32", label = "layer norm", setup = function()
  local x, v = T.noise({ 1, 5120, 1536 }, { seed = 1 }), T.noise({ 1, 1, 1536 }, { seed = 2 })
  return function() x:layer_norm({ scale = v, shift = v, dtype = "bf16" }):free() end
end }
part { name = "rms_norm bf16, 5120x1536", bytes = 4 * 5120 * 1536, work = 4 * 5120 * 1536, roof = "f32",
  label = "RMS norm", setup = function()
  local x, v = T.noise({ 1, 5120, 1536 }, { seed = 1 }):to "bf16", T.noise({ 1536 }, { seed = 2 })
  return function() x:rms_norm({ weight = v }):free() end
end }
part { name = "rope bf16, 5120 tokens, 12 heads of 128", bytes = 4 * 5120 * 1536, work = 3 * 5120 * 1536,
  roof = "f32", label = "RoPE", setup = function()
  local x, v = T.noise({ 1, 5120, 12, 128 }, { seed = 1 }):to "bf16", T.noise({ 5120, 64 }, { seed = 2 })
  return function() x:rope(v, v):free() end
end }
part { name = "gated residual f32 += bf16, 5120x1536", bytes = 10 * 5120 * 1536, work = 2 * 5120 * 1536,
  roof = "f32", label = "residual", setup = function()
  local y, x = T.noise({ 1, 5120, 1536 }, { seed = 1 }), T.noise({ 1, 5120, 1536 }, { seed = 2 }):to "bf16"
  local gate = T.noise({ 1, 1, 1536 }, { seed = 3 })
  return function() y:add_(x, 1, gate) end
end }
part { name = "sampler step, 3 terms, 16x21x60x104", bytes = 4 * 4 * 16 * 21 * 60 * 104,
  work = 5 * 16 * 21 * 60 * 104, roof = "f32", label = "sampler step", setup = function()
  local x = {}
  for i = 1, 3 do x[i] = T.noise({ 1, 16, 21, 60, 104 }, { seed = i }) end
  return function() T.lincomb({ 0.5, x[1], 0.3, x[2], 0.2, x[3] }):free() end
end }
part { name = "starter film, 17 frames, 20 steps, guidance", film = true, setup = function()
  local melies = require "melies"
  local path = os.tmpname()
  os.remove(path)
  return function()
    local frames, message = melies.run("text_to_video", { prompt = "a big red ball rolls over the grass", steps = 20,
      seed = 1, output = path .. ".mp4" }, { progress = false, notice = function() end })
    if not frames then error(message, 0) end
    os.remove(path .. ".mp4")
  end
end }

for _, p in ipairs(require "melies.bench.models") do part(p) end

-- The arithmetic of one run, from the spans of its operations.
local function count_flop(run)
  local profile, flop = require "melies.profile", 0
  profile.start()
  run()
  for _, span in ipairs(profile.stop()) do flop = flop + span.flop end
  return flop
end

-- ---- running ---------------------------------------------------------------------------------------

local option_names = { filter = true, rounds = true, json = true, compare = true, roofline = true }

-- bench.run{ filter=, rounds=5, json=path, compare=path, roofline=path }: measures, prints a table to stdout, and
-- returns it. roofline: an SVG of the parts under the machine's roofs.
function bench.run(options)
  options = options or {}
  lib.check_options("bench", options, option_names)
  local rounds = options.rounds or 5
  local before
  if options.compare then
    local json = require "melies.json"
    local data, message = json.read(options.compare)
    if not data then return nil, message end
    before = {}
    for _, row in ipairs(data.parts) do before[row.name] = row.seconds end
  end
  local probes = { bf16 = peak_probe "bf16", f32 = peak_probe "f32", s8 = peak_probe "s8",
    bandwidth = bandwidth_probe() }
  local peaks, best = {}, {}
  for name, probe in pairs(probes) do
    local seen = {}
    for i = 1, 2 * rounds do seen[i] = probe() end
    table.sort(seen)
    peaks[name], best[name] = median(seen), seen[#seen]
  end
  local out = { threads = C.mel_threads(), peaks = peaks, best = best, parts = {} }
  print(require("ffi").string(C.mel_cpu_name()))
  local head = "%d threads; peak (median, best): bf16 %.0f %.0f, f32 %.0f %.0f, int8 %.0f %.0f GFLOP/s, "
    .. "memory %.1f %.1f GB/s"
  print(head:format(out.threads, peaks.bf16, best.bf16, peaks.f32, best.f32, peaks.s8, best.s8, peaks.bandwidth,
    best.bandwidth))
  print(("%-54s %10s %9s %9s %8s %8s %9s%s"):format("part", "ms", "floor ms", "GFLOP/s", "of peak", "GB/s", "peak MiB",
    before and "  before" or ""))
  for _, p in ipairs(parts) do
    if not options.filter or p.name:find(options.filter, 1, true) then
      collectgarbage()
      collectgarbage()
      local run, moved = p.setup()
      if p.counted then p.flop = count_flop(run) else run() end
      C.mel_mem_reset_peak()
      local live = tonumber(C.mel_mem_live())
      local times, ratios = {}, {}
      for i = 1, p.slow and 2 or p.film and 3 or rounds do
        local reference = p.flop and probes[p.dtype]() or p.bytes and probes.bandwidth()
        times[i] = seconds(run)
        if p.flop then ratios[i] = p.flop / times[i] / 1e9 / reference
        elseif p.bytes then ratios[i] = p.bytes / times[i] / 1e9 / reference end
      end
      local s = median(times)
      local row = { name = p.name, seconds = s, gflops = p.flop and p.flop / s / 1e9,
        gbs = p.bytes and p.bytes / s / 1e9,
        of_peak = #ratios > 0 and median(ratios) or nil, memory = tonumber(C.mel_mem_peak()) - live,
        label = p.label, roof = p.roof or p.dtype, bound = p.flop and "arithmetic" or p.bytes and "memory" or nil,
        floor = math.max(p.flop and p.flop / peaks[p.dtype] / 1e9 or 0,
          p.bytes and p.bytes / peaks.bandwidth / 1e9 or 0) }
      -- For the roofline, as in the best spell: the share of the peak that was measured beside it, of the best peak.
      local work, bytes = p.flop or p.work, p.bytes or moved
      if work and bytes then
        row.intensity = work / bytes
        row.work = row.of_peak * (p.flop and best[p.dtype] or best.bandwidth * row.intensity)
      end
      out.parts[#out.parts + 1] = row
      local function cell(format, value) return value and format:format(value) or "" end
      print(("%-54s %10.2f %9s %9s %8s %8s %9.0f%s"):format(p.name, s * 1e3,
        cell("%.2f", row.floor > 0 and row.floor * 1e3 or nil), cell("%.0f", row.gflops),
        cell("%.0f%%", row.of_peak and row.of_peak * 100),
        cell("%.1f", row.gbs), row.memory / 2 ^ 20,
          before and before[p.name] and ("  %.2fx"):format(before[p.name] / s) or ""))
    end
  end
  if options.roofline then
    local ok, message = require("melies.fs").write(options.roofline, require "melies.bench.roofline"(best, out.parts))
    if not ok then return nil, message end
  end
  if options.json then
    local ok, message = require("melies.json").write(options.json, out)
    if not ok then return nil, message end
  end
  return out
end

-- bench.accuracy{ steps = 20, json = path }: what 8 bits, step caches, guidance intervals and coarse steps cost and
-- save, as a table to stdout.
local accuracy_names = { steps = true, json = true }
function bench.accuracy(options)
  options = options or {}
  lib.check_options("bench.accuracy", options, accuracy_names)
  return require "melies.bench.accuracy"(options)
end

-- melies bench accuracy [--steps N] [--json FILE], or melies bench [NAME] [--rounds N] [--json FILE] [--compare FILE]
-- [--roofline FILE]: an exit code, and a message where it failed.
function bench.main(words)
  local accurate = words[1] == "accuracy"
  local names, options, i = accurate and accuracy_names or option_names, {}, accurate and 2 or 1
  while i <= #words do
    local name = words[i]:match("^%-%-(.+)$")
    if name then
      if not names[name] or name == "filter" then return 2, ("bench: unknown option '--%s'%s"):format(name,
        lib.suggest(name, names)) end
      i = i + 1
      if not words[i] then return 2, ("bench: --%s needs a value"):format(name) end
      options[name] = words[i]
    elseif options.filter or accurate then
      return 2, ("bench: one name is taken, '%s' is the second"):format(words[i])
    else
      options.filter = words[i]
    end
    i = i + 1
  end
  for _, name in ipairs { "rounds", "steps" } do
    local value = options[name] and tonumber(options[name])
    if options[name] and (not value or value < 1 or value % 1 ~= 0) then
      return 2, ("bench: --%s is a count from 1"):format(name)
    end
    options[name] = value
  end
  local result, message = bench[accurate and "accuracy" or "run"](options)
  if not result then return 1, message end
  return 0
end

return bench
