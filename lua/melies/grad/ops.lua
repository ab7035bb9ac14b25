-- The differentiable operations, each a forward and a backward over tensors. Everything here is made with grad.define,
-- and is a method of variables too where the first argument is one.
local ffi = require "ffi"
local lib = require "melies.ffi.lib"
local T = require "melies.tensor"
local C, err, check = lib.C, lib.err, lib.check

local box_type, double_box, dims_type = ffi.typeof("mel_tensor*[1]"), ffi.typeof("double[1]"), ffi.typeof("int64_t[8]")
local function handle(t) return t and T.need(t, "grad", 3) or nil end
local function take(box) return box[0] ~= nil and T.wrap(box[0]) or nil end

local function dims(shape)
  local d = dims_type()
  for i = 1, #shape do d[i - 1] = shape[i] end
  return #shape, d
end

-- a * b (b may be nil) summed to a shape that broadcasts to a's.
local function sum_to(a, shape, b)
  local n, d = dims(shape)
  local box = box_type()
  check(C.mel_sum_to(handle(a), handle(b), n, d, box, err), 2)
  return T.wrap(box[0])
end

local function same(a, b)
  if #a ~= #b then return false end
  for i = 1, #a do if a[i] ~= b[i] then return false end end
  return true
end
-- A gradient brought back to the shape that was broadcast.
local function back_to(g, shape) return same(g.shape, shape) and g or sum_to(g, shape) end

local function matmul(a, ta, b, tb, bias, compute, dtype)
  local box = box_type()
  check(C.mel_train_matmul(handle(a), ta, handle(b), tb, handle(bias), T.dtype_code(compute), T.dtype_code(dtype), box,
    err), 3)
  return T.wrap(box[0])
end

local function compute_name(o) return o.compute or (tonumber(C.mel_compute()) == 1 and "bf16" or "f32") end

-- A weight in the dtype of the work: kept with its variable until the optimiser changes it.
local function working(ctx, index, w, compute)
  if w.dtype == compute then return w end
  local v = ctx.vars[index]
  if not v then return w:to(compute) end
  if not v.half or v.half.dtype ~= compute then v.half = w:to(compute) end
  return v.half
end

