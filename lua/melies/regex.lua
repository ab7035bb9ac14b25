-- Regular expressions: PCRE2, UTF-8, Unicode classes.
--   local re = regex.new([[(\w+)=(\d+)]], "i")
--   re:match(s[, init])   captures (the whole match where there are none), or nil; as string.match
--   re:find(s[, init])    first, last, captures..., or nil; as string.find
--   re:gmatch(s)          iterator of captures
--   re:gsub(s, repl[, n]) text, count; repl: a string ($0..$9, ${name}, $$), a table or a function of the captures
--   re:split(s)           list of what lies between the matches
-- flags: i caseless, m ^ and $ at lines, s dot matches newline, x extended, b bytes instead of UTF-8.
-- A group that took no part is false. regex.escape(text) makes a pattern that matches text itself.
local ffi = require "ffi"
local lib = require "melies.ffi.lib"
local bit = require "bit"

local C = lib.C
local regex = {}

local FLAGS = { i = 1, m = 2, s = 4, x = 8, b = 16 }

local Regex = {}
Regex.__index = Regex
Regex.__tostring = function(self) return "regex " .. self.pattern end

-- Raises on a pattern that is none, with the offset of the mistake.
function regex.new(pattern, flags)
  if type(pattern) ~= "string" then error("regex.new: a pattern is wanted, not a " .. type(pattern), 2) end
  local bits = 0
  for c in (flags or ""):gmatch(".") do
    if not FLAGS[c] then error(("regex.new: unknown flag '%s' (i, m, s, x, b)"):format(c), 2) end
    bits = bit.bor(bits, FLAGS[c])
  end
  local box = lib.out("mel_regex*")
  lib.check(C.mel_regex_compile(pattern, #pattern, bits, box, lib.err), 2)
  local self = setmetatable({ handle = ffi.gc(box[0], C.mel_regex_free), pattern = pattern, names = {} }, Regex)
  self.groups = C.mel_regex_groups(self.handle)
  self.spans = ffi.new("int64_t[?]", 2 * (self.groups + 1))
  local group = ffi.new("int[1]")
  for i = 0, C.mel_regex_names(self.handle) - 1 do
    local name = C.mel_regex_name(self.handle, i, group)
    self.names[ffi.string(name)] = group[0]
  end
  return self
end

function regex.escape(text)
  return (text:gsub("[%^%$%.%[%]%|%(%)%?%*%+%{%}%-#%s\\]", "\\%0"))
end

-- Group (0: the whole match) of the match whose spans begin at spans[at], or false.
local function group_text(s, spans, at, group)
  local first, last = tonumber(spans[at + 2 * group]), tonumber(spans[at + 2 * group + 1])
  return first >= 0 and s:sub(first + 1, last)
end

-- captures of groups from..groups
local function captures(self, s, spans, at, from)
  if from > self.groups then return end
  return group_text(s, spans, at, from), captures(self, s, spans, at, from + 1)
end

local function results(self, s, spans, at) return captures(self, s, spans, at, self.groups > 0 and 1 or 0) end

local function want(s, what)
  if type(s) ~= "string" then error(("regex:%s: a string is wanted, not a %s"):format(what, type(s)), 3) end
end

local function start(s, init)
  init = init or 1
  if init < 0 then init = math.max(#s + init + 1, 1) end
  return math.max(init, 1) - 1
end

local found = ffi.new("bool[1]")

local function first_match(self, s, init)
  local offset = start(s, init)
  if offset > #s then return false end
  lib.check(C.mel_regex_match(self.handle, s, #s, offset, self.spans, found, lib.err), 3)
  return found[0]
end

function Regex:match(s, init)
  want(s, "match")
  if not first_match(self, s, init) then return nil end
  return results(self, s, self.spans, 0)
end

function Regex:find(s, init)
  want(s, "find")
  if not first_match(self, s, init) then return nil end
  return tonumber(self.spans[0]) + 1, tonumber(self.spans[1]), captures(self, s, self.spans, 0, 1)
end

local count = ffi.new("size_t[1]")

-- Spans of all matches (freed with the collector) and their count.
local function all(self, s, limit)
  local box = lib.out("int64_t*")
  lib.check(C.mel_regex_match_all(self.handle, s, #s, 0, limit or 0, box, count, lib.err), 3)
  return ffi.gc(box[0], C.mel_free), tonumber(count[0])
end

function Regex:gmatch(s)
  want(s, "gmatch")
  local spans, matches = all(self, s)
  local i, width = -1, 2 * (self.groups + 1)
  return function()
    i = i + 1
    if i >= matches then return nil end
    return results(self, s, spans, i * width)
  end
end

-- "$1-${name}" becomes a list of texts and group numbers.
local function template(self, text)
  local parts, from = {}, 1
  local function group(number, written)
    if not number or number > self.groups then
      error(("regex:gsub: the pattern has no group %s%s"):format(written, lib.suggest(written, self.names)), 4)
    end
    return number
  end
  while true do
    local at = text:find("$", from, true)
    parts[#parts + 1] = text:sub(from, (at or 0) - 1)
    if not at then return parts end
    local digit, name = text:match("^(%d)", at + 1), text:match("^{([%w_]+)}", at + 1)
    if digit then
      parts[#parts + 1] = group(tonumber(digit), digit)
      from = at + 2
    elseif name then
      parts[#parts + 1] = group(self.names[name] or tonumber(name), name)
      from = at + #name + 3
    elseif text:sub(at + 1, at + 1) == "$" then
      parts[#parts + 1] = "$"
      from = at + 2
    else
      error("regex:gsub: '$' in the replacement wants a digit, {name} or another '$'", 3)
    end
  end
end

local function replacer(self, s, repl)
  if type(repl) == "table" then
    return function(spans, at) return repl[group_text(s, spans, at, self.groups > 0 and 1 or 0)] end
  elseif type(repl) == "function" then
    return function(spans, at) return repl(results(self, s, spans, at)) end
  elseif type(repl) ~= "string" then
    error("regex:gsub: the replacement is a " .. type(repl) .. ", not a string, table or function", 3)
  end
  local parts = template(self, repl)
  return function(spans, at)
    local out = {}
    for i, part in ipairs(parts) do
      out[i] = type(part) == "string" and part or group_text(s, spans, at, part) or ""
    end
    return table.concat(out)
  end
end

function Regex:gsub(s, repl, n)
  want(s, "gsub")
  local replace = replacer(self, s, repl)
  if n and n <= 0 then return s, 0 end
  local spans, matches = all(self, s, n)
  local out, from, width = {}, 1, 2 * (self.groups + 1)
  for i = 0, matches - 1 do
    local at = i * width
    local value = replace(spans, at)
    out[#out + 1] = s:sub(from, tonumber(spans[at]))
    out[#out + 1] = value and tostring(value) or group_text(s, spans, at, 0)
    from = tonumber(spans[at + 1]) + 1
  end
  out[#out + 1] = s:sub(from)
  return table.concat(out), matches
end

-- Empty matches cut nothing off the ends.
function Regex:split(s)
  want(s, "split")
  local spans, matches = all(self, s)
  local out, from, width = {}, 1, 2 * (self.groups + 1)
  for i = 0, matches - 1 do
    local first, last = tonumber(spans[i * width]), tonumber(spans[i * width + 1])
    if last > first or (first > 0 and first < #s) then
      out[#out + 1] = s:sub(from, first)
      from = last + 1
    end
  end
  out[#out + 1] = s:sub(from)
  return out
end

return regex
