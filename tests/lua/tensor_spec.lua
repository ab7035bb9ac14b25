-- Tensors and operations from Lua, against plain Lua arithmetic.
local t = require "harness"
local melies = require "melies"
local T, nn = melies.tensor, melies.nn

t.test("loops over pairs are whole, compiled or not", function()
  local inner = { 1, 2, 3, 4, 5 }
  local outer = { a = inner, b = inner, c = inner, d = inner, e = inner }
  local function hot() for _ = 1, 100 do end end
  for _ = 1, 60000 do
    hot()
    local n = 0
    for _, list in pairs(outer) do
      for _ in pairs(list) do end
      n = n + 1
    end
    t.eq(n, 5)
  end
end)

t.test("shapes, views, indices from 1", function()
  local x = T.of({ { 1, 2, 3 }, { 4, 5, 6 } })
  t.eq(x:shape_text(), "[2, 3]")
  t.eq(x:slice(2, -1):list()[2], 6)
  t.eq(x:select(1, 2):list()[1], 4)
  t.eq(table.concat(x:transpose(1, 2):list(), " "), "1 4 2 5 3 6")
  t.eq(x:transpose(1, 2):reshape(-1):get(2), 4)
  t.eq(x:unsqueeze(1):shape_text(), "[1, 2, 3]")
  t.eq(x:unsqueeze(-1):shape_text(), "[2, 3, 1]")
  t.eq(x:unsqueeze(2):squeeze(2):shape_text(), "[2, 3]")
  t.eq(x.dtype, "f32")
  t.raises(function() x:slice(3, 1) end, "no axis 3 in a tensor of shape [2, 3]")
  t.raises(function() x:slice(1, 3) end, "outside axis 1")
  t.raises(function() return x.shap end, "did you mean 'shape'")
  t.raises(function() return T.zeros({ 2 }, "f33") end, "unknown dtype 'f33'")
end)

t.test("misuse is raised at the caller's line", function()
  local x = T.zeros { 2, 3 }
  local here = debug.getinfo(1, "l").currentline + 1
  local message = t.raises(function() return x + T.zeros { 4 } end, "[2, 3] and [4] do not broadcast")
  t.ok(message:find("tensor_spec.lua:" .. here, 1, true), message)
  message = t.raises(function() x:layer_norm { wieght = x } end, "did you mean 'weight'?")
  t.ok(message:find("tensor_spec.lua", 1, true), message)
end)

t.test("arithmetic broadcasts", function()
  local x, y = T.of { { 1, 2 }, { 3, 4 } }, T.of({ 10, 20 }, { 2 })
  t.eq(table.concat((x + y):list(), " "), "11 22 13 24")
  t.eq(table.concat((x * y:reshape(2, 1)):list(), " "), "10 20 60 80")
  t.eq(table.concat((2 - x):list(), " "), "1 0 -1 -2")
  t.eq(table.concat((x ^ 2):list(), " "), "1 4 9 16")
  t.eq(table.concat((-x):list(), " "), "-1 -2 -3 -4")
  t.eq(table.concat(T.maximum(x, 2.5):list(), " "), "2.5 2.5 3 4")
  x:add_(y, 0.5, T.of({ 1, 0 }, { 2, 1 }))
  t.eq(table.concat(x:list(), " "), "6 12 3 4")
end)

t.test("reductions", function()
  local x = T.of { { 1, 2, 3 }, { 4, 5, 7 } }
  t.eq(table.concat(x:sum(1):list(), " "), "5 7 10")
  t.eq(table.concat(x:mean(2):list(), " "), "2 5.3333334922791")
  t.eq(x:amax(-1, true):shape_text(), "[2, 1]")
  t.eq(x:sum(), 22)
  t.eq(x:amin(), 1)
  t.near(x:norm(), math.sqrt(104), 1e-6)
  t.eq(x:dot(x), 104)
  t.eq(T.of({ 0 / 0, 1, 1 / 0 }):nonfinite(), 2)
end)

