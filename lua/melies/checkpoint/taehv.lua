-- The tiny autoencoders TAEHV (madebyollin/taehv, taehv.py): taehv, taew2_1, taew2_2, and the "super" decoder. One set
-- of names; widths, patches and strides in time are read from the tensors. Facts only.
local keys = require "melies.checkpoint.keys"

local function memory(l, name, width)
  l:conv(name .. ".conv.0", { width, 2 * width, 3, 3 })
  l:conv(name .. ".conv.2", { width, width, 3, 3 }):conv(name .. ".conv.4", { width, width, 3, 3 })
end

local function wide(l, name, width)
  l:conv(name .. ".conv.0", { 2 * width, 1, 7, 7 }, false):conv(name .. ".conv.1", { 4 * width, 2 * width, 1, 1 })
  l:conv(name .. ".conv.3", { width, 4 * width, 1, 1 }, false)
end

local function encoder(l, c)
  local w = c.encoder
  l:conv("encoder.0", { w, 3 * c.patch * c.patch, 3, 3 })
  for i, first in ipairs { 2, 7, 12 } do
    l:conv(("encoder.%d.conv"):format(first), { w, w * c.pool[i], 1, 1 }, false)
    l:conv(("encoder.%d"):format(first + 1), { w, w, 3, 3 }, false)
    for k = 2, 4 do memory(l, ("encoder.%d"):format(first + k), w) end
  end
  l:conv("encoder.17", { c.latent, w, 3, 3 })
end

local function plain_decoder(l, c)
  local w = c.decoder
  l:conv("decoder.1", { w[1], c.latent, 3, 3 })
  for i, first in ipairs { 3, 9, 15 } do
    for k = 0, 2 do memory(l, ("decoder.%d"):format(first + k), w[i]) end
    l:conv(("decoder.%d.conv"):format(first + 4), { w[i] * c.grow[i], w[i], 1, 1 }, false)
    l:conv(("decoder.%d"):format(first + 5), { w[i + 1], w[i], 3, 3 }, false)
  end
  l:conv("decoder.22", { 3 * c.patch * c.patch, w[4], 3, 3 })
end

local function super_decoder(l, c)
  local w = c.decoder
  l:conv("decoder.0", { w[1], c.latent, 1, 1 }, false)
  for i, first in ipairs { 1, 8, 15 } do
    for k = 0, 2 do wide(l, ("decoder.%d"):format(first + k), w[i]) end
    l:conv(("decoder.%d"):format(first + 3), { 4 * w[i + 1], w[i], 3, 3 })
    l:conv(("decoder.%d.conv"):format(first + 6), { w[i + 1] * c.grow[i], w[i + 1], 1, 1 }, false)
  end
  l:conv("decoder.22", { 3 * c.patch * c.patch, w[4], 3, 3 })
end

local function config(at)
  local c, missing = { pool = {}, grow = {}, decoder = {} }, nil
  local function need(name)
    local shape = at(name)
    if not shape then missing = missing or name end
    return shape or { 1, 1, 1, 1 }
  end
  local first, last = need "encoder.0.weight", need "decoder.22.weight"
  c.encoder, c.patch = first[1], math.sqrt(last[1] / 3)
  c.super = at "decoder.1.conv.0.weight" ~= nil
  c.latent = need "encoder.17.weight"[1]
  for i, index in ipairs { 2, 7, 12 } do c.pool[i] = need(("encoder.%d.conv.weight"):format(index))[2] / c.encoder end
  c.decoder[1] = need(c.super and "decoder.0.weight" or "decoder.1.weight")[1]
  for i, index in ipairs { 7, c.super and 14 or 13, c.super and 21 or 19 } do
    local grow = need(("decoder.%d.conv.weight"):format(index))
    c.grow[i] = grow[1] / grow[2]
    c.decoder[c.super and i + 1 or i] = grow[2]
  end
  c.decoder[4] = last[2]
  if missing then return nil, missing end
  return c
end

return {
  name = "taehv", part = "autoencoder", model = "taehv", title = "tiny video autoencoder (TAEHV)",
  anchors = { "encoder.17.weight", "decoder.9.conv.0.weight" },
  layouts = { { name = "taehv", rename = keys.same } },
  config = config,
  tensors = function(c)
    local l = keys.list()
    encoder(l, c);
    (c.super and super_decoder or plain_decoder)(l, c)
    return l
  end,
  variant = function(c)
    if c.super then return "taehv-super", ("%d channels"):format(c.latent) end
    if c.latent == 16 and c.patch == 1 then return "taew2_1", "taehv of HunyuanVideo has the same shapes" end
    if c.latent == 48 and c.patch == 2 then return "taew2_2" end
    return "taehv", ("%d channels, patches of %d"):format(c.latent, c.patch)
  end,
}
