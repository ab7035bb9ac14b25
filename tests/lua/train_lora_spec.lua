-- LoRA training: a style is learnt from a few clips, the files are what other tools read and what our own loader takes for
-- the same change, a killed training goes on to the same bytes, bad input is told.
local t = require "harness"
local melies = require "melies"
local style = require "style_look"
local clips = require "melies.lora.clips"
local write = require "melies.lora.write"
local T, fs, lora, training = melies.tensor, melies.fs, melies.lora, melies.train_lora

require("melies.log").quiet = true

local model = t.ok(melies.pipeline.load "starter")
-- The smallest clips that the model takes: two latent frames, a few tokens.
local unit = { h = model.stride[2] * model.patch[2], w = model.stride[3] * model.patch[3] }
local function up(n) return math.max(2 * n, math.ceil(16 / n) * n) end
local width, height, frames = up(unit.w), up(unit.h), 1 + model.stride[1]

local function read(path)
  local f = io.open(path, "rb")
  local text = f and f:read("*a")
  if f then f:close() end
  return text
end

-- Films with captions: patches of colour that darken, in the style that is to be learnt where `look` is.
local captions = { "a red ball", "a green cube", "a blue star", "a yellow ball", "a white cube", "a purple star" }
local function films(count, look)
  local folder = t.folder()
  for i = 1, count do
    local light, still = {}, T.uniform({ 1, 4, 4, 3 }, { seed = 3, stream = i })
    for k = 1, frames do light[k] = 1 - 0.2 * k / frames end
    local pixels = (still * T.of(light, { frames, 1, 1, 1 })):resize(2, height):resize(3, width)
    if look then pixels = look(pixels) end
    t.ok(melies.media.save(("%s/%02d.mp4"):format(folder, i), pixels, { fps = 8, crf = 8, pad = true }))
    t.ok(fs.write(("%s/%02d.txt"):format(folder, i), captions[(i - 1) % #captions + 1] .. "\n"))
  end
  return folder
end
local plain = films(4)

local function options(more)
  local o = { model = model, work = t.folder(), width = width, height = height, frames = frames }
  for key, value in pairs(more or {}) do o[key] = value end
  return o
end

-- ---- layers ----------------------------------------------------------------------------------------------------------

t.test("targets are groups, ends of names in both spellings, and patterns", function()
  local weights = model.sources.dit.weights
  local function names(...) return t.ok(training.targets(weights, { ... })) end
  local layers = #model.dit.blocks
  t.eq(#names "all", 10 * layers)
  t.eq(#names("attention", "self_attention"), 8 * layers)
  t.eq(#names "to_q", 2 * layers)
  t.eq(names("blocks.0.ffn.0")[1], "blocks.0.ffn.0")
  t.eq(#names("blocks.0.ffn.0"), 1)
  t.eq(#names("blocks.*.attn2.to_k"), layers)
  t.eq(names("blocks.*.attn2.to_k")[1], "blocks.0.cross_attn.k")
  t.eq(names("proj_out")[1], "head.head")
  local none, message = training.targets(weights, { "atention" })
  t.eq(none, nil)
  t.ok(message:find("no linear layer is 'atention', did you mean 'attention'?", 1, true), message)
end)

-- ---- files -----------------------------------------------------------------------------------------------------------

-- The header of a safetensors file as it lies there.
local function header(path)
  local text = t.ok(read(path))
  local n = 0
  for i = 8, 1, -1 do n = n * 256 + text:byte(i) end
  return melies.json.decode(text:sub(9, 8 + n)), text:sub(9 + n)
end

t.test("PEFT and kohya files hold the names, scalars and metadata that other tools look for", function()
  local folder, dim = t.folder(), model.dit.dim
  local layers = { ["blocks.0.self_attn.q"] = { down = T.noise({ 2, dim }, { seed = 1 }), up = T.noise({ dim, 2 },
    { seed = 2 }), scale = 1.5 } }
  local path = folder .. "/peft.safetensors"
  t.ok(write.save(path, layers, { dtype = "f32" }))
  local head = header(path)
  local a = head["transformer.blocks.0.attn1.to_q.lora_A.weight"]
  t.ok(a and a.dtype == "F32" and a.shape[1] == 2 and a.shape[2] == dim)
  local b = head["transformer.blocks.0.attn1.to_q.lora_B.weight"]
  t.ok(b and b.shape[1] == dim and b.shape[2] == 2)
  t.eq(head.__metadata__.format, "pt")

  local other = folder .. "/kohya.safetensors"
  t.ok(write.save(other, layers, { format = "kohya", dtype = "f32", metadata = { ss_seed = 7 } }))
  local body
  head, body = header(other)
  local alpha = head["lora_unet_blocks_0_self_attn_q.alpha"]
  t.ok(alpha and alpha.dtype == "F32" and #alpha.shape == 0, "alpha is a scalar")
  t.eq(body:sub(alpha.data_offsets[1] + 1, alpha.data_offsets[2]), "\0\0\64\64", "3 as float32")
  t.ok(head["lora_unet_blocks_0_self_attn_q.lora_down.weight"].shape[1] == 2)
  t.ok(head["lora_unet_blocks_0_self_attn_q.lora_up.weight"].shape[2] == 2)
  local m = head.__metadata__
  t.eq(m.ss_network_dim, "2")
  t.eq(m.ss_network_alpha, "3")
  t.eq(m.ss_network_module, "networks.lora_wan")
  t.eq(m.ss_seed, "7")

  -- Both are the same change for our own loader.
  local weights, name = model.sources.dit.weights, "blocks.0.self_attn.q.weight"
  local l = layers["blocks.0.self_attn.q"]
  local wanted = weights:get(name, "f32") + l.up:matmul(l.down) * 1.5
  for _, file in ipairs { path, other } do
    local merged, applied = lora.apply(weights, { { file, 1 } })
    t.ok(merged, applied)
    t.eq(applied.matched, 1)
    t.eq(#applied.unmatched, 0)
    t.close(merged:get(name, "f32"), wanted, 1e-5, 1e-4)
  end
  t.raises(function() write.save(path, layers, { format = "peff" }) end, "did you mean 'peft'?")
end)

-- ---- a style ---------------------------------------------------------------------------------------------------------

t.test("a style is learnt, and the file makes films in it", function()
  local look = function(x) return style.print(x) end
  local o = options()
  local set = t.ok(clips.open(films(8, look), o))
  t.eq(set.count, 8)
  local folder, records = o.work, {}
  local tuning = t.ok(training.new { model = model, clips = set, folder = folder, rank = 8, steps = 60, batch = 4,
    lr = 4e-3, heldout_every = 20, sample_every = 30, sample_steps = 4, samples = { "a red ball" }, guidance = 1,
    bar = false, on_record = function(r) records[#records + 1] = r end })
  t.eq(#tuning.training, 7)
  t.eq(#tuning.held, 1)
  t.ok(tuning:run())
  t.eq(#records, 60)
  t.ok(records[60].heldout < records[20].heldout, "the held-out loss falls")
  t.eq(table.concat(fs.list(folder .. "/samples"), " "), "step-00000030.png step-00000060.png")
  t.ok(fs.stat(folder .. "/loss.svg"))

  local target = {}
  for i = 1, 8 do target[i] = model:decode(set:latent(i)) end
  local wanted = style.look(target)
  local prompts = { captions[1], captions[2], captions[3] }
  local after = tuning:films(prompts, { steps = 6, guidance = 1 })
  local distance = style.distance(style.look(after), wanted)
  local kept = {}
  for layer, l in pairs(tuning.net.lora) do kept[layer] = l end
  tuning.net.lora = {}
  local before = style.distance(style.look(tuning:films(prompts, { steps = 6, guidance = 1 })), wanted)
  tuning.net.lora = kept
  print(("     colour %.3f without, %.3f with; texture %.3f, %.3f"):format(before.colour, distance.colour, before.texture,
    distance.texture))
  t.ok(distance.colour < 0.8 * before.colour, ("colours are %.3f off, were %.3f"):format(distance.colour, before.colour))

  -- The file, loaded as anybody would, makes the film that the training's own network makes.
  local path = folder .. "/style.safetensors"
  t.eq(tuning:save(path, { format = "kohya", dtype = "f32", best = false }), 60)
  local applied = t.ok(model:set_loras { { path, 1 } })
  t.eq(#applied.unmatched, 0)
  t.eq(applied.matched, #tuning.layers)
  local latent = T.noise(set.shape, { seed = 9 })
  local theirs = model:predict(latent, 0.7, { model:encode "a red ball" })[1]
  local text = t.ok(model:encode "a red ball")
  local rows, key_bias = tuning.wan.padded({ text:to "f32" }, text.shape[1] + 1, model.text_len)
  local mine = melies.grad.no_grad(function()
    return tuning.net:forward(latent:unsqueeze(1), { 0.7 * model.time_scale }, rows, key_bias)
  end).value:select(1, 1)
  t.ok(model:set_loras {})
  local bare = model:predict(latent, 0.7, { model:encode "a red ball" })[1]
  local off, changed = (theirs - mine):norm() / theirs:norm(), (theirs - bare):norm() / bare:norm()
  t.ok(changed > 0.05 and off < math.max(1e-4, changed / 4), ("off by %.2g, the change is %.2g"):format(off, changed))
end)

-- ---- resume ----------------------------------------------------------------------------------------------------------

local function train(output, more)
  local values = { data = plain, output = output, size = ("%dx%d"):format(width, height), frames = frames, steps = 12,
    batch = 2, rank = 2, save_every = 4, heldout_every = 4, sample_every = 0, precision = "f32", seed = 5 }
  for key, value in pairs(more or {}) do values[key] = value end
  return melies.run("train_lora", values)
end

t.test("a training that was killed goes on to the same bytes; another configuration is refused", function()
  local folder = t.folder()
  local whole, broken = folder .. "/whole.safetensors", folder .. "/broken.safetensors"
  t.ok(train(whole))
  t.ok(train(broken, { steps = 8 }))
  local notice
  local found = require("melies.registry").get("recipe", "train_lora")
  t.ok(found)
  os.remove(broken)
  os.remove(broken .. ".train/step-00000008.safetensors") -- killed between two checkpoints
  local ran, message = train(broken)
  t.ok(ran, message)
  t.eq(ran.training_run.step, 12)
  t.ok(read(whole) == read(broken), "the files are the same, byte for byte")
  t.eq(#melies.train_watch.read(broken .. ".train/log.jsonl"), 12)

  ran, notice = train(broken, { rank = 4, alpha = 2 })
  t.eq(ran, nil)
  t.ok(notice:find("config.alpha was 2, is 2", 1, true) == nil and notice:find("config.rank was 2, is 4", 1, true), notice)
  t.ok(#notice < 1200, "only the first few layers are named")
  ran, notice = train(broken, { caption = "x", trigger = "in another style" })
  t.eq(ran, nil)
  t.ok(notice:find("config.clips was 4 clips (", 1, true), notice)
  ran, notice = train(broken, { rank = 4, fresh = true, steps = 4 })
  t.ok(ran, notice)
  t.eq(lora.load(broken).rank, 4)
end)

-- ---- what goes wrong -------------------------------------------------------------------------------------------------

t.test("folders that hold nothing to train on are told", function()
  local function fails(values, words)
    local ran, message = train(t.folder() .. "/x.safetensors", values)
    t.eq(ran, nil)
    for _, word in ipairs(words) do t.ok(message:find(word, 1, true), message) end
  end
  local empty, damaged, mute = t.folder(), t.folder(), films(2)
  fails({ data = empty }, { "holds no films" })
  fails({ data = empty .. "/none" }, { "none" })
  fails({ data = plain .. "/01.mp4" }, { "not a folder" })
  t.ok(fs.write(damaged .. "/a.mp4", "no film"))
  fails({ data = damaged }, { "no clip was kept", "1 damaged" })
  os.remove(mute .. "/01.txt")
  os.remove(mute .. "/02.txt")
  fails({ data = mute }, { "no caption: 2", "--caption TEXT" })
  t.ok(train(t.folder() .. "/x.safetensors", { data = mute, caption = "a thing", steps = 1 }))
  -- One of two has a caption: the other is left out.
  t.ok(fs.write(mute .. "/01.txt", "a ball"))
  local notice
  local set = t.ok(clips.open(mute, options { notice = function(text) notice = text end }))
  t.eq(set.count, 1)
  t.ok(notice:find("1 clip without a caption", 1, true), notice)
  local ingested = t.folder() .. "/clips"
  t.ok(melies.data.ingest(mute, ingested, { width = width, height = height, frames = frames, min_motion = 0, max_motion = 1,
    min_sharpness = 0, min_light = 0, duplicates = -1, cut = 1, uncaptioned = true }))
  local no_set, why = clips.open(ingested, { model = model, work = t.folder() })
  t.eq(no_set, nil)
  t.ok(why:find("1 of 2 clips have no caption (02.mp4 at 0.0 s); --caption TEXT", 1, true), why)
  set = t.ok(clips.open(ingested, { model = model, work = t.folder(), caption = "a thing", trigger = "in ink" }))
  t.eq(table.concat(set.captions, "; "), "in ink, a ball; in ink, a thing")
  fails({ targets = "nothing" }, { "no linear layer is 'nothing'" })
  fails({ output = "/proc/none/x.safetensors" }, { "/proc/none" })
  -- What was ingested for another grid.
  local out = t.folder() .. "/clips"
  t.ok(melies.data.ingest(plain, out, { width = width + 1, height = height, frames = frames, min_motion = 0,
    min_sharpness = 0, duplicates = -1, max_motion = 1 }))
  local none, message = clips.open(out, { model = model, work = t.folder() })
  t.eq(none, nil)
  t.ok(message:find("does not fit", 1, true), message)
  none, message = clips.open(out, options())
  t.eq(none, nil)
  t.ok(message:find("--width is for a folder of films", 1, true), message)
end)

t.test("a loss that becomes NaN and a full disk lose nothing", function()
  local o = options()
  local set = t.ok(clips.open(plain, o))
  local tuning = t.ok(training.new { model = model, clips = set, folder = o.work, rank = 2, steps = 8, batch = 2,
    bar = false, on_record = function(r)
      if r.step == 3 then set.latents[1], set.latents[2], set.latents[3], set.latents[4] =
        T.full(set.shape, 0 / 0), T.full(set.shape, 0 / 0), T.full(set.shape, 0 / 0), T.full(set.shape, 0 / 0) end
    end })
  local ok, message = tuning:run()
  t.eq(ok, nil)
  t.ok(message:find("step 4: the loss is NaN", 1, true) and message:find("state of step 3 is kept", 1, true), message)
  t.eq(melies.train.checkpoints(o.work)[1].step, 3)

  local folder = t.folder()
  local output = folder .. "/x.safetensors"
  t.ok(train(output, { steps = 4 }))
  local before = t.ok(read(output))
  -- Files may grow to 8 KiB only: checkpoints and the LoRA do not fit.
  local script = folder .. "/child.lua"
  t.ok(fs.write(script, ([[
package.path = %q
require("melies.log").quiet = true
local ok, message = require("melies").run("train_lora", { data = %q, output = %q, size = "%dx%d", frames = %d, steps = 12,
  batch = 2, rank = 2, save_every = 4, heldout_every = 4, sample_every = 0, precision = "f32", seed = 5 })
io.write(tostring(ok), " ", tostring(message), "\n")
]]):format(package.path, plain, output, width, height, frames)))
  local pipe = io.popen(("trap '' XFSZ; ulimit -f 8; '%s' '%s' 2>/dev/null"):format(arg[-1] or "luajit", script))
  local said = pipe:read("*a")
  pipe:close()
  t.ok(said:find("^nil ") and said:find("was not written", 1, true), said)
  t.ok(read(output) == before, "the LoRA that was there is whole")
  t.eq(melies.train.checkpoints(output .. ".train")[1].step, 4)
  t.ok(train(output), "it goes on where there is room")
end)

t.test("frozen weights stay in their file, in every layout that is read", function()
  local fake, checkpoint, wan = require "melies.fake", require "melies.checkpoint", require "melies.grad.wan_dit"
  local first
  for _, kind in ipairs { { layout = "wan", dtype = "bf16" }, { layout = "diffusers", dtype = "bf16" }, { dtype = "q8_0" } } do
    local folder = t.folder()
    t.ok(fake.make("wan2.1-t2v-tiny", folder, kind))
    local weights = t.ok(checkpoint.open(folder, { part = "dit" }))
    local before = melies.memory().live
    local params = training.base(weights, "bf16")
    local copied, stored, vectors = melies.memory().live - before, 0, 0
    for name, x in pairs(params) do
      if x.dtype == "bf16" then stored = stored + x:bytes() else vectors = vectors + x:bytes() end
      t.ok(name:find "^time_" or x.ndim ~= 2 or x.dtype == "bf16", name)
    end
    if kind.dtype == "bf16" then
      t.ok(copied < 1.3 * vectors + 2 ^ 18 and stored > copied, ("%d bytes copied of %d"):format(copied, stored + vectors))
    end
    local net = wan.net(params, { heads = weights.info.config.heads, compute = "f32" })
    local text = T.noise({ 1, 3, weights.info.config.text_dim }, { seed = 4 })
    local y = melies.grad.no_grad(function() return net:forward(T.noise({ 1, 16, 2, 4, 4 }, { seed = 3 }), { 500 }, text) end)
    first = first or y.value
    local off = (y.value - first):norm() / first:norm()
    t.ok(off <= (kind.dtype == "q8_0" and 0.05 or 1e-5), ("off by %.3g"):format(off))
    weights:close()
  end
end)

t.test("models that are not trained are refused with the reason", function()
  local folder = t.folder()
  t.ok(require("melies.fake").make("wan2.1-i2v-14b-tiny", folder))
  local weights = t.ok(require("melies.checkpoint").open(folder))
  local stand_in = setmetatable({ name = "fake", sources = { dit = { weights = weights } }, dit = { in_channels = 36,
    out_channels = 16 } }, { __index = model })
  local none, message = training.new { model = stand_in, clips = { shape = { 16, 2, 4, 4 } } }
  t.eq(none, nil)
  t.ok(message:find("text alone", 1, true), message)
end)

t.finish()
