-- melies-api: 1
-- The probe: a small network that reads from a clip what of the starter's world it shows. Trained on rendered clips only,
-- by `melies run train_probe`; what can be read are the lists of world/words.lua.
--
--   local probe = assert(dofile("recipes/starter/report/probe.lua").load(path, words))
--   local read = probe:read(frames [T, H, W, 3])     any size, any count of frames from 2
--   read.colour.value, read.colour.p                 the likeliest name and its share; read.colour.all { name = share }
--
-- Three parts. Moves: every second frame at 48x48, with its difference to the next; sixteen maps of attention, of which the
-- first is taught where the subject is, give the places, spreads and features that a convolution over time reads. Looks:
-- some frames of 96x96, each alone, gathered by maps and their mean. Close: the subject cut out of these frames, by the
-- first map of the looks, at 48x48.
local melies = require "melies"
local grad = melies.grad
local T = melies.tensor

local M = {}
local Probe = {}
Probe.__index = Probe

M.SIZE, M.FRAMES, M.MOMENTS = 96, 17, 9
M.looks = { "subject", "colour", "texture", "place", "light", "style" }
M.moves = { "motion", "camera", "size" }
M.attributes = { "subject", "colour", "texture", "size", "motion", "camera", "place", "light", "style" }
local lists = { subject = "subjects", colour = "colours", texture = "textures", size = "sizes", motion = "motions",
  camera = "cameras", place = "places", light = "lights", style = "styles" }
local CELLS = 12 -- a side of the maps
local LOOK_MAPS, MOVE_MAPS, MOVE_POOLS = 4, 16, 4
local WIDE, TIME_WIDE, HIDDEN, CLOSE, CLOSE_FLAT = 64, 64, 128, 48, 32

-- The names that an attribute can have.
function M.names(words, attribute) return words[lists[attribute]] end

-- ---- parameters ------------------------------------------------------------------------------------------------

-- The part of the network that a parameter belongs to: "moves" or "looks".
function M.part_of(name)
  local attribute = name:match "^head%.(%w+)"
  for _, own in ipairs(M.moves) do
    if own == attribute then return "moves" end
  end
  return name:find "^move%." and "moves" or "looks"
end

