-- LoRAs: every format made from one known change, against the dense sum; beside the weights; on the starter model.
local t = require "harness"
local melies = require "melies"
local T, nn, weights, lora = melies.tensor, melies.nn, melies.weights, melies.lora

local folder = t.folder()
local serial = 0
local function file(tensors, name)
  serial = serial + 1
  local path = ("%s/%s.safetensors"):format(folder, name or ("lora" .. serial))
  assert(weights.save(path, tensors))
  return path
end
local function random(stream, ...) return T.noise({ ... }, { seed = 11, stream = stream }) end
local function same(a, b, what) t.close(a, b, 0, 0, what) end

-- A small Wan: one matrix with a bias, a norm, a table, a kernel.
local Q = "blocks.0.self_attn.q"
local base = {
  [Q .. ".weight"] = random(1, 12, 8), [Q .. ".bias"] = random(2, 12),
  ["blocks.0.cross_attn.o.weight"] = random(3, 8, 8), ["blocks.0.ffn.0.weight"] = random(4, 16, 8),
  ["blocks.0.norm3.weight"] = random(5, 8), ["blocks.0.modulation"] = random(6, 1, 6, 8),
  ["patch_embedding.weight"] = random(7, 6, 4, 1, 2, 2), ["time_embedding.0.weight"] = random(8, 8, 8),
  ["head.head.weight"] = random(9, 8, 8),
}
local R, ALPHA = 4, 2
local up, down = random(20, 12, R), random(21, R, 8)
local change = up:matmul(down)

-- The tensor `name` of the base with a list of { file or tensors, strength } on it.
local function merged(list, name)
  for _,
    item in ipairs(list) do if type(item[1]) == "table" and not item[1].targets then item[1] = file(item[1]) end end
  local view, applied = lora.apply(weights.from_table(base), list)
  t.ok(view, applied)
  return view:get(name or Q .. ".weight"), applied, view
end
local function dense(factor, what)
  return T.lincomb { 1, base[Q .. ".weight"], factor, what or change }
end

