-- The memory budget: what there is, estimates against measured peaks, plans, and that jobs keep within them.
local t = require "harness"
local melies = require "melies"
local lib = require "melies.ffi.lib"
local T, budget, C = melies.tensor, melies.budget, lib.C

local root = os.getenv "MELIES_ROOT"
local MIB = 2 ^ 20
melies.set_compute "f32"

local function collect()
  collectgarbage()
  collectgarbage()
end

local function live() return tonumber(C.mel_mem_live()) end

-- Peak of fn over what was alive before it.
local function peak_of(fn)
  collect()
  local before = live()
  C.mel_mem_reset_peak()
  fn()
  return tonumber(C.mel_mem_peak()) - before
end

-- A transformer with Wan's names and values of no meaning.
local function wan_dit(dim, ffn, layers)
  local w = {}
  local function linear(name, n, k)
    w[name .. ".weight"], w[name .. ".bias"] = T.noise({ n, k }) * 0.02, T.zeros { n }
  end
  w["patch_embedding.weight"], w["patch_embedding.bias"] = T.noise({ dim, 16, 1, 2, 2 }) * 0.02, T.zeros { dim }
  linear("text_embedding.0", dim, 64) linear("text_embedding.2", dim, dim)
  linear("time_embedding.0", dim, 64) linear("time_embedding.2", dim, dim) linear("time_projection.1", 6 * dim, dim)
  for i = 0, layers - 1 do
    local at = ("blocks.%d."):format(i)
    w[at .. "modulation"] = T.zeros { 1, 6, dim }
    for _, part in ipairs { "self_attn.", "cross_attn." } do
      for _, name in ipairs { "q", "k", "v", "o" } do linear(at .. part .. name, dim, dim) end
      for _, name in ipairs { "norm_q", "norm_k" } do w[at .. part .. name .. ".weight"] = T.full({ dim }, 1) end
    end
    w[at .. "norm3.weight"], w[at .. "norm3.bias"] = T.full({ dim }, 1), T.zeros { dim }
    linear(at .. "ffn.0", ffn, dim) linear(at .. "ffn.2", dim, ffn)
  end
  linear("head.head", 64, dim)
  w["head.modulation"] = T.zeros { 1, 2, dim }
  return require("melies.models.wan_dit").load(w, { heads = 2, text_len = 64 })
end

t.test("sizes, and what the machine has", function()
  t.eq(budget.size "8G", 8 * 2 ^ 30) t.eq(budget.size "lots", nil)
  local free, from = budget.free()
  t.ok(free > 0 and type(from) == "string")
  local limit = budget.limit()
  t.ok(limit > 0 and limit < live() + tonumber(C.mel_mem_pooled()) + free + 1, "a reserve is left")
  budget.set(3 * 2 ^ 30)
  limit, from = budget.limit()
  t.eq(limit, 3 * 2 ^ 30) t.eq(from, "--memory") t.eq(tonumber(C.mel_mem_limit()), 3 * 2 ^ 30)
  budget.set(nil)
  t.eq(tonumber(C.mel_mem_limit()), 0)
end)

t.test("the estimate of a forward pass is within 10 % of the measured peak", function()
  for _, compute in ipairs { "f32", "bf16" } do
    melies.set_compute(compute)
    local net = wan_dit(128, 8192, 2)
    melies.set_compute "f32"
    local context = net:context { T.noise { 9, 64 }, T.noise { 5, 64 } }
    local x = T.noise { 1, 16, 6, 24, 32 }
    local measured = peak_of(function() net:forward(x, 500, context) end)
    local estimate = budget.forward_bytes(net, 6 * 12 * 16, 2, 10)
    t.ok(measured > 32 * MIB, measured)
    t.ok(math.abs(estimate / measured - 1) < 0.1, ("%s: %.1f MiB, estimated %.1f"):format(compute, measured / MIB,
      estimate / MIB))
  end
end)

-- Random latents through an autoencoder of the fixtures.
local function with_autoencoder(architecture, fixture)
  local file = assert(melies.weights.open(("%s/tests/golden/%s.weights.safetensors"):format(root, fixture)))
  local config = {}
  if architecture == "wan_vae" then
    config.mean, config.std = {}, {}
    for i = 1, file:shape "decoder.conv1.weight"[2] do config.mean[i], config.std[i] = 0, 1 end
  end
  local net = require("melies.models." .. architecture).load(file, config)
  return { name = fixture, autoencoder = net, stride = net.stride, sources = { autoencoder = { weights = file } } }
end

