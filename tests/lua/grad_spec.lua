-- Differentiation. Every backward pass against central differences of its forward pass: the loss is the inner product of
-- the result with fixed noise, summed in double; values are float32, so steps of 2^-7 and errors of a few thousandths of
-- the largest gradient are what can be asked. (The C tests compare with naive loops in double more tightly.)
local t = require "harness"
local melies = require "melies"
local T, grad = melies.tensor, melies.grad

melies.set_compute "f32"
local stream = 0
local function noise(...)
  stream = stream + 1
  return T.noise({ ... }, { seed = 5, stream = stream })
end

-- fn(variables...) -> variable. inputs: tensors; those in `fixed` (a set of positions) are passed as they are.
local function gradcheck(name, fn, inputs, options)
  options = options or {}
  local h, fixed = 2 ^ -7, options.fixed or {}
  t.test(name, function()
    local vars = {}
    for i, x in ipairs(inputs) do vars[i] = fixed[i] and x or grad.var(x) end
    local y = fn(unpack(vars))
    local dy = noise(unpack(y.shape))
    local function value()
      local out
      grad.no_grad(function() out = fn(unpack(inputs)).value:dot(dy) end)
      return out
    end
    grad.backward(y, dy)
    for i, x in ipairs(inputs) do
      if not fixed[i] then
        local g, n = t.ok(vars[i].grad, "input " .. i .. " has a gradient"):to("f32"):contiguous(), x:numel()
        local most = math.max(g:amax(), -g:amin(), 1e-3)
        for j = 1, n, math.max(1, math.floor(n / 24)) do
          local was = x:get(j)
          x:set(j, was + h)
          local up = value()
          x:set(j, was - h)
          local down = value()
          x:set(j, was)
          t.near(g:get(j), (up - down) / (2 * h), (options.tolerance or 4e-3) * (1 + most),
            ("input %d element %d"):format(i, j))
        end
      end
    end
  end)
end

-- ---- elementwise and shapes -------------------------------------------------------------------------------------

gradcheck("add broadcasts", function(a, b) return grad.add(a, b) end, { noise(3, 4, 5), noise(4, 1) })
gradcheck("sub broadcasts", function(a, b) return grad.sub(a, b) end, { noise(4, 1), noise(3, 4, 5) })
gradcheck("mul broadcasts", function(a, b) return grad.mul(a, b) end, { noise(3, 4, 5), noise(3, 1, 5) })
gradcheck("mul by what broadcasts to it", function(a, b) return grad.mul(a, b) end, { noise(5), noise(2, 3, 5) })
gradcheck("div", function(a, b) return grad.div(a, b) end, { noise(3, 5), noise(5):abs() + 1 })
gradcheck("numbers", function(a) return grad.add(grad.mul(2, grad.sub(1, a)), 3) end, { noise(7) })
gradcheck("a variable used twice", function(a) return grad.mul(a, grad.add(a, grad.mul(a, a))) end, { noise(7) })
for _, name in ipairs { "silu", "gelu", "gelu_erf", "quick_gelu", "tanh", "sigmoid", "exp", "sin", "cos", "square" } do
  gradcheck(name, function(a) return grad[name](a) end, { noise(40) })
end
gradcheck("relu", function(a) return grad.relu(a) end, { T.of { -2, -1, -0.5, 0.5, 1, 2 } })
for _, name in ipairs { "log", "sqrt", "rsqrt", "recip" } do
  gradcheck(name, function(a) return grad[name](a) end, { noise(20):abs() + 0.7 })
end
gradcheck("gated residual", function(x, h, g) return grad.gated(x, h, g) end,
  { noise(2, 5, 8), noise(2, 5, 8), noise(2, 1, 8) })
gradcheck("reshape and permute", function(a)
  return grad.permute(grad.reshape(grad.permute(a, 3, 1, 2), 5, -1), 2, 1)
end, { noise(3, 4, 5) })
gradcheck("slice", function(a) return grad.slice(a, -1, 2, 3) end, { noise(3, 4) })
gradcheck("pad", function(a) return grad.pad(a, 1, 2, 1, 0) end, { noise(3, 4) })
gradcheck("expand", function(a) return grad.expand(a, { 2, 3, 4 }) end, { noise(3, 1) })
gradcheck("concat", function(a, b) return grad.concat({ a, b }, 2) end, { noise(2, 3, 4), noise(2, 1, 4) })
gradcheck("stack", function(a, b) return grad.stack({ a, b }, 2) end, { noise(2, 3), noise(2, 3) })
gradcheck("pixel shuffles", function(a) return grad.pixel_unshuffle(grad.pixel_shuffle(a, 2), 4) end,
  { noise(1, 2, 2, 8) })
