-- melies-api: 1
-- What the probe is trained on: rendered clips with any attributes of one subject, some of them made worse in the ways that
-- generated clips are. Example i of a seed is always the same.
local melies = require "melies"
local T = melies.tensor

local M = {}
local ATTRIBUTES, SPOILING, PICKS = 5, 6, 7 -- streams of world.random that the world does not use
local CODED = 60 -- clips that the code below is made of
local here = debug.getinfo(1, "S").source:match "^@(.*)/[^/]*$" or "."
local LOOKED, PICKED = 5, 3 -- frames of a clip that is looked at, and how many of them are

-- What example i shows: one subject; the combinations that the starter does not train on are among them, and what is rare
-- in the world (patterns, sizes, a camera that moves) is not.
function M.attributes(world, seed, index)
  local random, words = world.random(seed, index, ATTRIBUTES), world.words
  local held = random() < 0.3
  local a
  repeat a = words.sample(random, held) until a.relation == "none" and (a.camera ~= "still" or random() < 0.6)
  a.texture = words.textures[1 + math.floor(random() * #words.textures)]
  a.size = words.sizes[1 + math.floor(random() * #words.sizes)]
  return a
end

local function resized(x, h, w)
  if x.shape[2] ~= h then x = x:resize(2, h, "bilinear", x.shape[2] > h) end
  if x.shape[3] ~= w then x = x:resize(3, w, "bilinear", x.shape[3] > w) end
  return x
end

-- Noise in blocks: [T, H, W, 3] from values a `cell` of pixels and two or more frames wide, as a noisy latent decodes.
local function blocks(shape, cell, seed, stream)
  local t, h, w = shape[1], shape[2], shape[3]
  local small = T.noise({ math.max(2, math.floor(t / 3)), math.ceil(h / cell), math.ceil(w / cell), 3 },
    { seed = seed, stream = stream })
  return resized(small:resize(1, t, "bilinear"), h, w)
end

-- Normal noise in pixels: a stretch of one long reel.
local reel
local function grain(t, h, w, random)
  local size = t * h * w * 3
  if not reel or reel:numel() < 2 * size then reel = T.noise({ 2 * size }, { seed = 1 }) end
  local at = math.floor(random() * size)
  return reel:slice(1, at + 1, at + size):reshape(t, h, w, 3)
end

-- The best linear code of the world's blocks, made here of a few clips: latents as a model has them, without a model.
local code
local function linear_code(world, size)
  if not code then
    local linear = dofile(here .. "/../train/blocks.lua")
    code = linear.model((linear.train(world, { clips = CODED, size = size, progress = function() end })))
  end
  return code
end

-- A clip as a model draws it that is not sure: through the code, with noise in its latent where the clip is rich (what moves
-- comes out speckled, a sky does not), its quieter half weakened (soft).
local function unsure(x, world, random, seed, stream)
  local net = linear_code(world, x.shape[2])
  local z = net:encode(x)
  local channels = z.shape[1]
  local quiet = channels / 2
  local fine = z:slice(1, quiet + 1, channels) * (1 - 0.6 * random())
  z = T.concat({ z:slice(1, 1, quiet), fine }, 1)
  local rich = z:slice(1, 2, channels):square():mean(1, true):sqrt()
  local noise = T.noise(z.shape, { seed = seed, stream = 2 * stream + 1 })
  return net:decode(z + noise * (rich + 0.05) * (0.1 + 0.7 * random()))
end

-- A clip f32 [T, H, W, 3] made worse: noise in its latent, blurred, smeared over time (where its frames are neighbours), with
-- noise in pixels and blocks, other contrast. About a third stay as they are.
function M.spoil(x, world, random, seed, stream)
  if random() < 0.3 then return x end
  local t, h, w = x.shape[1], x.shape[2], x.shape[3]
  if random() < 0.5 then x = unsure(x, world, random, seed, stream) end
  if random() < 0.55 then
    local by = 1.2 + random() * (random() < 0.3 and 2 or 1)
    x = resized(resized(x, math.floor(h / by), math.floor(w / by)), h, w)
  end
  if random() < 0.35 and t > LOOKED then
    local share = 0.15 + 0.3 * random()
    local before = T.concat({ x:slice(1, 1, 1), x:slice(1, 1, t - 1) }, 1)
    x = x * (1 - share) + before * share
  end
  if random() < 0.5 then
    x = x + blocks({ t, h, w }, 4 + math.floor(random() * 12), seed, 2 * stream) * (0.01 + 0.05 * random())
  end
  if random() < 0.4 then
    x = x + grain(t, h, w, random) * (0.01 + 0.03 * random())
  end
  if random() < 0.4 then
    x = (x - 0.5) * (0.88 + 0.2 * random()) + (0.5 + 0.06 * (random() - 0.5))
  end
  return x:clamp(0, 1)
end

-- Example i: frames f32 [T, 96, 96, 3], mask u8 [T, h, w] and its attributes. frames: T (17 or 5); spoil: false for clean
-- ones.
function M.example(world, probe, seed, index, o)
  local a, count = M.attributes(world, seed, index), o.frames or probe.FRAMES
  local random = world.random(seed, index, SPOILING)
  local spoil = o.spoil ~= false
  local small = random() < 0.12 and spoil
  local frames, mask = world.render(a, { seed = seed, index = index, size = small and 64 or probe.SIZE, frames = count })
  local x = probe.prepared(frames, count)
  return spoil and M.spoil(x, world, random, seed, index) or x, mask, a
end

-- Where the subject is: shares of 12x12 cells, [T, 144].
local function cells_of(probe, mask)
  local t, n = mask.shape[1], mask.shape[2]
  local x = mask:to("f32"):reshape(t, n, n, 1)
  if n ~= probe.SIZE then x = x:resize(2, probe.SIZE, "nearest"):resize(3, probe.SIZE, "nearest") end
  x = probe.pooled(x, probe.SIZE / 12):reshape(t, 144)
  return x / (x:sum(2, true) + 1e-3)
end

-- Labels { attribute = i64 [B] } of a list of attributes.
local function labels_of(world, probe, names, list)
  local out = {}
  for _, attribute in ipairs(names) do
    local place, ids = {}, {}
    for j, name in ipairs(probe.names(world.words, attribute)) do place[name] = j - 1 end
    for i, a in ipairs(list) do ids[i] = place[a[attribute]] end
    out[attribute] = T.of(ids, { #list }, "i64")
  end
  return out
end

-- Examples first .. first + count - 1 for the moves: clips [B, 17, 96, 96, 3], where [B * 9, 144], labels.
function M.moves(world, probe, seed, first, count)
  local clips, where, list = {}, {}, {}
  for i = 1, count do
    local mask
    clips[i], mask, list[i] = M.example(world, probe, seed, first + i - 1, {})
    where[i] = cells_of(probe, mask):pad(1, 0, 1, 0):reshape(probe.MOMENTS, 2, 144):select(2, 1)
  end
  return { clips = T.stack(clips, 1), where = T.concat(where, 1), labels = labels_of(world, probe, probe.moves, list) }
end

-- The same for the looks: images [B * 3, 96, 96, 3], their cuts (a little beside the subject), where [B * 3, 144], labels.
function M.looks(world, probe, seed, first, count)
  local images, cuts, where, list = {}, {}, {}, {}
  for i = 1, count do
    local frames, mask, a = M.example(world, probe, seed, first + i - 1, { frames = LOOKED })
    local random, cells = world.random(seed, first + i - 1, PICKS), cells_of(probe, mask)
    local skipped = math.floor(random() * LOOKED)
    for j = 1, PICKED do
      local at = 1 + (skipped + j) % LOOKED
      local image = frames:slice(1, at, at)
      images[#images + 1], where[#where + 1] = image, cells:slice(1, at, at)
      cuts[#cuts + 1] = probe.cut(image, cells:ptr() + (at - 1) * 144, (random() - 0.5) * 1.2, (random() - 0.5) * 1.2,
        0.85 + 0.4 * random())
    end
    list[i] = a
  end
  return { images = T.concat(images, 1), cuts = T.concat(cuts, 1), where = T.concat(where, 1),
    labels = labels_of(world, probe, probe.looks, list) }
end

return M
