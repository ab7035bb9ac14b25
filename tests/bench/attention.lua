-- Attention in 8 bits and with masks beside attention in bf16: speed by turns, so that a spell of noise hits both, and
-- the relative error against f32.
--   melies run tests/bench/attention.lua [TOKENS,... | masks | model] [ROUNDS] [MODEL]
-- TOKENS (by default 1280,5120,32760): 12 heads of 128, random queries, keys and values, without a mask.
-- masks: the grid of 832x480, 81 frames (21x30x52 tokens), 3 heads, sliding tiles and radial reach; queries, keys and
-- values change slowly over the grid, so that near tokens are alike. model: the velocity of a model at 384x384, 33 frames.
local melies = require "melies"
local sparse = require "melies.sparse_attention"
local T = melies.tensor
local what, rounds, model_name = arg[1] or "1280,5120,32760", tonumber(arg[2] or 5), arg[3] or "starter"

local function median(values)
  table.sort(values)
  local n = #values
  return n % 2 == 1 and values[(n + 1) / 2] or (values[n / 2] + values[n / 2 + 1]) / 2
end
local function seconds(fn)
  local start = melies.seconds()
  fn()
  return melies.seconds() - start
end
local function relative(x, y) return (x:to "f32" - y):norm() / y:norm() end

-- GFLOP/s of oneDNN's bf16 product with packed weights: what melies bench calls the peak.
local layer = melies.nn.linear(T.noise({ 2048, 2048 }, { seed = 1 }), nil, { compute = "bf16" })
local rows = T.noise({ 1280, 2048 }, { seed = 2 }):to "bf16"
layer(rows):free()
local function peak() return 2 * 1280 * 2048 * 2048 / seconds(function() layer(rows):free() end) / 1e9 end

