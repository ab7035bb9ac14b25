-- Published models used as they were made to be: image inputs, experts, few steps block by block, LTX-Video.
local t = require "harness"
local melies = require "melies"
local fake, pipeline, T = melies.fake, melies.pipeline, melies.tensor

local root = t.folder()
local function make(folder, names)
  for _, name in ipairs(names) do assert(fake.make(name, root .. "/" .. folder)) end
  return root .. "/" .. folder
end

local function picture(name, seed)
  local path = root .. "/" .. name .. ".png"
  assert(melies.media.save(path, (T.uniform({ 1, 64, 64, 3 }, { seed = seed }) * 255):to("u8")))
  return path
end
local one, two = picture("one", 1), picture("two", 2)

local text_parts = { "umt5-xxl-tiny", "wan2.1-vae-tiny" }
local function run(recipe, params, opts)
  params.prompt = params.prompt or "a red ball"
  params.width, params.height, params.frames = params.width or 64, params.height or 64, params.frames or 5
  params.steps = params.steps or 2
  return melies.run(recipe, params, opts)
end
local function film(recipe, params)
  local frames, message = run(recipe, params)
  t.ok(frames, message)
  t.eq(frames:nonfinite(), 0)
  return frames
end
local function refused(recipe, params, text)
  local frames, message = run(recipe, params)
  t.eq(frames, nil)
  t.ok(message and message:find(text, 1, true), message)
end

-- ---- images -----------------------------------------------------------------------------------------

local i2v = make("i2v", { "wan2.1-i2v-14b-tiny", "clip-vision-tiny", unpack(text_parts) })
t.test("Wan 2.1 I2V: the image goes beside the noise and through the image encoder", function()
  local model = assert(pipeline.load(i2v))
  t.eq(model.image_input, "channels")
  t.eq(model.defaults.shift, 3)
  local shape = assert(model:latent_shape { frames = 5, height = 64, width = 64 })
  local first = melies.media.to_f32(assert(melies.media.load(one)))
  local c = assert(model:conditions { first = first, shape = shape })
  t.eq(c.image:shape_text(), "[1, 17, 160]")
  t.eq(c.condition:shape_text(), "[20, 2, 8, 8]")
  t.eq(c.condition:slice(1, 1, 4):slice(2, 1, 1):mean(), 1)
  t.eq(c.condition:slice(1, 1, 4):slice(2, 2, 2):amax(), 0)
  -- The first latent frame sees the image alone: the coder is causal.
  t.close(c.condition:slice(1, 5, 20):slice(2, 1, 1):contiguous(), model:encode_video(first), 1e-2, 1e-2)
  local a = film("image_to_video", { model = i2v, image = one })
  local b = film("image_to_video", { model = i2v, image = two })
  t.eq(a:shape_text(), "[5, 64, 64, 3]")
  t.ok((a - b):norm() > 1e-3 * a:norm())
end)

t.test("what an I2V model lacks is said first", function()
  refused("text_to_video", { model = i2v }, "begins its films with an image")
  local bare = make("i2v_bare", { "wan2.1-i2v-14b-tiny", unpack(text_parts) })
  refused("image_to_video", { model = bare, image = one }, "give --image-encoder FILE")
  film("image_to_video", { model = bare, image = one, image_encoder = i2v .. "/clip-vision-tiny.safetensors" })
  local model = assert(pipeline.load(i2v))
  local c, message = model:conditions { first = T.zeros { 1, 32, 64, 3 }, shape = { 16, 2, 8, 8 } }
  t.eq(c, nil)
  t.ok(message:find("wants [1, 64, 64, 3]", 1, true), message)
end)

t.test("FLF2V: first and last image", function()
  local flf = make("flf2v", { "wan2.1-flf2v-14b-tiny", "clip-vision-tiny", unpack(text_parts) })
  local model = assert(pipeline.load(flf))
  t.eq(model.defaults.shift, 16)
  refused("image_to_video", { model = flf, image = one }, "give --last-image FILE")
  local a = film("image_to_video", { model = flf, image = one, last_image = two })
  local b = film("image_to_video", { model = flf, image = one, last_image = one })
  t.ok((a - b):norm() > 1e-3 * a:norm())
end)

