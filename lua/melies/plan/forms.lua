-- Written forms of a storyboard: a Lua table, JSON, the text of HoloCine, the text of Wan2GP.
--   forms.read(text, form, name) -> board | nil, message        forms.write(board, form) -> text
--   forms.guess(path, text)      -> "lua", "json", "holocine", "wan2gp" or nil
-- What a text form has no words for is not in it: HoloCine has characters and captions, Wan2GP has times and prompts.
local json = require "melies.json"
local regex = require "melies.regex"
local schema = require "melies.plan.schema"

local M = { names = { "lua", "json", "holocine", "wan2gp" } }
local read, write = {}, {}

local function trim(text) return (text:gsub("^%s+", ""):gsub("%s+$", "")) end

-- ---- Lua -------------------------------------------------------------------------------------------

local STEPS = 10000000 -- instructions that a storyboard may take

-- Runs with no globals, no methods of strings and a bound on its instructions: a table can be built, nothing reached.
function read.lua(text, name)
  if text:byte(1) == 27 then return nil, name .. ": compiled code is not read" end
  local chunk, message = loadstring(text, "=" .. name)
  if not chunk then return nil, message end
  setfenv(chunk, {})
  jit.off(chunk, true)
  local strings = getmetatable("")
  local methods = strings.__index
  strings.__index = nil
  -- In a coroutine, so that the bound does not count for others.
  local thread = coroutine.create(chunk)
  debug.sethook(thread, function() error("it does not come to an end", 0) end, "", STEPS)
  local ok, board = coroutine.resume(thread)
  debug.sethook(thread)
  strings.__index = methods
  if not ok then
    message = tostring(board)
    if not message:find(name, 1, true) then message = name .. ": " .. message end
    return nil, message
  end
  return board
end

local plain_key = "^[%a_][%w_]*$"
local keywords = {}
for word in ([[and break do else elseif end false for function goto if in local nil not or repeat return then true until
  while]]):gmatch("%a+") do keywords[word] = true end

local function lua_key(key) return key:find(plain_key) and not keywords[key] and key or ("[%s]"):format(("%q"):format(key)) end

local function lua_string(text)
  if text:find("\n", 1, true) and not text:find("[%z\1-\8\11-\31]") and not text:find("]]", 1, true) and text:sub(-1) ~= "]" then
    return "[[\n" .. text .. "]]"
  end
  return (("%q"):format(text):gsub("\\\n", "\\n"):gsub("\r", "\\r"))
end

local function number(x)
  for digits = 6, 17 do
    local text = ("%%.%dg"):format(digits):format(x)
    if tonumber(text) == x then return text end
  end
end

local function scalar(value)
  if type(value) == "number" then return number(value) end
  if type(value) == "boolean" then return tostring(value) end
  if type(value) == "table" then
    local items = {}
    for i, item in ipairs(value) do items[i] = lua_string(item) end
    return #items > 0 and "{ " .. table.concat(items, ", ") .. " }" or "{}"
  end
  return lua_string(value)
end

