-- What the architecture files in models/ share: taking named tensors with their shapes checked, settings that a
-- configuration may state and the tensors must confirm, and the frame conventions of autoencoders.
--
-- An architecture is loaded from `weights`: a file of melies.weights.open, or a plain table { name = tensor }.
-- Whatever does not fit raises one line that names the model and the tensor, with the wanted and the found shape.
local melies = require "melies"
local T = melies.tensor

local kit = {}

local single = require("ffi").new("float[1]")
-- A number rounded to float32.
function kit.f32(x)
  single[0] = x
  return tonumber(single[0])
end

local function fail(format, ...) error(format:format(...), 0) end

-- "[2, 3, *]": a list of sizes, false standing for any.
function kit.shape_text(shape)
  local out = {}
  for i = 1, #shape do out[i] = shape[i] and tostring(tonumber(shape[i])) or "*" end
  return "[" .. table.concat(out, ", ") .. "]"
end

local Reader = {}
Reader.__index = Reader

-- A reader of the tensors of one model. options.anchor: a tensor that every file of this model has; what stands before
-- it in the file (such as "model.diffusion_model.") is the prefix of all names, and other names are left alone.
-- options.quantization: what melies.quantize.read gave, for linears in 8 bits.
-- options.rename(name): the file's name of a tensor, where a second naming scheme is in use.
function kit.reader(model, weights, options)
  if weights == nil then error(model .. ": no weights given", 3) end
  options = options or {}
  local self = setmetatable({ model = model, names = {}, taken = {}, prefix = "", rename = options.rename,
    quantization = options.quantization }, Reader)
  local names, count
  if type(weights) == "table" and not weights.get then
    names, self.source = {}, weights
    for name in pairs(weights) do names[#names + 1] = name end
  else
    names, self.file = weights:names(), weights
  end
  count = #names
  local anchor = options.anchor
  for i = 1, count do self.names[names[i]] = true end
  if anchor and not self.names[anchor] then
    local tail = "." .. anchor
    for i = 1, count do
      local name = names[i]
      if #name > #tail and name:sub(-#tail) == tail then self.prefix = name:sub(1, #name - #anchor) break end
    end
  end
  return self
end

function Reader:key(name)
  return self.prefix .. (self.rename and self.rename(name) or name)
end
function Reader:has(name) return self.names[self:key(name)] == true end

-- The shape of a tensor that must be there, as a list of numbers.
function Reader:shape(name)
  local key = self:key(name)
  if not self.names[key] then fail("%s: tensor '%s' is missing", self.model, key) end
  local shape, out = self.file and self.file:shape(key) or self.source[key].shape, {}
  for i = 1, #shape do out[i] = tonumber(shape[i]) end
  return out
end

-- Checks a tensor's shape (false: any size) and counts it as taken. Returns its name in the file.
function Reader:claim(name, shape)
  local found, key = self:shape(name), self:key(name)
  local fits = #found == #shape
  for i = 1, #shape do fits = fits and (not shape[i] or shape[i] == found[i]) end
  if not fits then
    fail("%s: tensor '%s' is %s, wanted %s", self.model, key, kit.shape_text(found), kit.shape_text(shape))
  end
  self.taken[key] = true
  return key
end

-- Takes a tensor of the given shape (false: any size), in the dtype it is stored in.
function Reader:take(name, shape)
  local key = self:claim(name, shape)
  if not self.file then return self.source[key] end
  local tensor, message = self.file:get(key)
  if not tensor then fail("%s: tensor '%s': %s", self.model, key, tostring(message)) end
  return tensor
end

-- The same in float32: norm weights, modulation tables, biases that are added by hand.
function Reader:take_f32(name, shape)
  return self:take(name, shape):to("f32")
end

-- A linear layer from name.weight [outputs, inputs] and, unless bias is false, name.bias [outputs]. Weights may have
-- adapters(name, options): what the layer adds to its product (melies.lora).
function Reader:linear(name, outputs, inputs, options)
  options = options or {}
  local weight
  local adapters = self.file and rawget(self.file, "adapters")
  adapters = adapters and adapters(self:key(name .. ".weight"), options)
  if self.file and self.file.matrix then -- read by rows: a quantised weight is never whole in memory
    weight = self.file:matrix(self:claim(name .. ".weight", { outputs, inputs }))
  else
    weight = self:take(name .. ".weight", { outputs, inputs })
  end
  local bias = options.bias ~= false and self:take(name .. ".bias", { outputs }) or nil
  local compute, smooth, rotate, q = options.compute, nil, nil, self.quantization
  if compute == "s8" and q then
    if q.keep[name] then compute = "bf16" end
    smooth, rotate = q.smooth[name], q.rotate[name]
  end
  local layer = melies.nn.linear(weight, bias, { compute = compute, lazy = options.lazy, smooth = smooth,
    rotate = rotate })
  layer.adapters, layer.name = adapters, name
  return layer
end

-- A convolution from name.weight (its whole shape) and name.bias where the file has one.
function Reader:conv(name, shape, options)
  local weight = self:take(name .. ".weight", shape)
  local bias = self:has(name .. ".bias") and self:take(name .. ".bias", { weight.shape[1] }) or nil
  return melies.nn.conv(weight, bias, options)
end

-- How many numbered parts the file has: count("blocks.%d.norm1.weight") with numbers from 0.
function Reader:count(pattern)
  local n = 0
  while self:has(pattern:format(n)) do n = n + 1 end
  return n
end

-- Tensors that belong to the model and are not read: one name, or all that begin with it where it ends in ".".
function Reader:ignore(name)
  local key = self:key(name)
  if name:sub(-1) ~= "." then
    self.taken[key] = true
    return
  end
  for found in pairs(self.names) do
    if found:sub(1, #key) == key then self.taken[found] = true end
  end
end

-- Every tensor under the prefix must have been taken.
function Reader:finish()
  local extra = {}
  for name in pairs(self.names) do
    if not self.taken[name] and name:sub(1, #self.prefix) == self.prefix then extra[#extra + 1] = name end
  end
  if #extra == 0 then return end
  table.sort(extra)
  local shape = self.file and self.file:shape(extra[1]) or self.source[extra[1]].shape
  fail("%s: tensor '%s' %s is not part of this architecture%s", self.model, extra[1], kit.shape_text(shape),
    #extra > 1 and (" (nor are %d more)"):format(#extra - 1) or "")
end

-- A size that the tensors give; where the configuration states it too, both must agree.
function kit.agree(model, config, names, found, where)
  for _, name in ipairs(names) do
    local stated = config[name]
    if stated ~= nil and stated ~= melies.json.null and stated ~= found then
      fail("%s: the configuration says %s %s, %s gives %s", model, name, tostring(stated), where, tostring(found))
    end
  end
  return found
end

-- The options of load: compute ("f32", "bf16" or "s8", by default melies.compute()), trace(name, tensor), and lazy, with
-- which the model keeps no packed copy of its large matrices: true for all, or a count of blocks that it keeps.
-- Returns the dtype of activations and of most matrices, trace, and the dtype of the large matrices where the model
-- knows 8 bits. own: the name of one more option that this model knows.
function kit.options(model, options, own)
  options = options or {}
  for name in pairs(options) do
    if name ~= "compute" and name ~= "trace" and name ~= "lazy" and name ~= "quantization" and name ~= own then
      error(("%s: unknown option '%s' (there are %scompute, lazy, quantization, trace)"):format(model, tostring(name),
        own and own .. ", " or ""), 3)
    end
  end
  local compute = options.compute or melies.compute()
  if compute ~= "f32" and compute ~= "bf16" and compute ~= "s8" then
    error(("%s: compute is '%s', wanted 'f32', 'bf16' or 's8'"):format(model, tostring(compute)), 3)
  end
  return compute == "s8" and "bf16" or compute, options.trace, compute
end

-- ---- autoencoders ---------------------------------------------------------------------------------------------

-- A clip [T, H, W, 3], u8 or float in [0, 1], as contiguous f32; height and width must be multiples of `multiple`.
function kit.frames(model, video, multiple, level)
  local s = video.shape
  if video.ndim ~= 4 or s[4] ~= 3 or s[1] < 1 then
    error(("%s: a video is [T, H, W, 3], got %s"):format(model, kit.shape_text(s)), (level or 1) + 1)
  end
  if s[2] % multiple ~= 0 or s[3] % multiple ~= 0 then
    error(("%s: width and height must be multiples of %d, got %dx%d"):format(model, multiple, s[3], s[2]),
      (level or 1) + 1)
  end
  if video.dtype == "u8" then return video:to("f32") * (1 / 255) end
  return video:to("f32"):contiguous()
end

-- A latent [channels, t, h, w] as frames [t, h, w, channels].
function kit.latent_frames(model, latent, channels, level)
  local s = latent.shape
  if latent.ndim ~= 4 or s[1] ~= channels or s[2] < 1 then
    error(("%s: a latent is [%d, t, h, w], got %s"):format(model, channels, kit.shape_text(s)), (level or 1) + 1)
  end
  return latent:to("f32"):permute(2, 3, 4, 1):contiguous()
end

-- Pixels [n, H, W, 3] to patches [n, H / p, W / p, 3 * p * p] and back: the channel slowest, then column and row.
function kit.patchify(x, p)
  if p == 1 then return x end
  local s = x.shape
  return x:reshape(s[1], s[2] / p, p, s[3] / p, p, s[4]):permute(1, 2, 4, 6, 5, 3)
    :reshape(s[1], s[2] / p, s[3] / p, s[4] * p * p)
end
function kit.unpatchify(x, p)
  if p == 1 then return x end
  local s = x.shape
  local channels = s[4] / (p * p)
  return x:reshape(s[1], s[2], s[3], channels, p, p):permute(1, 2, 6, 3, 5, 4)
    :reshape(s[1], s[2] * p, s[3] * p, channels)
end

-- Decoding a whole latent by a streaming decoder: the frames of every push, and of finish where a decoder
-- looks ahead, joined. The same bits as a stream.
function kit.decode_all(decoder, latent)
  local out = {}
  for t = 1, latent.shape[2] do
    local frames = decoder:push(latent:slice(2, t, t))
    if frames.shape[1] > 0 then out[#out + 1] = frames end
  end
  if decoder.finish then out[#out + 1] = decoder:finish() end
  return #out == 1 and out[1] or T.concat(out, 1)
end

-- Where tiles of `tile` latent values with `overlap` in common begin, along an axis of `length`: from 1.
local function tile_starts(length, tile, overlap)
  local starts = { 1 }
  while starts[#starts] + tile - 1 < length do
    starts[#starts + 1] = math.min(starts[#starts] + tile - overlap, length - tile + 1)
  end
  return starts
end

-- Weights [pixels] of a tile along one axis: 1, falling linearly over the overlap towards a neighbour.
local function tile_ramp(pixels, overlap, before, after)
  local out = T.full({ pixels }, 1)
  local p = out:ptr()
  for i = 0, overlap - 1 do
    local w = (i + 0.5) / overlap
    if before then p[i] = w end
    if after then p[pixels - 1 - i] = w end
  end
  return out
end

-- options.tile: latent rows and columns that are decoded at once, one number; options.overlap: of neighbouring tiles, by
-- default a quarter of a tile. Seams are blended linearly. Without a tile, or where the latent is no larger than one: the
-- whole frame at once, the bits of a stream. Tiles change values near seams: a layer sees what is beside it.
function kit.decode(net, latent, options)
  options = options or {}
  local tile, rest = options.tile, {}
  for name, value in pairs(options) do
    if name ~= "tile" and name ~= "overlap" then rest[name] = value end
  end
  local rows, columns = latent.shape[3], latent.shape[4]
  if tile == nil or (rows <= tile and columns <= tile) then return kit.decode_all(net:decoder(rest), latent) end
  local overlap = options.overlap or math.floor(tile / 4)
  if type(tile) ~= "number" or tile % 1 ~= 0 or tile < 1 or overlap % 1 ~= 0 or overlap < 0 or overlap >= tile then
    error(("%s: decode: a tile of %s with an overlap of %s; whole numbers, the overlap less than the tile"):format(
      net.name, tostring(tile), tostring(overlap)), 3)
  end
  local sh, sw = net.stride[2], net.stride[3]
  local height, width = math.min(tile, rows), math.min(tile, columns)
  local sum, weights
  local tops, lefts = tile_starts(rows, height, overlap), tile_starts(columns, width, overlap)
  for i, top in ipairs(tops) do
    local down = tile_ramp(height * sh, overlap * sh, i > 1, i < #tops):reshape(1, height * sh, 1, 1)
    for j, left in ipairs(lefts) do
      local across = tile_ramp(width * sw, overlap * sw, j > 1, j < #lefts):reshape(1, 1, width * sw, 1)
      local part = latent:slice(3, top, top + height - 1):slice(4, left, left + width - 1):contiguous()
      local frames = kit.decode_all(net:decoder(rest), part)
      if not sum then
        sum = T.zeros { frames.shape[1], rows * sh, columns * sw, 3 }
        weights = T.zeros { 1, rows * sh, columns * sw, 1 }
      end
      local function place(x)
        local y, z = (top - 1) * sh, (left - 1) * sw
        return x:slice(2, y + 1, y + height * sh):slice(3, z + 1, z + width * sw)
      end
      local mask = down * across
      place(sum):add_(frames, 1, mask)
      place(weights):add_(mask)
      frames:free()
    end
  end
  local inverse = weights:recip()
  for t = 1, sum.shape[1] do
    local frame = sum:slice(1, t, t)
    frame:copy_(frame * inverse)
  end
  return sum
end

return kit