t.test("moving", function()
  local x = T.of { { 1, 2 }, { 3, 4 } }
  t.eq(table.concat(T.concat({ x, x }, 2):list(), " "), "1 2 1 2 3 4 3 4")
  t.eq(T.stack({ x, x, x }, 1):shape_text(), "[3, 2, 2]")
  t.eq(table.concat(x:pad(1, 1, 0, "edge"):list(), " "), "1 2 1 2 3 4")
  t.eq(table.concat(x:pad(2, 0, 1, 9):list(), " "), "1 2 9 3 4 9")
  t.eq(table.concat(T.gather(x, T.of({ 1, 0, 1 }, { 3 }, "i64")):list(), " "), "3 4 1 2 3 4")
  t.raises(function() T.gather(x, T.of({ 2 }, { 1 }, "i64")) end, "id 2 at 1 is outside 0..1")
end)

t.test("resize", function()
  local x = T.of({ 0, 1, 2, 3 }, { 4 })
  t.eq(table.concat(x:resize(1, 8, "nearest"):list(), " "), "0 0 1 1 2 2 3 3")
  t.eq(table.concat(x:resize(1, 2, "area"):list(), " "), "0.5 2.5")
  t.eq(table.concat(x:resize(1, 2, "bilinear"):list(), " "), "0.5 2.5")
  t.near(x:resize(1, 8, "bilinear"):get(2), 0.25, 1e-6)
  t.near(x:resize(1, 3, "bicubic"):mean(), 1.5, 1e-6)
end)