gradcheck("resize nearest", function(a) return grad.resize_nearest(a, 2, 7) end, { noise(2, 3, 4) })
gradcheck("gather", function(a) return grad.gather(a, T.of({ 1, 3, 1, 0 }, { 2, 2 }, "i64")) end, { noise(4, 6) })
gradcheck("sums", function(a) return grad.add(grad.sum(a, 2, true), grad.mean(a, -1, true)) end, { noise(3, 4, 5) })
gradcheck("means of all", function(a) return grad.add(grad.mean(a), grad.sum(grad.mul(a, 0.1))) end, { noise(3, 4) })

-- ---- layers ---------------------------------------------------------------------------------------------------------

gradcheck("linear", function(x, w, b) return grad.linear(x, w, b, { act = "gelu" }) end,
  { noise(2, 5, 7), noise(6, 7) * 0.4, noise(6) })
gradcheck("matmul", function(a, b) return grad.matmul(a, b) end, { noise(2, 3, 4), noise(2, 4, 5) })
gradcheck("matmul transposed", function(a, b) return grad.matmul(a, b, true) end, { noise(2, 3, 4), noise(2, 5, 4) })
gradcheck("layer norm with modulation", function(x, w, b, s, h)
  return grad.layer_norm(x, { weight = w, bias = b, scale = s, shift = h, eps = 1e-5 })
end, { noise(2, 5, 9), noise(9), noise(9), noise(2, 1, 9), noise(2, 1, 9) }, { tolerance = 6e-3 })
gradcheck("layer norm, one modulation for all", function(x, s, h)
  return grad.layer_norm(x, { scale = s, shift = h })
end, { noise(2, 40, 9), noise(9), noise(9) }, { tolerance = 6e-3 })
gradcheck("rms norm", function(x, w) return grad.rms_norm(x, { weight = w, act = "silu" }) end,
  { noise(3, 9), noise(9) }, { tolerance = 6e-3 })
gradcheck("l2 norm", function(x, w) return grad.l2_norm(x, { weight = w }) end, { noise(3, 9), noise(9) })
gradcheck("group norm", function(x, w, b) return grad.group_norm(x, { groups = 2, weight = w, bias = b }) end,
  { noise(2, 3, 3, 4), noise(4), noise(4) }, { tolerance = 6e-3 })
gradcheck("softmax", function(x) return grad.softmax(x) end, { noise(3, 9) })
local angles = noise(5, 4)
for _, interleaved in ipairs { true, false } do
  gradcheck("rope " .. tostring(interleaved), function(x)
    return grad.rope(x, angles:cos(), angles:sin(), { interleaved = interleaved })
  end, { noise(2, 5, 3, 8) })
end
gradcheck("attention", function(q, k, v) return grad.attention(q, k, v) end,
  { noise(2, 5, 2, 8), noise(2, 7, 2, 8), noise(2, 7, 2, 8) })
gradcheck("attention with biases", function(q, k, v, bias, keys)
  return grad.attention(q, k, v, { bias = bias, key_bias = keys })
end, { noise(2, 5, 2, 6), noise(2, 7, 2, 6), noise(2, 7, 2, 6), noise(1, 2, 5, 7),
  T.of({ 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, -math.huge, -math.huge }, { 2, 7 }) }, { fixed = { [5] = true } })
gradcheck("causal attention over more than one block", function(q, k, v)
  return grad.attention(q, k, v, { causal = true, scale = 0.3 })
end, { noise(1, 100, 1, 4), noise(1, 100, 1, 4), noise(1, 100, 1, 4) })
gradcheck("conv", function(x, w, b) return grad.conv(x, w, b, { stride = 2, pad = 1 }) end,
  { noise(2, 5, 6, 3), noise(4, 3, 3, 3) * 0.4, noise(4) })
gradcheck("conv of each channel alone", function(x, w) return grad.conv(x, w, nil, { groups = 4, pad = 1 }) end,
  { noise(2, 5, 5, 4), noise(4, 1, 3, 3) })
gradcheck("causal 3d conv", function(x, w, b)
  return grad.conv(x, w, b, { causal = true, pad = { 0, { 1, 1 }, { 1, 1 } } })
end, { noise(1, 3, 4, 4, 2), noise(3, 2, 3, 3, 3) * 0.4, noise(3) })
local goal, share = noise(3, 5), noise(5):abs()
gradcheck("mse", function(x) return grad.mse(x, goal) end, { noise(3, 5) })
gradcheck("weighted mse", function(x) return grad.mul(grad.mse(x, goal, share), 3) end, { noise(3, 5) })
gradcheck("cross entropy", function(x) return grad.cross_entropy(x, T.of({ 1, -100, 4 }, { 3 }, "i64")) end,
  { noise(3, 5) })