t.test("the estimate of decoding: what is remembered exactly, the rest from above", function()
  for _, case in ipairs { { "wan_vae", "wan_vae" }, { "taehv", "taehv" } } do
    local model = with_autoencoder(case[1], case[2])
    local net, h, w = model.autoencoder, 24, 16
    local state, step = budget.decode_bytes(model, h, w)
    local latent = T.noise { net.latent_channels, 4, h, w }
    local kept
    net:decoder():push(latent:slice(2, 1, 1)) -- primitives
    net:decoder():push(latent:slice(2, 1, 2))
    local decoder = net:decoder()
    local measured = peak_of(function()
      local before = live()
      for i = 1, 3 do decoder:push(latent:slice(2, i, i)) end
      collect()
      kept = live() - before
      C.mel_mem_reset_peak()
      decoder:push(latent:slice(2, 4, 4))
    end)
    t.near(kept / state, 1, 0.1, case[2] .. ": remembered")
    if case[1] == "wan_vae" then -- the others leave garbage, for which a plan has its slack
      t.ok(measured < 1.05 * (state + step) and measured > 0.7 * (state + step), ("%.2f MiB, estimated %.2f"):format(
        measured / MIB, (state + step) / MIB))
    end
  end
end)

-- The starter under a limit, loaded anew: its transformer (6 MB) is not small for that memory.
local function starter_within(bytes)
  melies.pipeline.forget()
  collect()
  budget.set(bytes)
  return assert(melies.pipeline.load "starter")
end

-- In a process of its own: what other tests left lying about would count.
local ladder = [[
local melies = require "melies"
local T, budget = melies.tensor, melies.budget
melies.set_compute "f32"
local x, want = T.noise({ 48, 3, 8, 8 }, { seed = 2 }), nil
local function run(megabytes)
  melies.pipeline.forget()
  collectgarbage()
  budget.set(megabytes * 2 ^ 20)
  local model = assert(melies.pipeline.load "starter")
  local plan, message = model:plan(x.shape, 2)
  if not plan then return print("refused", message) end
  local out = model:predict(x, 0.7, { model:encode "a red ball", model:encode "" })
  local packed = 0
  for _, block in ipairs(plan.parts.blocks) do
    local all = true
    for _, layer in ipairs(block.layers) do all = all and layer:bytes() > layer.outputs * 4 end
    packed = packed + (all and 1 or 0)
  end
  want = want or out
  print("ran", packed, plan.resident, plan.peak <= megabytes * 2 ^ 20, (out[1] - want[1]):abs():amax(),
    plan.lines[1])
end
run(180) -- the starter's transformer is more than a 32nd of it
for megabytes = 5, 21 do
  run(megabytes)
  collectgarbage()
  collectgarbage()
end
]]

t.test("less memory, fewer blocks packed; the result stays", function()
  local path = t.folder() .. "/ladder.lua"
  local f = assert(io.open(path, "w"))
  f:write(ladder)
  f:close()
  local p = io.popen(("'%s' '%s' 2>&1"):format(arg[-1] or "luajit", path))
  local seen, kinds, first, refused = {}, 0, true, 0
  for line in p:lines() do
    local packed, resident, within, off, said = line:match "^ran\t(%d+)\t(%d+)\t(%l+)\t(%S+)\t(.*)$"
    if packed then
      t.eq(packed, resident, "what was planned is packed") t.eq(within, "true", line)
      t.ok(tonumber(off) < 1e-4, line)
      if first then
        t.eq(packed, "5") t.ok(said:find("180 MiB (--memory)", 1, true), said)
      end
      first = false
      if not seen[packed] then kinds, seen[packed] = kinds + 1, true end
    else
      t.ok(line:find("^refused.*more than there is.*would make it fit"), line)
      refused = refused + 1
    end
  end
  p:close()
  t.ok(kinds >= 4, kinds .. " different numbers of packed blocks") t.ok(refused >= 1)
end)

t.test("a job keeps within its memory, says the plan, and leaves the limit as it was", function()
  starter_within(40 * MIB)
  collect()
  C.mel_mem_reset_peak()
  local frames = assert(melies.run("text_to_video", { prompt = "a red ball", steps = 3, frames = 33 }))
  t.ok(tonumber(C.mel_mem_peak()) <= 40 * MIB)
  t.eq(tonumber(C.mel_mem_limit()), 40 * MIB)
  starter_within(nil)
  t.close(assert(melies.run("text_to_video", { prompt = "a red ball", steps = 3, frames = 33 })), frames, 1e-3, 0)
  t.eq(tonumber(C.mel_mem_limit()), 0)

  starter_within(24 * MIB)
  local result, message = melies.run("text_to_video", { prompt = "a red ball", width = 512, height = 512 })
  t.eq(result, nil)
  for _, words in ipairs { "MiB more than there is", "512x512", "17", "would make it fit" } do
    t.ok(message:find(words, 1, true), message)
  end
  t.eq(tonumber(C.mel_mem_limit()), 24 * MIB)
  starter_within(nil)
end)