-- Names in the order in which shots show them, then the others.
local function in_order(board, cast, names_of_shot)
  local out, seen = {}, {}
  for _, shot in ipairs(board.shots) do
    for _, name in ipairs(names_of_shot(shot)) do
      if not seen[name] and cast[name] then out[#out + 1], seen[name] = name, true end
    end
  end
  local rest = {}
  for name in pairs(cast) do if not seen[name] then rest[#rest + 1] = name end end
  table.sort(rest)
  for _, name in ipairs(rest) do out[#out + 1] = name end
  return out
end

function M.cast_order(board, what)
  return in_order(board, board[what], function(shot) return what == "characters" and shot.who or { shot.where } end)
end

function write.lua(board)
  local lines = { "-- A storyboard. Descriptions go into every shot that names them; edit what you like.", "return {" }
  local function put(format, ...) lines[#lines + 1] = format:format(...) end
  for _, key in ipairs(schema.board_order) do
    local kind, value = schema.board[key][1], board[key]
    if kind == "cast" then
      local names = M.cast_order(board, key)
      if #names > 0 then
        put("  %s = {", key)
        for _, name in ipairs(names) do
          local e = value[name]
          if e.image then
            put("    %s = { description = %s, image = %s },", lua_key(name), lua_string(e.description), lua_string(e.image))
          else put("    %s = %s,", lua_key(name), lua_string(e.description)) end
        end
        put("  },")
      end
    elseif kind == "shots" then
      put("  shots = {")
      for i, shot in ipairs(value) do
        put("    { -- %d", i)
        for _, field in ipairs(schema.shot_order) do
          local v = shot[field]
          if v ~= nil and not (field == "who" and #v == 0) then put("      %s = %s,", field, scalar(v)) end
        end
        put("    },")
      end
      put("  },")
    elseif value ~= nil then put("  %s = %s,", key, scalar(value)) end
  end
  lines[#lines + 1] = "}\n"
  return table.concat(lines, "\n")
end

-- ---- JSON ------------------------------------------------------------------------------------------

local function without_null(value)
  if type(value) ~= "table" then return value end
  local out = {}
  for key, v in pairs(value) do
    if v ~= json.null then out[key] = without_null(v) end
  end
  return out
end

function read.json(text, name)
  local value, message = json.decode(text, name)
  if value == nil then return nil, message end
  return without_null(value)
end

function write.json(board)
  local out = {}
  for key, value in pairs(board) do out[key] = value end
  for _, key in ipairs { "characters", "places" } do
    out[key] = {}
    for name, e in pairs(board[key]) do out[key][name] = e.image and e or e.description end
    if next(out[key]) == nil then out[key] = nil end
  end
  out.shots = json.array()
  for i, shot in ipairs(board.shots) do
    local copy = {}
    for key, value in pairs(shot) do copy[key] = value end
    copy.who = json.array { unpack(shot.who) }
    out.shots[i] = copy
  end
  return json.encode(out, { indent = 2 }) .. "\n"
end

-- ---- HoloCine --------------------------------------------------------------------------------------
-- [global caption] words. [character1] description. This scene contains N shots. [per shot caption] a [shot cut] b

function read.holocine(text, name)
  local global, captions = text:match("^%s*%[global caption%](.-)%[per shot caption%](.*)$")
  if not global then return nil, name .. ": '[global caption] … [per shot caption] …' is wanted" end
  local board = { characters = {}, shots = {} }
  local declared
  global = global:gsub("%s*This scene contains (%d+) shots?%.?%s*", function(n) declared = tonumber(n) return " " end)
  local by_mark = {}
  local head, cast = global:match("^(.-)(%[character%d+%].*)$")
  for mark, description in (cast or ""):gmatch("%[(character%d+)%]([^%[]*)") do
    description = trim(description):gsub("%.$", "")
    if description ~= "" then
      board.characters[mark], by_mark[mark] = description, true
    end
  end
  head = trim(head or global)
  if head ~= "" then board.look = (head:gsub("%.$", "")) end
  for part in (captions:gsub("%s*%[shot cut%]%s*", "\0") .. "\0"):gmatch("%s*(.-)%s*%z") do
    if part ~= "" then
      local shot = { who = {}, transition = #board.shots == 0 and "none" or "cut" }
      local seen = {}
      part = part:gsub("%[(character%d+)%]", function(mark)
        if by_mark[mark] and not seen[mark] then
          seen[mark] = true
          shot.who[#shot.who + 1] = mark
        end
        return by_mark[mark] and mark or nil
      end)
      shot.text = trim(part)
      board.shots[#board.shots + 1] = shot
    end
  end
  if #board.shots == 0 then return nil, name .. ": [per shot caption] has no caption" end
  if declared and declared ~= #board.shots then
    return nil, ("%s: it says %d shots, and %d captions are there"):format(name, declared, #board.shots)
  end
  return board
end

function write.holocine(board)
  local compose = require "melies.plan.compose"
  local marks, cast = {}, {}
  for i, name in ipairs(M.cast_order(board, "characters")) do
    marks[name] = name:find("^character%d+$") and name or "character" .. i
    cast[i] = ("[%s] %s."):format(marks[name], board.characters[name].description)
  end
  local captions = {}
  for i = 1, #board.shots do
    captions[i] = trim(compose.words(board, i, function(name) return "[" .. marks[name] .. "]" end))
  end
  local look = board.look or board.title or ""
  return ("[global caption] %s%s This scene contains %d shot%s. [per shot caption] %s\n"):format(
    look ~= "" and look .. ". " or "", table.concat(cast, " "), #captions, #captions == 1 and "" or "s",
    table.concat(captions, " [shot cut] ")):gsub("  +", " ")
end

-- ---- Wan2GP ----------------------------------------------------------------------------------------
-- [/duration=5s,/overlap=9,/new_shot] words of a shot …, or (at 2 seconds: words) (at 5 seconds: words)

function read.wan2gp(text, name)
  local parsed = require("melies.prompt").parse(text)
  local shots, at = {}, {}
  local first = text:find("[/", 1, true)
  for _, d in ipairs(parsed.directives) do
    if d.kind == "shot" then
      for key in pairs(d) do
        if not ({ duration = 1, overlap = 1, new_shot = 1, kind = 1, position = 1, text = 1 })[key] then
          return nil, ("%s: [/%s]: unknown key%s"):format(name, key,
            require("melies.ffi.lib").suggest(key, { "duration", "overlap", "new_shot" }))
        end
      end
      for _, key in ipairs { "duration", "overlap" } do
        if d[key] ~= nil and type(d[key]) ~= "number" then
          return nil, ("%s: [/%s=%s]: a number is wanted"):format(name, key, tostring(d[key]))
        end
      end
      local words = trim(d.text or "")
      if words ~= "" then
        shots[#shots + 1] = { text = words, who = {}, seconds = d.duration, overlap = d.overlap,
          transition = #shots == 0 and "none" or d.new_shot and "cut" or "overlap" }
      end
    else at[#at + 1] = d end
  end
  if #shots == 0 and #at == 0 then return nil, name .. ": there is neither [/duration=…] nor (at N seconds: …)" end
  local board = { shots = shots }
  if #shots == 0 then
    local head = trim(text:match("^(.-)%(%s*at%s+[%d.]") or "")
    table.sort(at, function(a, b) return a.seconds < b.seconds end)
    if head ~= "" and at[1].seconds > 0 then shots[1] = { text = head, who = {}, seconds = at[1].seconds, transition = "none" }
    elseif head ~= "" then board.look = head end
    for i, d in ipairs(at) do
      local start = d.seconds
      local stop = at[i + 1] and at[i + 1].seconds
      if stop == start then return nil, ("%s: two shots begin at %g seconds"):format(name, start) end
      shots[#shots + 1] = { text = trim(d.text), who = {}, seconds = stop and stop - start or nil,
        transition = #shots == 0 and "none" or "overlap" }
    end
  else
    local head = trim(text:sub(1, (first or 1) - 1))
    if head ~= "" then board.look = head end
  end
  return board
end

function write.wan2gp(board)
  local compose = require "melies.plan.compose"
  local out = {}
  for i, shot in ipairs(board.shots) do
    local keys = {}
    if shot.seconds then keys[#keys + 1] = ("/duration=%ss"):format(number(shot.seconds)) end
    if shot.overlap then keys[#keys + 1] = "/overlap=" .. shot.overlap end
    if i > 1 and shot.transition and shot.transition ~= "overlap" then keys[#keys + 1] = "/new_shot" end
    if #keys == 0 then keys[1] = "/overlap=0" end
    out[i] = ("[%s] %s"):format(table.concat(keys, ","), compose.prompt(board, i))
  end
  return table.concat(out, "\n") .. "\n"
end

-- ---- the door --------------------------------------------------------------------------------------

local timed = regex.new([[\(\s*at\s+[\d.]+\s*(?:s|secs?|seconds?)?\s*:|\[/\w]], "ib")

-- The form of a file, by its ending, else by its marks.
function M.guess(path, text)
  if path and path:find("%.lua$") then return "lua" end
  if path and path:find("%.json$") then return "json" end
  if not text then return nil end
  if text:find("[per shot caption]", 1, true) then return "holocine" end
  if timed:find(text) then return "wan2gp" end
  if text:find("^%s*{") then return "json" end
  if text:find("^%s*return%s*{") or text:find("^%-%-") then return "lua" end
end

-- A checked board, or nil and a message (and the list of all problems).
function M.read(text, form, name)
  name = name or "storyboard"
  local ok, board, message = pcall(read[form], text, name)
  if not ok then return nil, name .. ": " .. tostring(board) end
  if board == nil then return nil, message or name .. ": it returns nothing; a table with shots is wanted" end
  return schema.check(board, name)
end

function M.write(board, form) return (write[form](board)) end

return M
