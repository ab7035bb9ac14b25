-- What a project remembers: characters, places and looks, with pictures of them, in ./melies/memory/NAME/ (or
-- options.folder, or $MELIES_MEMORY). Filled from images or finished shots, used by any later shot of any job.
--
--   bank.remember{ name=, kind=, description=, image= | video= | frames=, box=, model=, folder= } -> entry | nil, message
--   bank.fill(board, i, frames, options)  remembers whom, where and how a finished shot shows -> names | nil, message
--   bank.apply(board, options)            canonical descriptions and pictures of those who are remembered -> notes
--   bank.get(name, options) -> entry | nil, message        bank.list(options)     bank.forget(name, options)
--   entry.name, kind, description, palette { { r, g, b, share } }, size { width, height } (of the frame, 0..1), references
--   entry:image(i) -> [H, W, 3] u8      entry:latent(model, i) -> [C, 1, H, W]      entry:embedding(model) -> rows [L, D]
--
-- A folder holds entry.json, reference-N.png, and tensors-MODEL.safetensors with "prompt" and "latent.N": what a model
-- has computed of them, made again where it is not there. entry.json is written last, so that a half-written entry is
-- none. A lock keeps two processes from writing the same entry.
local ffi = require "ffi"
local fs = require "melies.fs"
local json = require "melies.json"
local lib = require "melies.ffi.lib"
local media = require "melies.media"
local T = require "melies.tensor"

ffi.cdef [[ int mel_bank_usleep(unsigned) __asm__("usleep"); ]]

local M = { kinds = { "character", "place", "look" } }

local KIND = { character = true, place = true, look = true }
local MAX_REFERENCES = 16  -- pictures of one entry; the oldest go first, but the first stays
local COLOURS = 6          -- of a palette
local LOCK_S = 10          -- how long another process is waited for

local Entry = {}
Entry.__index = Entry

-- ---- folders ---------------------------------------------------------------------------------------

function M.folder(options)
  return options and options.folder or os.getenv "MELIES_MEMORY" or "melies/memory"
end

-- The name as a folder's name; nil and a message for one that cannot be.
local function slug(name)
  if type(name) ~= "string" or not name:find("^[%w_\128-\255][%w_ .'\128-\255-]*$") or #name > 100 then
    return nil, ("memory: '%s' is no name (letters, digits, blanks, _ . ' -)"):format(tostring(name):sub(1, 100))
  end
  return (name:lower():gsub(" ", "_"))
end

local function place(name, options)
  local part, message = slug(name)
  if not part then return nil, message end
  return M.folder(options) .. "/" .. part
end

-- fn() while no other process writes; its two results, or nil and a message.
local function locked(options, fn)
  local folder = M.folder(options)
  local ok, message = fs.make(folder)
  if not ok then return nil, message end
  local release
  local stop = lib.C.mel_seconds() + LOCK_S
  repeat
    release, message = fs.lock(folder .. "/.lock")
    if not release then ffi.C.mel_bank_usleep(20000) end
  until release or lib.C.mel_seconds() > stop or lib.C.mel_canceled()
  if not release then return nil, message end
  local done, result, why = pcall(fn)
  release()
  if not done then error(result, 0) end
  return result, why
end

-- ---- reading ---------------------------------------------------------------------------------------

local FIELDS = { name = "string", kind = "string", description = "string", palette = "table", size = "table",
  references = "table", version = "number", sources = "table" }
local OPTIONAL = { size = true, sources = true } -- sources: picture -> the shot that it is from

local function read_entry(path)
  local data, message = json.read(path .. "/entry.json")
  if data == nil then return nil, message end
  for key, want in pairs(FIELDS) do
    local value = type(data) == "table" and data[key]
    if type(value) ~= want and not (OPTIONAL[key] and value == nil) then
      return nil, ("%s/entry.json: %s is %s, must be a %s"):format(path, key, type(value), want)
    end
  end
  if not KIND[data.kind] then return nil, ("%s/entry.json: kind is '%s'"):format(path, data.kind) end
  for i, reference in ipairs(data.references) do
    if type(reference) ~= "string" or not reference:find("^reference%-%d+%.png$") then
      return nil, ("%s/entry.json: references[%d] is no picture of this folder"):format(path, i)
    end
  end
  data.path = path
  return setmetatable(data, Entry)
end

