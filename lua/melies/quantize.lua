-- Calibration for 8 bits: what each large matrix of a transformer sees in a few films decides how its columns are smoothed,
-- whether they are rotated, and whether it is computed in 8 bits at all.
--
--   quantize.calibrate(model, prompts, { steps=, frames=, width=, height=, threshold=, rotate=, on_step= })
--     -> result
--   quantize.write(path, result, metadata) -> true | nil, message
--   quantize.read(path) -> { smooth = { name -> vector }, rotate = { name -> block }, keep = { name -> true } }
--     | nil, message
--
-- result: { layers = { { name, plain, smoothed, rotated, best, alpha, block, kept } ... in order }, smooth, rotate, keep }:
-- relative errors of the product in 8 bits over the inputs that were kept: as they are, smoothed, rotated (smoothed or not),
-- and with what was chosen. alpha and block: of what was chosen.
local lib = require "melies.ffi.lib"
local T = require "melies.tensor"
local nn = require "melies.nn"

local quantize = {}

local SAMPLES = 64 -- rows of input kept a matrix and call
local CALLS = 6 -- calls whose rows are kept
local ALPHAS = { 0.35, 0.5, 0.65 }

-- The linears of a net that can be computed in 8 bits, by name.
local function linears(net)
  local out = {}
  for _, block in ipairs(net.blocks) do
    for _, layer in pairs(block) do
      if getmetatable(layer) == nn.Linear and layer.name and not layer.name:find "cross_attn%.[kv]" then
        out[#out + 1] = layer
      end
    end
  end
  table.sort(out, function(a, b) return a.name < b.name end)
  return out
end

-- Rows spread over x, as [n, K] f32.
local function some_rows(x)
  local rows = x:reshape(-1, x.shape[x.ndim])
  local n = rows.shape[1]
  local count = math.min(SAMPLES, n)
  local ids = {}
  for i = 1, count do ids[i] = math.floor((i - 0.5) * n / count) end
  return T.gather(rows, T.of(ids, { count }, "i64"), "f32")
end

local function watch(layers)
  for _, layer in ipairs(layers) do
    local seen = { calls = 0, rows = {} }
    layer.seen = seen
    function layer.observe(_, x)
      seen.calls = seen.calls + 1
      local top = x:to("f32"):reshape(-1, x.shape[x.ndim]):abs():amax(1)
      seen.top = seen.top and T.maximum(seen.top, top) or top
      -- the calls of a run are spread over its noise levels: every other one, until there are enough
      if #seen.rows < CALLS and seen.calls % 2 == 1 then seen.rows[#seen.rows + 1] = some_rows(x) end
    end
  end
end

local function error_of(layer, x, want)
  local got = layer(x, { dtype = "f32" })
  return (got - want):norm() / want:norm()
end

-- s[k] = top_x[k]^alpha / top_w[k]^(1 - alpha), Xiao et al. 2022, equation 4, kept within 1e-3..1e3.
local function smoothing(top_x, top_w, alpha)
  return ((top_x:clamp(1e-5) ^ alpha) / (top_w:clamp(1e-5) ^ (1 - alpha))):clamp(1e-3, 1e3)
end

-- The block of a rotation: larger ones spread an outlier further, and cost more.
local BLOCK = 256
local function block_for(columns)
  local block = BLOCK
  while block >= 16 and columns % block ~= 0 do block = block / 2 end
  return block >= 16 and block or nil
end

local function judge(layer, weight, threshold, rotate)
  local seen = layer.seen
  local x = T.concat(seen.rows, 1)
  local want = nn.linear(weight, nil, { compute = "f32" })(x)
  local row, best = { name = layer.name }, nil
  local function try(field, smooth, alpha, block)
    local e = error_of(nn.linear(weight, nil, { compute = "s8", smooth = smooth, rotate = block }), x, want)
    row[field] = math.min(row[field] or e, e)
    if not best or e < best.error then best = { error = e, alpha = alpha, smooth = smooth, block = block } end
  end
  try "plain"
  row.smoothed = row.plain
  local top_w = weight:to("f32"):abs():amax(1)
  for _, alpha in ipairs(ALPHAS) do try("smoothed", smoothing(seen.top, top_w, alpha), alpha) end
  local block = rotate and block_for(weight.shape[2])
  if block then
    local smooth, alpha = best.smooth, best.alpha
    try("rotated", nil, nil, block)
    if smooth then try("rotated", smooth, alpha, block) end
  end
  row.best, row.alpha, row.block, row.kept = best.error, best.alpha, best.block, best.error > threshold
  return row, best
end

-- threshold: relative error above which a matrix stays in bf16. rotate: false for smoothing alone. The model must be loaded
-- in bf16 or f32.
function quantize.calibrate(model, prompts, options)
  options = options or {}
  lib.check_options("quantize.calibrate", options,
    { steps = true, frames = true, width = true, height = true, threshold = true, rotate = true, on_step = true,
      guidance = true })
  local melies = require "melies"
  local layers = linears(model.dit)
  if #layers == 0 then return nil, ("%s: its transformer has no matrices that 8 bits are known for"):format(model.name) end
  local shape, message = model:latent_shape(options)
  if not shape then return nil, message end
  watch(layers)
  local steps, done = options.steps or 6, 0
  local ok, problem = pcall(function()
    for i, prompt in ipairs(prompts) do
      local scale = options.guidance or model.defaults.guidance
      local denoise = melies.guide.cfg(model, { text = prompt, negative = "", scale = scale })
      local sigmas = melies.schedule.flow(steps, { shift = model.defaults.shift })
      melies.sampling.run("euler", denoise, melies.noise(shape, { seed = i }), sigmas, { space = model.space })
      done = done + 1
      if options.on_step then options.on_step(done, #prompts + #layers) end
    end
  end)
  for _, layer in ipairs(layers) do layer.observe = nil end
  if not ok then error(problem, 0) end
  local result = { layers = {}, smooth = {}, rotate = {}, keep = {} }
  local weights = model.sources.dit.weights
  for i, layer in ipairs(layers) do
    local row, best = judge(layer, weights:get(layer.name .. ".weight"), options.threshold or 0.03,
      options.rotate ~= false)
    layer.seen = nil
    result.layers[i] = row
    if row.kept then result.keep[row.name] = true
    else result.smooth[row.name], result.rotate[row.name] = best.smooth, best.block end
    done = done + 1
    if options.on_step then options.on_step(done, #prompts + #layers) end
    collectgarbage()
  end
  return result
end

local FORMAT = "melies quantization 1"

function quantize.write(path, result, metadata)
  local all, kept = { format = FORMAT }, {}
  for key, value in pairs(metadata or {}) do all[key] = value end
  for name in pairs(result.keep) do kept[#kept + 1] = name end
  table.sort(kept)
  all.keep = table.concat(kept, "\n")
  local turned = {}
  for name, block in pairs(result.rotate) do turned[#turned + 1] = ("%s %d"):format(name, block) end
  table.sort(turned)
  all.rotate = table.concat(turned, "\n")
  local tensors = {}
  for name, vector in pairs(result.smooth) do tensors[name] = vector end
  return require("melies.weights").save(path, tensors, all)
end

function quantize.read(path)
  local file, message = require("melies.weights").open(path)
  if not file then return nil, message end
  if file.metadata.format ~= FORMAT then
    return nil, ("%s: is no calibration of melies (its format is '%s')"):format(path, tostring(file.metadata.format))
  end
  local out = { smooth = {}, rotate = {}, keep = {}, path = path }
  for _, name in ipairs(file:names()) do out.smooth[name] = file:get(name) end
  for name in (file.metadata.keep or ""):gmatch "[^\n]+" do out.keep[name] = true end
  for name, block in (file.metadata.rotate or ""):gmatch "([^\n ]+) (%d+)" do out.rotate[name] = tonumber(block) end
  return out
end

return quantize
