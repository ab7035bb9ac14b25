-- JSON: strict reading (core/text/json.c), stable writing.
--   json.decode(text[, name])      value, or nil and a message with line and column
--   json.encode(value, {indent=n}) text; keys sorted, so that equal values give equal text
--   json.read(path)                value, or nil and a message
--   json.write(path, value, {indent=n})  true, or nil and a message; whole or not at all
-- json.null stands for null. Arrays carry json.array's mark, so that an empty one stays an array.
-- Integers beyond 2^53 are int64_t.
local ffi = require "ffi"
local lib = require "melies.ffi.lib"

local C = lib.C
local json = {}

json.null = setmetatable({}, { __tostring = function() return "null" end })

local array_mark = {}
-- Marks t (default: a new table) as an array.
function json.array(t) return setmetatable(t or {}, array_mark) end
function json.is_array(t) return type(t) == "table" and getmetatable(t) == array_mark end

-- ---- reading -----------------------------------------------------------------------------------

local length = ffi.new("size_t[1]")
local EXACT, EXACT_INTEGER = 2 ^ 53, 2LL ^ 53

local function integer(value)
  local n = C.mel_json_integer(value)
  return n >= -EXACT_INTEGER and n <= EXACT_INTEGER and tonumber(n) or n
end

local convert = {}

local function to_lua(value) return convert[tonumber(C.mel_json_typeof(value))](value) end

convert[0] = function() return json.null end
convert[1] = function(value) return C.mel_json_bool(value) end
convert[2] = integer
convert[3] = function(value) return C.mel_json_number(value) end
convert[4] = function(value)
  local text = C.mel_json_string(value, length)
  return ffi.string(text, length[0])
end
convert[5] = function(value)
  local out = json.array()
  for i = 0, tonumber(C.mel_json_size(value)) - 1 do out[i + 1] = to_lua(C.mel_json_at(value, i)) end
  return out
end
convert[6] = function(value)
  local out = {}
  local member = C.mel_json_first(value)
  while member ~= nil do
    local text = C.mel_json_key(member, length)
    local key = ffi.string(text, length[0])
    out[key] = to_lua(C.mel_json_member_value(member))
    member = C.mel_json_next(value, member)
  end
  return out
end

