-- What 8 bits cost at full size: the relative error of the velocity at each step, against float32, of a Wan 1.3B with
-- random weights, for bf16 and 8 bits as they come, smoothed, and smoothed or rotated (melies.quantize).
--   build/melies run tests/bench/velocity_error.lua [BLOCKS] [STEPS] [LATENT ROWS]
-- BLOCKS of its 30 (2 by default), each step from the point where the float32 path stands; 5 latent frames of 16 x 16:
-- 320 tokens. Random weights have no outliers; trained ones do. In the second table 1% of the channels that each block's
-- modulation scales are 20 times as large, and 1% of the feed-forward's hidden channels 6 times.
local melies = require "melies"
local fake, quantize = require "melies.fake", melies.quantize
local T = melies.tensor

local blocks, steps, rows = tonumber(arg[1] or 2), tonumber(arg[2] or 3), tonumber(arg[3] or 16)
local dit = require "melies.models.wan_dit"
local shape = { 16, 5, rows, rows }
local sigmas = melies.schedule.flow(steps, { shift = 3 })
local base, config = fake.weights("wan2.1-t2v-1.3b", { layers = blocks })

local function one_in_a_hundred(size, seed, factor) -- [size] of ones and some factors
  local draw = T.uniform({ size }, { seed = seed })
  local chosen = (draw * -1 + 0.01):clamp(0, 1e-6) * 1e6
  return chosen:clamp(0, 1) * (factor - 1) + 1
end

local function with_outliers()
  local tensors = {}
  for _, name in ipairs(base:names()) do
    local x = base:get(name)
    local block = tonumber(name:match "^blocks%.(%d+)%.")
    if block and name:find "modulation$" then
      x = x:to("f32"):clone()
      for _, row in ipairs { 2, 5 } do -- the scales of the norms before attention and feed-forward
        local scale = x:slice(2, row, row)
        scale:copy_((scale + 1) * one_in_a_hundred(x.shape[3], 10 * block + row, 20):reshape(1, 1, x.shape[3]) - 1)
      end
    elseif block and name:find "ffn%.0%.weight$" then
      x = (x:to "f32" * one_in_a_hundred(x.shape[1], 10 * block, 6):reshape(x.shape[1], 1)):to "bf16"
    end
    tensors[name] = x
  end
  return melies.weights.from_table(tensors)
end

local function load(weights, compute, quantization)
  return dit.load(weights, { heads = config.heads }, { compute = compute, quantization = quantization })
end

local function text_of(prompt) return T.noise({ 30, 4096 }, { seed = #prompt }) end
local function velocity(net, x, sigma, texts)
  return net:forward(x:unsqueeze(1), sigma * 1000, net:context(texts))
end

-- As much of a model as calibration wants.
local function model_of(net, weights)
  local model = { name = "fake", dit = net, sources = { dit = { weights = weights } }, space = "flow",
    defaults = { guidance = 5, shift = 3 } }
  function model:latent_shape() return shape, self end
  function model:encode(prompt) return text_of(prompt), self end
  function model:to_x0(x, sigma, v) return T.lincomb { 1, x, -sigma, v }, self end
  function model:predict(x, sigma, texts)
    local out, all = velocity(self.dit, x, sigma, texts), {}
    for i = 1, #texts do all[i] = out:select(1, i) end
    return all
  end
  return model
end

local function table_of(title, weights)
  print("\n" .. title)
  local text, x = text_of "another prompt", T.noise(shape, { seed = 7 })
  local exact, path, want = load(weights, "f32"), {}, {}
  for i = 1, steps do
    local v = velocity(exact, x, sigmas[i], { text })
    path[i], want[i] = x, v
    x = T.lincomb { 1, x, sigmas[i + 1] - sigmas[i], v:select(1, 1) }
  end
  exact = nil -- luacheck: ignore
  collectgarbage()
  local calibrated = {}
  for _, rotate in ipairs { false, true } do
    calibrated[rotate] = assert(quantize.calibrate(model_of(load(weights, "bf16"), weights), { "a prompt" },
      { steps = 2, threshold = 1, rotate = rotate }))
  end
  local function mean(rotate, field)
    local sum, list = 0, calibrated[rotate].layers
    for _, row in ipairs(list) do sum = sum + row[field] end
    return sum / #list
  end
  local head = {}
  for i = 1, steps do head[i] = ("  step %d"):format(i) end
  print(("%-32s %s   mean of the matrices"):format("", table.concat(head, " ")))
  local none = { smooth = {}, rotate = {}, keep = {} }
  for _, way in ipairs { { "bf16", "bf16" }, { "8 bits", "s8", none, mean(false, "plain") },
    { "8 bits, smoothed", "s8", calibrated[false], mean(false, "best") },
    { "8 bits, smoothed or rotated", "s8", calibrated[true], mean(true, "best") } } do
    local net, errors = load(weights, way[2], way[3]), {}
    for i = 1, steps do
      local v = velocity(net, path[i], sigmas[i], { text })
      errors[i] = ("%7.3f%%"):format(100 * (v - want[i]):norm() / want[i]:norm())
    end
    print(("%-32s %s   %s"):format(way[1], table.concat(errors, " "),
      way[4] and ("%.2f%%"):format(100 * way[4]) or "-"))
  end
end

print(("Wan 1.3B, %d of 30 blocks, %d tokens: relative error of the velocity against float32"):format(blocks,
  shape[2] * rows * rows / 4))
table_of("random weights", base)
table_of("with outliers", with_outliers())