t.test("Wan 2.2 I2V: two experts and a condition without an image encoder", function()
  local folder = make("i2v22", { "wan2.2-i2v-a14b-tiny", unpack(text_parts) })
  local model = assert(pipeline.load(folder))
  t.eq(model.image_input, "channels")
  t.eq(model.boundary, 0.9)
  t.eq(model.defaults.guidance, 3.5)
  film("image_to_video", { model = folder, image = one })
end)

t.test("TI2V-5B: with and without a first frame", function()
  local folder = make("ti2v", { "wan2.2-ti2v-5b-tiny", "umt5-xxl-tiny", "wan2.2-vae-tiny" })
  local model = assert(pipeline.load(folder))
  t.eq(model.image_input, "first")
  t.eq(model.defaults.fps, 24)
  film("text_to_video", { model = folder })
  local latents = root .. "/ti2v.safetensors"
  film("image_to_video", { model = folder, image = one, save_latents = latents })
  local latent = assert(melies.weights.open(latents)):get "latent"
  local known = model:encode_video(melies.media.to_f32(assert(melies.media.load(one))))
  t.close(latent:slice(2, 1, 1):contiguous(), known, 1e-4, 1e-4)
  film("two_shots", { model = folder, prompt = "a ball", second = "a cube" })
  refused("text_to_video", { model = folder, width = 80, height = 64 }, "multiple of 32")
  refused("image_to_video", { model = folder, image = one, last_image = two }, "no input for a last image")
  local tiny = make("taew22", { "taew2_2-tiny" })
  t.eq(film("text_to_video", { model = folder, vae = tiny }):shape_text(), "[5, 64, 64, 3]")
  film("image_to_video", { model = folder, vae = tiny, image = one })
  local super = os.getenv "MELIES_ROOT" .. "/tests/golden/taehv_super.weights.safetensors"
  t.eq(film("text_to_video", { model = folder, vae = super }):shape_text(), "[5, 64, 64, 3]")
end)

-- ---- the two experts -----------------------------------------------------------------------------------

t.test("A14B: a guidance for each expert", function()
  local folder = make("a14b", { "wan2.2-a14b-tiny", unpack(text_parts) })
  local model = assert(pipeline.load(folder))
  t.eq(model.boundary, 0.875)
  t.eq(model.defaults.guidance, 4)
  t.eq(model.defaults.guidance_low, 3)
  local shape = assert(model:latent_shape { frames = 5, height = 64, width = 64 })
  local x, text, negative = melies.noise(shape, { seed = 1 }), model:encode "a ball", model:encode ""
  local function estimate(sigma, scale, low)
    return melies.guide.cfg(model, { text = text, negative = negative, scale = scale, low = low })(x, sigma)
  end
  local pair = { scale = 3, below = 0.875 }
  t.close(estimate(0.9, 4, pair), estimate(0.9, 4), 0, 0)
  t.close(estimate(0.8, 4, pair), estimate(0.8, 3), 0, 0)
  t.close(estimate(0.8, 1, pair), estimate(0.8, 3), 0, 0)
  local function same(a, b)
    return (film("text_to_video", a) - film("text_to_video", b)):norm() == 0
  end
  local function params(more)
    more.model, more.schedule, more.steps = folder, "flow", 3
    return more
  end
  t.ok(same(params {}, params { guidance = 4, guidance_low = 3 }), "the model's pair")
  t.ok(same(params { guidance = 4 }, params { guidance = 4, guidance_low = 4 }), "one for both")
  t.ok(not same(params {}, params { guidance = 4 }), "another one below the boundary")
end)

-- ---- few steps -----------------------------------------------------------------------------------------

local t2v = make("t2v", { "wan2.1-t2v-tiny", unpack(text_parts) })

