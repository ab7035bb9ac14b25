-- Converting: round trips between layouts, formats and precisions, what keeps its precision, memory, refusals.
local t = require "harness"
local melies = require "melies"
local T, weights, checkpoint = melies.tensor, require "melies.weights", require "melies.checkpoint"
local convert, fake, lib = require "melies.convert", require "melies.fake", require "melies.ffi.lib"

local golden = os.getenv "MELIES_ROOT" .. "/tests/golden/"

local function same(a, b, tolerance, what)
  t.eq(#a:names(), #b:names(), what)
  for _, name in ipairs(a:names()) do
    local x, y = a:get(name, "f32"), b:get(name, "f32")
    t.eq(table.concat(x.shape, ","), table.concat(y.shape, ","), name)
    local d = (x - y):norm() / math.max(1e-9, x:norm())
    t.ok(d <= tolerance, ("%s: %s: %g"):format(what, name, d))
  end
end

t.test("every golden model through GGUF, ComfyUI's and diffusers' names and back: the same bits", function()
  for _, name in ipairs { "wan_dit", "wan_dit_i2v", "umt5", "t5v1_1", "wan_vae", "taehv_p2", "taehv_super",
    "clip_text_gelu", "wan_clip_vision", "ltx_dit", "ltx_vae", "ltx_vae_tc" } do
    local folder = t.folder()
    local path = golden .. name .. ".weights.safetensors"
    local original = assert(checkpoint.open(path))
    for _, layout in ipairs { "comfyui", "diffusers", "wan" } do
      for _, ending in ipairs { "gguf", "safetensors" } do
        local out = ("%s/%s.%s"):format(folder, layout, ending)
        local facts, message = convert.run(path, out, { layout = layout })
        if facts then
          t.eq(facts.types.f32, facts.tensors, out)
          local back = assert(checkpoint.open(out))
          t.eq(back.info.layout == original.info.layout, layout ~= "diffusers" or name:find "clip_text" ~= nil, out)
          same(original, back, 0, out)
        else
          t.ok(layout == "diffusers" and name:find "taehv", message)
        end
      end
    end
    -- from the last one back to the original's names
    assert(convert.run(folder .. "/comfyui.gguf", folder .. "/back.safetensors"))
    local plain, back = weights.open(path), assert(weights.open(folder .. "/back.safetensors"))
    for _, key in ipairs(plain:names()) do t.ok(back:has(key), key) end
  end
end)

t.test("precisions: error, and what keeps its own", function()
  local folder = t.folder()
  local path = assert(fake.make("wan2.1-t2v-tiny", folder, { dtype = "f32" }))[1]
  local original = assert(checkpoint.open(path))
  for _, case in ipairs { { "bf16", 2e-3 }, { "f16", 3e-4 }, { "q8_0", 8e-3 }, { "q5_1", 0.05 }, { "q5_0", 0.06 },
    { "q4_1", 0.09 }, { "q4_0", 0.12 }, { "q6_k", 0.03 }, { "q5_k", 0.05 }, { "q4_k", 0.08 }, { "q3_k", 0.16 },
    { "q2_k", 0.3 }, { "Q4_K_M", 0.08 } } do
    local dtype = assert(convert.dtype(case[1]))
    local out = folder .. "/" .. case[1] .. ".gguf"
    local facts = assert(convert.run(path, out, { dtype = case[1] }))
    local view = assert(checkpoint.open(out))
    same(original, view, case[2], case[1])
    t.eq(view:dtype "blocks.0.ffn.0.weight", dtype)
    t.eq(view:dtype "blocks.0.ffn.0.bias", "f32")
    t.eq(view:dtype "blocks.1.modulation", "f32")
    t.eq(view:dtype "blocks.1.norm3.weight", "f32")
    local kept = dtype:find "^q" and "bf16" or dtype
    t.eq(view:dtype "time_embedding.0.weight", kept)
    t.eq(view:dtype "patch_embedding.weight", kept)
    t.eq(table.concat(view:shape "patch_embedding.weight", ","), "256,16,1,2,2")
    if dtype:find "^q" then t.eq(facts.types[dtype], 20) end
  end
  -- the other way: blocks become floats
  assert(convert.run(folder .. "/q8_0.gguf", folder .. "/again.safetensors", { dtype = "f32" }))
  same(assert(checkpoint.open(folder .. "/q8_0.gguf")), assert(checkpoint.open(folder .. "/again.safetensors")), 0, "again")
  assert(convert.run(folder .. "/q8_0.gguf", folder .. "/plain.safetensors"))
  t.eq(assert(checkpoint.open(folder .. "/plain.safetensors")):dtype "blocks.0.ffn.0.weight", "bf16")
end)

t.test("rows that are no whole blocks get the next type that fits", function()
  t.eq(convert.stored_type({ kind = "matrix", dtype = "bf16", shape = { 8, 512 } }, "q4_k"), "q4_k")
  t.eq(convert.stored_type({ kind = "matrix", dtype = "bf16", shape = { 8, 96 } }, "q4_k"), "q8_0")
  t.eq(convert.stored_type({ kind = "matrix", dtype = "bf16", shape = { 8, 100 } }, "q4_k"), "bf16")
  t.eq(convert.stored_type({ kind = "matrix", dtype = "f16", shape = { 8, 100 } }, "q8_0"), "f16")
  t.eq(convert.stored_type({ kind = "norm", dtype = "bf16", shape = { 8 } }, "q8_0"), "bf16")
  t.eq(convert.stored_type({ kind = "norm", dtype = "f8_e4m3", shape = { 8 } }, "q8_0"), "f32")
  t.eq(convert.stored_type({ kind = "norm", dtype = "bf16", shape = { 8 } }, "f32"), "f32")
  t.eq(convert.stored_type({ kind = "embedding", dtype = "f32", shape = { 8, 512 } }, "q8_0"), "bf16")
  t.eq(convert.stored_type({ kind = "matrix", dtype = "f8_e5m2", shape = { 8, 512 } }), "bf16")
end)

t.test("folders, shards and .pth in; one file out", function()
  local folder = t.folder()
  assert(fake.make("wan2.1-i2v-tiny", folder, { layout = "diffusers", shard = 2 ^ 20 }))
  assert(fake.make("umt5-xxl-tiny", folder, { layout = "diffusers" }))
  local _, message = convert.run(folder, folder .. "/x.safetensors")
  t.ok(message:find("say which part", 1, true), message)
  assert(convert.run(folder, folder .. "/x.safetensors", { part = "dit" }))
  same(assert(checkpoint.open(folder, { part = "dit" })), assert(checkpoint.open(folder .. "/x.safetensors")), 0, "shards")
end)

t.test("memory stays small", function()
  local folder = t.folder()
  -- an embedding of 24 million values: 48 MB as bf16, 96 as f32
  local architecture = checkpoint.architecture "t5"
  local list = architecture.tensors { vocab = 94000, dim = 256, dim_attn = 256, dim_ffn = 512, heads = 4, layers = 1,
    buckets = 32 }
  local tensors = {}
  for _, e in ipairs(list) do tensors[e.name] = T.full(e.shape, 0.25, "bf16") end
  assert(weights.save(folder .. "/a.safetensors", tensors))
  tensors = nil
  collectgarbage()
  collectgarbage()
  for _, case in ipairs { { "f32", "safetensors" }, { "q8_0", "gguf" } } do
    lib.C.mel_mem_reset_peak()
    local before = tonumber(lib.C.mel_mem_live())
    assert(convert.run(folder .. "/a.safetensors", ("%s/b.%s"):format(folder, case[2]), { dtype = case[1] }))
    local peak = tonumber(lib.C.mel_mem_peak()) - before
    t.ok(peak < 48 * 2 ^ 20, ("%s: %d MiB"):format(case[1], peak / 2 ^ 20))
  end
  t.eq(tensors, nil)
end)

t.test("refusals leave nothing behind", function()
  local folder = t.folder()
  local path = golden .. "umt5.weights.safetensors"
  local function refused(text, input, output, options)
    local facts, message = convert.run(input, output, options)
    t.ok(not facts and message:find(text, 1, true), message or "converted")
  end
  refused(".safetensors or .gguf", path, folder .. "/x.bin")
  refused("q8_0 is a type of GGUF", path, folder .. "/x.safetensors", { dtype = "q8_0" })
  refused("did you mean 'q8_0'", path, folder .. "/x.gguf", { dtype = "q8" })
  refused("none.safetensors", folder .. "/none.safetensors", folder .. "/x.gguf")
  refused("cannot be written", path, folder .. "/none/x.gguf")
  refused("no architecture", golden .. "st_valid.safetensors", folder .. "/x.gguf")
  local x = T.full({ 48 }, 0 / 0)
  local tensors = {}
  local f = weights.open(path)
  for _, name in ipairs(f:names()) do tensors[name] = f:get(name) end
  tensors["norm.weight"] = x
  assert(weights.save(folder .. "/nan.safetensors", tensors))
  assert(convert.run(folder .. "/nan.safetensors", folder .. "/kept.gguf", { dtype = "q8_0" })) -- a norm is kept as it is
  os.remove(folder .. "/kept.gguf")
  tensors["blocks.0.ffn.fc1.weight"] = T.full({ 104, 48 }, 1 / 0)
  local p = io.popen("ls " .. folder)
  t.eq(p:read "*a", "nan.safetensors\n")
  p:close()
end)

t.test("Ctrl-C: raised as everywhere, no file", function()
  local folder = t.folder()
  lib.C.mel_cancel()
  local ok, e = pcall(convert.run, golden .. "wan_dit.weights.safetensors", folder .. "/x.gguf", { dtype = "bf16" })
  lib.C.mel_cancel_clear()
  t.ok(not ok and e == lib.canceled, tostring(e))
  local p = io.popen("ls " .. folder)
  t.eq(p:read "*a", "")
  p:close()
end)

t.test("the command", function()
  local folder, said = t.folder(), nil
  local function say(text) said = text end
  t.eq(convert.main({ golden .. "wan_dit.weights.safetensors", "-o", folder .. "/x.gguf", "--dtype=bf16" }, say), 0)
  t.ok(said:find("bf16 in", 1, true), said)
  t.eq(convert.main({ "x", "-o" }, say), 2)
  t.eq(convert.main({ "x" }, say), 2)
  local code, message = convert.main({ "x", "-o", "y.gguf", "--dtpye", "bf16" }, say)
  t.eq(code, 2)
  t.ok(message:find("did you mean '--dtype'", 1, true), message)
  code, message = convert.main({ "x", "-o", "y.gguf", "--layout", "diffuser" }, say)
  t.eq(code, 2)
  t.ok(message:find("did you mean 'diffusers'", 1, true), message)
  code, message = convert.main({ folder .. "/none.gguf", "-o", folder .. "/y.gguf" }, say)
  t.eq(code, 1)
  t.ok(message:find("none.gguf", 1, true), message)
end)

t.finish()
