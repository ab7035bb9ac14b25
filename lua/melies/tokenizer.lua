-- Tokenizers: text to a text encoder's ids and back.
--   local tok, message = tokenizer.load("spiece.model")       sentencepiece, seen from the content
--   tokenizer.load("tokenizer.json")                          Hugging Face, Unigram
--   tokenizer.load("vocab.json", "merges.txt")                CLIP
--   tokenizer.load(folder)                                    whichever of these the folder holds
-- Ids count from 0, as models number them.
local ffi = require "ffi"
local lib = require "melies.ffi.lib"

local C = lib.C
local tokenizer = {}

local length = ffi.new("size_t[1]")
local ROLES = { unk = 0, bos = 1, eos = 2, pad = 3 }

-- Fields: kind, size (ids are 0..size-1), and unk, bos, eos, pad: ids, or nil where the model has none.
local Tokenizer = {}
Tokenizer.__index = Tokenizer
Tokenizer.__tostring = function(self) return ("tokenizer %s of %d pieces"):format(self.kind, self.size) end

local function wrap(handle)
  local self = setmetatable({ handle = ffi.gc(handle, C.mel_tokenizer_free) }, Tokenizer)
  self.kind = ffi.string(C.mel_tokenizer_kind_name(C.mel_tokenizer_kind_of(handle)))
  self.size = C.mel_tokenizer_size(handle)
  for name, role in pairs(ROLES) do
    local id = C.mel_tokenizer_special(handle, role)
    if id >= 0 then self[name] = id end
  end
  return self
end

local function exists(path)
  local file = io.open(path, "rb")
  if file then file:close() end
  return file ~= nil
end

local function is_folder(path)
  local file = io.open(path, "rb")
  if not file then return false end
  local _, _, code = file:read(0)
  file:close()
  return code == 21 -- EISDIR
end

-- sentencepiece first: it is what the others were made from.
local function find_in(folder)
  for _, name in ipairs { "spiece.model", "tokenizer.model", "sentencepiece.bpe.model" } do
    if exists(folder .. "/" .. name) then return folder .. "/" .. name end
  end
  if exists(folder .. "/vocab.json") and exists(folder .. "/merges.txt") then
    return folder .. "/vocab.json", folder .. "/merges.txt"
  end
  if exists(folder .. "/tokenizer.json") then return folder .. "/tokenizer.json" end
end

-- Tokenizer, or nil and a message that names the file.
function tokenizer.load(path, merges)
  if type(path) ~= "string" then error("tokenizer.load: a path is wanted, not a " .. type(path), 2) end
  if merges ~= nil and type(merges) ~= "string" then
    error("tokenizer.load: merges is the path of a file, not a " .. type(merges), 2)
  end
  if is_folder(path) then
    local file, second = find_in(path)
    if not file then
      return nil, path .. ": no spiece.model, tokenizer.model, tokenizer.json, or vocab.json with merges.txt in it"
    end
    path, merges = file, second
  end
  local box = lib.out("mel_tokenizer*")
  local ok, message = lib.try(C.mel_tokenizer_load, path, merges, box)
  if not ok then return nil, message end
  return wrap(box[0])
end

local function live(self)
  local handle = self.handle
  if not handle then error("tokenizer: used after free", 3) end
  return handle
end

local function want_text(text, what)
  if type(text) ~= "string" then error(("tokenizer:%s: a string is wanted, not a %s"):format(what, type(text)), 3) end
end

-- Gives the memory back now.
function Tokenizer:free()
  if self.handle then C.mel_tokenizer_free(ffi.gc(self.handle, nil)) end
  self.handle = nil
end

local ENCODE = { bos = true, eos = true, length = true, pad = true }

local function mark(self, options, name)
  if not options[name] then return nil end
  return self[name] or error(("tokenizer:encode: this tokenizer has no %s"):format(name), 3)
end

-- List of ids. options: bos, eos (booleans) add the marks; length cuts to so many ids (eos stays the last one) and
-- pads up to it with pad (an id; default the tokenizer's own).
function Tokenizer:encode(text, options)
  local handle = live(self)
  want_text(text, "encode")
  options = options or {}
  lib.check_options("tokenizer:encode", options, ENCODE, 2)
  local bos, eos, most = mark(self, options, "bos"), mark(self, options, "eos"), options.length
  if most ~= nil and not (type(most) == "number" and most >= (bos and 1 or 0) + (eos and 1 or 0)) then
    error("tokenizer:encode: length is " .. tostring(most) .. ", with no room for the marks", 2)
  end
  local ids = lib.out("int32_t*")
  lib.check(C.mel_tokenizer_encode(handle, text, #text, ids, length, lib.err), 2)
  local first, count = ids[0], tonumber(length[0])
  local out = { bos }
  local room = most and math.min(count, most - #out - (eos and 1 or 0)) or count
  for i = 0, room - 1 do out[#out + 1] = first[i] end
  C.mel_free(first)
  if eos then out[#out + 1] = eos end
  if most and #out < most then
    local pad = options.pad or self.pad
    if not pad then error("tokenizer:encode: no pad id: this tokenizer has none, give one", 2) end
    for i = #out + 1, most do out[i] = pad end
  end
  return out
end

local function take_text(box)
  local text = ffi.string(box[0], length[0])
  C.mel_free(box[0])
  return text
end

-- Text of a list of ids; marks and padding leave nothing.
function Tokenizer:decode(ids)
  local handle = live(self)
  if type(ids) ~= "table" then error("tokenizer:decode: a list of ids is wanted, not a " .. type(ids), 2) end
  local count = #ids
  local array = ffi.new("int32_t[?]", count)
  for i = 1, count do
    local id = ids[i]
    if type(id) ~= "number" or id ~= math.floor(id) or math.abs(id) >= 2 ^ 31 then
      error(("tokenizer:decode: entry %d is %s, not an id"):format(i, tostring(id)), 2)
    end
    array[i - 1] = id
  end
  local box = lib.out("char*")
  lib.check(C.mel_tokenizer_decode(handle, array, count, box, length, lib.err), 2)
  return take_text(box)
end

-- What encode cuts into pieces.
function Tokenizer:normalize(text)
  local handle = live(self)
  want_text(text, "normalize")
  local box = lib.out("char*")
  lib.check(C.mel_tokenizer_normalize(handle, text, #text, box, length, lib.err), 2)
  return take_text(box)
end

-- Spelling of an id in the vocabulary, or nil.
function Tokenizer:piece(id)
  local text = C.mel_tokenizer_piece(live(self), id, length)
  if text == nil then return nil end
  return ffi.string(text, length[0])
end

-- Id of a spelling, or nil.
function Tokenizer:id(piece)
  local handle = live(self)
  want_text(piece, "id")
  local id = C.mel_tokenizer_id(handle, piece, #piece)
  return id >= 0 and id or nil
end

-- Spellings of the pieces that encode gives.
function Tokenizer:pieces(text)
  want_text(text, "pieces")
  local out = self:encode(text)
  for i, id in ipairs(out) do out[i] = self:piece(id) end
  return out
end

return tokenizer
