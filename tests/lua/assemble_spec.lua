-- Models made of published checkpoints: every layout runs, and gives the same film within its precision.
local t = require "harness"
local melies = require "melies"
local fake, pipeline = melies.fake, melies.pipeline

local root = t.folder()
local function make(folder, options, names)
  for _, name in ipairs(names or { "wan2.1-t2v-tiny", "umt5-xxl-tiny", "wan2.1-vae-tiny" }) do
    local o = {}
    for key, value in pairs(options or {}) do o[key] = value end
    if name:find "vae" and o.dtype and o.dtype:find "^q" then o.dtype = "f16" end
    local paths, message = fake.make(name, root .. "/" .. folder, o)
    assert(paths, message)
  end
  return root .. "/" .. folder
end

local function latent_of(folder, given)
  pipeline.forget()
  local model = assert(pipeline.load(folder, given))
  local text = assert(model:encode "a red ball on the grass")
  local shape = assert(model:latent_shape { frames = 5, height = 64, width = 64 })
  local noise = melies.noise(shape, { seed = 1 })
  return model:predict(noise, 0.8, { text })[1], model, noise
end

local function error_of(a, b) return (a - b):norm() / b:norm() end

local plain = make "plain"
t.test("original names: the parts find each other", function()
  local velocity, model = latent_of(plain)
  t.eq(velocity:nonfinite(), 0)
  t.ok(velocity:std() > 0.01)
  t.eq(model.defaults.shift, 5)
  t.eq(model.text_len, 512)
  t.eq(model:decode(melies.noise({ 16, 2, 8, 8 }, { seed = 1 })):shape_text(), "[5, 64, 64, 3]")
end)

t.test("ComfyUI, diffusers shards and GGUF hold the same model", function()
  local want = latent_of(plain)
  t.ok(error_of(latent_of(make("comfyui", { layout = "comfyui" })), want) < 1e-6, "comfyui")
  t.ok(error_of(latent_of(make("diffusers", { layout = "diffusers", shard = 2e6 })), want) < 1e-6, "diffusers")
  t.ok(error_of(latent_of(make("gguf", { dtype = "q8_0" })), want) < 0.03, "q8_0")
  t.ok(error_of(latent_of(make("f32", { dtype = "f32" })), want) < 0.03, "f32")
end)

t.test("parts in files of their own", function()
  local want = latent_of(plain)
  local dit = plain .. "/wan2.1-t2v-tiny.safetensors"
  local given = { text_encoder = plain .. "/umt5-xxl-tiny.safetensors",
    autoencoder = plain .. "/wan2.1-vae-tiny.safetensors" }
  t.close((latent_of(dit, given)), want, 0, 0)
  local tiny = make("taew", nil, { "taew2_1-tiny" })
  local _, model = latent_of(plain, { autoencoder = tiny })
  t.eq(model.autoencoder.name, "taehv")
end)

t.test("the two experts of A14B", function()
  local folder = make("a14b", nil, { "wan2.2-a14b-tiny", "umt5-xxl-tiny", "wan2.1-vae-tiny" })
  local _, model, noise = latent_of(folder)
  local text = model:encode "a ball"
  local high, low = model:predict(noise, 0.9, { text })[1], model:predict(noise, 0.5, { text })[1]
  t.eq(high:nonfinite() + low:nonfinite(), 0)
  t.eq(model.dit:expert(900), "high")
  t.eq(model.dit:expert(500), "low")
end)

t.test("what is missing or does not fit is said", function()
  local function refused(folder, text, given)
    local model, message = pipeline.load(folder, given)
    t.eq(model, nil)
    t.ok(message:find(text, 1, true), message)
  end
  refused(plain .. "/wan2.1-t2v-tiny.safetensors", "a text encoder is missing: give --text-encoder FILE")
  refused(make("alone", nil, { "umt5-xxl-tiny" }), "a diffusion transformer is missing")
  local other = os.getenv "MELIES_ROOT" .. "/tests/golden/tok_spm_unigram_bytefallback.model"
  refused(plain, "another model's tokenizer", { tokenizer = other })
  refused(plain, "holds no text encoder", { text_encoder = plain .. "/wan2.1-vae-tiny.safetensors" })
  refused(plain .. "/nothing", "no such file or folder")
  refused(root, "holds more than one")
end)

t.test("a film from a checkpoint", function()
  local path = root .. "/film.mp4"
  local frames, message = melies.run("text_to_video", { model = plain, prompt = "a ball", width = 64, height = 64,
    frames = 5, steps = 2, output = path })
  t.ok(frames or message == nil, message)
  t.eq(melies.media.info(path).frames, 5)
end)

t.finish()
