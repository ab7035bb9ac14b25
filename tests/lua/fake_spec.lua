-- Fake checkpoints: exact layouts, the same values in each of them, every name, and the command.
local t = require "harness"
local melies = require "melies"
local weights, checkpoint, fake = require "melies.weights", require "melies.checkpoint", require "melies.fake"
local json = melies.json

local function make(name, options)
  local folder = t.folder()
  local paths, message = fake.make(name, folder, options)
  t.ok(paths, message)
  return folder, paths
end

local function largest_difference(a, b)
  local names = a:names()
  t.eq(#names, #b:names())
  local worst = 0
  for _, name in ipairs(names) do
    local x, y = a:get(name, "f32"), b:get(name, "f32")
    worst = math.max(worst, (x - y):norm() / math.max(1e-9, x:norm()))
  end
  return worst
end

t.test("every name: what is written is what is recognised", function()
  for _, name in ipairs(fake.names()) do
    local folder, paths = make(name .. "-tiny")
    local model = assert(fake.model(name .. "-tiny"))
    local text_encoder = model.architecture.part == "text_encoder" -- comes with a tokenizer
    t.eq(#paths, (model.experts or text_encoder) and 2 or 1, name)
    local w = assert(checkpoint.open(folder, { part = model.architecture.part }))
    t.eq(w.info.architecture, model.architecture.name, name)
    t.eq(#w.info.list, #model.architecture.tensors(model.config), name)
    for key, value in pairs(model.config) do
      if type(value) ~= "table" then t.eq(w.info.config[key], value, name .. " " .. key) end
    end
    w:close()
  end
end)

t.test("full-size shapes are the published ones", function()
  local function count(name)
    local model, n, tensors = assert(fake.model(name)), 0, 0
    for _, e in ipairs(model.architecture.tensors(model.config)) do
      tensors, n = tensors + 1, n + require("melies.checkpoint.keys").numel(e.shape)
    end
    return n, tensors, (model.architecture.variant(model.config, { prefix = "" }))
  end
  -- parameters and tensors as the published files have them
  local n, tensors, variant = count "wan2.1-t2v-1.3b"
  t.eq(n, 1418996800)
  t.eq(tensors, 825)
  t.eq(variant, "wan2.1-t2v-1.3b")
  n, tensors, variant = count "wan2.1-t2v-14b"
  t.eq(n, 14288491584)
  t.eq(tensors, 1095)
  t.eq(variant, "wan2.1-t2v-14b")
  n, tensors, variant = count "umt5-xxl"
  t.eq(n, 5680910336)
  t.eq(tensors, 242)
  t.eq(variant, "umt5-xxl")
  n, tensors = count "wan2.1-vae"
  t.eq(n, 126892531)
  t.eq(tensors, 194)
  for name, wanted in pairs { ["wan2.1-i2v-14b"] = "wan2.1-i2v-14b", ["wan2.1-flf2v-14b"] = "wan2.1-flf2v-14b",
    ["wan2.2-ti2v-5b"] = "wan2.2-ti2v-5b", ["wan2.2-vae"] = "wan2.2-vae", ["clip-vision"] = "clip-vit-h-14",
    taew2_1 = "taew2_1" } do
    t.eq(select(3, count(name)), wanted)
  end
end)

t.test("one model in every layout and precision: the same values", function()
  local _, plain = make("wan2.1-t2v-tiny", { dtype = "f32" })
  local a = assert(checkpoint.open(plain[1]))
  for _, case in ipairs {
    { { layout = "comfyui", dtype = "f32" }, 0, "wan", "model.diffusion_model." },
    { { dtype = "f32", format = "gguf" }, 0, "wan", "" },
    { { dtype = "bf16" }, 2e-3, "wan", "" }, { { dtype = "f16" }, 3e-4, "wan", "" },
    { { dtype = "q8_0" }, 8e-3, "wan", "" }, { { dtype = "q4_k" }, 0.09, "wan", "" },
    { { dtype = "q6_k", layout = "comfyui" }, 0.03, "wan", "model.diffusion_model." },
  } do
    local _, paths = make("wan2.1-t2v-tiny", case[1])
    local b = assert(checkpoint.open(paths[1]))
    t.eq(b.info.layout, case[3])
    t.eq(b.info.prefix, case[4])
    local d = largest_difference(a, b)
    t.ok(d <= case[2], ("%s %s: %g"):format(case[1].layout or "", case[1].dtype, d))
  end
  local folder, paths = make("wan2.1-t2v-tiny", { layout = "diffusers", dtype = "f32", shard = 2 ^ 20 })
  t.ok(#paths > 3 and paths[#paths]:find "index%.json$", "shards")
  local b = assert(checkpoint.open(folder))
  t.eq(b.info.layout, "diffusers")
  t.eq(b.info.config.heads, 2)
  t.eq(largest_difference(a, b), 0)
  t.eq(json.read(folder .. "/model_index.json")._class_name, "WanPipeline")
  for _, name in ipairs { "umt5-xxl", "wan2.1-vae", "wan2.2-vae", "clip-vision" } do
    _, plain = make(name .. "-tiny", { dtype = "f32" })
    folder = make(name .. "-tiny", { layout = "diffusers", dtype = "f32" })
    local one, other = assert(checkpoint.open(plain[1])), assert(checkpoint.open(folder))
    t.ok(other.info.layout ~= "wan", name)
    t.eq(largest_difference(one, other), 0, name)
  end
end)

t.test("models run from every layout: the same output within the precision", function()
  local T = melies.tensor
  local function each(name, kind, run, cases)
    local want
    for _, case in ipairs(cases) do
      local folder = make(name .. "-tiny", case[1])
      local w = assert(checkpoint.open(folder, { part = kind }))
      local net = require("melies.models." .. w.info.model).load(w, w.info.config, { compute = "f32" })
      local got = run(net)
      if not want then
        want = got
        t.eq(got:nonfinite(), 0, name)
        t.ok(got:std() > 1e-3 and got:std() < 100, name .. " " .. got:std())
      else
        local d = (got - want):norm() / want:norm()
        t.ok(d <= case[2], ("%s %s %s: %g"):format(name, case[1].layout or "", case[1].dtype or "", d))
      end
    end
  end
  local exact = { { { dtype = "f32" } }, { { dtype = "f32", layout = "diffusers" }, 0 },
    { { dtype = "f32", format = "gguf" }, 0 },
    { { dtype = "f32", layout = "comfyui" }, 0 }, { { dtype = "bf16" }, 0.05 }, { { dtype = "q8_0" }, 0.08 } }
  each("wan2.1-t2v-1.3b", "dit", function(net)
    local text = T.noise({ 5, 64 }, { seed = 1 })
    return net:forward(T.noise({ 1, 16, 2, 4, 6 }, { seed = 2 }), 500, net:context { text })
  end, exact)
  each("umt5-xxl", "text_encoder", function(net) return net:encode { 5, 17, 300, 1 } end, exact)
  each("wan2.1-vae", "autoencoder", function(net)
    return net:decode(T.noise({ 16, 2, 2, 2 }, { seed = 3 }))
  end, exact)
  each("clip-vision", "image_encoder", function(net)
    return net:encode(T.uniform({ 28, 28, 3 }, { seed = 4 }))
  end, exact)
end)

t.test("seeds, and values as they should be", function()
  local _, a = make("umt5-tiny", { dtype = "f32" })
  local _, b = make("umt5-tiny", { dtype = "f32", seed = 1 })
  local x, y = assert(checkpoint.open(a[1])), assert(checkpoint.open(b[1]))
  t.ok(largest_difference(x, y) > 0.5)
  t.near(x:get("blocks.0.ffn.fc1.weight"):std(), 1 / 8, 0.004)
  t.near(x:get("blocks.0.norm1.weight"):mean(), 1, 0.03)
  t.near(x:get("token_embedding.weight"):std(), 1, 0.02)
  t.near(x:get("blocks.0.attn.k.weight"):mean(), 0, 0.01)
  local q, k = x:get "blocks.0.attn.q.weight", x:get "blocks.0.attn.k.weight"
  t.ok((q * 4 - k):norm() > 0.5 * k:norm(), "tensors differ")
end)

t.test("a tensor larger than a piece is the same in one piece", function()
  -- by rows of different counts: element i depends on i alone
  local T, lib = melies.tensor, require "melies.ffi.lib"
  local whole, part = T.empty({ 100000 }, "f32"), T.empty({ 1000 }, "f32")
  lib.call(lib.C.mel_noise_hash_uniform, 7, 9, 0, -1, 1, whole.handle)
  lib.call(lib.C.mel_noise_hash_uniform, 7, 9, 70000, -1, 1, part.handle)
  t.eq((whole:slice(1, 70001, 71000) - part):abs():amax(), 0)
  t.ok(whole:amin() >= -1 and whole:amax() < 1)
  t.near(whole:mean(), 0, 0.01)
  t.near(whole:std(), 1 / math.sqrt(3), 0.005)
  t.raises(function()
    lib.call(lib.C.mel_noise_hash_uniform, 7, 9, 0, -1, 1, T.empty({ 3 }, "bf16").handle)
  end, "f32")
end)

t.test("misuse", function()
  local _, message = fake.make("wan2.1-t2v-1.4b", t.folder())
  t.ok(message:find("did you mean 'wan2.1-t2v-1.3b'", 1, true), message)
  _, message = fake.make("taew2_1-tiny", t.folder(), { layout = "diffusers" })
  t.ok(message:find("no other names", 1, true) or message:find("no folder", 1, true), message)
  _, message = fake.make("umt5-xxl-tiny", t.folder(), { dtype = "q9" })
  t.ok(message:find("no type 'q9'", 1, true), message)
  _, message = fake.make("umt5-xxl-tiny", "/proc/none/here")
  t.ok(message:find("/proc", 1, true), message)
  local said
  local function say(text) said = said or text end
  t.eq(fake.main({ "umt5-xxl" }, say), 2)
  t.eq(fake.main({ "umt5-xxl", "x", "--dytpe", "bf16" }, say), 2)
  t.eq(fake.main({ "umt5-xxl", "x", "--layout", "comfy" }, say), 2)
  local folder = t.folder()
  t.eq(fake.main({ "umt5-xxl", folder, "--scale", "tiny", "--dtype=q8_0" }, say), 0)
  t.eq(said, ("%s/umt5-xxl-tiny-q8_0.gguf\n%s/spiece.model"):format(folder, folder))
  t.eq(assert(weights.open(said:match "^[^\n]+")).metadata["general.architecture"], "t5encoder")
end)

t.finish()
