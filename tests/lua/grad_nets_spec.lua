-- The networks for training are those that generate: the same weights give the same results in both, what is fresh loads,
-- every parameter has a gradient, and a few steps bring the loss down.
local t = require "harness"
local melies = require "melies"
local T, grad, train = melies.tensor, melies.grad, melies.train
local t5, taehv, wan = require "melies.grad.t5", require "melies.grad.taehv", require "melies.grad.wan_dit"

local root = os.getenv "MELIES_ROOT" or "."

local function golden(name)
  local file = assert(melies.weights.open(("%s/tests/golden/%s.weights.safetensors"):format(root, name)))
  local config = melies.json.read(("%s/tests/golden/%s.json"):format(root, name))
  local params = {}
  for _, key in ipairs(file:names()) do params[key] = grad.param(file:get(key):to("f32"):clone()) end
  return file, config.config or config, params
end
local function values(params)
  local out = {}
  for name, p in pairs(params) do out[name] = p.value end
  return out
end
local function relative(a, b) return (a - b):norm() / b:norm() end
local function all_have_gradients(params)
  for name, p in pairs(params) do t.ok(p.grad and p.grad:norm() > 0, name .. " has a gradient") end
end

for _, name in ipairs { "t5v1_1", "umt5" } do
  t.test(name .. ": as the model encodes", function()
    local file, config, params = golden(name)
    local model = require("melies.models.t5").load(file, config, { compute = "f32" })
    local net = t5.net(params, { compute = "f32", eps = config.eps, max_distance = config.max_distance })
    local ids = T.of({ 5, 9, 2, 7, 1, 0, 3, 1, 0, 0, 0, 0 }, { 2, 6 }, "i64")
    local mask = T.of({ 1, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0, 0 }, { 2, 6 })
    local want = model:forward(ids, mask)
    local got = grad.no_grad(function() return net:forward(ids, mask) end).value
    t.ok(relative(got:slice(1, 1, 1):slice(2, 1, 5), want:slice(1, 1, 1):slice(2, 1, 5)) < 2e-5)
    t.ok(relative(got:slice(1, 2, 2):slice(2, 1, 2), want:slice(1, 2, 2):slice(2, 1, 2)) < 2e-5)
  end)
end

for name, extra in pairs { plain = {}, preconditioned = { preconditioned = true }, positions = { positions = { 3, 2, 4 } },
  pooled = { pooled = true } } do
  t.test("wan_dit: as the model predicts: " .. name, function()
    local file, config, params = golden "wan_dit"
    for key, value in pairs(extra) do config[key] = value end
    local model = require("melies.models.wan_dit").load(file, config, { compute = "f32" })
    local net = wan.net(params, { heads = model.head_count, eps = config.eps, text_len = model.text_len, compute = "f32",
      preconditioned = extra.preconditioned, positions = extra.positions, pooled = extra.pooled })
    local p = model.patch
    local x = T.noise({ 2, model.latent_channels, 2 * p[1], 2 * p[2], 3 * p[3] }, { seed = 1 })
    local texts = { T.noise({ 3, model.text_dim }, { seed = 2 }), T.noise({ 5, model.text_dim }, { seed = 3 }) }
    local context = model:join { model:context { texts[1] }, model:context { texts[2] } }
    local want = model:forward(x, { 120, 870 }, context)
    local text, key_bias = wan.padded(texts, 6, model.text_len)
    local got = grad.no_grad(function() return net:forward(x, { 120, 870 }, text, key_bias) end).value
    t.ok(relative(got, want) < 2e-5, relative(got, want))
    for key in pairs(extra) do model[key] = false end
    if name == "pooled" then context = model:context(texts) end
    local without = model:forward(x, { 120, 870 }, context)
    if name == "preconditioned" then -- sigma 0.12: d = 0.7888
      local by_hand = without:select(1, 1) * (1 / math.sqrt(0.7888)) + x:select(1, 1) * ((2 * 0.12 - 1) / 0.7888)
      t.ok(relative(want:select(1, 1), by_hand) < 1e-6)
    elseif name ~= "plain" then
      t.ok(relative(want, without) > 1e-3, name .. " changes nothing")
    end
  end)