-- Fresh parameters { name = grad.param }.
function M.init(words, seed)
  local stream, params = 0, {}
  local function weight(name, shape, fan, gain)
    stream = stream + 1
    local scale = gain == 0 and 0 or math.sqrt((gain or 2) / fan)
    params[name .. ".weight"] = grad.param(T.noise(shape, { seed = seed or 0, stream = stream }) * scale)
    params[name .. ".bias"] = grad.param(T.zeros { shape[1] })
  end
  local function conv(name, o, i, gain) weight(name, { o, i, 3, 3 }, 9 * i, gain) end
  local function norm(name, n)
    params[name .. ".weight"], params[name .. ".bias"] = grad.param(T.full({ n }, 1)), grad.param(T.zeros { n })
  end
  local function block(name, n)
    norm(name .. ".norm", n)
    conv(name .. ".0", n, n)
    conv(name .. ".1", n, n, 0)
  end
  local function linear(name, o, i, gain) weight(name, { o, i }, i, gain) end
  conv("look.stem", 32, 12)
  conv("look.down1", WIDE, 32)
  conv("look.down2", WIDE, WIDE)
  block("look.block1", WIDE)
  block("look.block2", WIDE)
  norm("look.norm", WIDE)
  linear("look.maps", LOOK_MAPS, WIDE, 0.2)
  conv("close.stem", 32, 12)
  conv("close.down1", WIDE, 32)
  block("close.block1", WIDE)
  conv("close.down2", WIDE, WIDE)
  block("close.block2", WIDE)
  norm("close.norm", WIDE)
  linear("close.narrow", CLOSE_FLAT, WIDE)
  linear("close.flat", HIDDEN, CLOSE_FLAT * (CLOSE / 8) ^ 2)
  linear("look.hidden", HIDDEN, LOOK_MAPS * (WIDE + 3) + WIDE + HIDDEN)
  conv("move.stem", WIDE, 96)
  block("move.block1", WIDE)
  block("move.block2", WIDE)
  norm("move.norm", WIDE)
  linear("move.maps", MOVE_MAPS, WIDE, 0.2)
  linear("move.frame", TIME_WIDE, MOVE_MAPS * 5 + (MOVE_POOLS + 1) * WIDE)
  norm("move.time_norm", TIME_WIDE)
  weight("move.time", { TIME_WIDE, TIME_WIDE, 1, 3 }, 3 * TIME_WIDE, 0.2)
  linear("move.narrow", TIME_WIDE / 2, TIME_WIDE)
  linear("move.hidden", HIDDEN, M.MOMENTS * TIME_WIDE / 2)
  for _, attribute in ipairs(M.attributes) do linear("head." .. attribute, #M.names(words, attribute), HIDDEN, 0.1) end
  return params
end

-- ---- the network -----------------------------------------------------------------------------------------------

-- params: variables, or plain tensors (nothing is then recorded).
function M.net(params, words)
  return setmetatable({ params = params, words = words, dtype = melies.compute() }, Probe)
end

function Probe:conv(x, name, o)
  o = o or {}
  return grad.conv(x, self.params[name .. ".weight"], self.params[name .. ".bias"], { pad = o.pad or 1,
    stride = o.stride, act = o.act, compute = self.dtype })
end
function Probe:linear(x, name, act)
  return grad.linear(x, self.params[name .. ".weight"], self.params[name .. ".bias"], { act = act, compute = "f32" })
end
function Probe:norm(x, name)
  return grad.layer_norm(x, { weight = self.params[name .. ".weight"], bias = self.params[name .. ".bias"] })
end
function Probe:block(x, name)
  local y = self:conv(self:norm(x, name .. ".norm"), name .. ".0", { act = "relu" })
  return grad.add(x, self:conv(y, name .. ".1"))
end

-- Maps of attention over the cells: x [N, cells, C] -> [N, maps, cells], each of sum 1.
function Probe:maps(x, name)
  return grad.softmax(grad.permute(self:linear(x, name), 1, 3, 2):contiguous())
end

-- Images [N, 96, 96, 3] -> what is gathered of each, [N, F], and the first map [N, cells].
function Probe:look(images)
  local n = images.shape[1]
  local x = grad.const(T.pixel_unshuffle(images, 2):to(self.dtype))
  x = self:conv(x, "look.stem", { act = "relu" })
  x = self:conv(self:conv(x, "look.down1", { stride = 2, act = "relu" }), "look.down2", { stride = 2 })
  x = self:block(self:block(x, "look.block1"), "look.block2")
  x = self:norm(x, "look.norm"):reshape(n, CELLS * CELLS, WIDE):to "f32"
  local colours = M.pooled(images, M.SIZE / CELLS):reshape(n, CELLS * CELLS, 3)
  local maps = self:maps(x, "look.maps")
  local gathered = grad.concat({ grad.matmul(maps, x):reshape(n, LOOK_MAPS * WIDE),
    grad.matmul(maps, colours):reshape(n, LOOK_MAPS * 3), x:mean(2) }, 2)
  return gathered, maps:slice(2, 1, 1):reshape(n, CELLS * CELLS)
end

-- Means of squares of r pixels: [N, H, W, C] -> [N, H / r, W / r, C].
function M.pooled(x, r)
  local n, h, w, c = unpack(x.shape)
  return x:reshape(n, h / r, r, w * c):mean(3):reshape(n, h / r, w / r, r, c):mean(4)
end

local function grid()
  local out = {}
  for y = 1, CELLS do
    for x = 1, CELLS do
      local u, v = (x - 0.5) / CELLS * 2 - 1, (y - 0.5) / CELLS * 2 - 1
      for _, value in ipairs { u, v, u * u, v * v, u * v } do out[#out + 1] = value end
    end
  end
  return T.of(out, { 1, CELLS * CELLS, 5 })
end

-- Clips [B, 17, 96, 96, 3] -> [B, HIDDEN], and the first map of each moment [B * 9, cells].
function Probe:move(clips)
  local b, side, t = clips.shape[1], M.SIZE / 2, M.MOMENTS
  local small = M.pooled(clips:reshape(b * M.FRAMES, M.SIZE, M.SIZE, 3), 2):reshape(b, M.FRAMES, side, side, 3)
  local pairs_of = small:slice(2, 1, M.FRAMES - 1):reshape(b, t - 1, 2, side, side, 3)
  local first, last = pairs_of:select(3, 1), small:slice(2, M.FRAMES, M.FRAMES)
  local steps = T.concat({ pairs_of:select(3, 2) - first, last - small:slice(2, M.FRAMES - 1, M.FRAMES - 1) }, 2)
  local x = T.concat({ T.concat({ first, last }, 2), steps * 4 }, 5):reshape(b * t, side, side, 6)
  local n = b * t
  x = self:conv(grad.const(T.pixel_unshuffle(x, 4):to(self.dtype)), "move.stem", { act = "relu" })
  x = self:block(self:block(x, "move.block1"), "move.block2")
  x = self:norm(x, "move.norm"):reshape(n, CELLS * CELLS, WIDE):to "f32"
  local maps = self:maps(x, "move.maps")
  local places = grad.matmul(maps, grid():expand({ n, CELLS * CELLS, 5 }):contiguous()):reshape(n, MOVE_MAPS * 5)
  local pools = grad.matmul(maps:slice(2, 1, MOVE_POOLS):contiguous(), x):reshape(n, MOVE_POOLS * WIDE)
  local frame = self:linear(grad.concat({ places, pools, x:mean(2) }, 2), "move.frame", "silu")
  frame = frame:reshape(b, 1, t, TIME_WIDE)
  local y = grad.conv(self:norm(frame, "move.time_norm"), self.params["move.time.weight"],
    self.params["move.time.bias"], { pad = { 0, 1 }, act = "silu", compute = "f32" })
  y = self:linear(grad.add(frame, y), "move.narrow", "silu"):reshape(b, t * TIME_WIDE / 2)
  return self:linear(y, "move.hidden", "silu"), maps:slice(2, 1, 1):reshape(n, CELLS * CELLS)
end

-- Cut out subjects [N, 48, 48, 3] -> [N, HIDDEN].
function Probe:close(cuts)
  local n = cuts.shape[1]
  local x = self:conv(grad.const(T.pixel_unshuffle(cuts, 2):to(self.dtype)), "close.stem", { act = "relu" })
  x = self:block(self:conv(x, "close.down1", { stride = 2 }), "close.block1")
  x = self:block(self:conv(x, "close.down2", { stride = 2 }), "close.block2")
  x = self:norm(x, "close.norm"):reshape(n, (CLOSE / 8) ^ 2, WIDE):to "f32"
  x = self:linear(x, "close.narrow", "silu"):reshape(n, CLOSE_FLAT * (CLOSE / 8) ^ 2)
  return self:linear(x, "close.flat", "silu")
end

-- The subject of an image [1, 96, 96, 3], by shares of 144 cells (a pointer to f32): [1, 48, 48, 3]. dx, dy, scale: other than
-- the shares say, in cells and as a factor.
function M.cut(image, shares, dx, dy, scale)
  local n, x, y, xx, yy = 1e-9, 0, 0, 0, 0
  for i = 0, CELLS * CELLS - 1 do
    local w, u, v = shares[i], i % CELLS + 0.5, math.floor(i / CELLS) + 0.5
    n, x, y, xx, yy = n + w, x + w * u, y + w * v, xx + w * u * u, yy + w * v * v
  end
  if n < 1e-3 then n, x, y, xx, yy = 1, 6, 6, 40, 40 end -- nothing to be seen
  x, y = x / n, y / n
  local spread = math.sqrt(math.max(0.3, xx / n - x * x, yy / n - y * y))
  local cell = M.SIZE / CELLS
  local side = math.floor(math.min(M.SIZE, math.max(16, 2 * (2.2 * spread * (scale or 1) + 0.4) * cell)) + 0.5)
  local function first(at) return math.floor(math.max(0, math.min(M.SIZE - side, at * cell - side / 2)) + 0.5) end
  local x0, y0 = first(x + (dx or 0)), first(y + (dy or 0))
  local part = image:slice(2, y0 + 1, y0 + side):slice(3, x0 + 1, x0 + side)
  return part:resize(2, CLOSE, "bilinear", side > CLOSE):resize(3, CLOSE, "bilinear", side > CLOSE)
end

-- Clips [B, 17, 96, 96, 3] f32 in [0, 1] -> logits { attribute = [B, n] } of the moves, and where the subject is.
function Probe:read_moves(clips)
  local moved, map = self:move(clips)
  return self:heads(M.moves, moved), map
end

-- Images [B * K, 96, 96, 3], K of each clip -> logits of the looks, and where the subject is. cuts: of the images; by default
-- as the first map of the looks has it.
function Probe:read_looks(images, cuts, k)
  local looks, map = self:look(images)
  if not cuts then
    local where, list = map.value:contiguous(), {}
    for i = 1, images.shape[1] do
      list[i] = M.cut(images:slice(1, i, i), where:ptr() + (i - 1) * CELLS * CELLS)
    end
    cuts = T.concat(list, 1)
  end
  local seen = grad.concat({ looks, self:close(cuts) }, 2)
  seen = self:linear(seen:reshape(images.shape[1] / k, k, seen.shape[2]):mean(2), "look.hidden", "silu")
  return self:heads(M.looks, seen), map
end

function Probe:heads(attributes, x)
  local out = {}
  for _, attribute in ipairs(attributes) do out[attribute] = self:linear(x, "head." .. attribute) end
  return out
end

-- ---- reading ---------------------------------------------------------------------------------------------------

-- Any clip as the probe takes it: f32 [17, 96, 96, 3] (or another count of frames).
function M.prepared(frames, count)
  local x = frames.dtype == "u8" and melies.media.to_f32(frames) or frames:to "f32"
  if x.ndim ~= 4 or x.shape[4] ~= 3 or x.shape[1] < 2 then
    error(("probe: a clip is [T, H, W, 3] of two frames or more, not %s"):format(frames:shape_text()), 2)
  end
  x = x:clamp(0, 1)
  count = count or M.FRAMES
  if x.shape[1] ~= count then x = x:resize(1, count, "bilinear") end
  if x.shape[2] ~= M.SIZE then x = x:resize(2, M.SIZE, "bilinear", x.shape[2] > M.SIZE) end
  if x.shape[3] ~= M.SIZE then x = x:resize(3, M.SIZE, "bilinear", x.shape[3] > M.SIZE) end
  return x:contiguous()
end

-- Frames that are looked at one by one, evenly spread.
local LOOKED = { 1, 5, 9, 13, 17 }

-- probe:read_all{ clip, clip, ... } -> a list of { attribute = { value=, p=, all= } }, and one of where the subject is:
-- [9, 12, 12], shares of each moment.
function Probe:read_all(clips)
  local batch, images = {}, {}
  for i, frames in ipairs(clips) do
    batch[i] = M.prepared(frames)
    for _, at in ipairs(LOOKED) do images[#images + 1] = batch[i]:slice(1, at, at) end
  end
  local out, where = {}, {}
  grad.no_grad(function()
    local logits, map = self:read_moves(T.stack(batch, 1))
    local maps = map.value:contiguous():reshape(#clips, M.MOMENTS, CELLS, CELLS)
    for attribute, var in pairs((self:read_looks(T.concat(images, 1), nil, #LOOKED))) do
      logits[attribute] = var
    end
    for i = 1, #clips do out[i], where[i] = {}, maps:select(1, i):clone() end
    for attribute, var in pairs(logits) do
      local names, shares = M.names(self.words, attribute), var.value:to("f32"):softmax():list()
      for i = 1, #clips do
        local all, best = {}, 1
        for j, name in ipairs(names) do
          local p = shares[(i - 1) * #names + j]
          all[name] = p
          if p > shares[(i - 1) * #names + best] then best = j end
        end
        out[i][attribute] = { value = names[best], p = all[names[best]], all = all }
      end
    end
  end)
  return out, where
end

function Probe:read(frames)
  local read, where = self:read_all { frames }
  return read[1], where[1]
end

-- ---- files -----------------------------------------------------------------------------------------------------

-- What the heads of a file mean: the lists of words as one text.
function M.labels(words)
  local out = {}
  for _, attribute in ipairs(M.attributes) do
    out[#out + 1] = attribute .. "=" .. table.concat(M.names(words, attribute), ",")
  end
  return table.concat(out, " ")
end

-- bf16 on disk.
function M.save(path, params, words, metadata)
  local out, about = {}, { labels = M.labels(words) }
  for name, tensor in pairs(params) do out[name] = tensor:to "bf16" end
  for key, value in pairs(metadata or {}) do about[key] = value end
  return melies.weights.save(path, out, about)
end

-- The probe in a file, or nil and a message.
function M.load(path, words)
  local file, message = melies.weights.open(path)
  if not file then return nil, message end
  if file.metadata.labels ~= M.labels(words) then
    return nil, path .. ": this probe was trained for other words than world/words.lua has; melies run train_probe"
  end
  local params = {}
  for name, fresh in pairs(M.init(words)) do
    if not file:has(name) then return nil, ("%s: no tensor '%s'"):format(path, name) end
    params[name] = file:get(name):to("f32"):clone()
    if params[name]:shape_text() ~= fresh.value:shape_text() then
      return nil, ("%s: %s is %s, not %s"):format(path, name, params[name]:shape_text(), fresh.value:shape_text())
    end
  end
  file:close()
  return M.net(params, words)
end

return M