function json.decode(text, name)
  if type(text) ~= "string" then error("json.decode: a string is wanted, not a " .. type(text), 2) end
  local box = lib.out("mel_json*")
  local ok, message = lib.try(C.mel_json_parse, text, #text, name, box)
  if not ok then return nil, message end
  local document = ffi.gc(box[0], C.mel_json_free)
  local value = to_lua(C.mel_json_root(document))
  C.mel_json_free(ffi.gc(document, nil))
  return value
end

function json.read(path)
  local file, message = io.open(path, "rb")
  if not file then return nil, message end
  local text, why = file:read("*a")
  file:close()
  if not text then return nil, path .. ": " .. tostring(why) end
  return json.decode(text, path)
end

-- ---- writing -----------------------------------------------------------------------------------

local escapes = { ['"'] = '\\"', ["\\"] = "\\\\", ["\b"] = "\\b", ["\f"] = "\\f", ["\n"] = "\\n", ["\r"] = "\\r",
  ["\t"] = "\\t" }
local function escape(c) return escapes[c] or ("\\u%04x"):format(c:byte()) end

local function fail(path, what) error((path == "" and "" or "at " .. path .. ": ") .. what, 0) end

-- First byte that is in no valid UTF-8 character, or nil.
local function invalid_at(s)
  if not s:find("[\128-\255]") then return nil end
  local i, n = 1, #s
  while i <= n do
    local a, b, c, d = s:byte(i, i + 3)
    local function trail(x) return x and x >= 0x80 and x < 0xC0 end
    if a < 0x80 then i = i + 1
    elseif a >= 0xC2 and a < 0xE0 and trail(b) then i = i + 2
    elseif a >= 0xE0 and a < 0xF0 and trail(b) and trail(c) and not (a == 0xE0 and b < 0xA0)
      and not (a == 0xED and b >= 0xA0) then i = i + 3
    elseif a >= 0xF0 and a < 0xF5 and trail(b) and trail(c) and trail(d) and not (a == 0xF0 and b < 0x90)
      and not (a == 0xF4 and b >= 0x90) then i = i + 4
    else return i end
  end
end

local function string_text(s, path)
  local bad = invalid_at(s)
  if bad then fail(path, ("byte %d of a string is not UTF-8"):format(bad)) end
  return '"' .. s:gsub('[%c"\\]', escape) .. '"'
end

-- The shortest of the decimal forms that reads back as the same double.
local function number_text(x, path)
  if x ~= x or x == math.huge or x == -math.huge then fail(path, tostring(x) .. " cannot be JSON") end
  if x == math.floor(x) and math.abs(x) < EXACT then
    return x == 0 and 1 / x < 0 and "-0.0" or ("%.0f"):format(x)
  end
  for digits = 15, 17 do
    local text = ("%%.%dg"):format(digits):format(x)
    if tonumber(text) == x then
      -- An integer form would read back as an integer, or not at all beyond 64 bits.
      return text:find("[.e]") and text or text .. ".0"
    end
  end
end

local put

local function is_list(t, path)
  if json.is_array(t) or t[1] ~= nil then
    local count = 0
    for key in pairs(t) do
      if type(key) ~= "number" then fail(path, ("a table with both a list and the key '%s'"):format(tostring(key))) end
      count = count + 1
    end
    if count ~= #t then fail(path, "a list with holes") end
    return true
  end
  return false
end

local function put_all(out, open, close, items, w, depth)
  if #items == 0 then out[#out + 1] = open .. close return end
  local newline = w.indent and "\n" .. (" "):rep(w.indent * (depth + 1)) or ""
  out[#out + 1] = open
  for i, item in ipairs(items) do
    out[#out + 1] = (i > 1 and "," or "") .. newline
    item()
  end
  if w.indent then out[#out + 1] = "\n" .. (" "):rep(w.indent * depth) end
  out[#out + 1] = close
end

local function put_table(out, t, w, depth, path)
  if w.inside[t] then fail(path, "a table that holds itself") end
  if depth > 1000 then fail(path, "deeper than 1000") end
  w.inside[t] = true
  local items = {}
  if is_list(t, path) then
    for i, value in ipairs(t) do
      items[i] = function() put(out, value, w, depth + 1, ("%s[%d]"):format(path, i)) end
    end
    put_all(out, "[", "]", items, w, depth)
  else
    local keys = {}
    for key in pairs(t) do
      if type(key) ~= "string" then fail(path, ("the key %s is a %s, not a string"):format(tostring(key), type(key))) end
      keys[#keys + 1] = key
    end
    table.sort(keys)
    for i, key in ipairs(keys) do
      items[i] = function()
        local here = path == "" and key or path .. "." .. key
        out[#out + 1] = string_text(key, here) .. (w.indent and ": " or ":")
        put(out, t[key], w, depth + 1, here)
      end
    end
    put_all(out, "{", "}", items, w, depth)
  end
  w.inside[t] = nil
end

function put(out, value, w, depth, path)
  local kind = type(value)
  if value == json.null then out[#out + 1] = "null"
  elseif kind == "string" then out[#out + 1] = string_text(value, path)
  elseif kind == "number" then out[#out + 1] = number_text(value, path)
  elseif kind == "boolean" then out[#out + 1] = tostring(value)
  elseif kind == "table" then put_table(out, value, w, depth, path)
  elseif kind == "cdata" and ffi.istype("int64_t", value) then out[#out + 1] = (tostring(value):gsub("LL$", ""))
  elseif kind == "cdata" and ffi.istype("uint64_t", value) and value < 2ULL ^ 63 then
    out[#out + 1] = (tostring(value):gsub("ULL$", ""))
  else fail(path, "a " .. kind .. " cannot be JSON") end
end

local function indent_of(options, what)
  options = options or {}
  lib.check_options(what, options, { indent = true }, 3)
  local indent = options.indent
  if indent ~= nil and not (type(indent) == "number" and indent >= 0 and indent == math.floor(indent)) then
    error(what .. ": indent is " .. tostring(indent) .. ", a count of spaces is wanted", 3)
  end
  return indent
end

local function text_of(value, indent)
  local out = {}
  put(out, value, { indent = indent, inside = {} }, 0, "")
  return table.concat(out)
end

function json.encode(value, options)
  local indent = indent_of(options, "json.encode")
  local ok, text = pcall(text_of, value, indent)
  if not ok then error("json.encode: " .. tostring(text), 2) end
  return text
end

local writes = 0

function json.write(path, value, options)
  local indent = indent_of(options, "json.write")
  local ok, text = pcall(text_of, value, indent)
  if not ok then error("json.write: " .. tostring(text), 2) end
  writes = writes + 1
  local temporary = ("%s.%d-%d.part"):format(path, os.time() % 1000000, writes)
  local file, message = io.open(temporary, "wb")
  if not file then return nil, message end
  local written, why = file:write(text, "\n")
  local closed, why_closed = file:close()
  if not (written and closed) then
    os.remove(temporary)
    return nil, path .. ": " .. tostring(why or why_closed)
  end
  local renamed, why_not = os.rename(temporary, path)
  if not renamed then
    os.remove(temporary)
    return nil, why_not
  end
  return true
end

return json
