-- What files of weights are, from their tensors: every layout of every architecture, and what is wrong with broken ones.
local t = require "harness"
local melies = require "melies"
local T, weights, checkpoint = melies.tensor, require "melies.weights", require "melies.checkpoint"

local golden = os.getenv "MELIES_ROOT" .. "/tests/golden/"

local function tensors_of(name)
  local f = assert(weights.open(golden .. name .. ".weights.safetensors"))
  local out = {}
  for _, key in ipairs(f:names()) do out[key] = f:get(key) end
  return out
end

-- The tensors under the names of another layout.
local function renamed(tensors, layout, prefix)
  local out = {}
  local concat_rows = {}
  for name, x in pairs(tensors) do
    local to = layout.rename(name)
    if type(to) == "string" then
      out[(prefix or "") .. to] = x
    elseif to.op == "transpose" then
      out[(prefix or "") .. to[1]] = x:transpose(1, 2):contiguous()
    elseif to.op == "concat" then
      local rows = x.shape[1] / #to
      for i, key in ipairs(to) do out[(prefix or "") .. key] = x:slice(1, (i - 1) * rows + 1, i * rows):contiguous() end
    else
      local key = (prefix or "") .. to[1]
      concat_rows[key] = concat_rows[key] or {}
      concat_rows[key][to[2]] = x
    end
  end
  for key, list in pairs(concat_rows) do out[key] = T.concat(list, 1) end
  return out
end

local function same(tensors, view, what)
  local n = 0
  for name, x in pairs(tensors) do
    if view:has(name) then
      n = n + 1
      t.eq(table.concat(view:shape(name), ","), table.concat(x.shape, ","), what .. " " .. name)
      t.eq((view:get(name):to "f32" - x:to "f32"):abs():amax(), 0, what .. " " .. name)
    end
  end
  return n
end

