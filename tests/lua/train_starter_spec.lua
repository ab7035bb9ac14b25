-- The starter's training, every part of it at a tiny size, up to a model folder that makes a film.
local t = require "harness"
local melies = require "melies"

local root = os.getenv "MELIES_ROOT"
local world = dofile(root .. "/recipes/starter/world/init.lua")
local folder = t.folder()
local small = { folder = folder, size = 32, clips = 500, steps = 3,
  autoencoder_steps = 2, few_steps_steps = 2, batch = 4, sample_every = 3 }

local function train(stage, changed)
  local p = { stage = stage }
  for key, value in pairs(small) do p[key] = value end
  for key, value in pairs(changed or {}) do p[key] = value end
  return melies.run("train_starter", p)
end

t.test("the blocks' axes: the decoder is the encoder's inverse on the latent", function()
  train "blocks"
  local file = assert(melies.weights.open(folder .. "/code.safetensors"))
  t.ok(tonumber(file.metadata.psnr) > 20, file.metadata.psnr)
  local e, d = file:get "encoder.weight", file:get "decoder.weight"
  local product = e:matmul(d) -- one is the other's inverse on the latent
  for i = 1, 48 do
    local row = product:select(1, i)
    for j = 1, 48 do t.ok(math.abs(row:get(j) - (i == j and 1 or 0)) < 1e-3) end
  end
end)

-- The code of the blocks as the model linear_blocks reads it.
local function linear()
  local file, own = assert(melies.weights.open(folder .. "/code.safetensors")), {}
  for _, name in ipairs(file:names()) do
    if name ~= "moments" then own[name] = file:get(name) end
  end
  return melies["models.linear_blocks"].load(melies.weights.from_table(own), {}, { compute = "f32" })
end

t.test("the autoencoder begins as the linear code, in TAEHV's layout, and learns from there", function()
  local parts = root .. "/recipes/starter/train/"
  local autoencoder, blocks = dofile(parts .. "autoencoder.lua"), dofile(parts .. "blocks.lua")
  local file, code = assert(melies.weights.open(folder .. "/code.safetensors")), {}
  for _, name in ipairs(file:names()) do code[name] = file:get(name):clone() end
  local compute = melies.compute()
  melies.set_compute "f32"
  local start = {}
  for name, param in pairs(autoencoder.init(code, blocks.axes, 1)) do start[name] = param.value end
  local net = melies["models.taehv"].load(melies.weights.from_table(start), { pad = "front" }, { compute = "f32" })
  local plain = linear()
  for index = 1, 3 do
    local clip = world.clip { seed = 3, index = index, size = 32, frames = 17 }
    local latent = plain:encode(clip.frames)
    t.ok((net:encode(clip.frames) - latent):norm() < 0.05 * latent:norm())
    local film = clip.frames:to("f32") * (1 / 255)
    local mine, best = (net:decode(latent) - film):sumsq(), (plain:decode(latent) - film):sumsq()
    t.ok(mine < 1.05 * best, mine / best)
  end
  melies.set_compute(compute)
  train "autoencoder"
  local trained = assert(melies.weights.open(folder .. "/autoencoder.safetensors"))
  t.ok(tonumber(trained.metadata.psnr) > 20, trained.metadata.psnr)
  t.eq((trained:get "encoder.13.weight" - start["encoder.13.weight"]):norm(), 0) -- the latent space stays
  t.ok((trained:get "decoder.22.weight" - start["decoder.22.weight"]):norm() > 0)
end)