t.test("kohya: alpha / rank, names with underscores", function()
  local tensors = { ["lora_unet_blocks_0_self_attn_q.lora_up.weight"] = up,
    ["lora_unet_blocks_0_self_attn_q.lora_down.weight"] = down,
      ["lora_unet_blocks_0_self_attn_q.alpha"] = T.of({ ALPHA }, {}) }
  local got, applied = merged { { tensors, 0.8 } }
  t.close(got, dense(0.8 * ALPHA / R), 1e-6, 1e-6)
  t.eq(#applied.unmatched, 0) t.eq(applied.matched, 1)
  local object = assert(lora.load(file(tensors)))
  t.eq(object.kind, "lora") t.eq(object.rank, R) t.eq(object.alpha, ALPHA) t.eq(#object.targets, 1)
  t.eq(object.bytes, (12 * R + R * 8 + 1) * 4)
  t.close(merged { { object, -1 } }, dense(-ALPHA / R), 1e-6, 1e-6)
  t.ok(lora.describe(object.path):find("LoRA for 1 module, rank 4, alpha 2", 1, true), lora.describe(object.path))
  t.eq(lora.describe(file(base)), nil)
end)

t.test("names: PEFT, ComfyUI's and diffusers' prefixes, diffusers' modules", function()
  for _, pair in ipairs {
    { "base_model.model.blocks.0.self_attn.q.lora_B.weight", "base_model.model.blocks.0.self_attn.q.lora_A.weight" },
    { "base_model.model.blocks.0.self_attn.q.lora_B.default.weight",
      "base_model.model.blocks.0.self_attn.q.lora_A.default.weight" },
    { "diffusion_model.blocks.0.self_attn.q.lora_B.weight", "diffusion_model.blocks.0.self_attn.q.lora_A.weight" },
    { "model.diffusion_model.blocks.0.self_attn.q.lora_up.weight",
      "model.diffusion_model.blocks.0.self_attn.q.lora_down.weight" },
    { "transformer.blocks.0.attn1.to_q.lora_B.weight", "transformer.blocks.0.attn1.to_q.lora_A.weight" },
    { "blocks.0.attn1.to_q.lora.up.weight", "blocks.0.attn1.to_q.lora.down.weight" },
    { "lora_unet_blocks_0_attn1_to_q.lora_up.weight", "lora_unet_blocks_0_attn1_to_q.lora_down.weight" },
    { "blocks.0.self_attn.q.lora_up.weight", "blocks.0.self_attn.q.lora_down.weight" },
  } do
    local got, applied = merged { { { [pair[1]] = up, [pair[2]] = down }, 1 } }
    t.close(got, dense(1), 1e-6, 1e-6, pair[1])
    t.eq(#applied.unmatched, 0)
  end
  local square, flat = random(30, 8, R), random(31, R, 8)
  for theirs, own in pairs {
    ["transformer.blocks.0.attn2.to_out.0"] = "blocks.0.cross_attn.o.weight",
    ["transformer.condition_embedder.time_embedder.linear_1"] = "time_embedding.0.weight",
    ["transformer.proj_out"] = "head.head.weight",
  } do
    t.close(merged({ { { [theirs .. ".lora_B.weight"] = square, [theirs .. ".lora_A.weight"] = flat }, 1 } }, own),
      base[own] + square:matmul(flat), 1e-6, 1e-6, theirs)
  end
  -- Weights under diffusers' names, and LTX's.
  local function on(name, key)
    local view = assert(lora.apply(weights.from_table { [name .. ".weight"] = base["head.head.weight"] },
      { { file { [key .. ".lora_up.weight"] = square, [key .. ".lora_down.weight"] = flat }, 1 } }))
    t.close(view:get(name .. ".weight"), base["head.head.weight"] + square:matmul(flat), 1e-6, 1e-6, key)
  end
  on("transformer_blocks.3.attn1.to_q", "lora_unet_transformer_blocks_3_attn1_to_q")
  on("blocks.1.attn2.to_out.0", "diffusion_model.blocks.1.cross_attn.o")
  on("model.diffusion_model.blocks.1.ffn.2", "blocks.1.ffn.net.2")
end)

t.test("PEFT's adapter_config.json gives alpha", function()
  local own = t.folder()
  assert(weights.save(own .. "/adapter_model.safetensors",
    { ["base_model.model.blocks.0.self_attn.q.lora_B.weight"] = up,
    ["base_model.model.blocks.0.self_attn.q.lora_A.weight"] = down }))
  assert(melies.json.write(own .. "/adapter_config.json", { lora_alpha = 6, r = R }))
  t.close(merged { { own .. "/adapter_model.safetensors", 1 } }, dense(6 / R), 1e-6, 1e-6)
  assert(melies.json.write(own .. "/adapter_config.json", { lora_alpha = 6, r = R, use_rslora = true }))
  t.close(merged { { own .. "/adapter_model.safetensors", 1 } }, dense(6 / 2), 1e-6, 1e-6)
end)

-- sum over m, n of a[m, o] core[m, n, k] b[n, i], naively.
local function tucker(core, a, b)
  local m, n, o, i = core.shape[1], core.shape[2], a.shape[2], b.shape[2]
  local k = core:numel() / (m * n)
  local c, al, bl, out = core:list(), a:list(), b:list(), {}
  for x = 0, o - 1 do for y = 0, i - 1 do for z = 0, k - 1 do
    local sum = 0
    for p = 0, m - 1 do for q = 0, n - 1 do
      sum = sum + al[p * o + x + 1] * c[(p * n + q) * k + z + 1] * bl[q * i + y + 1]
    end end
    out[#out + 1] = sum
  end end end
  return T.of(out, { o, i * k })
end
local function kron(a, b)
  local al, bl, out = a:list(), b:list(), {}
  local m, n, p, q = a.shape[1], a.shape[2], b.shape[1], b.shape[2]
  for i = 0, m * p - 1 do for j = 0, n * q - 1 do
    out[#out + 1] = al[math.floor(i / p) * n + math.floor(j / q) + 1] * bl[(i % p) * q + j % q + 1]
  end end
  return T.of(out, { m * p, n * q })
end

t.test("LoHa", function()
  local a2, b2 = random(40, 12, R), random(41, R, 8)
  local got = merged { { { [Q .. ".hada_w1_a"] = up, [Q .. ".hada_w1_b"] = down, [Q .. ".hada_w2_a"] = a2,
    [Q .. ".hada_w2_b"] = b2,
    [Q .. ".alpha"] = T.of { ALPHA } }, 0.5 } }
  t.close(got, dense(0.5 * ALPHA / R, change * a2:matmul(b2)), 1e-5, 1e-5)
  local P = "patch_embedding"
  local a, b, c, d = random(42, 3, 6), random(43, 3, 4), random(44, 3, 6), random(45, 3, 4)
  local t1, t2 = random(46, 3, 3, 1, 2, 2), random(47, 3, 3, 1, 2, 2)
  got = merged({ { { [P .. ".hada_w1_a"] = a, [P .. ".hada_w1_b"] = b, [P .. ".hada_w2_a"] = c, [P .. ".hada_w2_b"] = d,
    [P .. ".hada_t1"] = t1, [P .. ".hada_t2"] = t2 }, 1 } }, P .. ".weight")
  t.close(got, base[P .. ".weight"] + (tucker(t1, a, b) * tucker(t2, c, d)):reshape(6, 4, 1, 2, 2), 1e-5, 1e-5,
    "kernels")
end)

t.test("LoKr", function()
  local w1, w2 = random(50, 3, 2), random(51, 4, 4)
  local a1, b1, a2, b2 = random(52, 3, 2), random(53, 2, 2), random(54, 4, 2), random(55, 2, 4)
  local alpha = T.of { 1 }
  t.close(merged { { { [Q .. ".lokr_w1"] = w1, [Q .. ".lokr_w2"] = w2, [Q .. ".alpha"] = alpha }, 1 } },
    dense(1, kron(w1, w2)), 1e-5, 1e-5, "whole: alpha does not count")
  t.close(merged { { { [Q .. ".lokr_w1"] = w1, [Q .. ".lokr_w2_a"] = a2, [Q .. ".lokr_w2_b"] = b2,
    [Q .. ".alpha"] = alpha }, 1 } },
    dense(1 / 2, kron(w1, a2:matmul(b2))), 1e-5, 1e-5, "w2 in two")
  t.close(merged { { { [Q .. ".lokr_w1_a"] = a1, [Q .. ".lokr_w1_b"] = b1, [Q .. ".lokr_w2"] = w2,
    [Q .. ".alpha"] = alpha }, 1 } },
    dense(1 / 2, kron(a1:matmul(b1), w2)), 1e-5, 1e-5, "w1 in two")
  t.close(merged { { { [Q .. ".lokr_w1_a"] = a1, [Q .. ".lokr_w1_b"] = b1, [Q .. ".lokr_w2_a"] = a2,
    [Q .. ".lokr_w2_b"] = b2 }, 1 } },
    dense(1, kron(a1:matmul(b1), a2:matmul(b2))), 1e-5, 1e-5, "both in two")
  local P, k1, ka, kb, core = "patch_embedding", random(56, 3, 2), random(57, 2, 2), random(58, 2, 2), random(59, 2, 2,
    1, 2, 2)
  local want = kron(k1, tucker(core, ka, kb))
  t.close(merged({ { { [P .. ".lokr_w1"] = k1, [P .. ".lokr_w2_a"] = ka, [P .. ".lokr_w2_b"] = kb,
    [P .. ".lokr_t2"] = core }, 1 } },
    P .. ".weight"), base[P .. ".weight"] + want:reshape(6, 4, 1, 2, 2), 1e-5, 1e-5, "core")
end)

t.test("kernels: down with the kernel, and lora_mid", function()
  local P = "patch_embedding"
  local u, d = random(60, 6, 3, 1, 1, 1), random(61, 3, 4, 1, 2, 2)
  t.close(merged({ { { [P .. ".lora_up.weight"] = u, [P .. ".lora_down.weight"] = d }, 1 } }, P .. ".weight"),
    base[P .. ".weight"] + u:reshape(6, 3):matmul(d:reshape(3, 16)):reshape(6, 4, 1, 2, 2), 1e-5, 1e-5)
  local mid, d1 = random(62, 3, 2, 1, 2, 2), random(63, 2, 4, 1, 1, 1)
  t.close(merged({ { { [P .. ".lora_up.weight"] = u, [P .. ".lora_down.weight"] = d1,
    [P .. ".lora_mid.weight"] = mid }, 1 } },
    P .. ".weight"), base[P .. ".weight"]
    + tucker(mid, u:reshape(6, 3):transpose(1, 2):contiguous(), d1:reshape(2, 4)):reshape(6, 4, 1, 2, 2), 1e-5, 1e-5)
end)

t.test("differences of weights, biases, norms and tables", function()
  local tensors = { ["diffusion_model.blocks.0.self_attn.q.diff"] = change,
    ["diffusion_model.blocks.0.self_attn.q.diff_b"] = random(70, 12),
    ["diffusion_model.blocks.0.norm3.diff"] = random(71, 8), ["diffusion_model.blocks.0.modulation.diff"] = random(72,
      1, 6, 8) }
  local got, applied, view = merged { { tensors, 0.5 } }
  t.close(got, dense(0.5), 1e-6, 1e-6)
  t.close(view:get(Q .. ".bias"), T.lincomb { 1, base[Q .. ".bias"], 0.5, random(70, 12) }, 1e-6, 1e-6)
  t.close(view:get "blocks.0.norm3.weight", T.lincomb { 1, base["blocks.0.norm3.weight"], 0.5, random(71, 8) }, 1e-6,
    1e-6)
  t.close(view:get "blocks.0.modulation", T.lincomb { 1, base["blocks.0.modulation"], 0.5, random(72, 1, 6, 8) }, 1e-6,
    1e-6)
  same(view:get "head.head.weight", base["head.head.weight"])
  t.eq(#applied.unmatched, 0) t.eq(view:dtype(Q .. ".weight"), "f32")
  same(view:rows(Q .. ".weight", 2, 5), got:slice(1, 2, 5))
  same(view:prefix "blocks.0.":get "self_attn.q.weight", got)
  t.eq(view:get(Q .. ".weight", "bf16").dtype, "bf16")
end)

t.test("DoRA: by rows and by columns", function()
  local sum, w = dense(1), base[Q .. ".weight"]
  for _, case in ipairs { { T.noise({ 12, 1 }, { seed = 5 }), 2 }, { T.noise({ 1, 8 }, { seed = 5 }), 1 } } do
    local m, axis = case[1], case[2]
    local want = sum * (m / sum:square():sum(axis, true):sqrt())
    local tensors = { [Q .. ".lora_up.weight"] = up, [Q .. ".lora_down.weight"] = down, [Q .. ".dora_scale"] = m }
    t.close(merged { { tensors, 1 } }, want, 1e-5, 1e-5)
    t.close(merged { { tensors, 0.25 } }, T.lincomb { 0.75, w, 0.25, want }, 1e-5, 1e-5)
  end
end)

t.test("several, strength 0, and stored types", function()
  local one = file { [Q .. ".lora_up.weight"] = up, [Q .. ".lora_down.weight"] = down }
  local two = file { [Q .. ".diff"] = random(80, 12, 8) }
  t.close(merged { { one, 0.5 }, { two, -2 } }, T.lincomb { 1, dense(0.5), -2, random(80, 12, 8) }, 1e-5, 1e-5)
  t.close(merged { { one, 0.5 }, { one, 0.5 } }, dense(1), 1e-5, 1e-5)
  same(merged { { one, 0 } }, base[Q .. ".weight"])
  local half = file { [Q .. ".lora_up.weight"] = up:to "bf16", [Q .. ".lora_down.weight"] = down:to "f16" }
  t.close(merged { { half, 1 } }, T.lincomb { 1, base[Q .. ".weight"], 1,
    up:to "bf16":to "f32":matmul(down:to "f16":to "f32") },
    1e-6, 1e-6)
end)

t.test("keys that fit nothing are named, and counted", function()
  local tensors = { [Q .. ".lora_up.weight"] = up, [Q .. ".lora_down.weight"] = down,
    ["lora_te_text_model.alpha"] = T.of { 1 },
    ["lora_te_text_model.lora_up.weight"] = up, ["lora_te_text_model.lora_down.weight"] = down, ["some.thing"] = up }
  for i = 1, 4 do tensors[("blocks.7.x%d.diff"):format(i)] = up end
  local got, applied = merged { { tensors, 1 } }
  t.close(got, dense(1), 1e-6, 1e-6)
  t.eq(#applied.unmatched, 8)
  local said = applied.notices[1]
  t.eq(#applied.notices, 1)
  t.ok(said:find("8 keys", 1, true) and said:find("3 more", 1, true) and said:find("blocks.7.x1.diff", 1, true), said)
end)

t.test("what cannot be applied is told", function()
  local function refused(tensors, ...)
    local object, message = lora.load(file(tensors))
    if object then object, message = lora.apply(weights.from_table(base), { { object, 1 } }) end
    t.eq(object, nil)
    for _, want in ipairs { ... } do t.ok(message:find(want, 1, true), message) end
    t.ok(not message:find("\n"), message)
  end
  refused({ [Q .. ".lora_up.weight"] = random(1, 16, R), [Q .. ".lora_down.weight"] = down }, "another model",
    Q .. ".lora_up.weight",
    "[16, 8]", "[12, 8]")
  refused({ [Q .. ".lora_up.weight"] = up, [Q .. ".lora_down.weight"] = random(1, R, 6) }, "[12, 6]", "[12, 8]")
  refused({ [Q .. ".lora_up.weight"] = up, [Q .. ".lora_down.weight"] = random(1, 3, 8) }, "does not fit", "[12, 4]",
    "[3, 8]")
  refused({ ["blocks.9.q.lora_up.weight"] = up, ["blocks.9.q.lora_down.weight"] = down }, "another model", "blocks.9.q")
  refused({ [Q .. ".lora_up.weight"] = up }, "down", Q)
  refused({ [Q .. ".lokr_w1"] = up }, "LoKr")
  refused({ [Q .. ".alpha"] = T.of { 1 } }, "is no LoRA", Q)
  refused({ [Q .. ".diff"] = up }, "[12, 4]", "[12, 8]")
  refused({ [Q .. ".diff_b"] = up }, Q .. ".bias", "[12]")
  refused({ [Q .. ".alpha"] = T.of { 0 / 0 }, [Q .. ".lora_up.weight"] = up, [Q .. ".lora_down.weight"] = down },
    "one number")
  refused({ [Q .. ".lora_up.weight"] = up, [Q .. ".lora_down.weight"] = down, [Q .. ".dora_scale"] = random(1, 5) },
    "5 values")
  refused({ ["a.weight"] = up }, "is no LoRA", "a.weight")
  local object, message = lora.load "/nowhere/x.safetensors"
  t.eq(object, nil) t.ok(message:find("/nowhere/x", 1, true), message)
  object, message = lora.find "no-such-lora"
  t.eq(object, nil) t.ok(message:find("no-such-lora", 1, true), message)
  t.raises(function() lora.apply(base, {}, { mode = "mergd" }) end, "did you mean 'merged'")
end)

t.test("tensors of any shape: applied or refused, never a fault", function()
  local slots = { "lora_up.weight", "lora_down.weight", "lora_mid.weight", "alpha", "dora_scale", "hada_w1_a", "hada_w1_b",
    "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a",
    "lokr_w2_b", "lokr_t2", "diff", "diff_b", "lora_B.bias" }
  local right = { ["lora_up.weight"] = { 12, 4 }, ["lora_down.weight"] = { 4, 8 }, ["lora_mid.weight"] = { 4, 4 },
    alpha = {}, dora_scale = { 12, 1 }, hada_w1_a = { 12, 4 }, hada_w1_b = { 4, 8 }, hada_w2_a = { 12, 4 },
    hada_w2_b = { 4, 8 }, lokr_w1 = { 3, 2 }, lokr_w2 = { 4, 4 }, lokr_w2_a = { 4, 1 }, lokr_w2_b = { 1, 4 },
    lokr_t2 = { 1, 1 }, diff = { 12, 8 }, diff_b = { 12 } }
  local sizes, state, fits = { 1, 3, 4, 4, 8, 12 }, 7, 0
  local function draw(n)
    state = (state * 1103515245 + 12345) % 2 ^ 31
    return math.floor(state / 65536) % n + 1
  end
  for _ = 1, 600 do
    local tensors, group = {}, draw(4)
    for _ = 1, draw(5) do
      local shape = {}
      for i = 1, draw(3) == 1 and draw(5) - 1 or 2 do shape[i] = sizes[draw(#sizes)] end
      local slot = slots[draw(6) == 1 and draw(#slots) or ({ draw(3), draw(6) + 5, draw(7) + 11, draw(3) + 18 })[group]]
      if draw(4) > 1 then shape = right[slot] or shape end
      tensors["blocks.0.self_attn.q." .. slot] = T.noise(shape, { seed = state })
    end
    local object, message = lora.load(file(tensors, "random"))
    if object then
      local view
      view, message = lora.apply(weights.from_table(base), { { object, 1 } })
      if view then
        fits = fits + 1
        t.eq(view:get(Q .. ".weight"):numel(), 96) t.eq(view:get(Q .. ".bias"):numel(), 12)
      else object = nil end
    end
    if not object then t.eq(type(message), "string") t.ok(not message:find("\n"), message) end
  end
  print("     applied: " .. fits .. " of 600")
end)

t.test("two experts: a strength for each", function()
  local path = file { [Q .. ".lora_up.weight"] = up, [Q .. ".lora_down.weight"] = down }
  local asked = 0
  local pair = { high = weights.from_table(base), low = function() asked = asked + 1 return weights.from_table(base) end }
  local views, applied = lora.apply(pair, { { path, "1;0.5" } })
  t.ok(views, applied) t.eq(asked, 0)
  t.close(views.high:get(Q .. ".weight"), dense(1), 1e-6, 1e-6)
  t.close(views.low():get(Q .. ".weight"), dense(0.5), 1e-6, 1e-6)
  t.eq(applied.matched, 2) t.eq(applied.varies, false)
  views, applied = lora.apply(pair, { { path, "0;1@0.5" } })
  t.ok(views, applied) t.eq(applied.varies, true)
  applied:seek(10, 10)
  local x, read = random(93, 2, 8), require("melies.modelkit").reader
  local layer = read("probe", views.low()):linear(Q, 12, 8, { compute = "f32" })
  local want = nn.linear(dense(1), base[Q .. ".bias"], { compute = "f32" })(x)
  t.close(layer(x), want, 1e-5, 1e-5)
  applied:seek(1, 10)
  same(layer(x), nn.linear(base[Q .. ".weight"], base[Q .. ".bias"], { compute = "f32" })(x))
  same(merged { { path, "0.5;1" } }, merged { { path, 0.5 } }, "one transformer takes the first")
end)

t.test("beside the weights: the same result", function()
  local kinds = {
    lora = { [Q .. ".lora_up.weight"] = up, [Q .. ".lora_down.weight"] = down, [Q .. ".alpha"] = T.of { ALPHA } },
    loha = { [Q .. ".hada_w1_a"] = up, [Q .. ".hada_w1_b"] = down, [Q .. ".hada_w2_a"] = up,
      [Q .. ".hada_w2_b"] = down },
    lokr = { [Q .. ".lokr_w1"] = random(50, 3, 2), [Q .. ".lokr_w2"] = random(51, 4, 4) },
    diff = { [Q .. ".diff"] = change, [Q .. ".diff_b"] = random(70, 12) },
    bias = { [Q .. ".diff_b"] = random(70, 12) },
    dora = { [Q .. ".lora_up.weight"] = up, [Q .. ".lora_down.weight"] = down, [Q .. ".dora_scale"] = random(73, 12,
      1) },
  }
  local kit = require "melies.modelkit"
  local x = random(90, 3, 5, 8)
  local function layer(list, mode, compute)
    local view, applied = lora.apply(weights.from_table(base), list, { mode = mode })
    return kit.reader("probe", t.ok(view, applied)):linear(Q, 12, 8, { compute = compute }), applied
  end
  local plain = layer({}, "auto", "f32")
  for name, tensors in pairs(kinds) do
    local list = { { file(tensors), 0.7 } }
    local whole = layer(list, "merged", "f32")
    local beside, applied = layer(list, "beside", "f32")
    t.ok(beside.adapters and not whole.adapters)
    for _, options in ipairs { {}, { act = "gelu" }, { act = "silu", dtype = "f32" } } do
      t.close(beside(x, options), whole(x, options), 2e-5, 1e-5, name)
    end
    applied:set(1, 0)
    same(beside(x), plain(x), name .. " at strength 0")
    if pcall(melies.set_compute, "bf16") then
      local y, want = layer(list, "beside", "bf16")(x:to "bf16"), whole(x)
      t.eq(y.dtype, "bf16")
      t.close(y:to "f32", want, 0.04 * want:abs():amax(), 0, name .. " in bf16")
      melies.set_compute "f32"
    end
  end
end)

t.test("auto: beside where the base is quantised or a strength varies", function()
  local view, applied = lora.apply(weights.from_table(base), { { file { [Q .. ".diff"] = change }, "2@0.5" } })
  local layer = require("melies.modelkit").reader("probe", view):linear(Q, 12, 8, { compute = "f32" })
  local x, plain = random(91, 4, 8), nn.linear(base[Q .. ".weight"], base[Q .. ".bias"], { compute = "f32" })
  t.ok(applied.varies and layer.adapters)
  applied:seek(5, 10)
  same(layer(x), plain(x))
  applied:seek(6, 10)
  t.close(layer(x), plain(x) + x:matmul(change, { transpose = true }) * 2, 1e-4, 1e-5)

  view = assert(lora.apply(weights.from_table(base), { { file { [Q .. ".diff"] = change } } }))
  layer = require("melies.modelkit").reader("probe", view):linear(Q, 12, 8, { compute = "f32", lazy = true })
  t.ok(layer.adapters, "beside a weight that is read where it lies")

  local gguf = assert(weights.open(os.getenv "MELIES_ROOT" .. "/tests/golden/gguf_basic.gguf"))
  local tried = 0
  for _, name in ipairs(gguf:names()) do
    local shape, dtype = gguf:shape(name), gguf:dtype(name)
    if #shape == 2 and name:find("%.weight$") then
      local module = name:gsub("%.weight$", "")
      local path = file { [module .. ".lora_up.weight"] = random(1, shape[1], 2),
        [module .. ".lora_down.weight"] = random(2, 2, shape[2]) }
      view = assert(lora.apply(gguf, { { path, 0.1 } }))
      layer = require("melies.modelkit").reader("probe", view):linear(module, shape[1], shape[2], { compute = "f32",
        bias = false })
      t.eq(layer.adapters ~= nil, dtype:find "^q" ~= nil, dtype)
      x = random(92, 2, shape[2])
      local whole = gguf:get(name, "f32") + random(1, shape[1], 2):matmul(random(2, 2, shape[2])) * 0.1
      t.close(layer(x), x:matmul(whole, { transpose = true }), 1e-3, 1e-3, dtype)
      tried = tried + 1
    end
  end
  print("     matrices of the GGUF fixture: " .. tried)
end)

t.test("every tensor of Wan's published layouts, under every spelling", function()
  local layouts = {}
  for _, layout in ipairs { "wan", "comfyui", "diffusers" } do
    local made = assert(melies.fake.make("wan2.1-i2v-14b-tiny", t.folder(), { layout = layout }))
    layouts[layout] = { raw = assert(weights.open(made[1])), view = assert(melies.checkpoint.open(made[1])) }
  end
  for _, spelled in ipairs { "wan", "comfyui", "diffusers" } do
    local raw = layouts[spelled].raw
    for _, kohya in ipairs { false, true } do
      local tensors, count = {}, 0
      for _, name in ipairs(raw:names()) do
        local module, slot = name:gsub("%.weight$", ""):gsub("%.bias$", ""), name:find "%.bias$" and ".diff_b" or ".diff"
        if kohya then module = "lora_unet_" .. module:gsub("^model%.diffusion_model%.", ""):gsub("%.", "_") end
        tensors[module .. slot], count = T.full(raw:shape(name), 1), count + 1
      end
      local object = assert(lora.load(file(tensors)))
      for layout, pair in pairs(layouts) do
        for _, on in pairs(pair) do
          local view, applied = lora.apply(on, { { object, 1 } })
          t.ok(view, applied)
          t.eq(applied.matched, count, spelled .. " on " .. layout) t.eq(#applied.unmatched, 0)
          for _, name in ipairs { on:names()[1], on:names()[count] } do
            t.close(view:get(name) - on:get(name, "f32"), T.full(on:shape(name), 1), 1e-6, 0, name)
          end
        end
      end
    end
  end
end)

-- ---- the starter model -----------------------------------------------------------------------------------

melies.set_compute "f32"
local model = assert(melies.pipeline.load "starter")
local dim = model.dit.dim
local function film(more)
  local p = { prompt = "a red ball", frames = 1, width = 32, height = 32, steps = 4, seed = 3 }
  for k, v in pairs(more or {}) do p[k] = v end
  return melies.run("text_to_video", p, { progress = false, notice = more and more.notice })
end
local function for_starter(keys)
  local tensors = {}
  for i = 0, 4 do
    for _, part in ipairs { "self_attn.q", "cross_attn.v" } do
      local key = (keys or "diffusion_model.blocks.%d.%s"):format(i, part)
      tensors[key .. ".lora_up.weight"] = random(100 + i, dim, 4)
      tensors[key .. ".lora_down.weight"] = random(200 + i, 4, dim) * 0.05
    end
  end
  return tensors
end

t.test("the starter: a film changes, strength 0 and unloading give the bits of before", function()
  local plain = assert(film())
  local path = file(for_starter())
  local changed = assert(film { lora = path .. ":0.8" })
  t.ok((changed - plain):abs():amax() > 1e-3, "changes")
  same(assert(film()), plain, "unloaded")
  same(assert(film { lora = path .. ":0" }), plain, "strength 0")
  same(assert(film { lora = { path .. ":0.4", { file = path, strength = 0.4 } } }),
    assert(film { lora = { path .. ":0.4", path .. ":0.4" } }))
  t.close(assert(film { lora = { path .. ":0.4", path .. ":0.4" } }), changed, 2e-3, 0, "0.4 twice")
  t.close(assert(film { prompt = ("a <lora:%s:0.8>red ball"):format(path) }), changed, 0, 0, "in the prompt")
  -- Strengths over the steps: of 4 steps none, all, and one half.
  same(assert(film { lora = path .. ":0.8@4" }), plain, "after the last step")
  t.close(assert(film { lora = path .. ":0.8@0" }), changed, 2e-3, 0, "beside")
  local half = assert(film { lora = path .. ":0.8@0.5" })
  t.ok((half - plain):abs():amax() > 1e-4 and (half - changed):abs():amax() > 1e-4, "half of the steps")
  same(assert(film { lora = path .. ":0,0.8" }), half, "the same, said otherwise")
  same(assert(film()), plain, "unloaded again")
end)

t.test("the starter: notices and refusals", function()
  local tensors, seen = for_starter(), {}
  tensors["lora_te1_mlp.alpha"] = T.of { 1 }
  local path = file(tensors)
  assert(melies.run("text_to_video", { prompt = "a ball", frames = 1, width = 32, height = 32, steps = 1, lora = path },
    { progress = false, notice = function(text) seen[#seen + 1] = text end }))
  t.eq(#seen, 1) t.ok(seen[1]:find("lora_te1_mlp.alpha", 1, true), seen[1])
  local ok, message = film { lora = file { ["blocks.0.self_attn.q.diff"] = random(1, 8, 8) } }
  t.eq(ok, nil) t.ok(message:find("[8, 8]", 1, true) and message:find("another model", 1, true), message)
  ok, message = film { lora = "/nowhere/a.safetensors:0.5" }
  t.eq(ok, nil) t.ok(message:find("/nowhere/a.safetensors", 1, true), message)
  ok, message = film { lora = path .. ":much" }
  t.eq(ok, nil) t.ok(message:find("much", 1, true), message)
  ok, message = film { prompt = "a <lora:none-such> ball" }
  t.eq(ok, nil) t.ok(message:find("none-such", 1, true), message)
  local recipe = require "melies.recipe"
  local values = assert(recipe.parse(assert(recipe.find "text_to_video"), { "--prompt", "x", "--lora", path .. ":0.5",
    "--lora=" .. path }))
  t.eq(#values.lora, 2) t.eq(values.lora[1].strength, 0.5) t.eq(values.lora[2].strength, 1)
end)

t.test("the starter in bf16 and in 8 bits, merged and beside", function()
  local path = file(for_starter())
  for _, compute in ipairs { "bf16", "s8" } do
    if pcall(melies.set_compute, compute) then
      local plain, whole = assert(film()), assert(film { lora = path .. ":0.8" })
      local beside = assert(film { lora = path .. ":0.8@0" })
      t.eq(whole:nonfinite() + beside:nonfinite(), 0)
      t.ok((whole - plain):abs():mean() > 0.02, compute .. " changes")
      t.ok((beside - whole):abs():mean() < 0.3 * (whole - plain):abs():mean(), compute .. ": beside is as merged")
      same(assert(film()), plain, compute .. " unloaded")
      melies.pipeline.forget()
    end
  end
  melies.set_compute "f32"
end)

t.finish()