-- Entries sorted by kind and name; damaged ones have problem= in place of what they hold.
function M.list(options)
  local folder = M.folder(options)
  local out = {}
  if not fs.stat(folder) then return out end
  local names, message = fs.list(folder)
  if not names then return nil, message end
  for _, name in ipairs(names) do
    local path = folder .. "/" .. name
    if name:sub(1, 1) ~= "." and fs.stat(path .. "/entry.json") then
      local entry, problem = read_entry(path)
      out[#out + 1] = entry or { name = name, kind = "damaged", description = problem, problem = problem }
    end
  end
  table.sort(out, function(a, b) return a.kind == b.kind and a.name < b.name or a.kind < b.kind end)
  return out
end

function M.get(name, options)
  local path, message = place(name, options)
  if not path then return nil, message end
  if fs.stat(path .. "/entry.json") then return read_entry(path) end
  local names = {}
  for i, entry in ipairs(M.list(options) or {}) do names[i] = entry.name end
  return nil, ("memory: nothing is remembered as '%s'%s"):format(name, lib.suggest(name, names))
end

-- ---- palette and size --------------------------------------------------------------------------------

-- k-means in Lab over a grid of pixels; it starts at the mean and then at the farthest pixel each time, so it needs no
-- chance. { { r, g, b (0..255), share } }, the largest share first.
function M.palette(frame, count)
  local video = require "melies.video"
  local small = frame:to("f32")
  if frame.dtype == "u8" then small = small * (1 / 255) end
  local side = 32
  small = small:resize(1, side, "bilinear", true):resize(2, side, "bilinear", true):clamp(0, 1)
  local lab = video.to_lab(small):list()
  local n = #lab / 3
  local function distance(i, c)
    local p = 3 * i
    return (lab[p - 2] - c[1]) ^ 2 + (lab[p - 1] - c[2]) ^ 2 + (lab[p] - c[3]) ^ 2
  end
  local centres = { { 0, 0, 0 } }
  for i = 1, n do for k = 1, 3 do centres[1][k] = centres[1][k] + lab[3 * i - 3 + k] / n end end
  while #centres < (count or COLOURS) do
    local far, at = 9, nil -- three units of Lab: what the eye takes for one colour
    for i = 1, n do
      local least = math.huge
      for _, c in ipairs(centres) do least = math.min(least, distance(i, c)) end
      if least > far then far, at = least, i end
    end
    if not at then break end
    centres[#centres + 1] = { lab[3 * at - 2], lab[3 * at - 1], lab[3 * at] }
  end
  local shares
  for _ = 1, 12 do
    local sums = {}
    shares = {}
    for k in ipairs(centres) do sums[k], shares[k] = { 0, 0, 0 }, 0 end
    for i = 1, n do
      local best, least = 1, math.huge
      for k, c in ipairs(centres) do
        local d = distance(i, c)
        if d < least then best, least = k, d end
      end
      shares[best] = shares[best] + 1
      for k = 1, 3 do sums[best][k] = sums[best][k] + lab[3 * i - 3 + k] end
    end
    for k, c in ipairs(centres) do
      if shares[k] > 0 then for j = 1, 3 do c[j] = sums[k][j] / shares[k] end end
    end
  end
  local flat = {}
  for k, c in ipairs(centres) do for j = 1, 3 do flat[3 * k - 3 + j] = c[j] end end
  local rgb = video.from_lab(T.of(flat, { #centres, 1, 3 })):clamp(0, 1):list()
  local out = {}
  for k in ipairs(centres) do
    if shares[k] > 0 then
      out[#out + 1] = { math.floor(rgb[3 * k - 2] * 255 + 0.5), math.floor(rgb[3 * k - 1] * 255 + 0.5),
        math.floor(rgb[3 * k] * 255 + 0.5), math.floor(shares[k] / n * 1000 + 0.5) / 1000 }
    end
  end
  table.sort(out, function(a, b)
    if a[4] ~= b[4] then return a[4] > b[4] end
    return a[1] * 65536 + a[2] * 256 + a[3] < b[1] * 65536 + b[2] * 256 + b[3]
  end)
  return out
end

-- The box { left, top, right, bottom } in 0..1 of what differs between the middle frame and the mean of all: the mover.
-- nil where nothing moves, or everything does.
function M.moving_box(frames)
  local count = frames.shape[1]
  if count < 3 then return nil end
  local side = 32
  local small = frames:to("f32"):resize(2, side, "bilinear", true):resize(3, side, "bilinear", true)
  if frames.dtype == "u8" then small = small * (1 / 255) end
  local middle = small:select(1, math.ceil(count / 2))
  local difference = (middle - small:mean(1)):abs():amax(3):list()
  local highest = 0
  for _, v in ipairs(difference) do highest = math.max(highest, v) end
  if highest < 0.06 then return nil end
  local left, top, right, bottom, hits = side, side, -1, -1, 0
  for i, v in ipairs(difference) do
    if v > highest * 0.5 then
      local x, y = (i - 1) % side, math.floor((i - 1) / side)
      left, right, top, bottom = math.min(left, x), math.max(right, x), math.min(top, y), math.max(bottom, y)
      hits = hits + 1
    end
  end
  if hits > 0.6 * side * side then return nil end
  return { left / side, top / side, (right + 1) / side, (bottom + 1) / side }
end

local function crop(frame, box)
  if not box then return frame end
  local h, w = frame.shape[1], frame.shape[2]
  local function span(a, b, size)
    local first = math.max(1, math.min(size, math.floor(a * size) + 1))
    return first, math.max(first, math.min(size, math.ceil(b * size)))
  end
  local top, bottom = span(box[2], box[4], h)
  local left, right = span(box[1], box[3], w)
  return frame:slice(1, top, bottom):slice(2, left, right):contiguous()
end

-- ---- writing ---------------------------------------------------------------------------------------

local REMEMBER = { name = true, kind = true, description = true, image = true, video = true, frames = true, box = true,
  model = true, folder = true, source = true }

-- [T, H, W, 3] of what options give, nil where they give none; nil and a message where it cannot be read.
local function frames_of(options)
  if options.frames then
    local shape = options.frames.shape
    if #shape == 3 then return options.frames:unsqueeze(1) end
    return options.frames
  end
  if options.image then
    local image, message = media.image(options.image)
    if not image then return nil, message end
    return image:unsqueeze(1)
  end
  if options.video then return media.load(options.video) end
end

local function check_box(box)
  if box == nil then return end
  for i = 1, 4 do
    if type(box[i]) ~= "number" or box[i] < 0 or box[i] > 1 then
      error(("memory_bank: box[%d] is %s, must be 0 to 1 (left, top, right, bottom)"):format(i, tostring(box[i])), 3)
    end
  end
  if box[3] <= box[1] or box[4] <= box[2] then error("memory_bank: the box is empty (left, top, right, bottom)", 3) end
end

local function model_file(entry, model)
  return ("%s/tensors-%s.safetensors"):format(entry.path, (model.name:gsub("[^%w_.-]", "_")))
end

local function save_entry(entry)
  local data = {}
  for key in pairs(FIELDS) do data[key] = entry[key] end
  data.references, data.palette = json.array(entry.references), json.array(entry.palette)
  return json.write(entry.path .. "/entry.json", data, { indent = 2 })
end

-- Adds the picture to the entry that is there, or makes one. Its description stays unless one is given. source: a name of
-- where the picture is from; one that is there already is not taken again.
function M.remember(options)
  lib.check_options("memory_bank.remember", options, REMEMBER, 2)
  check_box(options.box)
  if options.kind and not KIND[options.kind] then
    error(("memory_bank.remember: kind is '%s'%s"):format(tostring(options.kind),
      lib.suggest(tostring(options.kind), M.kinds)), 2)
  end
  local path, message = place(options.name, options)
  if not path then return nil, message end
  local frames
  frames, message = frames_of(options)
  if not frames and message then return nil, message end
  return locked(options, function()
    local entry
    if fs.stat(path .. "/entry.json") then
      entry, message = read_entry(path)
      if not entry then return nil, message end
      if options.kind and options.kind ~= entry.kind then
        return nil, ("memory: '%s' is a %s already, not a %s"):format(entry.name, entry.kind, options.kind)
      end
    else
      entry = setmetatable({ name = options.name, kind = options.kind or "character", description = options.name, palette = {},
        references = {}, version = 1, path = path }, Entry)
    end
    entry.description = options.description or entry.description
    local ok, why = fs.make(path)
    if not ok then return nil, why end
    local dropped
    for _, source in pairs(entry.sources or {}) do
      if source == options.source then frames = nil end
    end
    if frames then
      local box = options.box or (entry.kind == "character" and M.moving_box(frames)) or nil
      local whole = frames:select(1, math.ceil(frames.shape[1] / 2)):contiguous()
      local picture = entry.kind == "character" and crop(whole, box) or options.box and crop(whole, options.box) or whole
      local last = 0
      for _, reference in ipairs(entry.references) do last = math.max(last, tonumber(reference:match("%d+"))) end
      local name = ("reference-%d.png"):format(last + 1)
      ok, why = media.save_image(path .. "/" .. name, picture)
      if not ok then return nil, why end
      entry.references[#entry.references + 1] = name
      if options.source then
        entry.sources = entry.sources or {}
        entry.sources[name] = options.source
      end
      if #entry.references > MAX_REFERENCES then dropped = table.remove(entry.references, 2) end
      if dropped and entry.sources then entry.sources[dropped] = nil end
      entry.palette = M.palette(picture)
      if box then entry.size = { width = box[3] - box[1], height = box[4] - box[2] } end
    end
    ok, why = save_entry(entry)
    if not ok then return nil, why end
    if dropped then os.remove(path .. "/" .. dropped) end
    if options.model then
      ok, why = entry:compute(options.model)
      if not ok then return nil, why end
    end
    return entry
  end)
end

-- Removes the entry; entry.json goes first. true, or nil and a message.
function M.forget(name, options)
  local path, message = place(name, options)
  if not path then return nil, message end
  if not fs.stat(path .. "/entry.json") then return nil, select(2, M.get(name, options)) end
  return locked(options, function()
    local ok, why = os.remove(path .. "/entry.json")
    if not ok then return nil, why end
    for _, file in ipairs(fs.list(path) or {}) do
      if file:find("^reference%-%d+%.png$") or file:find("^tensors%-.*%.safetensors$") then os.remove(path .. "/" .. file) end
    end
    os.remove(path) -- stays where the user has put something of his own
    return true
  end)
end

-- ---- what an entry gives -------------------------------------------------------------------------------

local function wanted_reference(self, i)
  i = i or #self.references
  if not self.references[i] then
    return nil, ("memory: '%s' has %d pictures, no %s"):format(self.name, #self.references, tostring(i))
  end
  return i
end

-- Picture i, the latest by default: [H, W, 3] u8; its path.
function Entry:image(i)
  local at, message = wanted_reference(self, i)
  if not at then return nil, message end
  local path = self.path .. "/" .. self.references[at]
  local image
  image, message = media.image(path)
  if not image then return nil, message end
  return image, path
end

-- Tensors that the model has made of this entry. A file of other words or of a model of other sizes does not count.
local function kept(self, model)
  local path = model_file(self, model)
  if not fs.stat(path) then return nil end
  local file = require("melies.weights").open(path)
  if not file then return nil end
  local m = file.metadata or {}
  if m.description ~= self.description or m.references ~= table.concat(self.references, " ") then return nil end
  return file
end

-- A picture as one frame of the model's own size.
local function fitted(image, model)
  local h, w = model.defaults.height or image.shape[1], model.defaults.width or image.shape[2]
  return (image:to("f32") * (1 / 255)):resize(1, h, "bilinear", true):resize(2, w, "bilinear", true):clamp(0, 1):unsqueeze(1)
end

-- Computes and keeps the embedding of the description and the latents of the pictures. true, or nil and a message.
function Entry:compute(model)
  local tensors = {}
  local rows, message = model:encode(self.description, { truncate = true })
  if not rows then return nil, message end
  tensors.prompt = rows:to("f32")
  for i in ipairs(self.references) do
    local image
    image, message = self:image(i)
    if not image then return nil, message end
    tensors["latent." .. i] = model:encode_video(fitted(image, model)):to("f32")
  end
  return require("melies.weights").save(model_file(self, model), tensors,
    { description = self.description, references = table.concat(self.references, " "), model = model.name })
end

local function tensor_of(self, model, name)
  local file = kept(self, model)
  if not file or not file:has(name) then
    local ok, message = self:compute(model)
    if not ok then return nil, message end
    file = kept(self, model)
  end
  return file:get(name):clone()
end

-- Rows of text [L, D] of the description.
function Entry:embedding(model) return tensor_of(self, model, "prompt") end

-- Picture i as a latent [C, 1, H, W] at the model's own size.
function Entry:latent(model, i)
  local at, message = wanted_reference(self, i)
  if not at then return nil, message end
  return tensor_of(self, model, "latent." .. at)
end

-- Text for a person.
function M.describe(name, options)
  local entry, message = M.get(name, options)
  if not entry then return nil, message end
  local lines = { ("%s: %s"):format(entry.kind, entry.name), "  " .. entry.description }
  for _, c in ipairs(entry.palette) do
    lines[#lines + 1] = ("  #%02x%02x%02x  %4.1f%%"):format(c[1], c[2], c[3], c[4] * 100)
  end
  if entry.size then
    lines[#lines + 1] = ("  %.0f%% of the frame's width, %.0f%% of its height"):format(
      entry.size.width * 100, entry.size.height * 100)
  end
  for _, reference in ipairs(entry.references) do lines[#lines + 1] = "  " .. entry.path .. "/" .. reference end
  for _, file in ipairs(fs.list(entry.path) or {}) do
    local model = file:match("^tensors%-(.*)%.safetensors$")
    if model then lines[#lines + 1] = "  computed for " .. model end
  end
  return table.concat(lines, "\n")
end

-- ---- shots -------------------------------------------------------------------------------------------

-- Frames [T, H, W, 3] of shot i of a board: whom it shows (where it is one alone: several cannot be told apart), where,
-- and its look, under the film's title. Names of what was remembered.
function M.fill(board, i, frames, options)
  options = options or {}
  local shot, names = board.shots[i], {}
  if not shot then error(("memory_bank.fill: there is no shot %s"):format(tostring(i)), 2) end
  local function keep(name, kind, description, with)
    local entry, message = M.remember { name = name, kind = kind, description = description, frames = with and frames or nil,
      model = options.model, folder = options.folder, source = options.source }
    if not entry then return nil, message end
    names[#names + 1] = name
    return true
  end
  for _, name in ipairs(shot.who or {}) do
    local ok, message = keep(name, "character", board.characters[name].description, #shot.who == 1)
    if not ok then return nil, message end
  end
  if shot.where then
    local ok, message = keep(shot.where, "place", board.places[shot.where].description, true)
    if not ok then return nil, message end
  end
  if board.look or board.style then
    local name = "look of " .. (board.title or "film"):gsub("[^%w_ .'\128-\255-]", ""):sub(1, 80)
    local ok, message = keep(name, "look", board.look or board.style, true)
    if not ok then return nil, message end
  end
  return names
end

-- The entry that a board's character or place means: of its name, else the only one of that kind with the same last word
-- whose name's words all stand in the description ("red ball" for "a big red ball").
local function meant(entries, kind, name, description)
  local words, found = {}, nil
  for word in (name .. " " .. description):lower():gmatch("[^%s,.]+") do words[word] = true end
  for _, entry in ipairs(entries) do
    if entry.kind == kind and entry.name:lower() == name:lower() then return entry end
  end
  for _, entry in ipairs(entries) do
    if entry.kind == kind then
      local all = entry.name:lower():match("%S+$") == name:lower():match("%S+$")
      for word in entry.name:lower():gmatch("%S+") do all = all and words[word] end
      if all then
        if found then return nil end
        found = entry
      end
    end
  end
  return found
end

-- Characters and places of a board that are remembered get their canonical description and latest picture; so does a look
-- that is named (look = "look of my film"), the picture of which is in its note alone. What was changed is told:
-- { { name=, entry=, kind=, before=, after=, image= } }. What a person wrote into `image` stays.
function M.apply(board, options)
  local notes, entries = {}, M.list(options) or {}
  for what, kind in pairs { characters = "character", places = "place" } do
    local names = {}
    for name in pairs(board[what] or {}) do names[#names + 1] = name end
    table.sort(names)
    for _, name in ipairs(names) do
      local e = board[what][name]
      local entry = meant(entries, kind, name, e.description)
      if entry then
        local before = e.description
        e.description = entry.description
        if not e.image and #entry.references > 0 then
          e.image = entry.path .. "/" .. entry.references[#entry.references]
        end
        notes[#notes + 1] = { name = name, entry = entry.name, kind = kind, before = before,
          after = e.description, image = e.image }
      end
    end
  end
  for _, entry in ipairs(board.look and entries or {}) do
    if entry.kind == "look" and (entry.name:lower() == board.look:lower() or entry.description == board.look) then
      notes[#notes + 1] = { name = "look", entry = entry.name, kind = "look", before = board.look, after = entry.description,
        image = #entry.references > 0 and entry.path .. "/" .. entry.references[#entry.references] or nil }
      board.look = entry.description
      break
    end
  end
  table.sort(notes, function(a, b) return a.kind == b.kind and a.name < b.name or a.kind < b.kind end)
  return notes
end

return M