t.test("the program prints the plan before the work", function()
  local p = io.popen(("'%s/melies' --memory 18M run text_to_video --prompt ball --steps 2 --frames 5 -o '%s/f.gif' 2>&1")
    :format(os.getenv "MELIES_BUILD", t.folder()))
  local text = p:read "*a"
  p:close()
  local first = text:find("memory: 18 MiB (--memory)", 1, true)
  t.ok(first and first < (text:find("sampling 2", 1, true) or 0), text)
end)

t.test("frames are decoded in tiles where the memory asks for it, within what was planned", function()
  local model = with_autoencoder("wan_vae", "wan_vae")
  local net = model.autoencoder
  local latent = T.noise { net.latent_channels, 4, 48, 40 }
  model.dit = { dtype = "f32", dim = 8, ffn = 16, blocks = {} }
  model.patch, model.text_len = { 1, 2, 2 }, 8
  function model.frame_count(_, n) return 4 * n - 3 end
  collect()
  local state, step = budget.decode_bytes(model, 48, 40)
  budget.set(live() + 8 * (state + step))
  local plan = assert(budget.plan(model, { shape = latent.shape, batch = 1 }))
  t.eq(plan.tile, nil)
  local limit = live() + math.floor(0.8 * (state + step))
  budget.set(limit)
  plan = assert(budget.plan(model, { shape = latent.shape, batch = 1 }))
  t.ok(plan.tile and plan.tile[1] < 48, "tiles") t.ok(plan.lines[3]:find("tiles of", 1, true), plan.lines[3])
  budget.set(nil)
  local measured = peak_of(function()
    melies.tiles.decode(net, latent, { tile = plan.tile, overlap = budget.overlap }, function(frames) frames:free() end)
  end)
  t.ok(measured < 1.05 * plan.decode, ("%.2f MiB, planned %.2f"):format(measured / MIB, plan.decode / MIB))
  budget.set(limit - math.floor(0.75 * (state + step)))
  local none, message = budget.plan(model, { shape = latent.shape, batch = 1 })
  t.eq(none, nil) t.ok(message:find("decoding needs", 1, true) or message:find("this needs", 1, true), message)
  budget.set(nil)
end)

-- ---- text encoders read from their file layer by layer ------------------------------------------------

local function mapped() -- bytes of files in memory
  local f = assert(io.open "/proc/self/status")
  local text = f:read "*a"
  f:close()
  return tonumber(text:match "RssFile:%s*(%d+) kB") * 1024
end

t.test("a large text encoder passes through memory layer by layer, once for all texts", function()
  local dim, ffn, layers = 512, 1024, 8
  local w
  w = { ["token_embedding.weight"] = (T.noise { 1000, dim }):to "bf16", ["norm.weight"] = T.full({ dim }, 1) }
  local square, wide, tall = (T.noise { dim, dim } * 0.02):to "bf16", (T.noise { ffn, dim } * 0.02):to "bf16",
    (T.noise { dim, ffn } * 0.02):to "bf16"
  for i = 0, layers - 1 do
    local at = ("blocks.%d."):format(i)
    for _, name in ipairs { "q", "k", "v", "o" } do w[at .. "attn." .. name .. ".weight"] = square end
    w[at .. "ffn.gate.0.weight"], w[at .. "ffn.fc1.weight"], w[at .. "ffn.fc2.weight"] = wide, wide, tall
    w[at .. "norm1.weight"], w[at .. "norm2.weight"] = T.full({ dim }, 1), T.full({ dim }, 1)
    w[at .. "pos_embedding.embedding.weight"] = T.noise { 32, 8 }
  end
  local path = t.folder() .. "/encoder.safetensors"
  assert(melies.weights.save(path, w))
  w = nil -- luacheck: ignore
  local file = assert(melies.weights.open(path))
  local layer_bytes = 0
  for _, name in ipairs(file:names()) do
    if name:find "^blocks%.0%." then layer_bytes = layer_bytes + file:bytes(name) end
  end
  local before, most, visits
  local net = require("melies.models.t5").load(file, {}, { lazy = true, trace = function(name)
    if name:find "^block%d+$" then
      visits = visits + 1
      most = math.max(most, mapped())
    end
  end })
  local texts = { { 5, 6, 7, 1 }, { 9, 1 } }
  local function run(streamed, lists)
    net.streamed = streamed
    file:drop()
    before, most, visits = mapped(), 0, 0
    local out = net:encode(lists)
    t.eq(visits, layers * #lists)
    return out, most - before
  end
  local whole, all = run(false, texts)
  local out, some = run(true, texts)
  t.ok(all > 0.9 * layers * layer_bytes, "without dropping, all of it is in memory")
  t.ok(some < 3.5 * layer_bytes, ("%.1f MiB at most, a layer is %.1f"):format(some / MIB, layer_bytes / MIB))
  for i = 1, 2 do
    t.close(out[i], whole[i], 0, 0)
    t.close(run(true, { texts[i] })[1], whole[i], 0, 0, "alone: the same bits")
  end
end)

t.finish()