t.test("losses have their values", function()
  local x = T.of({ 1, 2, 3, 4 }, { 2, 2 })
  t.near(grad.mse(grad.const(x), T.of({ 0, 2, 3, 2 }, { 2, 2 })):item(), 5 / 4, 1e-6)
  local labels = T.of({ 0, 1 }, { 2 }, "i64")
  local want = (math.log(math.exp(1) + math.exp(2)) - 1 + math.log(math.exp(3) + math.exp(4)) - 4) / 2
  t.near(grad.cross_entropy(grad.const(x), labels):item(), want, 1e-6)
  t.raises(function() grad.cross_entropy(grad.const(x), T.of({ 0, 7 }, { 2 }, "i64")) end, "label 7 at 1 is outside 0..1")
end)

-- ---- bf16 -----------------------------------------------------------------------------------------------------------

t.test("bf16 work gives gradients near those of f32", function()
  local x, w, b, dy = noise(64, 48), noise(96, 48) * 0.2, noise(96), noise(64, 96)
  local q, k, v, da = noise(2, 80, 4, 24), noise(2, 33, 4, 24), noise(2, 33, 4, 24), noise(2, 80, 4, 24)
  local picture, kernel, dc = noise(3, 12, 12, 16), noise(32, 16, 3, 3) * 0.1, noise(3, 12, 12, 32)
  local function run(dtype)
    local vx, vw, vb = grad.var(x:to(dtype)), grad.param(w), grad.param(b)
    local y = grad.linear(vx, vw, vb, { compute = dtype })
    t.eq(y.dtype, dtype)
    grad.backward(y, dy:to(dtype))
    local a = { grad.var(q:to(dtype)), grad.var(k:to(dtype)), grad.var(v:to(dtype)) }
    grad.backward(grad.attention(a[1], a[2], a[3]), da:to(dtype))
    local p, c = grad.var(picture:to(dtype)), grad.param(kernel)
    grad.backward(grad.conv(p, c, nil, { pad = 1, compute = dtype }), dc:to(dtype))
    local out = { vx.grad, vw.grad, vb.grad, a[1].grad, a[2].grad, a[3].grad, p.grad, c.grad }
    for i, g in ipairs(out) do out[i] = g:to("f32"):contiguous() end
    return out
  end
  local wide, half = run "f32", run "bf16"
  for i = 1, #wide do
    local off = (wide[i] - half[i]):norm() / wide[i]:norm()
    t.ok(off < 0.015, ("gradient %d is off by %.4f"):format(i, off))
  end
end)

-- ---- the tape ---------------------------------------------------------------------------------------------------------