-- The same weights as Self-Forcing publishes them.
local function self_forcing()
  local from, tensors = assert(melies.weights.open(t2v .. "/wan2.1-t2v-tiny.safetensors")), {}
  for _, name in ipairs(from:names()) do tensors["generator_ema.model." .. name] = from:get(name) end
  local folder = make("self_forcing", text_parts)
  assert(melies.weights.save(folder .. "/self_forcing.safetensors", tensors))
  return folder
end

t.test("Self-Forcing: block by block, written as blocks are finished", function()
  local folder = self_forcing()
  local model = assert(pipeline.load(folder))
  t.eq(model.causal, true)
  t.eq(model.defaults.steps, 4)
  local path, latents = root .. "/stream.mp4", root .. "/stream.safetensors"
  local labels = {}
  local frames = assert(melies.run("text_to_video", { model = folder, prompt = "a red ball", width = 64, height = 64,
    frames = 25, seed = 3, output = path, save_latents = latents }, { progress = function(o)
    labels[#labels + 1] = o.label
    return { step = function() end, finish = function() end }
  end }))
  t.eq(frames:shape_text(), "[25, 64, 64, 3]")
  t.eq(melies.media.info(path).frames, 25)
  t.ok(table.concat(labels, "\n"):find("sampling and decoding to " .. path, 1, true), table.concat(labels, "\n"))
  -- The same by hand: warped steps, blocks of three frames, the decoder on the whole latent.
  local latent = assert(melies.weights.open(latents)):get "latent"
  local by_hand, text = {}, model:encode "a red ball"
  local timesteps = { 1000, 937.5, 5 * 0.5 / 3 * 1000, 625 }
  for _, block in model.dit:causal():blocks(melies.noise({ 16, 7, 8, 8 }, { seed = 3 }), { timesteps = timesteps, seed = 3,
    context = model.dit:context { text } }) do
    by_hand[#by_hand + 1] = block
  end
  t.eq(#by_hand, 3)
  t.close(latent, T.concat(by_hand, 2), 1e-4, 1e-4)
  t.close(model:decode(latent), frames, 0, 0)
  t.close(assert(melies.run("text_to_video", { model = folder, latents = latents })), frames, 0, 0)
  refused("text_to_video", { model = folder, prompt = "a [ball:cube:0.5]" }, "block by block")
  local notices = {}
  assert(run("text_to_video", { model = folder, guidance = 5, steps = 1 },
    { notice = function(line) notices[#notices + 1] = line end }))
  t.ok(table.concat(notices, "\n"):find("--guidance is left out", 1, true), table.concat(notices, "\n"))
end)

t.test("Self-Forcing where decoder and transformer do not fit side by side: sampled, then decoded in tiles", function()
  local folder, budget = root .. "/self_forcing", require "melies.budget"
  local function latent_and_labels(limit)
    pipeline.forget()
    budget.set(limit)
    local labels, latents = {}, root .. "/limited.safetensors"
    local frames, message = melies.run("text_to_video", { model = folder, prompt = "a ball", width = 256, height = 256,
      frames = 9, steps = 1, save_latents = latents }, { progress = function(o)
      labels[#labels + 1] = o.label
      return { step = function() end, finish = function() end }
    end })
    budget.set(nil)
    t.ok(frames, message)
    t.eq(frames:shape_text(), "[9, 256, 256, 3]")
    return assert(melies.weights.open(latents)):get "latent":clone(), table.concat(labels, "|")
  end
  local all, one_go = latent_and_labels(nil)
  local limited, apart = latent_and_labels(40 * 2 ^ 20)
  t.ok(one_go:find("sampling and decoding", 1, true), one_go)
  t.ok(apart:find("sampling|decoding", 1, true), apart)
  t.close(limited, all, 1e-2, 1e-2)
end)

t.test("few steps without a cache: the schedule fewstep and the sampler lcm", function()
  film("text_to_video", { model = t2v, steps = 4, sampler = "lcm", schedule = "fewstep", shift = 5, guidance = 1 })
end)

-- ---- LTX-Video -----------------------------------------------------------------------------------------

t.test("LTX-Video: its own grid, schedule, rate of frames and decoder", function()
  local folder = make("ltx", { "ltx-video-2b-tiny", "t5-v1.1-xxl-tiny", "ltx-vae-0.9.1-tiny" })
  local model = assert(pipeline.load(folder))
  t.eq(model.text_len, 128)
  t.eq(table.concat(model.stride, " "), "8 32 32")
  t.eq(model.image_input, "first")
  t.eq(model.defaults.guidance, 3)
  t.eq(model.defaults.shift, nil)
  t.eq(model.config.dit.causal_fix, false)
  -- 121 frames of 704x480: 16 * 22 * 15 tokens.
  t.eq(model:schedule_params { frames = 121, width = 704, height = 480 }.tokens, 5280)
  local sigmas
  local recipe = { kind = "recipe", name = "sigmas", params = melies.recipe.generation(), run = function(_, job)
    local m = job:load()
    job:defaults(m)
    sigmas = job:sigmas(m)
    return true
  end }
  local function at(params)
    params.model, params.prompt, params.frames, params.width, params.height, params.steps = folder, "x", 121, 704, 480, 4
    assert(melies.run(recipe, params))
    return sigmas
  end
  local mu = 0.95 + (2.05 - 0.95) * (5280 - 1024) / (4096 - 1024)
  local function shifted(s) return 1 / (1 + math.exp(-mu) * (1 / s - 1)) end
  local function stretched(s) return 1 - (1 - s) * 0.9 / (1 - shifted(0.25)) end
  t.close(T.of(at {}), T.of { 1, stretched(shifted(0.75)), stretched(shifted(0.5)), 0.1, 0 }, 1e-6, 1e-6)
  t.close(T.of(at { shift = 1 }), T.of { 1, 0.7, 0.4, 0.1, 0 }, 1e-6, 1e-6)

  local a = film("text_to_video", { model = folder, frames = 9, fps = 25 })
  t.eq(a:shape_text(), "[9, 64, 64, 3]")
  t.ok((film("text_to_video", { model = folder, frames = 9, fps = 12 }) - a):norm() > 0, "fps")
  film("image_to_video", { model = folder, frames = 9, image = one })
  refused("text_to_video", { model = folder, frames = 9, width = 80 }, "multiple of 32")
  refused("text_to_video", { model = folder, frames = 8, strict = true }, "1 + 8k frames; the nearest is 9")
  refused("text_to_video", { model = folder, frames = 9, prompt = ("a b c d "):rep(60) }, "takes 128")
  -- Noise at the decoder's level, the same for every film.
  local latent = melies.noise({ 16, 2, 2, 2 }, { seed = 1 })
  t.close(model:decode(latent), model:decode(latent), 0, 0)
  t.ok((model:decode(latent) - model.autoencoder:decode(latent)):norm() > 0)
end)

t.test("LTX-Video 0.9: a decoder without a timestep", function()
  local folder = make("ltx09", { "ltx-video-2b-tiny", "t5-v1.1-xxl-tiny", "ltx-vae-0.9-tiny" })
  local model = assert(pipeline.load(folder))
  t.eq(model.config.autoencoder.decode_noise, nil)
  film("text_to_video", { model = folder, frames = 9 })
end)

t.test("tiny autoencoders in place of Wan's, for text and image to video", function()
  local tiny = make("taew21", { "taew2_1-tiny" })
  t.eq(film("text_to_video", { model = t2v, vae = tiny }):shape_text(), "[5, 64, 64, 3]")
  film("image_to_video", { model = i2v, image = one, vae = tiny })
end)

-- ---- lengths -------------------------------------------------------------------------------------------

t.test("a length off the grid is rounded, or refused", function()
  local model = t2v
  local notices = {}
  local frames = run("text_to_video", { model = model, frames = 6, steps = 1 },
    { notice = function(text) notices[#notices + 1] = text end })
  t.eq(frames.shape[1], 5)
  t.ok(table.concat(notices, "\n"):find("6 frames are rounded to 5", 1, true))
  refused("text_to_video", { model = model, width = 72 }, "the nearest is 80x64")
  refused("text_to_video", { model = model, frames = 6, strict = true }, "1 + 4k frames; the nearest is 5")
end)

t.finish()
