-- Parts of real models at real sizes, with random weights: a few of a transformer's equal blocks stand for all of them.
local fake = require "melies.fake"
local T = require "melies.tensor"

local parts = {}

-- Bytes of all tensors at `size` bytes a value: what a pass over a part has to read at least.
local function bytes_of(weights, size)
  local sum = 0
  for _, name in ipairs(weights:names()) do
    local n = size
    for _, d in ipairs(weights:shape(name)) do n = n * d end
    sum = sum + n
  end
  return sum
end

local function dit(compute, frames, size, blocks)
  local tokens = frames * size * size / 4
  return { name = ("Wan 1.3B, %d of 30 blocks, %s, %d tokens"):format(blocks, compute, tokens),
    dtype = compute == "f32" and "f32" or "bf16", roof = compute, counted = true,
    label = tokens > 1000 and ("Wan 1.3B, %d,%03d tokens"):format(tokens / 1000, tokens % 1000) or nil, setup = function()
      local weights, config = fake.weights("wan2.1-t2v-1.3b", { layers = blocks })
      local net = require("melies.models.wan_dit").load(weights, { heads = config.heads }, { compute = compute })
      local context = net:context { T.noise({ 30, 4096 }, { seed = 1 }) }
      local latent = T.noise({ 1, 16, frames, size, size }, { seed = 2 })
      return function() net:forward(latent, 500, context):free() end,
        bytes_of(weights, compute == "s8" and 1 or 2) + 2 * latent:bytes()
    end }
end
parts[#parts + 1] = dit("bf16", 5, 16, 3) -- half of the next one's width and height: a coarse step
for _, compute in ipairs { "bf16", "s8" } do
  parts[#parts + 1] = dit(compute, 5, 32, 3)
  parts[#parts + 1] = dit(compute, 9, 40, 3)
end

-- Beside attention in bf16: the same in 8 bits. Errors and paired ratios: tests/bench/attention.lua.
for _, tokens in ipairs { 1280, 5120, 32760 } do
  for _, way in ipairs { { "8-bit scores", { scores = "s8" } },
    { "8-bit scores and values", { scores = "s8", values = "s8" } } } do
    parts[#parts + 1] = { name = ("attention %s %d tokens"):format(way[1], tokens), dtype = "bf16",
      slow = tokens > 10000, flop = 4 * tokens * tokens * 1536, bytes = 8 * tokens * 1536, setup = function()
        local qkv = {}
        for i = 1, 3 do qkv[i] = T.noise({ 1, tokens, 12, 128 }, { seed = i }):to "bf16" end
        return function() T.attention(qkv[1], qkv[2], qkv[3], way[2]):free() end
      end }
  end
end

for _, tokens in ipairs { 32760 } do
  parts[#parts + 1] = { name = ("attention bf16 %d tokens, 12 heads of 128"):format(tokens), dtype = "bf16",
    slow = true, label = "attention, 32,760 tokens",
    flop = 4 * tokens * tokens * 1536, bytes = 8 * tokens * 1536, setup = function()
      local qkv = {}
      for i = 1, 3 do qkv[i] = T.noise({ 1, tokens, 12, 128 }, { seed = i }):to "bf16" end
      return function() T.attention(qkv[1], qkv[2], qkv[3]):free() end
    end }
end

parts[#parts + 1] = { name = "Wan VAE decode, 4 frames of 256x256", dtype = "bf16", counted = true,
  label = "Wan VAE decode", setup = function()
  local weights = fake.weights "wan2.1-vae"
  local net = require("melies.models.wan_vae").load(weights, {}, { compute = "bf16" })
  local latent = T.noise({ 16, 3, 32, 32 }, { seed = 1 })
  local decoder = net:decoder()
  for i = 1, 2 do decoder:push(latent:slice(2, i, i)) end
  return function() decoder:push(latent:slice(2, 3, 3)):free() end,
    bytes_of(weights, 2) / 2 + 4 * (16 * 32 * 32 + 4 * 256 * 256 * 3) -- half of the tensors are the encoder's
end }

parts[#parts + 1] = { name = "TAEW 2.1 decode, 4 frames of 832x480", dtype = "bf16", counted = true,
  label = "TAEW 2.1 decode", setup = function()
  local weights = fake.weights "taew2_1"
  local net = require("melies.models.taehv").load(weights, {}, { compute = "bf16" })
  local latent = T.noise({ 16, 3, 60, 104 }, { seed = 1 })
  local decoder = net:decoder()
  for i = 1, 2 do decoder:push(latent:slice(2, i, i)) end
  return function() decoder:push(latent:slice(2, 3, 3)):free() end,
    bytes_of(weights, 2) / 2 + 4 * (16 * 60 * 104 + 4 * 480 * 832 * 3)
end }

parts[#parts + 1] = { name = "UMT5-XXL, 2 of 24 layers, 30 tokens, weights in place", dtype = "bf16",
  bytes = 2 * 2 * (4 * 4096 * 4096 + 3 * 4096 * 10240), work = 2 * 2 * 30 * (4 * 4096 * 4096 + 3 * 4096 * 10240),
  label = "UMT5-XXL, 30 tokens", setup = function()
    local weights = fake.weights("umt5-xxl", { layers = 2, vocab = 1000 })
    local held = {}
    for _, name in ipairs(weights:names()) do held[name] = weights:get(name):to "bf16" end
    local source = require("melies.weights").from_table(held)
    local net = require("melies.models.t5").load(source, { heads = 64 }, { compute = "bf16", lazy = true })
    local ids = {}
    for i = 1, 30 do ids[i] = i end
    return function() net:encode(ids):free() end
  end }

return parts
