-- Frames in bounded memory: streams against wholes, memory that does not grow with the film, tiles and their seams,
-- films that go to a file as they are decoded, latents that are kept and given, the cache in a model's use.
local t = require "harness"
local melies = require "melies"
local lib = require "melies.ffi.lib"
local T, C = melies.tensor, lib.C
local tiles = require "melies.tiles"

local root = os.getenv "MELIES_ROOT"
local golden = root .. "/tests/golden/"
melies.set_compute "f32"

local function autoencoder(architecture, fixture)
  local f = assert(melies.weights.open(golden .. fixture .. ".weights.safetensors"))
  local config = {}
  if architecture == "wan_vae" then -- the fixture has fewer channels than Wan's own mean and std
    local channels = f:shape "decoder.conv1.weight"[2]
    config.mean, config.std = {}, {}
    for i = 1, channels do config.mean[i], config.std[i] = 0, 1 end
  end
  return require("melies.models." .. architecture).load(f, config)
end

local nets = {
  autoencoder("wan_vae", "wan_vae"), autoencoder("taehv", "taehv"), autoencoder("taehv", "taehv_super"),
  assert(melies.pipeline.load "starter").autoencoder,
}

local function stream(decoder, latent, sink)
  for i = 1, latent.shape[2] do sink(decoder:push(latent:slice(2, i, i))) end
end

t.test("memory is flat: 9 frames and 65 have the same peak", function()
  for _, net in ipairs(nets) do
    local function peak(length)
      local latent = T.noise { net.latent_channels, length, 6, 6 }
      collectgarbage() collectgarbage()
      local before = tonumber(C.mel_mem_live())
      C.mel_mem_reset_peak()
      stream(net:decoder(), latent, function() collectgarbage() end)
      return tonumber(C.mel_mem_peak()) - before
    end
    peak(2) -- primitives
    local short, long = peak(3), peak(17)
    t.ok(long <= 1.05 * short, ("%s: %d bytes for 3 latent frames, %d for 17"):format(net.name, short, long))
  end
end)

