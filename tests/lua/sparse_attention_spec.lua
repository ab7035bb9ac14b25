-- Masks of attention by blocks: what they let through, against attention with a bias, and in the transformer.
local t = require "harness"
local melies = require "melies"
local T, sparse = melies.tensor, require "melies.sparse_attention"
local wan_dit = require "melies.models.wan_dit"

local BLOCK = 64
local root = os.getenv "MELIES_ROOT"

-- What a mask lets through as a bias [1, 1, L, L] over places.
local function bias_of(mask, length)
  local offsets, blocks = mask.offsets:list(), mask.blocks:list()
  local bias = T.full({ 1, 1, length, length }, -math.huge)
  for i = 1, #offsets - 1 do
    for n = offsets[i] + 1, offsets[i + 1] do
      local rows = bias:slice(3, (i - 1) * BLOCK + 1, math.min(i * BLOCK, length))
      rows:slice(4, blocks[n] * BLOCK + 1, math.min((blocks[n] + 1) * BLOCK, length)):fill_(0)
    end
  end
  return bias
end

local function relative(x, y) return (x:to "f32" - y):norm() / y:norm() end

t.test("the text of a mask", function()
  local a = sparse.parse "s8, tiles:3x5x7@2x4x8"
  t.eq(a.scores, "s8")
  t.eq(table.concat(a.mask.window, " "), "3 5 7")
  t.eq(table.concat(a.mask.tile, " "), "2 4 8")
  t.eq(sparse.parse("radial:0.5").mask.reach, 0.5)
  t.eq(sparse.parse("s8").mask, nil)
  t.eq(sparse.parse("s8").values, nil)
  t.eq(sparse.parse("s8-values").values, "s8")
  for text, message in pairs {
    ["s4"] = "attention: 's4' is not known", ["tile:3x3x3"] = "did you mean 'tiles'",
    ["tiles:3x3"] = "the window of tiles is '3x3'; it should be three sizes",
    ["tiles:3x0x3"] = "three sizes from 1 on", ["radial:x"] = "the reach of radial is 'x'", ["radial:0"] = "above 0",
    ["radial:1@8x8"] = "the tile is '8x8'", ["radial:1,tiles:3x3x3"] = "has two masks", [""] = "'' is not known",
  } do t.raises(function() sparse.parse(text) end, message) end
  t.raises(function() sparse.parse(3) end, "a text is wanted, not a number")
end)