end

t.test("positions: rows and columns on the grid of the training, frames where there are more", function()
  local ditkit = require "melies.ditkit"
  local a = ditkit.positions(16, 3, 2, 4, { 3, 2, 4 })
  t.eq(table.concat(a.shape, " "), "1 24 16")
  local doubled = ditkit.positions(16, 6, 4, 8, { 3, 2, 4 })
  local function at(x, f, y, c, rows, columns)
    return x:select(1, 1):select(1, ((f - 1) * rows + y - 1) * columns + c)
  end
  t.close(at(doubled, 3, 3, 5, 4, 8), at(a, 2, 2, 3, 2, 4), 1e-6)
  t.close(at(ditkit.positions(16, 1, 2, 4, { 3, 2, 4 }, 2), 1, 2, 1, 2, 4), at(a, 3, 2, 1, 2, 4), 1e-6)
  t.near(at(a, 2, 1, 1, 2, 4):get(1), math.sin(1), 1e-6)
end)

for _, shared in ipairs { false, true } do
  t.test("a fresh T5 loads, and every parameter has a gradient: shared " .. tostring(shared), function()
    local params = t5.init({ vocabulary = 20, dim = 24, inner = 32, heads = 4, ffn = 40, layers = 2, shared = shared }, 3)
    local net = t5.net(params, { compute = "f32" })
    local ids = T.of({ 5, 9, 2, 7, 1, 19, 3, 1 }, { 2, 4 }, "i64")
    local model = require("melies.models.t5").load(values(params), {}, { compute = "f32" })
    local got = grad.no_grad(function() return net:forward(ids) end).value
    t.ok(relative(got, model:forward(ids)) < 2e-5)
    grad.backward(grad.mse(net:forward(ids), T.noise { 2, 4, 24 }))
    all_have_gradients(params)
  end)
end

for _, name in ipairs { "taehv", "taehv_p2", "taehv_super" } do
  t.test(name .. ": as the model encodes and decodes", function()
    local file, config, params = golden(name)
    local model = require("melies.models.taehv").load(file, config, { compute = "f32" })
    local net = taehv.net(params, { compute = "f32" })
    local size = 16 * net.patch
    local a, b = T.uniform({ 8, size, size, 3 }, { seed = 1 }), T.uniform({ 8, size, size, 3 }, { seed = 2 })
    local latent = grad.no_grad(function() return net:encode(T.stack { a, b }) end).value -- [B, t, h, w, C]
    local frames = grad.no_grad(function() return net:decode(latent) end).value
    for i, clip in ipairs { a, b } do
      local want = model:encode(clip)
      t.ok(relative(latent:select(1, i):permute(4, 1, 2, 3), want) < 2e-5)
      local video = model:decode(want)
      local mine = frames:select(1, i):clamp(0, 1)
      t.eq(mine.shape[1], video.shape[1] + 3)
      t.ok(relative(mine:slice(1, 4), video) < 2e-5)
    end
  end)
end

t.test("a fresh autoencoder loads, learns, and every parameter has a gradient", function()
  local sizes = { latent = 4, width = 12, widths = { 16, 12, 8, 8 } }
  local params = taehv.init(sizes, 4)
  local model = require("melies.models.taehv").load(values(params), {})
  t.eq(model.latent_channels, 4)
  t.eq(model.stride[1], 4)
  local net = taehv.net(params)
  local losses = {}
  local run = t.ok(train.new { params = params, steps = 30, lr = 4e-3, clip = 1, on_step = function(r)
    losses[#losses + 1] = r.loss
  end, loss = function(step)
    local colours = step:uniform { 2, 1, 1, 1, 3 }
    local video = colours:expand({ 2, 4, 16, 16, 3 }):contiguous()
    return grad.mse(net:decode(net:encode(video)), video)
  end })
  t.ok(run:run())
  t.ok(losses[30] < 0.5 * losses[1], ("%.4f of %.4f"):format(losses[30], losses[1]))
  grad.backward(grad.mean(grad.square(net:decode(net:encode(T.uniform { 1, 8, 16, 16, 3 })))))
  all_have_gradients(params)
end)

t.finish()
