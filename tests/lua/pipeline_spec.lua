-- Model folders and the model object: what is found, what does not fit, streams against wholes.
local t = require "harness"
local melies = require "melies"
local T = melies.tensor

local root = os.getenv "MELIES_ROOT"
melies.set_compute "f32"
local model = assert(melies.pipeline.load "starter")

t.test("a name and its folder are one model, loaded once", function()
  t.ok(melies.pipeline.load "starter" == model)
  t.eq(model.name, "starter")
  local same = assert(melies.pipeline.load(root .. "/tests/models/starter"))
  t.eq(same.text_len, model.text_len)
end)

t.test("what is missing is told", function()
  local got, message = melies.pipeline.load "nothing-of-this-name"
  t.eq(got, nil) t.ok(message:find("nothing-of-this-name", 1, true), message)
  got, message = melies.pipeline.load "/nowhere/model"
  t.eq(got, nil) t.ok(message:find("/nowhere/model", 1, true), message)

  -- A folder with one part after the other left out, then with a broken one.
  local parts = { "config.json", "dit.safetensors", "text_encoder.safetensors", "autoencoder.safetensors",
    "spiece.model" }
  for _, missing in ipairs(parts) do
    local folder = t.folder()
    for _, part in ipairs(parts) do
      if part ~= missing then os.execute(("ln -s '%s/tests/models/starter/%s' '%s'"):format(root, part, folder)) end
    end
    got, message = melies.pipeline.load(folder)
    t.eq(got, nil, missing) t.ok(message:find(missing, 1, true), missing .. ": " .. message)
    t.ok(not message:find("\n"), "one line")
    local f = assert(io.open(folder .. "/" .. missing, "wb"))
    f:write("{ \"this is")
    f:close()
    got, message = melies.pipeline.load(folder)
    t.eq(got, nil, missing) t.ok(message:find(missing, 1, true), missing .. ": " .. message)
  end
end)

t.test("a configuration that does not fit the tensors is told", function()
  local folder = t.folder()
  os.execute(("ln -s '%s/tests/models/starter/'*.safetensors '%s/tests/models/starter/spiece.model' '%s'"):format(root, root,
    folder))
  local f = assert(io.open(root .. "/tests/models/starter/config.json"))
  local text = f:read("*a")
  f:close()
  for _, case in ipairs {
    { '"text_encoder"', '"text_decoder"', "text_encoder" },
    { '"layout": "wan2.1 t2v"', '"layout": "wan2.1 t2v", "dim": 200', "dim" },
    { '"layers": 5', '"layers": 6', "layers" },
    { '"latent": 48', '"latent": 16', "latent" },
  } do
    local i, j = text:find(case[1], 1, true)
    f = assert(io.open(folder .. "/config.json", "w"))
    f:write(text:sub(1, i - 1), case[2], text:sub(j + 1))
    f:close()
    local got, message = melies.pipeline.load(folder)
    t.eq(got, nil, case[2]) t.ok(message:find(case[3], 1, true), message)
  end
end)

-- A folder of the starter's parts with others in their place: { part = file }, and changes of the configuration.
local function folder_with(files, change)
  local folder = t.folder()
  for _, part in ipairs { "dit.safetensors", "text_encoder.safetensors", "autoencoder.safetensors", "spiece.model" } do
    os.execute(("ln -s '%s' '%s/%s'"):format(files[part] or root .. "/tests/models/starter/" .. part, folder, part))
  end
  local config = assert(melies.json.read(root .. "/tests/models/starter/config.json"))
  change(config)
  assert(melies.json.write(folder .. "/config.json", config))
  return folder
end

local function one_step(other, p)
  local shape = assert(other:latent_shape(p))
  local latent = melies.sampling.run("euler", melies.guide.make("cfg", other, { text = other:encode "a ball", scale = 3 }),
    T.noise(shape, { seed = 1 }), melies.schedule.flow(2, { shift = 3 }), { space = other.space })
  local frames = other:decode(latent)
  t.eq(table.concat(frames.shape, " "), ("%d %d %d 3"):format(p.frames, p.height, p.width))
  t.eq(frames:nonfinite(), 0)
  local back = other:encode_video(frames)
  t.eq(table.concat(back.shape, " "), table.concat(shape, " "), "encoded again")
end

t.test("TAEHV in place of the autoencoder: sizes follow it", function()
  local taehv = root .. "/tests/golden/taehv_p2.weights.safetensors"
  for _, layout in ipairs { "taehv", "" } do -- by its name, then by its tensors
    local folder = folder_with({ ["autoencoder.safetensors"] = taehv }, function(config)
      config.autoencoder = { layout = layout }
    end)
    local other = assert(melies.pipeline.load(folder))
    t.eq(table.concat(other.stride, " "), "4 16 16")
    one_step(other, { frames = 5, height = 32, width = 64 })
    local none, message = other:latent_shape { frames = 5, height = 16, width = 64 }
    t.eq(none, nil) t.ok(message:find("the nearest is 64x32", 1, true), message)
  end
end)

