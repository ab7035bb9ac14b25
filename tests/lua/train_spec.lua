-- The training loop: it learns, a killed run goes on with the same bits, what goes wrong loses nothing; and what is
-- trained loads in the model that generates.
local t = require "harness"
local ffi = require "ffi"
local melies = require "melies"
local T, grad, train = melies.tensor, melies.grad, melies.train
local wan = require "melies.grad.wan_dit"

ffi.cdef "int memcmp(const void *, const void *, size_t);"
local function same_bits(a, b)
  return a:bytes() == b:bytes() and ffi.C.memcmp(a:contiguous():ptr(), b:contiguous():ptr(), a:bytes()) == 0
end
local function read(path)
  local f = io.open(path, "rb")
  if not f then return nil end
  local text = f:read("*a")
  f:close()
  return text
end

-- ---- a small network on a toy function ------------------------------------------------------------------------------

local function mlp(seed)
  local function matrix(n, k, stream) return T.noise({ n, k }, { seed = seed, stream = stream }) * (1 / math.sqrt(k)) end
  return { w1 = grad.param(matrix(32, 2, 1)), b1 = grad.param(T.zeros { 32 }), w2 = grad.param(matrix(1, 32, 2)),
    b2 = grad.param(T.zeros { 1 }) }
end
local function toy(p)
  return function(step)
    local x = step:uniform({ 64, 2 }) * 4 - 2
    local y = (x:slice(2, 1, 1) * 1.5):sin() * x:slice(2, 2, 2)
    local h = grad.linear(x, p.w1, p.b1, { act = "silu" })
    return grad.mse(grad.linear(h, p.w2, p.b2), y), { seen = 64 }
  end
end
local function toy_run(folder, o)
  local p = mlp(7)
  local options = { params = p, loss = toy(p), steps = 60, lr = 0.02, schedule = "cosine", warmup = 5, clip = 1,
    ema = 0.99, accumulate = 2, seed = 3, folder = folder, every = 10 }
  for key, value in pairs(o or {}) do options[key] = value end
  return train.new(options)
end