-- Runs every way in turns with the first and with the peak's probe. ways: { name, run(), flop, error() }.
local function table_of(ways)
  print(("%-34s %9s %9s %8s %9s %9s %9s"):format("way", "seconds", "GFLOP/s", "of peak", "speed-up", "computed", "error"))
  for _, way in ipairs(ways) do
    way.run()
    way.times, way.shares, way.ratios = {}, {}, {}
  end
  for _ = 1, rounds do
    local first
    for i, way in ipairs(ways) do
      local top = way.flop and peak()
      local s = seconds(way.run)
      first = i == 1 and s or first
      way.times[#way.times + 1], way.ratios[#way.ratios + 1] = s, first / s
      if way.flop then way.shares[#way.shares + 1] = way.flop / s / 1e9 / top end
    end
  end
  for _, way in ipairs(ways) do
    local s = median(way.times)
    print(("%-34s %9.4f %9s %8s %8.2fx %8.0f%% %9.4f"):format(way.name, s,
      way.flop and ("%.0f"):format(way.flop / s / 1e9) or "",
      way.flop and ("%.0f%%"):format(100 * median(way.shares)) or "", median(way.ratios), 100 * (way.density or 1),
      way.error()))
  end
end

local function attention_ways(q, k, v, options, reference)
  local length, ways = q.shape[2], {}
  local hq, hk, hv = q:to "bf16", k:to "bf16", v:to "bf16"
  for _, way in ipairs(options) do
    local o = way.options
    ways[#ways + 1] = { name = way.name, density = way.density,
      flop = 4 * length * length * q.shape[3] * q.shape[4] * (way.density or 1),
      run = function() T.attention(hq, hk, hv, o):free() end,
      error = function()
        local out = T.attention(hq, hk, hv, { dtype = "f32", scores = o.scores, values = o.values, mask = o.mask })
        return relative(way.take(out), reference)
      end }
  end
  return ways
end

local function plain(length)
  local q, k, v = T.noise({ 1, length, 12, 128 }, { seed = 1 }), T.noise({ 1, length, 12, 128 }, { seed = 2 }),
    T.noise({ 1, length, 12, 128 }, { seed = 3 })
  local some = math.min(length, 256)
  local function take(x) return x:slice(2, 1, some) end
  print(("%d tokens, 12 heads of 128, %d threads, %d rounds; error against f32"):format(length, melies.threads(), rounds))
  table_of(attention_ways(q, k, v, { { name = "bf16", options = {}, take = take },
    { name = "8-bit scores", options = { scores = "s8" }, take = take },
    { name = "8-bit scores and values", options = { scores = "s8", values = "s8" }, take = take } }, T.attention(take(q), k, v)))
end

-- Sums of slow noise along time, rows and columns, of unit variance.
local HEADS = 3
local function walk(grid, seed)
  local x = T.zeros { grid[1], grid[2], grid[3], HEADS * 128 }
  for axis = 1, 3 do
    local n = grid[axis]
    local knots = T.noise({ math.ceil(n / 4) + 1, HEADS * 128 }, { seed = seed + 10 * axis })
    local s = { 1, 1, 1, HEADS * 128 }
    s[axis] = n
    x:add_(knots:resize(1, n, "bilinear"):reshape(s):expand(x.shape):contiguous(), 1)
  end
  x = x:reshape(1, grid[1] * grid[2] * grid[3], HEADS, 128)
  return x * (1 / x:std())
end

local function masks()
  local grid = { 21, 30, 52 }
  local q = walk(grid, 1)
  local k, v = (q + T.noise(q.shape, { seed = 4 }) * 0.5), walk(grid, 2)
  print(("%dx%dx%d tokens, %d heads of 128, %d threads, %d rounds; error against f32 without a mask"):format(grid[1],
    grid[2], grid[3], HEADS, melies.threads(), rounds))
  local options = {}
  local head = T.attention(q:slice(2, 1, 512), k, v)
  options[1] = { name = "bf16", options = {}, take = function(x) return x:slice(2, 1, 512) end }
  for _, text in ipairs { "tiles:5x5x9", "tiles:3x3x5", "tiles:3x3x3", "radial:1", "radial:0.5", "radial:0.2" } do
    local mask = sparse.mask(sparse.parse(text).mask, grid[1], grid[2], grid[3])
    for _, eight in ipairs { "", ",s8-values" } do
      local s8 = eight ~= "" and "s8" or nil
      options[#options + 1] = { name = text .. eight, density = mask.density,
        options = { mask = mask, scores = s8, values = s8 },
        take = function(x) return sparse.reorder(x, mask.inverse):slice(2, 1, 512) end, mask = mask }
    end
  end
  local out = {}
  for _, way in ipairs(options) do
    local function ordered(x) return way.mask and sparse.reorder(x, way.mask.order) or x end
    out[#out + 1] = attention_ways(ordered(q), ordered(k), ordered(v), { way }, head)[1]
    collectgarbage()
  end
  table_of(out)
end

local function velocities()
  local ways, reference = {}, nil
  for _, text in ipairs { "", "s8", "s8-values", "tiles:5x5x5", "tiles:3x3x3", "tiles:3x3x3,s8-values", "radial:1", "radial:0.5",
    "radial:0.2" } do
    local model = assert(melies.pipeline.load(model_name, text ~= "" and { attention = text } or nil))
    local shape = model:latent_shape { frames = 33, width = 384, height = 384 }
    local latent = melies.noise(shape, { seed = 1 }):unsqueeze(1)
    local context = model.dit:context { model:encode "a red ball rolls over the grass" }
    local function run() return model.dit:forward(latent, 700, context) end
    if not reference then
      local compute = melies.compute()
      melies.set_compute "f32"
      local exact = assert(melies.pipeline.load(model_name))
      reference = exact.dit:forward(latent, 700, exact.dit:context { exact:encode "a red ball rolls over the grass" })
      melies.set_compute(compute)
      print(("%s, latent %s at sigma 0.7, %d threads, %d rounds; error of the velocity against f32 without a mask"):format(
        model.name, latent:shape_text(), melies.threads(), rounds))
    end
    local p = model.dit.patch
    local spec = sparse.parse(text ~= "" and text or {}).mask
    ways[#ways + 1] = { name = text == "" and "bf16" or text, run = function() run():free() end,
      density = spec and sparse.mask(spec, shape[2] / p[1], shape[3] / p[2], shape[4] / p[3]).density,
      error = function() return relative(run(), reference) end }
  end
  table_of(ways)
end

if what == "masks" then
  masks()
elseif what == "model" then
  velocities()
else
  for length in what:gmatch "[^,]+" do plain(assert(tonumber(length), "tokens are numbers")) end
end
