-- AdamW: against the formulas in double, clipping, the moving average, what is refused.
local t = require "harness"
local melies = require "melies"
local T, grad, optim = melies.tensor, melies.grad, melies.optim

t.test("AdamW follows its formulas", function()
  local start, n = T.noise({ 3, 50 }, { seed = 1 }), 150
  local bias = T.noise({ 7 }, { seed = 2 })
  local params = { w = grad.param(start:clone()), b = grad.param(bias:clone()) }
  local lr, b1, b2, eps, decay = 0.01, 0.8, 0.95, 1e-6, 0.1
  local opt = optim.adamw(params, { lr = lr, betas = { b1, b2 }, eps = eps, weight_decay = decay })
  local p, m, v = start:list(), {}, {}
  local pb, mb, vb = bias:list(), {}, {}
  local function follow(q, mm, vv, g, step, wd)
    for i = 1, #q do
      mm[i] = b1 * (mm[i] or 0) + (1 - b1) * g[i]
      vv[i] = b2 * (vv[i] or 0) + (1 - b2) * g[i] ^ 2
      q[i] = q[i] - lr * wd * q[i] - lr * (mm[i] / (1 - b1 ^ step)) / (math.sqrt(vv[i] / (1 - b2 ^ step)) + eps)
    end
  end
  for step = 1, 5 do
    local g, gb = T.noise({ 3, 50 }, { seed = 3, stream = step }), T.noise({ 7 }, { seed = 4, stream = step })
    params.w.grad, params.b.grad = g:clone(), gb:clone()
    local norm = opt:step()
    t.near(norm, math.sqrt(g:sumsq() + gb:sumsq()), 1e-4)
    follow(p, m, v, g:list(), step, decay)
    follow(pb, mb, vb, gb:list(), step, 0) -- vectors do not decay
  end
  t.eq(opt.step_count, 5)
  t.close(params.w.value, T.of(p, { 3, 50 }), 2e-6, 1e-5)
  t.close(params.b.value, T.of(pb), 2e-6, 1e-5)
  t.eq(params.w.grad, nil)
  t.eq(n, params.w:numel())
end)

t.test("clipping brings the norm down, and scale comes first", function()
  local function after(o)
    local params = { w = grad.param(T.zeros { 4 }) }
    local opt = optim.adamw(params, { lr = 1, betas = { 0, 0 }, eps = 1, weight_decay = 0 })
    params.w.grad = T.of { 3, 0, 0, 4 }
    local norm = opt:step(o)
    return norm, params.w.value
  end
  -- With both betas 0 a step is g / (|g| + 1).
  local norm, w = after { clip = 1 }
  t.near(norm, 5, 1e-6)
  t.close(w, T.of { -0.6 / 1.6, 0, 0, -0.8 / 1.8 }, 1e-6)
  norm, w = after { clip = 1, scale = 0.1 }
  t.near(norm, 0.5, 1e-6)
  t.close(w, T.of { -0.3 / 1.3, 0, 0, -0.4 / 1.4 }, 1e-6)
end)

t.test("the moving average follows", function()
  local params = { w = grad.param(T.of { 1 }) }
  local opt = optim.adamw(params, { lr = 0.5, ema = 0.9 })
  local ema = 1
  for step = 1, 30 do
    params.w.grad = T.of { 1 }
    opt:step()
    local d = math.min(0.9, (1 + step) / (10 + step))
    ema = d * ema + (1 - d) * params.w.value:get(1)
  end
  t.near(opt.ema.w:get(1), ema, 1e-4)
end)

t.test("a gradient that is not finite changes nothing and is named", function()
  local params = { a = grad.param(T.of { 1, 2 }), b = grad.param(T.of { 3 }) }
  local opt = optim.adamw(params)
  params.a.grad, params.b.grad = T.of { 1, 0 / 0 }, T.of { 1 }
  local norm, message = opt:step()
  t.eq(norm, nil)
  t.ok(message:find("the gradient of a has 1 values that are not finite", 1, true), message)
  t.eq(params.b.value:get(1), 3)
  t.eq(opt.step_count, 0)
end)

