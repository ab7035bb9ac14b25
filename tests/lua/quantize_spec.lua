-- Calibration for 8 bits: smoothing helps where a few columns are large, matrices that lose too much stay in bf16.
local t = require "harness"
local melies = require "melies"
local T, nn, quantize = melies.tensor, melies.nn, melies.quantize

t.test("smoothing leaves the product and helps with columns of outliers", function()
  local x, w = T.noise({ 100, 64 }, { seed = 1 }), T.noise({ 48, 64 }, { seed = 2 })
  x:slice(2, 5, 5):copy_(x:slice(2, 5, 5) * 100)
  local want = nn.linear(w, nil, { compute = "f32" })(x)
  local function error_with(smooth)
    return (nn.linear(w, nil, { compute = "s8", smooth = smooth })(x) - want):norm() / want:norm()
  end
  local s = (x:abs():amax(1) / w:abs():amax(1)):sqrt()
  -- what is large dominates the whole, so the gain is looked for in the part without it
  t.ok(error_with(s) < 0.02)
  local small = x:clone()
  small:slice(2, 5, 5):copy_(small:slice(2, 5, 5) * 0.01)
  local rest_want = nn.linear(w, nil, { compute = "f32" })(small)
  local function rest(smooth) -- the error of x's product, less the product of its large column alone
    local large = x - small
    local got = nn.linear(w, nil, { compute = "s8", smooth = smooth })(x) - nn.linear(w, nil, { compute = "f32" })(large)
    return (got - rest_want):norm() / rest_want:norm()
  end
  t.ok(rest(s) < 0.6 * rest(nil), "smoothed " .. rest(s) .. ", plain " .. rest(nil))
  t.raises(function() nn.linear(w, nil, { compute = "s8", smooth = T.zeros { 64 } }) end, "smoothing value 1 is 0")
  t.raises(function() nn.linear(w, nil, { compute = "s8", smooth = T.zeros { 63 } }) end, "smooth")
end)

t.test("a rotation leaves the product and spreads outliers", function()
  local x, w = T.noise({ 100, 192 }, { seed = 1 }), T.noise({ 48, 192 }, { seed = 2 })
  for _, column in ipairs { 5, 77, 150 } do x:slice(2, column, column):copy_(x:slice(2, column, column) * 30) end
  local want = nn.linear(w, nil, { compute = "f32" })(x)
  local function error_with(smooth, rotate)
    return (nn.linear(w, nil, { compute = "s8", smooth = smooth, rotate = rotate })(x) - want):norm() / want:norm()
  end
  local plain = error_with()
  for _, block in ipairs { 16, 32, 64 } do
    local e = error_with(nil, block)
    t.ok(e < 0.75 * plain, ("block %d: %.4f, plain %.4f"):format(block, e, plain))
  end
  local smooth = (x:abs():amax(1) / w:abs():amax(1)):sqrt()
  t.ok(error_with(smooth, 64) < plain)
  -- where it lies packed for others, and what cannot be
  local layer = nn.linear(nn.source(w), nil, { compute = "s8", smooth = smooth, rotate = 64, lazy = true })
  layer:pack()
  local form, again = layer:packed(), nn.linear(nn.source(w), nil, { compute = "s8", lazy = true })
  t.eq(again:pack(form), true)
  t.close(again(x), layer(x), 0, 0)
  for _, block in ipairs { 8, 48, 128, -16 } do
    t.raises(function() nn.linear(w, nil, { compute = "s8", rotate = block }) end, "192 columns cannot be rotated")
  end
end)

local folder = t.folder()
local path = folder .. "/starter8.safetensors"

t.test("the recipe writes a file that the model takes", function()
  local result, message = melies.run("quantize", { file = path, steps = 2, frames = 5 })
  assert(result, message)
  t.eq(#result.layers, 5 * 8)
  for _, row in ipairs(result.layers) do
    t.ok(row.plain > 0 and row.plain < 0.2 and row.smoothed <= row.plain, row.name .. " " .. row.plain)
    t.ok(row.best <= row.smoothed and row.best <= (row.rotated or row.best) and (row.block ~= nil) == (row.best < row.smoothed))
  end
  local read = assert(quantize.read(path))
  t.ok(next(read.smooth) ~= nil and next(read.rotate) ~= nil)
  for name, block in pairs(read.rotate) do t.eq(block, result.rotate[name]) end
  local p = { prompt = "a big red ball rolls over the grass", steps = 6, seed = 3, frames = 9 }
  melies.set_compute "f32"
  local exact = assert(melies.run("text_to_video", p))
  melies.set_compute "s8"
  local plain = assert(melies.run("text_to_video", p))
  p.quantization = path
  local calibrated = assert(melies.run("text_to_video", p))
  melies.set_compute "bf16"
  local function mse(a) return (a - exact):square():mean() end
  print(("     mean square error: plain %.2e, calibrated %.2e"):format(mse(plain), mse(calibrated)))
  t.ok(mse(calibrated) < 2e-3 and (calibrated - plain):norm() > 0)
end)

t.test("a threshold keeps matrices in bf16", function()
  local all = assert(melies.run("quantize", { file = folder .. "/kept.safetensors", steps = 1, frames = 1, threshold = 0 }))
  local kept = 0
  for _ in pairs(all.keep) do kept = kept + 1 end
  t.eq(kept, 40)
  t.eq(next(all.smooth), nil)
end)

t.test("other files are refused", function()
  local got, message = quantize.read(os.getenv "MELIES_ROOT" .. "/tests/models/starter/autoencoder.safetensors")
  t.eq(got, nil)
  t.ok(message:find("no calibration of melies", 1, true), message)
  got, message = melies.run("text_to_video", { prompt = "x", quantization = "/nowhere" })
  t.eq(got, nil)
  t.ok(message:find("/nowhere", 1, true), message)
end)

t.finish()