local function naive_linear(x, w, b)
  local rows, k, n, out = x.shape[1], x.shape[2], w.shape[1], {}
  local xs, ws, bs = x:list(), w:list(), b:list()
  for i = 1, rows do
    for j = 1, n do
      local s = bs[j]
      for c = 1, k do s = s + xs[(i - 1) * k + c] * ws[(j - 1) * k + c] end
      out[#out + 1] = s
    end
  end
  return T.of(out, { rows, n })
end

t.test("linear in f32 and bf16, any number of rows", function()
  local w, b = T.noise({ 19, 37 }, { seed = 1 }), T.noise({ 19 }, { seed = 2 })
  for _, rows in ipairs { 1, 3, 64, 200 } do
    local x = T.noise({ rows, 37 }, { seed = 3 })
    local want = naive_linear(x, w, b)
    t.close(nn.linear(w, b, { compute = "f32" })(x), want, 1e-4, 1e-5, "f32")
    local half = nn.linear(w, b, { compute = "bf16" })(x)
    t.ok((half - want):norm() < 0.01 * want:norm(), "bf16")
    t.close(nn.linear(w, b, { compute = "f32" })(x, { act = "gelu" }), want:gelu(), 1e-4, 1e-5, "gelu")
  end
  t.raises(function() nn.linear(w, b)(T.zeros { 2, 36 }) end, "linear: x is [2, 36], weight is [19, 37]")
end)

t.test("lazy linear: the weight is read where it lies", function()
  for _, case in ipairs { { 19, 37 }, { 130, 64 }, { 49, 4200 } } do
    local w, b = T.noise({ case[1], case[2] }, { seed = 1 }), T.noise({ case[1] }, { seed = 2 })
    for _, stored in ipairs { "f32", "bf16" } do
      local source = w:to(stored)
      for _, compute in ipairs { "f32", "bf16" } do
        local packed = nn.linear(source, b, { compute = compute })
        local lazy = nn.linear(source, b, { compute = compute, lazy = true })
        t.ok(lazy:bytes() < packed:bytes(), "lazy holds no weights")
        for _, rows in ipairs { 1, 5, 31, 70, 128, 129 } do
          local x = T.noise({ rows, case[2] }, { seed = 3 })
          local got, want = lazy(x, { act = "silu" }), packed(x, { act = "silu" })
          t.ok((got - want):norm() <= (compute == "f32" and 2e-6 or 5e-3) * want:norm(), compute .. " " .. rows)
          t.eq(lazy(x:to "bf16").dtype, "bf16")
        end
      end
    end
  end
end)

t.test("linear in 8 bits: what rounding leaves, any shape", function()
  for _, case in ipairs { { 19, 37 }, { 64, 64 }, { 200, 130 }, { 70, 5000 } } do
    local w, b = T.noise({ case[1], case[2] }, { seed = 1 }), T.noise({ case[1] }, { seed = 2 })
    local layer, exact = nn.linear(w, b, { compute = "s8" }), nn.linear(w, b, { compute = "f32" })
    for _, rows in ipairs { 1, 7, 193, 400 } do
      local x = T.noise({ rows, case[2] }, { seed = 3 })
      local want = exact(x)
      t.ok((layer(x) - want):norm() < 0.02 * want:norm(), "s8")
      t.eq(layer(x:to "bf16", { act = "gelu" }).dtype, "bf16")
    end
    -- what 8 bits hold exactly comes out exactly
    local whole = T.full({ case[1], case[2] }, 1)
    local x = T.full({ 2, case[2] }, -3)
    t.close(nn.linear(whole, nil, { compute = "s8" })(x), T.full({ 2, case[1] }, -3 * case[2]), 1e-2, 1e-6)
  end
  t.raises(function() nn.linear(T.of { { 0 / 0 } }, nil, { compute = "s8" }) end, "weight row 1 is not finite")
end)

t.test("matmul with batches", function()
  local a, b = T.noise({ 2, 3, 4, 5 }, { seed = 1 }), T.noise({ 3, 5, 6 }, { seed = 2 })
  local y = a:matmul(b)
  t.eq(y:shape_text(), "[2, 3, 4, 6]")
  local want = 0
  for c = 1, 5 do want = want + a:get((1 * 3 + 2) * 20 + 3 * 5 + c) * b:get(2 * 30 + (c - 1) * 6 + 2) end
  t.near(y:get((1 * 3 + 2) * 24 + 3 * 6 + 2), want, 1e-5)
  t.close(a:matmul(b:transpose(2, 3), { transpose = true, alpha = 2 }), y * 2, 1e-5, 1e-5)
  t.raises(function() a:matmul(T.zeros { 4, 5 }) end, "does not fit")
end)

local function naive_attention(q, k, v, scale)
  local B, Lq, H, D = unpack(q.shape)
  local Lk = k.shape[2]
  local qs, ks, vs, out = q:list(), k:list(), v:list(), {}
  for b = 0, B - 1 do for i = 0, Lq - 1 do for h = 0, H - 1 do
    local e, total, top = {}, 0, -math.huge
    for j = 0, Lk - 1 do
      local s = 0
      for c = 1, D do s = s + qs[((b * Lq + i) * H + h) * D + c] * ks[((b * Lk + j) * H + h) * D + c] end
      e[j] = s * scale
      top = math.max(top, e[j])
    end
    for j = 0, Lk - 1 do e[j] = math.exp(e[j] - top) total = total + e[j] end
    for c = 1, D do
      local s = 0
      for j = 0, Lk - 1 do s = s + e[j] / total * vs[((b * Lk + j) * H + h) * D + c] end
      out[#out + 1] = s
    end
  end end end
  return T.of(out, { B, Lq, H, D })
end

t.test("attention over several blocks", function()
  for _, case in ipairs { { 1, 5, 7, 2, 12 }, { 2, 130, 300, 3, 24 }, { 1, 1, 257, 1, 5 }, { 1, 97, 256, 1, 64 } } do
    local B, Lq, Lk, H, D = unpack(case)
    local q = T.noise({ B, Lq, H, D }, { seed = 1 })
    local k, v = T.noise({ B, Lk, H, D }, { seed = 2 }), T.noise({ B, Lk, H, D }, { seed = 3 })
    local want = naive_attention(q, k, v, 0.3)
    t.close(T.attention(q, k, v, { scale = 0.3 }), want, 2e-5, 2e-5, "f32")
    local half = T.attention(q:to "bf16", k:to "bf16", v:to "bf16", { scale = 0.3, dtype = "f32" })
    t.ok((half - want):norm() < 0.01 * want:norm(), "bf16")
  end
end)

t.test("attention with masks", function()
  local q = T.noise({ 1, 6, 1, 8 }, { seed = 1 })
  local k, v = T.noise({ 1, 6, 1, 8 }, { seed = 2 }), T.noise({ 1, 6, 1, 8 }, { seed = 3 })
  local mask = T.of({ 0, 0, 0, 0, -math.huge, -math.huge }, { 6 })
  t.close(T.attention(q, k, v, { key_bias = mask }), T.attention(q, k:slice(2, 1, 4), v:slice(2, 1, 4)), 1e-6, 1e-6)
  local causal = T.attention(q, k, v, { causal = true })
  for i = 1, 6 do
    t.close(causal:slice(2, i, i), T.attention(q:slice(2, i, i), k:slice(2, 1, i), v:slice(2, 1, i)), 1e-6, 1e-6)
  end
  -- one key counted five times is the key with a bias of log 5
  local five = T.concat({ k:slice(2, 1, 2), k:slice(2, 2, 2), k:slice(2, 2, 2), k:slice(2, 2, 2), k:slice(2, 2, 2) }, 2)
  local vfive = T.concat({ v:slice(2, 1, 2), v:slice(2, 2, 2), v:slice(2, 2, 2), v:slice(2, 2, 2), v:slice(2, 2, 2) }, 2)
  t.close(T.attention(q, five, vfive),
    T.attention(q, k:slice(2, 1, 2), v:slice(2, 1, 2), { key_bias = T.of({ 0, math.log(5) }, { 2 }) }), 1e-6, 1e-5)
end)

t.test("attention with scores in 8 bits", function()
  local q, k, v = T.noise({ 2, 130, 3, 24 }, { seed = 1 }), T.noise({ 2, 300, 3, 24 }, { seed = 2 }),
    T.noise({ 2, 300, 3, 24 }, { seed = 3 })
  local want = naive_attention(q, k, v, 0.3)
  local function off(x) return (x - want):norm() / want:norm() end
  t.ok(off(T.attention(q, k, v, { scale = 0.3, scores = "s8" })) < 0.02, "f32")
  t.ok(off(T.attention(q:to "bf16", k:to "bf16", v:to "bf16", { scale = 0.3, scores = "s8", dtype = "f32" })) < 0.02, "bf16")
  -- what all keys share changes no softmax and costs no accuracy
  t.ok(off(T.attention(q, k + T.noise({ 1, 1, 3, 24 }, { seed = 4 }) * 20, v, { scale = 0.3, scores = "s8" })) < 0.02, "shift")
  t.ok(off(T.attention(q, k, v, { scale = 0.3, scores = "s8", values = "s8" })) < 0.03, "values")
  t.raises(function() T.attention(q, k, v, { values = "s8", causal = true }) end, "values in 8 bits go with no causal mask")
  t.raises(function() T.attention(q, k, v, { values = 8 }) end, "attention: values is '8'")
  t.raises(function() T.attention(q, k, v, { scores = "s4" }) end, "attention: scores is 's4'; there is only 's8'")
  t.raises(function() T.attention(q, k, v, { score = "s8" }) end, "did you mean 'scores'")
  t.raises(function() T.attention(q, k, v, { mask = {} }) end, "attention: the mask is no mask")
end)

local function naive_conv(x, w, b, stride, before, groups)
  local N, H, W, I = unpack(x.shape)
  local O, Ig, kh, kw = unpack(w.shape)
  local oh, ow = math.floor((H + 2 * before - kh) / stride) + 1, math.floor((W + 2 * before - kw) / stride) + 1
  local xs, ws, bs, out = x:list(), w:list(), b:list(), {}
  for n = 0, N - 1 do for i = 0, oh - 1 do for j = 0, ow - 1 do for o = 0, O - 1 do
    local s, g = bs[o + 1], math.floor(o / (O / groups))
    for c = 0, Ig - 1 do for u = 0, kh - 1 do for v = 0, kw - 1 do
      local r, q = i * stride + u - before, j * stride + v - before
      if r >= 0 and r < H and q >= 0 and q < W then
        s = s + xs[((n * H + r) * W + q) * I + g * Ig + c + 1] * ws[((o * Ig + c) * kh + u) * kw + v + 1]
      end
    end end end
    out[#out + 1] = s
  end end end end
  return T.of(out, { N, oh, ow, O })
end

t.test("conv2d: strides, padding, groups", function()
  for _, case in ipairs { { 3, 8, 1, 1, 1 }, { 4, 4, 2, 0, 1 }, { 6, 6, 1, 1, 6 }, { 8, 12, 2, 1, 2 }, { 16, 32, 1, 1, 1 } } do
    local I, O, stride, pad, groups = unpack(case)
    local x, b = T.noise({ 2, 9, 7, I }, { seed = 1 }), T.noise({ O }, { seed = 3 })
    local w = T.noise({ O, I / groups, 3, 3 }, { seed = 2 })
    local want = naive_conv(x, w, b, stride, pad, groups)
    local options = { stride = stride, pad = pad, groups = groups, compute = "f32" }
    t.close(nn.conv(w, b, options)(x), want, 1e-4, 1e-4, "f32")
    options.compute = "bf16"
    local half = nn.conv(w, b, options)(x)
    t.ok((half - want):norm() < 0.01 * want:norm(), "bf16")
  end
end)

t.test("conv3d: causal padding is zeros in front", function()
  local x, w = T.noise({ 1, 4, 5, 6, 8 }, { seed = 1 }), T.noise({ 8, 8, 3, 3, 3 }, { seed = 2 })
  local causal = nn.conv(w, nil, { causal = true, pad = 1, compute = "f32" })
  local plain = nn.conv(w, nil, { pad = { 0, 1, 1 }, compute = "f32" })
  t.close(causal(x), plain(x:pad(2, 2, 0)), 1e-4, 1e-4)
  t.eq(causal(x):shape_text(), "[1, 4, 5, 6, 8]")
  -- a two-dimensional kernel is the three-dimensional one with kT = 1
  local flat = nn.conv(w:select(3, 1), nil, { pad = 1, compute = "f32" })(x:reshape(4, 5, 6, 8))
  local deep = nn.conv(w:slice(3, 1, 1), nil, { pad = { 0, 1, 1 }, compute = "f32" })(x)
  t.close(flat:reshape(1, 4, 5, 6, 8), deep, 1e-4, 1e-4)
end)

t.test("norms", function()
  local x = T.noise({ 3, 5, 40 }, { seed = 1 })
  local scale, shift = T.noise({ 3, 1, 40 }, { seed = 2 }), T.noise({ 3, 1, 40 }, { seed = 3 })
  local mean = x:mean(-1, true)
  local var = (x - mean):square():mean(-1, true)
  local plain = (x - mean) / (var + 1e-6):sqrt()
  t.close(x:layer_norm(), plain, 1e-5, 1e-5)
  t.close(x:layer_norm { scale = scale, shift = shift }, plain * (scale + 1) + shift, 1e-5, 1e-5)
  local rms = x / (x:square():mean(-1, true) + 1e-6):sqrt()
  t.close(x:rms_norm { act = "silu" }, rms:silu(), 1e-5, 1e-5)
  t.close(x:l2_norm(), x / x:square():sum(-1, true):sqrt() * math.sqrt(40), 1e-5, 1e-5)
  local all, gamma = T.zeros { 2 + x.shape[1], x.shape[2], 40 }, T.noise({ 40 }, { seed = 8 })
  x:l2_norm { weight = gamma, act = "silu", into = all:slice(1, 3) }
  t.close(all:slice(1, 3), x:l2_norm { weight = gamma, act = "silu" }, 0, 0, "into a part of another")
  t.eq(all:slice(1, 1, 2):sumsq(), 0)
  t.raises(function() x:l2_norm { into = all } end, "cannot be written into")
  local g = x:group_norm { groups = 4, eps = 1e-5 }
  local part = x:slice(3, 1, 10):reshape(3, 50)
  local gm = part:mean(2, true)
  local want = (part - gm) / ((part - gm):square():mean(2, true) + 1e-5):sqrt()
  t.close(g:slice(3, 1, 10):reshape(3, 50), want, 1e-5, 1e-5)
  t.near(x:softmax():sum(-1):mean(), 1, 1e-6)
end)

t.test("pixel shuffle is its own inverse backwards", function()
  local x = T.noise({ 2, 4, 6, 3 }, { seed = 1 })
  local y = T.pixel_unshuffle(x, 2)
  t.eq(y:shape_text(), "[2, 2, 3, 12]")
  t.close(T.pixel_shuffle(y, 2), x, 0, 0)
end)

t.test("memory comes back", function()
  collectgarbage() collectgarbage()
  local before = melies.memory().live
  local x = T.zeros { 1024, 1024 }
  t.ok(melies.memory().live >= before + 4 * 2 ^ 20)
  x:free()
  t.eq(melies.memory().live, before)
  t.raises(function() return x + 1 end, "was freed")
  for _ = 1, 400 do local _ = T.zeros { 1024, 1024 } end -- 1.6 GB of garbage: collected on the way
  t.ok(melies.memory().peak < 1024 * 2 ^ 20, "garbage is collected by native size")
  collectgarbage() collectgarbage()
end)

t.test("where memory is short, an operation is done again after a collection", function()
  local lib = require "melies.ffi.lib"
  local C, MIB = lib.C, 2 ^ 20
  local x = T.noise { 256, 1024 } -- 1 MiB
  local function waste(n) for _ = 1, n do local _ = x + 1 end end
  C.mel_mem_set_limit(tonumber(C.mel_mem_live()) + 16 * MIB)
  collectgarbage "stop"
  local ok, message = pcall(function()
    for _ = 1, 20 do
      waste(5)
      t.close(T.lincomb { 0.5, x + x, 1, T.concat({ x:slice(1, 1, 128), x:slice(1, 129, 256) }, 1) }, x * 2, 1e-6)
    end
    for n = 1, 3 do -- one refusal is met, of whichever allocation
      C.mel_mem_fail_nth(n)
      t.eq((x + 1):numel(), x:numel()) t.eq(nn.linear(x)(x:slice(1, 1, 4)).shape[2], 256)
    end
  end)
  collectgarbage "restart"
  C.mel_mem_fail_nth(0)
  C.mel_mem_set_limit(0)
  t.ok(ok, message)
  C.mel_mem_set_limit(tonumber(C.mel_mem_live()) + MIB)
  t.raises(function() return T.zeros { 1024, 1024 } end, "out of memory: 4.0 MiB asked for")
  C.mel_mem_set_limit(0)

  -- A compiled loop holds the closures that it was recorded with, and they their tensors: reclaim lets them go.
  local function layer()
    local held = T.zeros { 1024, 1024 }
    return function() return held.ndim end
  end
  local before = tonumber(C.mel_mem_live())
  for _ = 1, 3 do
    local f, sum = layer(), 0
    for _ = 1, 500 do sum = sum + f() end
    t.eq(sum, 1000)
  end
  lib.reclaim()
  t.eq(tonumber(C.mel_mem_live()), before)
end)

t.test("the same bits for one thread and for two", function()
  local w, b = T.noise({ 96, 200 }, { seed = 1 }), T.noise({ 96 }, { seed = 2 })
  local x = T.noise({ 1, 700, 200 }, { seed = 3 })
  local conv = T.noise({ 16, 16, 3, 3, 3 }, { seed = 4 })
  local clip = T.noise({ 1, 5, 20, 20, 16 }, { seed = 5 })
  local function all()
    local qkv = x:slice(3, 1, 192):reshape(1, 700, 3, 64)
    return { nn.linear(w, b)(x), nn.linear(w, b, { compute = "f32" })(x), nn.linear(w, b, { lazy = true })(x:slice(2, 1, 77)),
      nn.linear(w, b, { compute = "s8" })(x),
      nn.conv(conv, nil, { causal = true, pad = 1 })(clip),
      T.attention(qkv, qkv, qkv), T.attention(qkv, qkv, qkv, { scores = "s8" }),
      T.attention(qkv, qkv, qkv, { scores = "s8", values = "s8" }),
      T.attention(qkv:to "bf16", qkv:to "bf16", qkv:to "bf16"), x:layer_norm(), x:mean(2),
      (x * 2 + 1):gelu(), x:resize(2, 333, "bicubic"), x:matmul(x, { transpose = true }),
      T.of { x:sum(), x:std(), x:dot(x) }, T.noise({ 100, 1000 }, { seed = 9 }) }
  end
  melies.threads(1)
  local one = all()
  for _, threads in ipairs { 2, 3 } do
    melies.threads(threads)
    for i, y in ipairs(all()) do t.close(y, one[i], 0, 0, "operation " .. i) end
  end
  melies.threads(0)
end)

t.finish()