t.test("a two-layer network learns a function", function()
  local losses = {}
  local run = toy_run(nil, { steps = 400, every = 1000, on_step = function(r)
    losses[#losses + 1] = r.loss
    t.eq(r.seen, 64)
  end })
  t.ok(run:run())
  local function mean(a, b)
    local s = 0
    for i = a, b do s = s + losses[i] end
    return s / (b - a + 1)
  end
  t.ok(mean(381, 400) < 0.05 * mean(1, 10), ("%.4f of %.4f"):format(mean(381, 400), mean(1, 10)))
  t.ok(not same_bits(run:weights(true).w1, run:weights().w1), "the moving average is another")
end)

t.test("the rate warms up, then follows its schedule", function()
  local o = { lr = 1, warmup = 4, schedule = "cosine", steps = 104, final = 0.1 }
  t.near(train.rate(o, 2), 0.5, 1e-12)
  t.near(train.rate(o, 5), 1, 1e-12)
  t.near(train.rate(o, 55), 0.55, 1e-12)
  t.near(train.rate({ lr = 2, steps = 10, schedule = "linear" }, 6), 1, 1e-12)
  t.near(train.rate({ lr = 2, steps = 10 }, 6), 2, 0)
end)

-- ---- resume --------------------------------------------------------------------------------------------------------

-- A run in a process of its own that is killed without warning after `kill` steps, in the middle of things.
local child = [[
package.path = %q
local melies = require "melies"
local T, grad, train = melies.tensor, melies.grad, melies.train
local p = {}
local function matrix(n, k, s) return grad.param(T.noise({ n, k }, { seed = 7, stream = s }) * (1 / math.sqrt(k))) end
p.w1, p.w2 = matrix(64, 8, 1), matrix(8, 64, 2)
local position = 0
local run = assert(train.new {
  params = p, steps = 40, lr = 0.01, schedule = "cosine", warmup = 3, ema = 0.9, accumulate = 2, seed = 11,
  folder = %q, every = 7, config = { what = "child" },
  data = { state = function() return { position = position } end, restore = function(s) position = s.position end },
  loss = function(step)
    position = position + 1
    local x = step:noise({ 32, 8 }) * (1 + position / 100)
    local y = grad.linear(grad.linear(x, p.w1, nil, { act = "gelu" }), p.w2)
    return grad.mse(y, x * step:random())
  end,
  on_step = function(r)
    if r.step == %d then os.execute("kill -9 $PPID") while true do end end
  end,
})
io.write(run.step, "\n")
io.stdout:flush()
assert(run:run())
]]
local function in_child(folder, kill, environment)
  local script = t.folder() .. "/child.lua"
  local f = assert(io.open(script, "w"))
  f:write(child:format(package.path, folder, kill))
  f:close()
  local pipe = io.popen(("%s '%s' '%s' 2>&1"):format(environment or "", arg[-1] or "luajit", script))
  local out = pipe:read("*a")
  pipe:close()
  return out
end

t.test("a run that is killed and resumed ends with the same bits", function()
  local whole, broken = t.folder(), t.folder()
  t.eq(in_child(whole, 0), "0\n")
  t.ok(in_child(broken, 18):find("^0\n"))
  t.eq(train.checkpoints(broken)[1].step, 14)
  t.ok(in_child(broken, 30):find("^14\n"))
  t.eq(in_child(broken, 0, "OMP_NUM_THREADS=2"), "28\n")
  local a = train.checkpoints(whole)
  t.eq(#a, 2, "two are kept")
  t.eq(a[1].step, 40)
  local one, two = read(a[1].path), read(broken .. "/step-00000040.safetensors")
  t.ok(one and two and #one > 4000)
  t.ok(one == two, "the files are the same, byte for byte")
end)

t.test("the mean of runs that began from one", function()
  local a, b, c = t.folder(), t.folder(), t.folder()
  assert(assert(toy_run(a, { steps = 10 })):run())
  local other = assert(toy_run(b, { steps = 20, seed = 4, resume = false, may_differ = { "seed", "steps" } }))
  assert(other:resume(a))
  t.eq(other.step, 10)
  assert(other:run())
  local first = assert(toy_run(a, { steps = 20, may_differ = { "steps" } }))
  assert(first:run())
  local one, two = train.checkpoints(a)[1].path, train.checkpoints(b)[1].path
  local mean = c .. "/step-00000020.safetensors"
  assert(train.average({ one, two }, mean))
  local function get(path, name) return assert(melies.weights.open(path)):get(name) end
  for _, name in ipairs { "weights/w1", "m/w2", "ema/b1" } do
    t.ok((get(one, name) - get(two, name)):norm() > 0)
    t.close(get(mean, name), (get(one, name) + get(two, name)) * 0.5, 1e-7, 1e-6)
  end
  t.eq(assert(toy_run(c, { steps = 20, may_differ = { "steps" } })).step, 20)
  local ok, message = train.average({ one, train.checkpoints(a)[2].path }, mean)
  t.ok(not ok and message:find("is of step", 1, true), message)
end)

t.test("a damaged checkpoint is skipped, half-written ones are cleared", function()
  local folder = t.folder()
  t.ok(toy_run(folder, { keep = 3 }):run(30))
  local list = train.checkpoints(folder)
  t.eq(#list, 3)
  local text = read(list[1].path)
  local f = io.open(list[1].path, "wb")
  f:write(text:sub(1, #text / 2))
  f:close()
  f = io.open(folder .. "/step-00000040.safetensors.part-1-1", "wb")
  f:write("x")
  f:close()
  local run = t.ok(toy_run(folder))
  t.eq(run.step, 20)
  t.ok(run.notes[1]:find("step-00000030", 1, true), run.notes[1])
  t.eq(read(folder .. "/step-00000040.safetensors.part-1-1"), nil)
  t.ok(run:run())
  local other = toy_run(nil)
  t.ok(other:run())
  t.ok(same_bits(run:weights().w1, other:weights().w1), "the same as a run that was not interrupted")
end)

t.test("another configuration is refused by what differs", function()
  local folder = t.folder()
  t.ok(toy_run(folder, { config = { crop = 64 } }):run(10))
  local run, message = toy_run(folder, { config = { crop = 96 }, lr = 0.03 })
  t.eq(run, nil)
  t.ok(message:find("config.crop was 64, is 96; lr was 0.02", 1, true), message)
  t.ok(toy_run(folder, { config = { crop = 96 }, lr = 0.03, may_differ = { "config", "lr" } }))
  local p = mlp(7)
  p.w2 = grad.param(T.zeros { 2, 32 })
  run, message = toy_run(folder, { config = { crop = 64 }, params = p })
  t.eq(run, nil)
  t.ok(message:find("parameters.w2 was [1, 32], is [2, 32]", 1, true), message)
  t.ok(toy_run(folder, { config = { crop = 64 } }).step == 10)
  t.eq(toy_run(folder, { resume = false }).step, 0)
end)

-- ---- what goes wrong -----------------------------------------------------------------------------------------------

t.test("a loss that becomes NaN stops the run and keeps the last good state", function()
  local folder, p = t.folder(), mlp(7)
  local loss = toy(p)
  local run = toy_run(folder, { params = p, loss = function(step)
    local l = loss(step)
    return step.index == 14 and grad.mul(l, 0 / 0) or l
  end })
  local ok, message = run:run()
  t.eq(ok, nil)
  t.ok(message:find("step 14: the loss is NaN", 1, true), message)
  t.ok(message:find("the state of step 13 is kept in", 1, true), message)
  local good = toy_run(folder)
  t.eq(good.step, 13)
  t.ok(good:run())
  local other = toy_run(nil)
  t.ok(other:run())
  t.ok(same_bits(good:weights().w2, other:weights().w2))
end)

t.test("a gradient that is not finite is named", function()
  local p = mlp(7)
  local run = toy_run(nil, { params = p, loss = function() return grad.sum(grad.sqrt(grad.mul(p.b1, p.b1))) end })
  local ok, message = run:run()
  t.eq(ok, nil)
  t.ok(message:find("step 1: the gradient of b1", 1, true), message)
end)

t.test("a cancel keeps the state", function()
  local folder, p = t.folder(), mlp(7)
  local loss = toy(p)
  local run = toy_run(folder, { params = p, loss = function(step)
    if step.index == 5 and step.micro == 2 then require("melies.ffi.lib").C.mel_cancel() end
    return loss(step)
  end })
  local ok, message = run:run()
  t.eq(ok, nil)
  t.ok(message:find("canceled", 1, true) and message:find("step 4", 1, true), message)
  local again = toy_run(folder)
  t.eq(again.step, 4)
  t.ok(again:run())
  local other = toy_run(nil)
  t.ok(other:run())
  t.ok(same_bits(again:weights().w1, other:weights().w1))
end)

t.test("a full disk is told, and what was saved stays", function()
  local folder = t.folder()
  -- Files may grow to 8 KiB only: a write past it fails as on a full disk.
  local ok = in_child(folder, 0, "trap '' XFSZ; ulimit -f 8;")
  t.ok(ok:find("the checkpoint of step 40 was not written", 1, true), ok)
  t.eq(#train.checkpoints(folder), 0)
  t.eq(#melies.fs.list(folder), 0)
  in_child(folder, 10)
  ok = in_child(folder, 0, "trap '' XFSZ; ulimit -f 8;")
  t.ok(ok:find("the checkpoint of step 40 was not written", 1, true), ok)
  t.eq(train.checkpoints(folder)[1].step, 7)
  t.eq(in_child(folder, 0), "7\n")
end)

t.test("misuse is named", function()
  t.raises(function() train.new { params = mlp(1), loss = function() end, steps = 0 } end, "steps is a count")
  t.raises(function() train.new { params = mlp(1), loss = function() end, steps = 1, schedule = "cosin" } end,
    "did you mean 'cosine'?")
  t.raises(function() train.new { params = mlp(1), loss = function() end, steps = 1, folders = "x" } end,
    "did you mean 'folder'?")
  local run = train.new { params = mlp(1), loss = function() return 1 end, steps = 1 }
  t.raises(function() run:run() end, "loss must return a variable")
  local none, message = train.new { params = mlp(1), loss = function() end, steps = 1, folder = "/proc/nothing/here" }
  t.eq(none, nil)
  t.ok(message:find("/proc/nothing", 1, true), message)
end)

-- ---- a transformer in Wan's layout ----------------------------------------------------------------------------------

local sizes = { dim = 48, heads = 4, ffn = 96, layers = 2, channels = 4, text_dim = 24, freq_dim = 32 }

-- Clips whose latents are one of four patterns, told apart by their texts; rectified flow.
local function make_data()
  local patterns, texts = {}, {}
  for i = 1, 4 do
    patterns[i] = T.noise({ 1, 4, 2, 4, 4 }, { seed = 50, stream = i })
    texts[i] = T.noise({ 3, 24 }, { seed = 51, stream = i })
  end
  return patterns, texts
end

t.test("a small Wan transformer learns, saves, and loads in the model", function()
  local compute = melies.compute()
  local params = wan.init(sizes, 9)
  local net = wan.net(params, { heads = 4, text_len = 16 })
  local patterns, texts = make_data()
  local losses = {}
  local run = t.ok(train.new { params = params, steps = 300, lr = 4e-3, schedule = "cosine", warmup = 10, clip = 1,
    weight_decay = 0.01, ema = 0.98, on_step = function(r) losses[#losses + 1] = r.loss end,
    loss = function(step)
      local x0, words, times, sigma = {}, {}, {}, {}
      for i = 1, 8 do
        local k = step:random(4)
        x0[i], words[i], sigma[i] = patterns[k], texts[k], step:random()
        times[i] = 1000 * sigma[i]
      end
      local clean, s = T.concat(x0, 1), T.of(sigma, { 8, 1, 1, 1, 1 })
      local noise = step:noise(clean.shape)
      local text, key_bias = wan.padded(words, 4, 16)
      local v = net:forward(clean * (1 - s) + noise * s, times, text, key_bias)
      return grad.mse(v, noise - clean)
    end })
  t.ok(run:run())
  local first, last = 0, 0
  for i = 1, 20 do first, last = first + losses[i] / 20, last + losses[#losses - i + 1] / 20 end
  t.ok(last < 0.5 * first, ("the loss went from %.3f to %.3f"):format(first, last))

  local path = t.folder() .. "/dit.safetensors"
  t.ok(melies.weights.save(path, run:weights(true), { trained = "here" }))
  local model = require "melies.models.wan_dit"
  local file = t.ok(melies.weights.open(path))
  local loaded = model.load(file, { heads = 4, text_len = 16 })
  -- The same forward pass: of the averaged weights in both.
  local averaged = {}
  for name, x in pairs(run:weights(true)) do averaged[name] = grad.param(x) end
  local twin = wan.net(averaged, { heads = 4, text_len = 16 })
  local x = T.noise({ 2, 4, 2, 4, 4 }, { seed = 60 })
  local text, key_bias = wan.padded({ texts[1], texts[2] }, 4, 16)
  local mine = grad.no_grad(function() return twin:forward(x, { 300, 800 }, text, key_bias) end).value
  local context = loaded:context { texts[1], texts[2] }
  local theirs = loaded:forward(x, { 300, 800 }, context)
  local off = (mine - theirs):norm() / theirs:norm()
  t.ok(off < (compute == "bf16" and 0.02 or 1e-5), ("the velocities differ by %.2g"):format(off))

  -- Sampling from it gives the pattern that the text names, not another.
  local one = loaded:context { texts[3] }
  local z, n = T.noise({ 1, 4, 2, 4, 4 }, { seed = 61 }), 12
  for i = 0, n - 1 do
    z = z - loaded:forward(z, { 1000 * (1 - i / n) }, one) * (1 / n)
  end
  local best, least = 0, math.huge
  for k = 1, 4 do
    local d = (z - patterns[k]):norm()
    if d < least then best, least = k, d end
  end
  t.eq(best, 3)
end)

t.test("a LoRA learns beside frozen weights, and can be merged", function()
  local base = {}
  for name, p in pairs(wan.init(sizes, 9)) do base[name] = p.value end
  base["head.head.weight"] = T.noise(base["head.head.weight"].shape, { seed = 1 }) * 0.1
  local net = wan.net(base, { heads = 4, text_len = 16, compute = "f32" })
  local params = {}
  for _, name in ipairs { "blocks.0.self_attn.q", "blocks.1.ffn.0" } do
    local s = base[name .. ".weight"].shape
    local down, up = grad.param(T.noise({ 2, s[2] }, { seed = 2 }) * 0.1), grad.param(T.zeros { s[1], 2 })
    params[name .. ".down"], params[name .. ".up"] = down, up
    net.lora[name] = { down = down, up = up, scale = 0.5 }
  end
  local x, text = T.noise({ 2, 4, 2, 4, 4 }, { seed = 60 }), T.noise({ 2, 4, 24 }, { seed = 61 })
  local goal, losses = T.noise({ 2, 4, 2, 4, 4 }, { seed = 62 }), {}
  local run = t.ok(train.new { params = params, steps = 30, lr = 0.02, on_step = function(r) losses[r.step] = r.loss end,
    loss = function() return grad.mse(net:forward(x, { 300, 800 }, text), goal) end })
  t.ok(run:run())
  t.ok(losses[30] < losses[1] * 0.97, ("%.4f of %.4f"):format(losses[30], losses[1]))
  local tuned = grad.no_grad(function() return net:forward(x, { 300, 800 }, text) end).value
  for name, l in pairs(net.lora) do
    base[name .. ".weight"] = base[name .. ".weight"] + l.up.value:matmul(l.down.value) * l.scale
  end
  net.lora = {}
  t.close(grad.no_grad(function() return net:forward(x, { 300, 800 }, text) end).value, tuned, 1e-4, 1e-4)
end)

t.test("memory does not grow over steps", function()
  local params = wan.init(sizes, 9)
  local net = wan.net(params, { heads = 4, text_len = 16 })
  local x, text = T.noise({ 2, 4, 2, 4, 4 }, { seed = 60 }), T.noise({ 2, 4, 24 }, { seed = 61 })
  local run = t.ok(train.new { params = params, steps = 40, loss = function()
    return grad.mse(net:forward(x, { 300, 800 }, text), x)
  end })
  local function live(last)
    t.ok(run:run(last))
    collectgarbage()
    collectgarbage()
    return melies.memory().live
  end
  local before = live(3)
  t.ok(live(40) <= before + 4096)
end)

t.test("blocks that are computed twice give the same gradients", function()
  local function gradients(save_memory)
    local params = wan.init(sizes, 9)
    local net = wan.net(params, { heads = 4, text_len = 16, compute = "f32" })
    net.save_memory = save_memory
    params["head.head.weight"].value:copy_(T.noise(params["head.head.weight"].shape, { seed = 1 }) * 0.1)
    local x, text = T.noise({ 2, 4, 2, 4, 4 }, { seed = 60 }), T.noise({ 2, 4, 24 }, { seed = 61 })
    grad.backward(grad.mean(grad.square(net:forward(x, { 300, 800 }, text))))
    return params
  end
  local a, b = gradients(false), gradients(true)
  for name, p in pairs(a) do
    t.ok(p.grad, name .. " has a gradient")
    t.close(b[name].grad, p.grad, 1e-7, 1e-4, name)
  end
end)

t.finish()