t.test("values are freed after backward unless kept", function()
  local w = grad.param(noise(4))
  local a = grad.mul(w, w)
  local kept = grad.mul(a, 2):keep()
  local y = grad.sum(kept)
  grad.backward(y)
  t.ok(kept.value:list()[1])
  t.raises(function() grad.mul(a, 2) end, "freed by grad.backward")
  t.ok(y:item())
  t.raises(function() grad.backward(y) end, "does not come from operations that are recorded")
end)
t.test("gradients add up over calls", function()
  local w = grad.param(T.of { 1, 2 })
  for _ = 1, 3 do grad.backward(grad.sum(grad.mul(w, w))) end
  t.close(w.grad, T.of { 6, 12 }, 1e-6)
  w:zero_grad()
  t.eq(w.grad, nil)
end)
t.test("nothing is recorded without need", function()
  local x = grad.const(noise(3))
  t.eq(grad.mul(x, 2).node, nil)
  local w, inner = grad.param(noise(3)), nil
  local y = grad.no_grad(function()
    inner = grad.mul(w, 2)
    return grad.add(inner, 1)
  end)
  t.eq(y.node, nil)
  t.eq(rawget(inner.value, "handle"), nil)
  t.ok(y.value:list()[1])
  t.raises(function() grad.no_grad(function() error("inside", 0) end) end, "inside")
  t.ok(grad.recording())
end)
t.test("checkpoints give the same gradients and keep less", function()
  local w = { grad.param(noise(64, 64) * 0.1), grad.param(noise(64, 64) * 0.1) }
  local x = noise(512, 64)
  local function block(v)
    for _ = 1, 6 do v = grad.add(v, grad.linear(grad.linear(v, w[1], nil, { act = "gelu" }), w[2])) end
    return v
  end
  local function run(fn)
    w[1]:zero_grad()
    w[2]:zero_grad()
    local v = grad.var(x)
    collectgarbage()
    collectgarbage()
    melies.memory()
    local before = melies.memory().live
    local y = v
    for _ = 1, 3 do y = fn(y) end
    collectgarbage()
    collectgarbage()
    local held = melies.memory().live - before
    grad.backward(grad.mean(grad.square(y)))
    return held, v.grad, w[1].grad, w[2].grad
  end
  local plain = { run(block) }
  local saved = { run(function(v) return grad.checkpoint(block, v) end) }
  t.ok(saved[1] < plain[1] / 5, ("%d bytes against %d"):format(saved[1], plain[1]))
  for i = 2, 4 do t.close(saved[i], plain[i], 1e-6, 1e-4) end
end)
t.test("a user's operation", function()
  local cube = grad.define { name = "cube",
    forward = function(ctx, x)
      ctx.x = x
      return x * x * x
    end,
    backward = function(ctx, dy) return dy * ctx.x * ctx.x * 3 end }
  local w = grad.param(T.of { 1, -2 })
  grad.backward(grad.sum(cube(w)))
  t.close(w.grad, T.of { 3, 12 }, 1e-6)
  local wrong = grad.define { name = "wrong", forward = function(_, x) return x * 2 end,
    backward = function(_, dy) return dy:slice(1, 1, 1) end }
  t.raises(function() grad.backward(grad.sum(wrong(w))) end, "wrong: the gradient of argument 1 is [1], its value is [2]")
  t.raises(function() grad.define { forwards = 1 } end, "did you mean 'forward'?")
end)
t.test("misuse is named", function()
  t.raises(function() grad.param(T.zeros({ 2 }, "bf16")) end, "weights are f32")
  t.raises(function() grad.backward(grad.mul(grad.param(noise(3)), 2)) end, "the root is [3]")
  t.raises(function() grad.linear(noise(2, 3), grad.param(noise(4, 5))) end, "[2, 3]")
  t.raises(function() grad.linear(noise(2, 3), grad.param(noise(4, 3)), nil, { akt = 1 }) end, "did you mean 'act'?")
end)

-- ---- threads -----------------------------------------------------------------------------------------------------------

t.test("the same bits for any number of threads", function()
  local x, w, b, dy = noise(700, 160), noise(320, 160) * 0.1, noise(320), noise(700, 320)
  local q, dq = noise(3, 130, 4, 32), noise(3, 130, 4, 32)
  local p, kernel, dp = noise(6, 24, 24, 32), noise(48, 32, 3, 3) * 0.1, noise(6, 24, 24, 48)
  local scale, weight, bias = noise(7, 1, 160), noise(160), noise(160)
  local function run(threads, dtype)
    melies.threads(threads)
    local vx, vw, vb = grad.var(x:to(dtype)), grad.param(w), grad.param(b)
    local vs, vn, vm = grad.var(scale), grad.param(weight), grad.param(bias)
    local h = grad.layer_norm(grad.reshape(vx, 7, 100, 160), { weight = vn, bias = vm, scale = vs, shift = vs })
    grad.backward(grad.linear(grad.reshape(h, 700, 160), vw, vb, { act = "gelu", compute = dtype }), dy:to(dtype))
    local a, c, d = grad.var(q:to(dtype)), grad.var(p:to(dtype)), grad.param(kernel)
    grad.backward(grad.attention(a, a, a), dq:to(dtype))
    grad.backward(grad.conv(c, d, nil, { pad = 1, compute = dtype }), dp:to(dtype))
    local list = {}
    for _, v in ipairs { vx, vw, vb, vs, vn, vm, a, c, d } do list[#list + 1] = v.grad:to("f32"):contiguous() end
    return list
  end
  local ffi = require "ffi"
  ffi.cdef "int memcmp(const void *, const void *, size_t);"
  for _, dtype in ipairs { "f32", "bf16" } do
    local one = run(1, dtype)
    for _, threads in ipairs { 2, 3, 8 } do
      for i, g in ipairs(run(threads, dtype)) do
        t.eq(ffi.C.memcmp(g:ptr(), one[i]:ptr(), g:bytes()), 0, ("%s, %d threads, gradient %d"):format(dtype, threads, i))
      end
    end
  end
  melies.threads(1)
end)

t.finish()