-- The same tensor in another dtype: freed with ctx where it is a new one.
local function cast(ctx, t, dtype)
  if t.dtype == dtype then return t end
  local c = t:to(dtype)
  ctx.temps = ctx.temps or {}
  ctx.temps[#ctx.temps + 1] = c
  return c
end

return function(grad)
  local define, methods, is = grad.define, grad.methods, grad.is
  local function op(name, forward, backward)
    local fn = define { name = name, forward = forward, backward = backward }
    grad[name], methods[name] = fn, fn
    return fn
  end

  -- ---- elementwise --------------------------------------------------------------------------------------------

  op("add", function(ctx, a, b)
    ctx.a, ctx.b = type(a) ~= "number" and a.shape, type(b) ~= "number" and b.shape
    return a + b
  end, function(ctx, dy)
    return ctx.needs[1] and back_to(dy, ctx.a), ctx.needs[2] and back_to(dy, ctx.b)
  end)
  op("sub", function(ctx, a, b)
    ctx.a, ctx.b = type(a) ~= "number" and a.shape, type(b) ~= "number" and b.shape
    return a - b
  end, function(ctx, dy)
    return ctx.needs[1] and back_to(dy, ctx.a), ctx.needs[2] and back_to(-dy, ctx.b)
  end)
  -- d/da of a * b, where b may be a number.
  local function product(dy, a, b)
    if type(b) == "number" or same(dy.shape, a.shape) then return dy * b end
    return sum_to(dy, a.shape, b)
  end
  op("mul", function(ctx, a, b)
    ctx.x, ctx.y = a, b
    return a * b
  end, function(ctx, dy)
    return ctx.needs[1] and product(dy, ctx.x, ctx.y), ctx.needs[2] and product(dy, ctx.y, ctx.x)
  end)
  op("div", function(ctx, a, b)
    ctx.x, ctx.y = a, b
    return a / b
  end, function(ctx, dy)
    local a, b = ctx.x, ctx.y
    local r = dy / b
    return ctx.needs[1] and back_to(r, a.shape), ctx.needs[2] and back_to(-(r * (a / b)), b.shape)
  end)
  methods.__add, methods.__sub, methods.__mul, methods.__div = grad.add, grad.sub, grad.mul, grad.div
  methods.__unm = function(x) return grad.mul(x, -1) end
  op("to", function(ctx, x, dtype)
    ctx.dtype = x.dtype
    return x:to(dtype)
  end, function(ctx, dy) return dy:to(ctx.dtype) end)

  -- grad.act(x, "silu"), and each by its name.
  local act = define { name = "act", forward = function(ctx, x, name)
    local box = box_type()
    ctx.x, ctx.code = x, T.act_code(name, 3)
    check(C.mel_activate(ctx.code, handle(x), -1, box, err), 2)
    return T.wrap(box[0])
  end, backward = function(ctx, dy)
    local box = box_type()
    check(C.mel_activate_backward(ctx.code, handle(ctx.x), handle(dy), box, err), 2)
    return T.wrap(box[0])
  end }
  grad.act = act
  for _, name in ipairs { "silu", "gelu", "gelu_erf", "quick_gelu", "relu", "tanh", "sigmoid" } do
    grad[name] = function(x) return act(x, name) end
    methods[name] = grad[name]
  end
  local function activated(y, name) return name and act(y, name) or y end

  local function unary(name, slope)
    op(name, function(ctx, x)
      local y = x[name](x)
      ctx.x, ctx.y = x, y
      return y
    end, function(ctx, dy) return dy * slope(ctx.x, ctx.y) end)
  end
  unary("exp", function(_, y) return y end)
  unary("log", function(x) return x:recip() end)
  unary("sqrt", function(_, y) return 0.5 / y end)
  unary("rsqrt", function(_, y) return y * y * y * -0.5 end)
  unary("square", function(x) return x * 2 end)
  unary("sin", function(x) return x:cos() end)
  unary("cos", function(x) return -x:sin() end)
  unary("recip", function(_, y) return -(y * y) end)

  -- x + h * gate: the residual of a modulated block. gate broadcasts; nil: 1.
  op("gated", function(ctx, x, h, gate)
    ctx.h, ctx.gate, ctx.dtype = h, gate, h.dtype
    return x:clone():add_(h, 1, gate)
  end, function(ctx, dy)
    local gate = ctx.gate
    local dh = ctx.needs[2] and (gate and (dy * gate):to(ctx.dtype) or dy:to(ctx.dtype))
    return dy, dh, gate and ctx.needs[3] and sum_to(dy, gate.shape, ctx.h)
  end)

  -- ---- shapes -----------------------------------------------------------------------------------------------

  local reshape = define { name = "reshape", forward = function(ctx, x, shape)
    ctx.shape = x.shape
    return x:reshape(shape)
  end, backward = function(ctx, dy) return dy:reshape(ctx.shape) end }
  function grad.reshape(x, ...)
    local shape = ...
    return reshape(x, type(shape) == "table" and shape or { ... })
  end
  local permute = define { name = "permute", forward = function(ctx, x, axes)
    ctx.back = {}
    for i, a in ipairs(axes) do ctx.back[a > 0 and a or a + #axes + 1] = i end
    return x:permute(axes)
  end, backward = function(ctx, dy) return dy:permute(ctx.back) end }
  function grad.permute(x, ...)
    local axes = ...
    return permute(x, type(axes) == "table" and axes or { ... })
  end
  function grad.transpose(x, a, b)
    local axes, n = {}, x.ndim
    for i = 1, n do axes[i] = i end
    a, b = a > 0 and a or a + n + 1, b > 0 and b or b + n + 1
    axes[a], axes[b] = axes[b], axes[a]
    return permute(x, axes)
  end
  function grad.unsqueeze(x, axis)
    local shape = { unpack(x.shape) }
    table.insert(shape, axis > 0 and axis or axis + #shape + 2, 1)
    return reshape(x, shape)
  end
  function grad.squeeze(x, axis)
    local shape = { unpack(x.shape) }
    axis = axis > 0 and axis or axis + #shape + 1
    if shape[axis] ~= 1 then error(("squeeze: axis %d of %s is not 1"):format(axis, x.value:shape_text()), 2) end
    table.remove(shape, axis)
    return reshape(x, shape)
  end
  for _, name in ipairs { "reshape", "permute", "transpose", "unsqueeze", "squeeze" } do methods[name] = grad[name] end

  op("contiguous", function(_, x) return x:contiguous() end, function(_, dy) return dy end)
  op("expand", function(ctx, x, shape)
    ctx.shape = x.shape
    return x:expand(shape)
  end, function(ctx, dy) return back_to(dy, ctx.shape) end)
  op("slice", function(ctx, x, axis, first, last)
    local n = x.shape[axis > 0 and axis or axis + x.ndim + 1]
    ctx.axis, ctx.total, ctx.from = axis, n, first and (first < 0 and first + n + 1 or first) or 1
    return x:slice(axis, first, last)
  end, function(ctx, dy)
    local count = dy.shape[ctx.axis > 0 and ctx.axis or ctx.axis + dy.ndim + 1]
    return dy:pad(ctx.axis, ctx.from - 1, ctx.total - ctx.from + 1 - count, 0)
  end)
  op("pad", function(ctx, x, axis, before, after, value)
    if value == "edge" then error("pad: only a constant border has a gradient", 4) end
    ctx.axis, ctx.before, ctx.n = axis, before, x.shape[axis > 0 and axis or axis + x.ndim + 1]
    return x:pad(axis, before, after, value)
  end, function(ctx, dy) return dy:slice(ctx.axis, ctx.before + 1, ctx.before + ctx.n) end)

  -- grad.concat({a, b, ...}, axis = 1)
  local concat = define { name = "concat", forward = function(ctx, axis, ...)
    local parts, at = { ... }, 1
    ctx.axis, ctx.ranges = axis, {}
    for i, p in ipairs(parts) do
      local n = p.shape[axis > 0 and axis or axis + p.ndim + 1]
      ctx.ranges[i] = { at, at + n - 1 }
      at = at + n
    end
    return T.concat(parts, axis)
  end, backward = function(ctx, dy)
    local out = { false }
    for i, r in ipairs(ctx.ranges) do out[i + 1] = ctx.needs[i + 1] and dy:slice(ctx.axis, r[1], r[2]) end
    return unpack(out)
  end }
  function grad.concat(parts, axis) return concat(axis or 1, unpack(parts)) end
  function grad.stack(parts, axis)
    local views = {}
    for i, p in ipairs(parts) do views[i] = is(p) and grad.unsqueeze(p, axis or 1) or p:unsqueeze(axis or 1) end
    return grad.concat(views, axis)
  end

  -- grad.gather(table, ids): rows by ids that count from 0.
  local function scatter(dy, ids, rows)
    local box = box_type()
    check(C.mel_scatter_add(handle(dy), handle(ids), rows, box, err), 2)
    return T.wrap(box[0])
  end
  op("gather", function(ctx, rows, ids, dtype)
    ctx.ids, ctx.rows = ids, rows.shape[1]
    return T.gather(rows, ids, dtype)
  end, function(ctx, dy) return scatter(dy, ctx.ids, ctx.rows) end)
  -- Nearest neighbour along an axis, as tensor:resize(axis, size, "nearest").
  op("resize_nearest", function(ctx, x, axis, size)
    axis = axis > 0 and axis or axis + x.ndim + 1
    ctx.axis, ctx.n = axis, x.shape[axis]
    local ids = {}
    for i = 1, size do ids[i] = math.min(ctx.n - 1, math.floor((i - 0.5) * ctx.n / size)) end
    ctx.ids = T.of(ids, { size }, "i64")
    return x:resize(axis, size, "nearest")
  end, function(ctx, dy)
    return scatter(dy:transpose(1, ctx.axis), ctx.ids, ctx.n):transpose(1, ctx.axis)
  end)
  -- As tensor.pixel_shuffle and pixel_unshuffle.
  function grad.pixel_shuffle(x, r)
    local n, h, w, c = unpack(x.shape)
    return grad.reshape(grad.permute(grad.reshape(x, n, h, w, c / (r * r), r, r), 1, 2, 5, 3, 6, 4), n, h * r, w * r,
      c / (r * r))
  end
  function grad.pixel_unshuffle(x, r)
    local n, h, w, c = unpack(x.shape)
    return grad.reshape(grad.permute(grad.reshape(x, n, h / r, r, w / r, r, c), 1, 2, 4, 6, 3, 5), n, h / r, w / r,
      c * r * r)
  end
  methods.pixel_shuffle, methods.pixel_unshuffle = grad.pixel_shuffle, grad.pixel_unshuffle

  -- ---- sums and losses ------------------------------------------------------------------------------------------

  local function over_all(name, share)
    local all = define { name = name, forward = function(ctx, x)
      ctx.shape, ctx.dtype = x.shape, x.dtype
      return T.of({ x[name](x) }, { 1 })
    end, backward = function(ctx, dy)
      local n = 1
      for _, d in ipairs(ctx.shape) do n = n * d end
      return T.full(ctx.shape, dy:item() * share(n), ctx.dtype)
    end }
    local along = define { name = name, forward = function(ctx, x, axis, keep)
      axis = axis > 0 and axis or axis + x.ndim + 1
      ctx.shape, ctx.axis = x.shape, axis
      return x[name](x, axis, keep)
    end, backward = function(ctx, dy)
      local shape = { unpack(ctx.shape) }
      local n = shape[ctx.axis]
      shape[ctx.axis] = 1
      return (dy:reshape(shape) * share(n)):expand(ctx.shape)
    end }
    grad[name] = function(x, axis, keep)
      if axis then return along(x, axis, keep) end
      return all(x)
    end
    methods[name] = grad[name]
  end
  over_all("sum", function() return 1 end)
  over_all("mean", function(n) return 1 / n end)

  -- The gradient of a loss is worked out with its value, and only scaled later.
  local function loss(name, run)
    return op(name, function(ctx, x, ...)
      local value, box = double_box(), ctx.needs[1] and box_type() or nil
      run(x, value, box, ...)
      if box then
        ctx.dx = T.wrap(box[0])
        ctx.temps = { ctx.dx }
      end
      return T.of({ value[0] }, { 1 })
    end, function(ctx, dy)
      local s = dy:item()
      return s == 1 and grad.alias(ctx.dx) or ctx.dx * s
    end)
  end
  -- mse(x, target, weight): mean(weight * (x - target)^2). target and weight: tensors.
  loss("mse", function(x, value, box, target, weight)
    check(C.mel_mse(handle(x), handle(target), handle(weight), value, box, err), 3)
  end)
  -- cross_entropy(x [.., V], labels [..], ignore = -100): mean over the labels that are not `ignore`; they count from 0.
  loss("cross_entropy", function(x, value, box, labels, ignore)
    check(C.mel_cross_entropy(handle(x), handle(labels), ignore or -100, value, box, err), 3)
  end)

  -- ---- products ---------------------------------------------------------------------------------------------------

  local linear = define { name = "linear", forward = function(ctx, x, w, b, o)
    local compute = compute_name(o)
    ctx.compute, ctx.dtype = compute, x.dtype
    ctx.x, ctx.w, ctx.bias = cast(ctx, x, compute), working(ctx, 2, w, compute), b and b.shape
    return matmul(ctx.x, false, ctx.w, true, b, compute, o.dtype or x.dtype)
  end, backward = function(ctx, dy)
    local d = cast(ctx, dy, ctx.compute)
    return ctx.needs[1] and matmul(d, false, ctx.w, false, nil, ctx.compute, ctx.dtype),
      ctx.needs[2] and matmul(d, true, ctx.x, false, nil, ctx.compute, "f32"),
      ctx.needs[3] and sum_to(d, ctx.bias)
  end }
  local linear_options = { act = true, compute = true, dtype = true }
  -- linear(x [.., K], weight [N, K], bias [N] or nil, {act=, compute=, dtype=}): dtype is x's unless given.
  function grad.linear(x, weight, bias, o)
    o = o or {}
    lib.check_options("grad.linear", o, linear_options)
    return activated(linear(x, weight, bias, o), o.act)
  end
  methods.linear = grad.linear

  local function geometry(weight, o)
    local n = weight.ndim - 2
    local stride, before, after = ffi.new("int64_t[3]"), ffi.new("int64_t[3]"), ffi.new("int64_t[3]")
    for i = 1, math.min(n, 3) do
      local s, p = o.stride or 1, o.pad or 0
      stride[i - 1] = type(s) == "table" and s[i] or s
      if type(p) == "table" then p = p[i] end
      before[i - 1] = type(p) == "table" and p[1] or p
      after[i - 1] = type(p) == "table" and p[2] or p
    end
    if o.causal then before[0], after[0] = weight.shape[3] - 1, 0 end
    return { stride, before, after, o.groups or 1 }
  end
  local conv = define { name = "conv", forward = function(ctx, x, w, b, o)
    local g, box = geometry(w, o), box_type()
    ctx.compute = compute_name(o)
    ctx.x, ctx.w, ctx.g, ctx.bias = x, working(ctx, 2, w, ctx.compute), g, b and b.shape
    check(C.mel_train_conv(handle(x), handle(ctx.w), handle(b), g[1], g[2], g[3], g[4], T.dtype_code(ctx.compute),
      T.dtype_code(o.dtype), box, err), 3)
    return T.wrap(box[0])
  end, backward = function(ctx, dy)
    local g, dx, dw = ctx.g, ctx.needs[1] and box_type() or nil, ctx.needs[2] and box_type() or nil
    check(C.mel_train_conv_backward(handle(ctx.x), handle(ctx.w), handle(dy), g[1], g[2], g[3], g[4],
      T.dtype_code(ctx.compute), dx, dw, err), 2)
    return dx and take(dx), dw and take(dw), ctx.needs[3] and sum_to(dy, ctx.bias)
  end }
  local conv_options = { act = true, compute = true, dtype = true, stride = true, pad = true, causal = true,
    groups = true }
  -- conv(x, weight, bias or nil, {stride=, pad=, causal=, groups=, act=, compute=, dtype=}): as nn.conv, channels last.
  function grad.conv(x, weight, bias, o)
    o = o or {}
    lib.check_options("grad.conv", o, conv_options)
    return activated(conv(x, weight, bias, o), o.act)
  end
  methods.conv = grad.conv

  -- matmul(a [..., M, K], b [..., K, N]): batch dimensions must be the same. transposed: b is [..., N, K].
  local function batched(ctx, a, b, transposed)
    ctx.a, ctx.b, ctx.transposed = a, b, transposed
    return a:matmul(b, { transpose = transposed or false })
  end
  op("matmul", batched, function(ctx, dy)
    local a, b = ctx.a, ctx.b
    local da, db
    if ctx.needs[1] then da = dy:matmul(b, { transpose = not ctx.transposed, dtype = a.dtype }) end
    if ctx.needs[2] then
      db = ctx.transposed and dy:transpose(-1, -2):matmul(a, { dtype = b.dtype })
        or a:transpose(-1, -2):matmul(dy, { dtype = b.dtype })
      db = back_to(db, b.shape)
    end
    return da and back_to(da, a.shape), db
  end)

  -- ---- norms --------------------------------------------------------------------------------------------------

  local function norm(name, kind)
    local run = define { name = name, forward = function(ctx, x, weight, bias, scale, shift, o)
      ctx.x, ctx.weight, ctx.bias, ctx.scale, ctx.shift, ctx.eps = x, weight, bias, scale, shift, o.eps or 1e-6
      local box = box_type()
      local args = { handle(x), handle(weight) }
      if kind == 0 then
        check(C.mel_layer_norm(args[1], args[2], handle(bias), ctx.eps, handle(scale), handle(shift), 0,
          T.dtype_code(o.dtype), box, err), 3)
      elseif kind == 1 then
        check(C.mel_rms_norm(args[1], args[2], ctx.eps, handle(scale), handle(shift), 0, T.dtype_code(o.dtype), box,
          err), 3)
      else
        check(C.mel_l2_norm(args[1], args[2], 0, T.dtype_code(o.dtype), box, err), 3)
      end
      return T.wrap(box[0])
    end, backward = function(ctx, dy)
      local boxes = {}
      for i = 1, 5 do boxes[i] = (i == 1 or ctx.needs[i]) and box_type() or nil end
      check(C.mel_norm_backward(kind, handle(ctx.x), handle(dy), handle(ctx.weight), handle(ctx.bias), ctx.eps,
        handle(ctx.scale), handle(ctx.shift), boxes[1], boxes[2], boxes[3], boxes[4], boxes[5], err), 2)
      local out = {}
      for i = 1, 5 do out[i] = boxes[i] and T.wrap(boxes[i][0]) or false end
      return unpack(out, 1, 5)
    end }
    local options = { weight = true, bias = true, eps = true, scale = true, shift = true, act = true, dtype = true }
    grad[name] = function(x, o)
      o = o or {}
      lib.check_options("grad." .. name, o, options)
      return activated(run(x, o.weight, o.bias, o.scale, o.shift, o), o.act)
    end
    methods[name] = grad[name]
  end
  -- x:layer_norm{weight=, bias=, eps=1e-6, scale=, shift=, act=, dtype=}, and so on, as tensors have them. scale and
  -- shift: [D] or [.., 1.., D] with x's leading dimensions.
  norm("layer_norm", 0)
  norm("rms_norm", 1)
  norm("l2_norm", 2)

  local group = define { name = "group_norm", forward = function(ctx, x, weight, bias, o)
    ctx.x, ctx.weight, ctx.o = x, weight, o
    return x:group_norm { groups = o.groups, weight = weight, bias = bias, eps = o.eps, dtype = o.dtype }
  end, backward = function(ctx, dy)
    local dx, dw, db = box_type(), ctx.needs[2] and box_type() or nil, ctx.needs[3] and box_type() or nil
    check(C.mel_group_norm_backward(handle(ctx.x), handle(dy), ctx.o.groups or 1, handle(ctx.weight), ctx.o.eps or 1e-5,
      dx, dw, db, err), 2)
    return T.wrap(dx[0]), dw and T.wrap(dw[0]), db and T.wrap(db[0])
  end }
  local group_options = { groups = true, weight = true, bias = true, eps = true, act = true, dtype = true }
  function grad.group_norm(x, o)
    lib.check_options("grad.group_norm", o, group_options)
    return activated(group(x, o.weight, o.bias, o), o.act)
  end
  methods.group_norm = grad.group_norm

  op("softmax", function(ctx, x)
    ctx.y = x:softmax()
    return ctx.y
  end, function(ctx, dy)
    local box = box_type()
    check(C.mel_softmax_backward(handle(ctx.y), handle(dy), box, err), 2)
    return T.wrap(box[0])
  end)

  -- ---- attention ------------------------------------------------------------------------------------------------

  -- rope(x [B, L, H, D], cos, sin, {interleaved = true}): a rotation, whose inverse is its transpose.
  op("rope", function(ctx, x, cos, sin, o)
    ctx.cos, ctx.sin, ctx.o = cos, sin, { interleaved = not o or o.interleaved ~= false }
    return x:rope(cos, sin, ctx.o)
  end, function(ctx, dy) return dy:rope(ctx.cos, -ctx.sin, ctx.o) end)

  local attention = define { name = "attention", forward = function(ctx, q, k, v, bias, o)
    ctx.q, ctx.k, ctx.v, ctx.bias, ctx.key_bias, ctx.causal = q, k, v, bias, o.key_bias, o.causal or false
    ctx.scale = o.scale or 1 / math.sqrt(q.shape[4])
    return T.attention(q, k, v, { scale = ctx.scale, bias = bias, key_bias = o.key_bias, causal = ctx.causal })
  end, backward = function(ctx, dy)
    local b = {}
    for i = 1, 4 do b[i] = ctx.needs[i] and box_type() or nil end
    check(C.mel_attention_backward(handle(ctx.q), handle(ctx.k), handle(ctx.v), handle(dy), ctx.scale, handle(ctx.bias),
      handle(ctx.key_bias), ctx.causal, b[1], b[2], b[3], b[4], err), 2)
    local out = {}
    for i = 1, 4 do out[i] = b[i] and T.wrap(b[i][0]) or false end
    return unpack(out, 1, 4)
  end }
  local attention_options = { scale = true, bias = true, key_bias = true, causal = true }
  -- attention(q, k, v, {scale=, bias=, key_bias=, causal=}): [B, L, H, D] each. bias may be a variable.
  function grad.attention(q, k, v, o)
    o = o or {}
    lib.check_options("grad.attention", o, attention_options)
    return attention(q, k, v, o.bias, o)
  end
end