t.test("weights of tiles add up to 1 for every size, tile and overlap", function()
  for overlap = 0, 4 do
    for tile = math.max(1, 3 * overlap), 3 * overlap + 7 do
      for size = 1, 40 do
        local cuts = tiles.cuts(size, tile, overlap)
        local sum, largest = {}, 0
        for i, cut in ipairs(cuts) do
          local ramp = tiles.ramps(cuts, i, 2):list()
          largest = math.max(largest, cut[2])
          for k = 1, cut[2] * 2 do
            local at = (cut[1] - 1) * 2 + k
            sum[at] = (sum[at] or 0) + ramp[k]
          end
        end
        local where = ("size %d, tile %d, overlap %d"):format(size, tile, overlap)
        t.eq(#sum, size * 2, where) t.ok(largest <= tile, where)
        for at = 1, size * 2 do
          if math.abs((sum[at] or 0) - 1) > 1e-6 then error(("%s: %g at %d"):format(where, sum[at] or 0, at)) end
        end
      end
    end
  end
end)

t.test("tiles: where a pixel sees only its own block they change nothing, elsewhere only near seams", function()
  local function tiled_by(net, latent, tile)
    local parts, done = {}, 0
    local count = tiles.decode(net, latent, { tile = tile, overlap = 4 }, function(frames, i)
      parts[#parts + 1] = frames
      t.ok(i >= 1 and i <= 3)
    end, function(n, all)
      done = done + 1
      t.ok(n == done and all >= n)
    end)
    local out = T.concat(parts, 1)
    t.eq(count, out.shape[1])
    return out, done
  end
  for i, net in ipairs(nets) do
    local latent = T.noise({ net.latent_channels, 3, 20, 14 }) * 0.5
    local parts = {}
    stream(net:decoder(), latent, function(frames) parts[#parts + 1] = frames end)
    local whole = T.concat(parts, 1)
    t.close(net:decode(latent), whole, 0, 0, net.name .. ": whole and stream")
    local one, count = tiled_by(net, latent, { 20, 14 })
    t.eq(count, 1) t.close(one, whole, 5e-4, 0, net.name .. ": one tile, in f16")
    local tiled
    tiled, count = tiled_by(net, latent, { 12, 12 })
    t.eq(count, 4)
    if i == #nets then t.close(tiled, whole, 5e-4, 0, net.name)
    else
      -- Random latents and weights: every tile is another picture to the attention over the frame.
      local off, spread = (tiled - whole):abs():mean(), whole:std()
      t.ok(off < 0.3 * spread, ("%s: off by %g on average, the frames vary by %g"):format(net.name, off, spread))
    end
  end
  t.raises(function() tiled_by(nets[1], T.zeros { nets[1].latent_channels, 1, 16, 16 }, { 8, 12 }) end, "three times")
end)

t.test("a film goes to its file as it is decoded, and nothing of it is kept", function()
  local folder = t.folder()
  local given = { prompt = "a red ball", steps = 2, frames = 33, width = 128, height = 128, seed = 7 }
  local frames = assert(melies.run("text_to_video", given))
  given.output = folder .. "/film-%04d.png"
  local result = assert(melies.recipe.run(assert(melies.recipe.find "text_to_video"),
    assert(melies.recipe.check(assert(melies.recipe.find "text_to_video"), given)), { keep = false, progress = false }))
  t.eq(result, given.output, "the result is the path")
  local saved = assert(melies.media.load(given.output))
  t.eq(saved.shape[1], 33)
  t.close(saved, melies.media.to_u8(frames), 0, 0, "the same frames")
end)

t.test("values that are no numbers end the job and leave no file", function()
  local folder = t.folder()
  local plugin = { kind = "recipe", name = "probe", params = {}, run = function(_, job)
    local model = job:load "starter"
    return job:film(model, T.full({ model.latent_channels, 3, 8, 8 }, 0 / 0))
  end }
  local result, message = melies.recipe.run(plugin, {}, { output = folder .. "/film.mp4" })
  t.eq(result, nil) t.ok(message:find("frames from 1 on hold values that are no numbers", 1, true), message)
  t.eq(#melies.fs.list(folder), 0)
end)

t.test("--save-latents and --latents: the same film without sampling", function()
  local folder = t.folder()
  local kept = folder .. "/film.safetensors"
  local given = { prompt = "a blue cube", steps = 3, frames = 9, width = 96, height = 64, seed = 5, save_latents = kept }
  local frames = assert(melies.run("text_to_video", given))
  local f = assert(melies.weights.open(kept))
  t.eq(table.concat(f:shape "latent", " "), "48 3 8 12")
  local params = melies.json.decode(f.metadata.melies_params)
  t.eq(params.prompt, "a blue cube") t.eq(params.save_latents, nil) t.eq(f.metadata.melies_seed, "5")
  f:close()
  local output = folder .. "/again.mp4"
  local again = assert(melies.run("text_to_video", { latents = kept, output = output }))
  t.close(again, frames, 0, 0)
  local reader = assert(melies.media.reader(output))
  local meta = reader:info().metadata
  reader:close()
  params = melies.json.decode(meta.melies_params)
  t.eq(params.prompt, "a blue cube") t.eq(params.steps, 3) t.eq(params.latents, nil) t.eq(meta.melies_seed, "5")
  -- Also where the recipe wants an input.
  local film = assert(melies.run("video_to_video", { latents = kept }))
  t.close(film, frames, 0, 0)

  local function refused(path, what)
    local result, message = melies.run("text_to_video", { latents = path })
    t.eq(result, nil) t.ok(message:find(what, 1, true), message)
  end
  refused(folder .. "/none", "none")
  refused(root .. "/tests/models/starter/dit.safetensors", "no tensor 'latent'")
  assert(melies.weights.save(folder .. "/flat", { latent = T.zeros { 4 } }))
  refused(folder .. "/flat", "1 dimensions")
  assert(melies.weights.save(folder .. "/other", { latent = T.zeros { 16, 3, 8, 8 } }))
  refused(folder .. "/other", "[16, 3, 8, 8], wanted [48, 3, 8, 8]")
  local result, message = melies.run("text_to_video", { prompt = "x", save_latents = "/nowhere/x" })
  t.eq(result, nil) t.ok(message:find("/nowhere/x", 1, true), message)
end)

-- A cache of its own for one test.
local function with_cache(fn)
  local c = melies.cache.at(t.folder() .. "/cache")
  local before = melies.cache.use(c)
  local ok, message = pcall(fn, c)
  melies.cache.use(before)
  if not ok then error(message, 0) end
end

local function kinds(c)
  local out = {}
  for _, e in ipairs(c:list()) do out[e.kind] = (out[e.kind] or 0) + 1 end
  return out
end

t.test("a prompt that the cache has never reaches the encoder; both texts of a job go through it together", function()
  with_cache(function(c)
    melies.pipeline.forget()
    local model = assert(melies.pipeline.load "starter")
    local encoder, calls = model.text_encoder, {}
    model.text_encoder = setmetatable({ encode = function(_, lists)
      calls[#calls + 1] = #lists
      return encoder:encode(lists)
    end }, { __index = encoder })
    local given = { prompt = "a red (ball:1.2) on the grass", negative = "blurred", steps = 1, frames = 5 }
    local frames = assert(melies.run("text_to_video", given))
    t.eq(#calls, 1, "one pass") t.ok(calls[1] >= 2)
    local texts = kinds(c).text
    t.eq(texts, calls[1])
    model.rows, calls = {}, {} -- a new process
    t.close(assert(melies.run("text_to_video", given)), frames, 0, 0, "the same bits")
    t.eq(#calls, 0, "not used at all") t.eq(kinds(c).text, texts)
    given.prompt = "a blue cube"
    assert(melies.run("text_to_video", given))
    t.eq(#calls, 1) t.eq(calls[1], 1, "only the new one")
    local rows, message = model:encode(("word "):rep(100))
    t.eq(rows, nil) t.ok(message:find("tokens", 1, true))
    melies.pipeline.forget()
  end)
end)

t.test("latents of inputs, and with --reuse of whole jobs", function()
  with_cache(function(c)
    local model = assert(melies.pipeline.load "starter")
    local film = T.uniform({ 5, 64, 64, 3 }, { seed = 3 })
    local latent = model:encode_video(film)
    t.eq(kinds(c).video, 1)
    t.close(model:encode_video(film), latent, 0, 0)
    model:encode_video(film * 0.5)
    t.eq(kinds(c).video, 2)

    local function run(more)
      local given, said = { prompt = "a red ball", steps = 2, frames = 5, seed = 1, reuse = true }, {}
      for key, value in pairs(more or {}) do given[key] = value end
      local recipe = assert(melies.recipe.find "text_to_video")
      local frames = assert(melies.recipe.run(recipe, assert(melies.recipe.check(recipe, given)),
        { notice = function(text) said[#said + 1] = text end }))
      return frames, #said > 0
    end
    local frames, reused = run()
    t.ok(not reused) t.eq(kinds(c).latent, 1)
    local again
    again, reused = run()
    t.ok(reused) t.close(again, frames, 0, 0)
    again, reused = run { fps = 12, quality = 50 }
    t.ok(reused, "the output's settings do not count") t.close(again, frames, 0, 0)
    for _, more in ipairs { { seed = 2 }, { steps = 3 }, { prompt = "a ball" }, { guidance = 3 }, { sampler = "heun" },
      { negative = "x" }, { ["schedule.shift"] = 4 } } do
      reused = select(2, run(more))
      t.ok(not reused, next(more))
    end
    again, reused = run { reuse = false }
    t.ok(not reused) t.close(again, frames, 0, 0)
    local sampler = melies.registry.get("sampler", "euler")
    reused = select(2, run { sampler = sampler })
    t.ok(not reused, "a plugin given as a table has no name on disk")
  end)
end)

t.finish()