t.test("an order and its inverse", function()
  for _, text in ipairs { "tiles:1x1x1", "radial:1", "tiles:3x3x3@3x3x3" } do
    local mask = sparse.mask(sparse.parse(text).mask, 5, 7, 9)
    local order, inverse, seen = mask.order:list(), mask.inverse:list(), {}
    for place = 0, #order - 1 do
      t.eq(inverse[order[place + 1] + 1], place)
      seen[order[place + 1]] = true
    end
    t.eq(#seen, 5 * 7 * 9 - 1)
    local x = T.noise({ 2, 315, 3 }, { seed = 1 })
    t.close(sparse.reorder(sparse.reorder(x, mask.order), mask.inverse), x, 0, 0)
  end
  -- A tile of the first frames, rows and columns stands first.
  local first = sparse.mask(sparse.parse("tiles:1x1x1@2x4x8").mask, 4, 8, 16).order:list()
  for i = 1, 64 do
    local token = first[i]
    t.ok(math.floor(token / 128) < 2 and math.floor(token / 16) % 8 < 4 and token % 16 < 8, "place " .. i)
  end
end)

t.test("windows of tiles that are whole blocks", function()
  local mask = sparse.mask(sparse.parse("tiles:1x3x1").mask, 8, 20, 8) -- 2 x 5 x 2 tiles of 64
  local offsets, blocks = mask.offsets:list(), mask.blocks:list()
  t.eq(#offsets, 21)
  local function seen(i) return table.concat(blocks, " ", offsets[i + 1] + 1, offsets[i + 2]) end
  t.eq(seen(0), "0 2 4") -- at the border the window moves inwards
  t.eq(seen(2), "0 2 4")
  t.eq(seen(4), "2 4 6")
  t.eq(seen(19), "15 17 19")
  t.ok(math.abs(mask.density - 3 / 20) < 1e-9)
  t.eq(sparse.mask(sparse.parse("tiles:9x9x9").mask, 5, 7, 9).density, 1)
end)

t.test("radial: dense near in time, narrower farther away, the first frame and the same place always", function()
  local mask = sparse.mask(sparse.parse("radial:1").mask, 9, 16, 16) -- tiles are quarters of a frame
  local offsets, blocks = mask.offsets:list(), mask.blocks:list()
  local function sees(i, j)
    for n = offsets[i + 1] + 1, offsets[i + 2] do if blocks[n] == j then return true end end
    return false
  end
  for tile = 0, 3 do
    for other = 0, 3 do
      t.ok(sees(16 + tile, 16 + other) and sees(16 + tile, 20 + other), "a frame and the next")
      t.ok(sees(32 + tile, other), "the first frame")
    end
    t.ok(sees(32 + tile, 4 + tile), "the same place")
  end
  t.ok(mask.density <= 1)
  local narrow = sparse.mask(sparse.parse("radial:0.05").mask, 9, 16, 16)
  t.ok(narrow.density < 0.4 and narrow.density < mask.density)
  t.ok(sparse.mask(sparse.parse("radial:0.1").mask, 16, 32, 32).density
    < sparse.mask(sparse.parse("radial:0.4").mask, 16, 32, 32).density)
end)

t.test("attention with a mask is attention with its bias", function()
  for _, case in ipairs { { "tiles:1x3x3", 4, 12, 20 }, { "radial:0.2", 5, 13, 11 }, { "tiles:1x1x1@1x3x5", 3, 7, 11 } } do
    local mask = sparse.mask(sparse.parse(case[1]).mask, case[2], case[3], case[4])
    local length = case[2] * case[3] * case[4]
    local q, k, v = T.noise({ 2, length, 2, 32 }, { seed = 1 }), T.noise({ 2, length, 2, 32 }, { seed = 2 }),
      T.noise({ 2, length, 2, 32 }, { seed = 3 })
    local want = T.attention(q, k, v, { bias = bias_of(mask, length) })
    t.ok(relative(T.attention(q, k, v, { mask = mask }), want) < 1e-6, case[1] .. " f32")
    t.ok(relative(T.attention(q:to "bf16", k:to "bf16", v:to "bf16", { mask = mask }), want) < 0.01, case[1] .. " bf16")
    t.ok(relative(T.attention(q, k, v, { mask = mask, scores = "s8" }), want) < 0.02, case[1] .. " s8")
    t.ok(relative(T.attention(q, k, v, { mask = mask, scores = "s8", values = "s8" }), want) < 0.03, case[1] .. " values")
    t.raises(function() T.attention(q:slice(2, 1, 60), k, v, { mask = mask }) end, "are wanted for 60 queries")
  end
end)

t.test("the same bits for any number of threads", function()
  local mask = sparse.mask(sparse.parse("tiles:3x1x3").mask, 8, 16, 16)
  local q, k, v = T.noise({ 1, 2048, 3, 64 }, { seed = 1 }):to "bf16", T.noise({ 1, 2048, 3, 64 }, { seed = 2 }):to "bf16",
    T.noise({ 1, 2048, 3, 64 }, { seed = 3 }):to "bf16"
  local one
  for threads = 1, 3 do
    melies.threads(threads)
    local y = T.attention(q, k, v, { mask = mask, scores = "s8" })
    one = one or y
    t.close(y, one, 0, 0, threads .. " threads")
  end
  melies.threads(0)
end)

-- ---- in the transformer -----------------------------------------------------------------------------------------

local function dit(attention)
  local file = assert(melies.weights.open(root .. "/tests/golden/wan_dit.weights.safetensors"))
  return wan_dit.load(file, { num_heads = 3, text_len = 16 }, { compute = "f32", attention = attention })
end
local plain = dit()
local latent = melies.noise({ 2, plain.in_channels, 5, 12, 20 }, { seed = 1 })
local function velocity(net, times, options)
  local texts = { melies.noise({ 5, net.text_dim }, { seed = 2 }), melies.noise({ 3, net.text_dim }, { seed = 3 }) }
  return net:forward(latent, times or { 400, 400 }, net:context(texts, options))
end

t.test("a mask that lets all through changes nothing but the order of sums", function()
  local want = velocity(plain)
  t.ok(relative(velocity(dit "tiles:9x9x9"), want) < 1e-5)
  t.ok(relative(velocity(dit { mask = { kind = "radial", reach = 64, tile = { 2, 3, 4 } } }), want) < 1e-5)
end)

t.test("scores in 8 bits and a narrow mask are near", function()
  local want = velocity(plain)
  local s8, narrow = relative(velocity(dit "s8-values"), want), relative(velocity(dit "tiles:3x3x3@1x3x5"), want)
  t.ok(s8 > 0 and s8 < 0.02, "s8: " .. s8)
  t.ok(narrow > 0 and narrow < 0.5, "tiles: " .. narrow)
end)

t.test("frames with timesteps of their own", function()
  local first = melies.noise({ plain.in_channels, 1, 12, 20 }, { seed = 4 })
  local want = velocity(plain, nil, { first = first })
  t.ok(relative(velocity(dit "radial:64", nil, { first = first }), want) < 1e-5)
  t.raises(function() velocity(dit "tiles:9x9x9", nil, { first = first }) end, "want tiles of one frame, such as @1x8x8")
end)

t.test("what does not fit", function()
  t.raises(function() dit "tile:3" end, "attention: 'tile:3' is not known")
  t.raises(function() dit("radial:1"):causal() end, "a mask of attention wants all frames at once")
  dit("s8"):causal()
end)

t.finish()