t.test("Wan's transformer and autoencoder, with a text encoder of their width", function()
  local dim, vocab = 40, 1000
  local file = t.folder() .. "/t5.safetensors"
  local tensors, stream = {}, 0
  local function add(name, ...)
    stream = stream + 1
    tensors[name] = T.noise({ ... }, { seed = 9, stream = stream }) * 0.1
  end
  add("token_embedding.weight", vocab, dim)
  add("norm.weight", dim)
  for _, name in ipairs { "norm1", "norm2" } do add("blocks.0." .. name .. ".weight", dim) end
  for _, name in ipairs { "q", "k", "v", "o" } do add("blocks.0.attn." .. name .. ".weight", dim, dim) end
  add("blocks.0.ffn.gate.0.weight", 64, dim)
  add("blocks.0.ffn.fc1.weight", 64, dim)
  add("blocks.0.ffn.fc2.weight", dim, 64)
  add("blocks.0.pos_embedding.embedding.weight", 32, 4)
  assert(melies.weights.save(file, tensors))
  local golden = root .. "/tests/golden/"
  local parts = { ["dit.safetensors"] = golden .. "wan_dit.weights.safetensors", ["text_encoder.safetensors"] = file }
  local function change(config)
    config.dit = { layout = "wan2.1 t2v", heads = 3, text_len = 16 }
    config.text_encoder = { layout = "umt5" }
  end
  local folder = folder_with(parts, change)
  local got, message = melies.pipeline.load(folder)
  t.eq(got, nil)
  t.ok(message:find("dit gives 16 latent channels, autoencoder takes 48", 1, true), message)

  parts["autoencoder.safetensors"] = golden .. "wan_vae.weights.safetensors"
  local other = assert(melies.pipeline.load(folder_with(parts, function(config)
    change(config)
    config.autoencoder = { layout = "wan vae" }
  end)))
  t.eq(other.text_len, 16)
  one_step(other, { frames = 5, height = 32, width = 48 })
end)

t.test("a prompt that is too long says tokens and limit; truncate cuts it", function()
  local long = ("a big red ball and "):rep(20)
  local text, message = model:encode(long)
  t.eq(text, nil)
  t.ok(message:find("the prompt is %d+ tokens; starter takes " .. model.text_len), message)
  local notice
  text, notice = model:encode(long, { truncate = true })
  t.eq(text.shape[1], model.text_len) t.ok(notice:find("cut", 1, true), notice)
  local ids = model:tokens(long, { truncate = true })
  t.eq(ids[#ids], model.eos)
  t.eq(#model:tokens "", 1, "the empty prompt is the end mark alone")
end)

t.test("sizes: lengths are rounded to the grid, sizes that do not fit name the nearest", function()
  local s = model.stride
  local unit_h, unit_w = s[2] * model.patch[2], s[3] * model.patch[3]
  local shape = t.ok(model:latent_shape { frames = 1 + 4 * s[1], height = 4 * unit_h, width = 5 * unit_w })
  t.eq(table.concat(shape, " "), table.concat({ model.latent_channels, 5, 4 * unit_h / s[2], 5 * unit_w / s[3] }, " "))
  for frames = 1, 40 do
    shape = model:latent_shape { frames = frames, height = unit_h, width = unit_w }
    t.ok(math.abs(model:frame_count(shape[2]) - frames) <= s[1] / 2, "rounded to the nearest")
  end
  local none, message = model:latent_shape { frames = 5, height = 4 * unit_h + 1, width = 4 * unit_w }
  t.eq(none, nil)
  t.ok(message:find(("the nearest is %dx%d"):format(4 * unit_w, 4 * unit_h), 1, true), message)
  none, message = model:latent_shape { frames = 0 }
  t.eq(none, nil) t.ok(message:find("frames is 0", 1, true), message)
end)

t.test("decoding as a stream gives the same frames, in pieces", function()
  local shape = model:latent_shape { frames = 9, height = 64, width = 64 }
  local latent = T.noise(shape, { seed = 3 })
  local pieces = {}
  local count = model:decode_stream(latent, function(frames) pieces[#pieces + 1] = frames end)
  local whole = model:decode(latent)
  t.eq(count, 9) t.eq(whole.shape[1], 9) t.ok(#pieces > 1)
  t.close(T.concat(pieces, 1), whole, 0, 0, "frames")
end)

t.test("a flat film goes through the autoencoder and back", function()
  local film = T.full({ 5, 64, 64, 3 }, 0.5)
  local latent = model:encode_video(film)
  t.eq(latent.shape[2], 2)
  t.close(model:decode(latent), film, 0.08, 0, "frames")
  t.raises(function() model:encode_video(T.zeros { 4, 64, 64, 3 }) end, "4 frames")
end)

t.test("to_x0 undoes add_noise", function()
  local z, n = T.noise({ 2, 3, 4, 4 }, { seed = 1 }), T.noise({ 2, 3, 4, 4 }, { seed = 2 })
  t.close(model:to_x0(model:add_noise(z, n, 0.3), 0.3, n - z), z, 1e-5, 0, "x0")
end)

t.test("the texts of one forward do not disturb each other", function()
  local shape = model:latent_shape { frames = 5, height = 64, width = 64 }
  local x = T.noise(shape, { seed = 5 })
  local a, b = model:encode "a red ball", model:encode "a small blue star spins in the night sky, realistic"
  local both = model:predict(x, 0.7, { a, b })
  t.close(both[1], model:predict(x, 0.7, { a })[1], 1e-4, 0, "first")
  t.close(both[2], model:predict(x, 0.7, { b })[1], 1e-4, 0, "second")
end)

t.finish()