local fixtures = {
  { "wan_dit", "wan_dit" }, { "wan_dit_i2v", "wan_dit" }, { "umt5", "t5" }, { "t5v1_1", "t5" },
  { "wan_vae", "wan_vae" }, { "taehv", "taehv" }, { "taehv_p2", "taehv" }, { "taehv_super", "taehv" },
  { "clip_text_gelu", "clip_text" }, { "wan_clip_vision", "clip_vision" }, { "ltx_dit", "ltx_dit" },
  { "ltx_vae", "ltx_vae" }, { "ltx_vae_tc", "ltx_vae" },
}
for _, pair in ipairs(fixtures) do
  local file, name = pair[1], pair[2]
  t.test(file .. " in each layout, bare and under a prefix", function()
    local tensors = tensors_of(file)
    local tried = 0
    for i, layout in ipairs(checkpoint.architecture(name).layouts) do
      if not (name == "ltx_vae" and i > 1 and (i == 2) ~= (file == "ltx_vae_tc")) then
        for _, prefix in ipairs { "", "model.diffusion_model.", "generator_ema.model." } do
          local part = assert(checkpoint.detect(weights.from_table(renamed(tensors, layout, prefix))))
          local what = ("%s as '%s%s'"):format(file, prefix, layout.name)
          t.eq(part.architecture, name, what)
          t.eq(part.layout, layout.name, what)
          t.eq(part.prefix, prefix, what)
          t.eq(checkpoint.problems(part), nil, what)
          t.eq(#part.others, 0, what)
          local wanted = 0
          for _ in pairs(tensors) do wanted = wanted + 1 end
          t.eq(same(tensors, checkpoint.view(part), what), wanted, what)
          tried = tried + 1
        end
      end
    end
    t.ok(tried >= 3)
  end)
end

t.test("sizes and variants come from shapes", function()
  local part = assert(checkpoint.detect(golden .. "wan_dit_i2v.weights.safetensors"))
  t.eq(part.config.image_dim, 40)
  t.eq(part.config.in_channels, 36)
  t.eq(part.config.layers, 2)
  t.ok(part.variant:find "i2v", part.variant)
  part = assert(checkpoint.detect(golden .. "t5v1_1.weights.safetensors"))
  t.eq(part.config.shared_pos, true)
  t.eq(part.config.heads, 4)
  part = assert(checkpoint.detect(golden .. "taehv_super.weights.safetensors"))
  t.eq(part.variant, "taehv-super")
  local wan, names = checkpoint.architecture "wan_dit", {}
  for _, case in ipairs {
    { "wan2.1-t2v-1.3b", { dim = 1536, layers = 30, in_channels = 16, out_channels = 16 } },
    { "wan2.1-t2v-14b", { dim = 5120, layers = 40, in_channels = 16, out_channels = 16 } },
    { "wan2.1-i2v-14b", { dim = 5120, layers = 40, in_channels = 36, out_channels = 16, image_dim = 1280 } },
    { "wan2.1-flf2v-14b", { dim = 5120, layers = 40, in_channels = 36, out_channels = 16, image_dim = 1280,
      image_tokens = 514 } },
    { "wan2.2-i2v-a14b", { dim = 5120, layers = 40, in_channels = 36, out_channels = 16 } },
    { "wan2.2-ti2v-5b", { dim = 3072, layers = 30, in_channels = 48, out_channels = 48 } },
  } do names[#names + 1] = t.eq((wan.variant(case[2])), case[1]) end
  t.eq((wan.variant({ dim = 1536, layers = 30, in_channels = 16 }, { prefix = "generator_ema.model." })),
    "wan2.1-t2v-1.3b (Self-Forcing, causal)")
end)

t.test("one file with two models, and a model beside its moving average", function()
  local all = renamed(tensors_of "ltx_dit", checkpoint.architecture("ltx_dit").layouts[1], "model.diffusion_model.")
  for name, x in pairs(tensors_of "ltx_vae") do all["vae." .. name] = x end
  local parts = assert(checkpoint.parts(weights.from_table(all)))
  t.eq(#parts, 2)
  local kinds = { [parts[1].part] = parts[1], [parts[2].part] = parts[2] }
  t.eq(kinds.dit.prefix, "model.diffusion_model.")
  t.eq(kinds.autoencoder.prefix, "vae.")
  for _, part in ipairs(parts) do t.eq(checkpoint.problems(part), nil) end
  local wan = {}
  for name, x in pairs(tensors_of "wan_dit_causal") do
    wan["generator.model." .. name], wan["generator_ema.model." .. name] = x * 2, x
  end
  local part = assert(checkpoint.detect(weights.from_table(wan)))
  t.eq(part.prefix, "generator_ema.model.")
  t.eq(part.model, "wan_causal")
  t.eq(#part.others, 0)
  t.eq(checkpoint.problems(part), nil)
end)

t.test("tensors that are known and not needed", function()
  local x = T.zeros { 3 }
  local layout = checkpoint.architecture("t5").layouts[2]
  local all = renamed(tensors_of "umt5", layout)
  all["encoder.embed_tokens.weight"], all["spiece_model"], all["decoder.block.0.x.weight"] =
    all["shared.weight"], T.zeros({ 9 }, "u8"), x
  local part = assert(checkpoint.detect(weights.from_table(all)))
  t.eq(checkpoint.problems(part), nil)
  t.eq(part.ignored, 3)
  t.eq(part.tokenizer, "spiece_model")
  all["shared.weight"] = nil -- some files keep only the other name
  part = assert(checkpoint.detect(weights.from_table(all)))
  t.eq(checkpoint.problems(part), nil)
end)

t.test("scaled fp8: a factor a tensor, a factor a row", function()
  local tensors = tensors_of "wan_dit"
  tensors["scaled_fp8"] = T.zeros { 0 }
  local folder = t.folder()
  local path = folder .. "/plain.safetensors"
  assert(weights.save(path, tensors))
  -- The same file with two matrices as fp8: the header says so, the bytes are ones of that type.
  local name, other = "blocks.0.ffn.0.weight", "blocks.1.ffn.2.weight"
  local function fp8(key)
    local s = tensors[key].shape
    local bytes = T.zeros({ s[1], s[2] }, "u8")
    for i = 1, bytes:numel() do bytes:set(i, ({ 0x38, 0x40, 0xb0, 0x00 })[i % 4 + 1]) end -- 1, 2, -0.5, 0 in e4m3
    return bytes
  end
  local rows = tensors[other].shape[1]
  local scale = T.uniform({ rows, 1 }, { seed = 3 }) + 0.5
  tensors[name], tensors[other] = fp8(name), fp8(other)
  tensors["blocks.0.ffn.0.scale_weight"] = T.of({ 0.25 }, { 1 })
  tensors["blocks.0.ffn.0.scale_input"] = T.of({ 1 }, { 1 })
  tensors["blocks.1.ffn.2.weight_scale"] = scale
  assert(weights.save(path, tensors))
  local f = assert(io.open(path, "rb"))
  local data = f:read "*a"
  f:close()
  data = data:gsub('"U8"', '"F8_E4M3"')
  local length = 0
  for i = 8, 1, -1 do length = length * 256 + data:byte(i) end
  local grown = #data:sub(9):match "^(%b{} *)" - length
  length = length + grown
  local pad = (8 - length % 8) % 8
  local header = data:sub(9, 8 + length) .. (" "):rep(pad)
  length = length + pad
  local size = {}
  for i = 1, 8 do size[i] = string.char(length % 256) length = math.floor(length / 256) end
  f = assert(io.open(path, "wb"))
  f:write(table.concat(size), header, data:sub(9 + #header - pad))
  f:close()
  local w = assert(checkpoint.open(path))
  t.eq(w:dtype(name), "f8_e4m3")
  t.eq(w.info.dtypes.f8_e4m3, 2)
  local want = { 0.5, -0.125, 0, 0.25 }
  local got = w:get(name, "f32")
  for i = 1, 8 do t.near(got:get(i), want[(i - 1) % 4 + 1], 1e-6) end
  t.eq(w:get(name).dtype, "bf16")
  got = w:get(other, "f32")
  local columns = got.shape[2]
  for r = 1, 5 do t.near(got:get((r - 1) * columns + 4), scale:get(r), 1e-6) end
  local some = w:rows(other, 3, 5, "f32")
  t.close(some, got:slice(1, 3, 5), 0)
  -- a layer reads the scaled rows where they lie
  local x = T.noise({ 4, columns }, { seed = 5 })
  local layer = melies.nn.linear(w:matrix(other), nil, { compute = "f32" })
  t.close(layer(x), x:matmul(got, { transpose = true }), 1e-4)
  tensors["blocks.1.ffn.2.weight_scale"] = T.of({ 1, 2, 3 }, { 3 })
end)

t.test("broken checkpoints: one message that names what is wrong", function()
  local function problem(change, options)
    local tensors = tensors_of "wan_dit"
    change(tensors)
    local folder = t.folder()
    assert(weights.save(folder .. "/model.safetensors", tensors))
    local w, message = checkpoint.open(folder .. "/model.safetensors", options)
    t.ok(not w or options, "opened")
    return message or ""
  end
  local function holds(message, ...)
    for _, text in ipairs { ... } do t.ok(message:find(text, 1, true), message .. " does not say " .. text) end
    t.ok(not message:find "\n", message)
  end
  holds(problem(function(x) x["blocks.1.norm3.bias"] = nil end), "1 tensor is missing", "'blocks.1.norm3.bias'")
  holds(problem(function(x)
    for i = 0, 3 do x["blocks.0.self_attn." .. ({ "q", "k", "v", "o" })[i + 1] .. ".bias"] = nil end
    x["blocks.0.ffn.0.bias"] = nil
  end), "5 tensors are missing", "and 2 more")
  holds(problem(function(x) x["vace_patch.weight"] = T.zeros { 2, 2 } end), "1 tensor is not of this model",
    "'vace_patch.weight'")
  holds(problem(function(x) x["blocks.0.ffn.2.weight"] = T.zeros { 5, 184 } end), "does not fit",
    "'blocks.0.ffn.2.weight' is [5, 184], wanted [72, 184]")
  holds(problem(function(x) x["blocks.0.ffn.2.weight"] = T.zeros({ 72, 184 }, "s8") end), "is stored as s8")
  holds(problem(function(x) x["head.head.weight"] = nil end), "'head.head.weight'")
  t.eq(problem(function(x) x["vace_patch.weight"] = T.zeros { 2, 2 } end, { extra = "ignore" }), "")
  t.raises(function() checkpoint.open("x", { prat = "dit" }) end, "did you mean 'part'?")
end)

t.test("what is no model", function()
  local folder = t.folder()
  assert(weights.save(folder .. "/a.safetensors", { ["blocks.0.self_attn.q.lora_A.weight"] = T.zeros { 2, 4 },
    ["blocks.0.self_attn.q.lora_B.weight"] = T.zeros { 4, 2 } }))
  local _, message = checkpoint.open(folder .. "/a.safetensors")
  t.ok(message:find("is a LoRA", 1, true), message)
  assert(weights.save(folder .. "/b.safetensors", { some = T.zeros { 2, 4 } }))
  _, message = checkpoint.open(folder .. "/b.safetensors")
  t.ok(message:find("no architecture known here", 1, true) and message:find("'some' [2, 4]", 1, true), message)
  _, message = checkpoint.open(folder .. "/none.safetensors")
  t.ok(message:find("none.safetensors", 1, true), message)
  local f = io.open(folder .. "/c.txt", "w")
  f:write "hello"
  f:close()
  _, message = checkpoint.open(folder .. "/c.txt")
  t.ok(message:find("c.txt", 1, true), message)
  _, message = checkpoint.scan(t.folder())
  t.ok(message:find("no file with weights", 1, true), message)
end)

t.test("malformed files: one line each", function()
  local p = io.popen(("cd %smalformed && ls -d $PWD/*.safetensors $PWD/*.gguf $PWD/*.pth"):format(golden))
  local n = 0
  for path in p:lines() do
    n = n + 1
    local w, message = checkpoint.open(path)
    t.ok(not w and message and not message:find "\n" and message:find(path:match "[^/]+$", 1, true), path)
    local text, why = checkpoint.describe(path)
    t.ok(not text and why, path)
  end
  p:close()
  t.ok(n > 80, n .. " files")
  local facts = assert(checkpoint.parts(weights.from_table { ["x.blocks.0.self_attn.q.weight"] = T.zeros { 2, 2 } }))
  t.ok(checkpoint.problems(facts[1]):find("'x.patch_embedding.weight'", 1, true))
end)

local function shards(folder, tensors, split)
  local a, b, map = {}, {}, {}
  local i = 0
  local names = {}
  for name in pairs(tensors) do names[#names + 1] = name end
  table.sort(names)
  for _, name in ipairs(names) do
    i = i + 1
    if i % 2 == 0 then a[name] = tensors[name] else b[name] = tensors[name] end
    map[name] = i % 2 == 0 and "m-00001-of-00002.safetensors" or "m-00002-of-00002.safetensors"
  end
  assert(weights.save(folder .. "/m-00001-of-00002.safetensors", a))
  if split ~= "missing" then assert(weights.save(folder .. "/m-00002-of-00002.safetensors", b)) end
  local f = io.open(folder .. "/m.safetensors.index.json", "w")
  f:write(melies.json.encode { metadata = {}, weight_map = map })
  f:close()
end

t.test("shards and folders", function()
  local root = t.folder()
  for _, name in ipairs { "transformer", "text_encoder", "vae", "tokenizer" } do os.execute("mkdir " .. root .. "/" .. name) end
  local tensors = tensors_of "wan_dit"
  local layouts = checkpoint.architecture("wan_dit").layouts
  shards(root .. "/transformer", renamed(tensors, layouts[2]))
  assert(weights.save(root .. "/text_encoder/model.safetensors",
    renamed(tensors_of "umt5", checkpoint.architecture("t5").layouts[2])))
  assert(weights.save(root .. "/vae/diffusion_pytorch_model.safetensors",
    renamed(tensors_of "wan_vae", checkpoint.architecture("wan_vae").layouts[2])))
  for path, text in pairs { ["model_index.json"] = '{"_class_name":"WanPipeline"}', ["tokenizer/spiece.model"] = "x",
    ["transformer/config.json"] = '{"num_attention_heads":3}' } do
    local f = io.open(root .. "/" .. path, "w")
    f:write(text)
    f:close()
  end
  local found = assert(checkpoint.scan(root))
  t.eq(#found.parts, 3)
  t.eq(found.tokenizer, root .. "/tokenizer/spiece.model")
  local w = assert(checkpoint.open(root, { part = "dit" }))
  t.eq(w.info.config.heads, 3)
  t.ok(same(tensors, w, "folder") == 69)
  t.ok(same(tensors, assert(checkpoint.open(root .. "/transformer")), "part's folder") == 69)
  t.ok(same(tensors, assert(checkpoint.open(root .. "/transformer/m.safetensors.index.json")), "index") == 69)
  local _, message = checkpoint.open(root)
  t.ok(message:find("say which part", 1, true), message)
  _, message = checkpoint.open(root, { part = "image_encoder" })
  t.ok(message:find("has no image_encoder", 1, true), message)
  local text = assert(checkpoint.describe(root))
  t.ok(text:find("WanPipeline", 1, true) and text:find("tokenizer/spiece.model", 1, true), text)

  local broken = t.folder()
  shards(broken, tensors, "missing")
  _, message = checkpoint.open(broken)
  t.ok(message:find("m-00002-of-00002.safetensors", 1, true), message)
  _, message = checkpoint.open(broken .. "/m.safetensors.index.json")
  t.ok(message:find("m-00002-of-00002.safetensors", 1, true), message)
  -- a shard by itself is a model with half its tensors missing
  _, message = checkpoint.open(root .. "/transformer/m-00001-of-00002.safetensors")
  t.ok(message:find("tensors are missing", 1, true) or message:find("no architecture", 1, true), message)
end)

-- Little-endian bytes.
local function le(value, count)
  local out = {}
  for i = 1, count do out[i] = string.char(value % 256) value = math.floor(value / 256) end
  return table.concat(out)
end

-- PyTorch's container: a zip of stored members, of which data.pkl says what the others are. inner: tensors lie in a
-- dictionary of that name.
local function write_pth(path, tensors, inner)
  local members, pickle, n = {}, { "\128\2}(" }, 0
  local function text(x) return "X" .. le(#x, 4) .. x end
  local function tuple(list)
    local out = { "(" }
    for i, d in ipairs(list) do out[i + 1] = "J" .. le(d, 4) end
    return table.concat(out) .. "t"
  end
  if inner then pickle[#pickle + 1] = text(inner) .. "}(" end
  local names = {}
  for name in pairs(tensors) do names[#names + 1] = name end
  table.sort(names)
  for _, name in ipairs(names) do
    local x = tensors[name]:contiguous()
    local strides, step = {}, 1
    for i = x.ndim, 1, -1 do strides[i] = step step = step * x.shape[i] end
    pickle[#pickle + 1] = text(name) .. "ctorch._utils\n_rebuild_tensor_v2\n((" .. text "storage" .. "ctorch\nFloatStorage\n"
      .. text(tostring(n)) .. text "cpu" .. "J" .. le(x:numel(), 4) .. "tQK\0" .. tuple(x.shape) .. tuple(strides)
      .. "\137ccollections\nOrderedDict\n)RtR"
    members[#members + 1] = { "data/" .. n, require("ffi").string(x:ptr(), x:bytes()) }
    n = n + 1
  end
  if inner then pickle[#pickle + 1] = "u" end
  pickle[#pickle + 1] = "u."
  table.insert(members, 1, { "data.pkl", table.concat(pickle) })
  local f, at, central = assert(io.open(path, "wb")), 0, {}
  for _, m in ipairs(members) do
    local name = "archive/" .. m[1]
    local sizes = le(0, 4) .. le(#m[2], 4) .. le(#m[2], 4) .. le(#name, 2)
    local head = "PK\3\4" .. le(20, 2) .. le(0, 8) .. sizes .. le(0, 2) .. name
    central[#central + 1] = "PK\1\2" .. le(20, 2) .. le(20, 2) .. le(0, 8) .. sizes .. le(0, 12) .. le(at, 4) .. name
    f:write(head, m[2])
    at = at + #head + #m[2]
  end
  local directory = table.concat(central)
  f:write(directory, "PK\5\6", le(0, 4), le(#members, 2), le(#members, 2), le(#directory, 4), le(at, 4), le(0, 2))
  f:close()
end

t.test(".pth: Wan's own files, and Self-Forcing's dictionary of dictionaries", function()
  local folder = t.folder()
  for _, name in ipairs { "umt5", "wan_vae", "taehv", "wan_clip_vision" } do
    local tensors, path = tensors_of(name), folder .. "/" .. name .. ".pth"
    if name == "wan_clip_vision" then tensors["textual.x.weight"], tensors.log_scale = T.zeros { 2, 2 }, T.zeros { 1 } end
    write_pth(path, tensors)
    local w = assert(checkpoint.open(path))
    t.eq(w.format, "pth")
    t.eq(same(tensors, w, name), #w.info.list, name)
  end
  local tensors = tensors_of "wan_dit_causal"
  write_pth(folder .. "/causal.pt", tensors, "generator_ema")
  local w = assert(checkpoint.open(folder .. "/causal.pt"))
  t.eq(w.info.prefix, "generator_ema.")
  t.eq(same(tensors, w, "causal"), 69)
end)

t.test("the two experts of A14B", function()
  local root = t.folder()
  local tensors = tensors_of "wan_dit"
  for _, name in ipairs { "high_noise_model", "low_noise_model" } do
    os.execute("mkdir " .. root .. "/" .. name)
    shards(root .. "/" .. name, tensors)
  end
  local found = assert(checkpoint.scan(root))
  t.eq(#found.parts, 2)
  local by = {}
  for _, part in ipairs(found.parts) do by[part.part] = part end
  t.ok(by.dit.path:find "high_noise" and by.dit_low.path:find "low_noise")
  t.eq(by.dit.variant, "wan2.2-t2v-a14b")
end)

t.finish()