t.test("the tokenizer has a piece for each word of the world", function()
  local found = os.execute "command -v spm_train >/dev/null 2>&1"
  if found == 0 or found == true then train "tokenizer"
  else t.ok(melies.fs.write(folder .. "/spiece.model", melies.fs.read(root .. "/recipes/starter/spiece.model"))) end
  local tokenizer = assert(melies.tokenizer.load(folder .. "/spiece.model"))
  local pieces, wanted = 0, 0
  for index = 1, 200 do
    local _, caption = world.describe { seed = 5, index = index }
    local words = select(2, caption:gsub("[%a%d]+", ""))
    local marks = select(2, caption:gsub("[^%a%d ]", ""))
    local ids = tokenizer:encode(caption)
    t.ok(#ids < 32, caption)
    pieces, wanted = pieces + #ids, wanted + words + marks + 1 -- and the end mark
  end
  t.ok(pieces <= wanted * 1.05, pieces .. " pieces, " .. wanted .. " words")
end)

t.test("latents are those of the clips, with the share of the subject beside them", function()
  train "latents"
  local latents = dofile(root .. "/recipes/starter/train/latents.lua")
  local store = assert(latents.open(folder .. "/latents"))
  t.eq(store.count, 500)
  local latent, mask = store:get(123)
  local net = linear()
  local clip = world.clip { seed = latents.seed, index = 123, size = 32, frames = 17 }
  t.close(latent:to("f32"), net:encode(clip.frames), 0.02, 0)
  t.eq(table.concat(mask.shape, " "), "5 4 4")
  t.near(mask:slice(1, 2, 5):mean(), clip.mask:slice(1, 2, 17):to("f32"):mean() / 255, 1e-4)
end)

t.test("the transformer learns, goes on where it stopped, and comes out as a model with a four-step variant", function()
  train "transformer"
  local log = assert(require("melies.train_watch").read(folder .. "/transformer/log.jsonl"))
  t.eq(#log, 3)
  t.ok((log[1].flow or log[1].stills) > 0 and log[3].reading > 0)
  t.ok(melies.fs.stat(folder .. "/transformer/samples/step-00000003.png"))
  train("transformer", { steps = 4 })
  t.eq(#assert(require("melies.train_watch").read(folder .. "/transformer/log.jsonl")), 4)

  local program = (os.getenv "MELIES_BUILD" or root .. "/build") .. "/melies"
  local status = os.execute(("%s -q --threads 2 run train_starter --stage transformer --folder %s --size 32 --batch 4 "
    .. "--steps 6 --sample_every 100 --workers 2 2>%s/workers.log"):format(program, folder, folder))
  t.ok(status == 0 or status == true, melies.fs.read(folder .. "/workers.log"))
  t.eq(#assert(require("melies.train_watch").read(folder .. "/transformer/log.jsonl")), 6)
  local mean = assert(melies.weights.open(folder .. "/transformer/step-00000006.safetensors"))
  local other = assert(melies.weights.open(folder .. "/transformer/worker-2/step-00000006.safetensors"))
  local before = assert(melies.weights.open(folder .. "/transformer/step-00000004.safetensors"))
  local name = "weights/dit/blocks.0.ffn.0.weight"
  local apart, moved = (mean:get(name) - other:get(name)):norm(), (mean:get(name) - before:get(name)):norm()
  t.ok(apart > 0 and apart < moved, ("%g of %g"):format(apart, moved))

  train "few_steps"
  train "export"
  local model = folder .. "/model"
  local options = { model = model, prompt = "a red ball", steps = 2, seed = 3 }
  local frames = assert(melies.run("text_to_video", options))
  t.eq(table.concat(frames.shape, " "), "17 32 32 3")
  options.steps, options.few_steps = nil, true
  local fast = assert(melies.run("text_to_video", options))
  t.ok((fast - frames):norm() > 0)
end)

t.test("a model of the recipe is where another training begins", function()
  local again, model = folder .. "/again", folder .. "/model"
  for _, stage in ipairs { "blocks", "autoencoder", "tokenizer", "latents" } do train(stage, { folder = again, from = model }) end
  local latents = dofile(root .. "/recipes/starter/train/latents.lua")
  local first, second = assert(latents.open(folder .. "/latents")), assert(latents.open(again .. "/latents"))
  local before, after = first:get(123):to "f32", second:get(123):to "f32"
  t.ok((after - before):norm() < 0.02 * before:norm(), (after - before):norm() / before:norm()) -- bf16 weights
  t.eq(melies.fs.read(again .. "/spiece.model"), melies.fs.read(model .. "/spiece.model"))
  train("transformer", { folder = again, from = model, steps = 1, rate = 1e-6 })
  local run = assert(melies.weights.open(again .. "/transformer/step-00000001.safetensors"))
  for part, name in pairs { dit = "blocks.1.ffn.0.weight", text_encoder = "encoder.block.0.layer.0.SelfAttention.q.weight" } do
    local file = assert(melies.weights.open(("%s/%s.safetensors"):format(model, part)))
    name = file:has(name) and name or file:names()[1]
    local was = file:get(name):to "f32"
    for _, kind in ipairs { "weights", "ema" } do
      t.close(run:get(("%s/%s/%s"):format(kind, part, name)), was, 1e-3, 1e-5)
    end
  end
end)

t.test("a model without a few-step variant says so", function()
  local result, message = melies.run("text_to_video", { prompt = "ball", few_steps = true })
  t.eq(result, nil)
  t.ok(message:find("no few%-step variant"), message)
end)

t.finish()