t.test("a parameter without a gradient stays", function()
  local params = { a = grad.param(T.full({ 2, 2 }, 1)), b = grad.param(T.full({ 2, 2 }, 1)) }
  local opt = optim.adamw(params, { lr = 0.1 })
  params.a.grad = T.full({ 2, 2 }, 1)
  opt:step()
  t.eq(params.b.value:get(1), 1)
  t.ok(params.a.value:get(1) < 1)
end)

t.test("weights in bf16 are made anew after a step", function()
  local w = grad.param(T.noise({ 32, 32 }, { seed = 5 }))
  local x = T.noise({ 8, 32 }, { seed = 6 })
  local opt = optim.adamw({ w = w }, { lr = 0.1 })
  local before = grad.no_grad(function() return grad.linear(x, w, nil, { compute = "bf16" }) end).value
  grad.backward(grad.mean(grad.linear(x, w, nil, { compute = "bf16" })))
  opt:step()
  local after = grad.no_grad(function() return grad.linear(x, w, nil, { compute = "bf16" }) end).value
  t.ok((after - before):norm() > 1e-2)
end)

t.test("misuse is named", function()
  t.raises(function() optim.adamw({}) end, "there are no parameters")
  t.raises(function() optim.adamw({ w = T.zeros { 2 } }) end, "'w' is table; a table of name = grad.param")
  t.raises(function() optim.adamw({ w = grad.param(T.zeros { 2 }) }, { weight_deacy = 1 }) end,
    "did you mean 'weight_decay'?")
  local w = grad.param(T.zeros { 2 })
  local opt = optim.adamw({ w = w }, { lr = -1 })
  w.grad = T.of { 1, 1 }
  t.raises(function() opt:step() end, "lr -1")
end)

t.test("Muon makes the singular values of a step alike, and minimises where AdamW crawls", function()
  local muon = require "melies.muon"
  for _, shape in ipairs { { 24, 24 }, { 16, 40 }, { 40, 16 } } do
    local g = T.noise(shape, { seed = 5 })
    local o = muon.orthogonal(g)
    local small = shape[1] <= shape[2] and o:matmul(o, { transpose = true })
      or o:transpose(1, 2):contiguous():matmul(o, {})
    local n = math.min(shape[1], shape[2])
    t.near(small:sum(1):sum(1):item() / n, small:sum(1):mean(), 1e-3)
    local diagonal = 0
    for i = 1, n do diagonal = diagonal + small:select(1, i):get(i) end
    t.ok(diagonal / n > 0.5 and diagonal / n < 1.4, diagonal / n) -- singular values of 0.7 to 1.2
    t.ok((small:sumsq() - n) / n < 0.6, small:sumsq() / n) -- and little beside the diagonal
    t.ok(g:dot(o) > 0)
  end
  -- an ill-conditioned quadratic |A (W - W0)|: columns of A scaled from 1 to 1/30
  local a, wanted = T.noise({ 32, 32 }, { seed = 6 }), T.noise({ 32, 32 }, { seed = 7 })
  local scale = {}
  for i = 1, 32 do scale[i] = 30 ^ (-(i - 1) / 31) end
  a = a * T.of(scale, { 1, 32 })
  local function left(make)
    local params = { w = grad.param(T.zeros { 32, 32 }), b = grad.param(T.zeros { 32 }) }
    local opt = make(params, { weight_decay = 0, ema = 0.9 })
    for step = 1, 60 do
      grad.backward(grad.mse(grad.matmul(T.of(a:list(), { 32, 32 }), params.w), a:matmul(wanted)))
      assert(opt:step { lr = 0.3 * (1 - step / 61) })
    end
    return (params.w.value - wanted):sumsq() / wanted:sumsq(), opt
  end
  local with, opt = left(muon.new)
  t.ok(with < 0.5 * left(optim.adamw), with)
  t.eq(opt:tensors()["v/w"]:numel(), 1) -- a matrix needs no second moment
  t.ok(opt:tensors()["ema/w"])
end)

t.finish()
