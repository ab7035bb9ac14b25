-- The storyboard: which keys there are, of which types, and what has to hold between them.
--
--   title, prompt (the words it was made from), look (words of every shot), style (a plugin), pace, seed, ending,
--   max_seconds, exact (seconds hold to the frame, not to the model's grid), characters and places (name -> description,
--   or { description=, image= }), shots: a list of
--   { text, action, who = { names }, where, camera, light, mood, seconds, transition, overlap, seed }
local lib = require "melies.ffi.lib"

local M = {}

M.paces = { "calm", "normal", "fast" }
M.transitions = { "none", "overlap", "cut", "dissolve", "fade", "match cut" }
M.endings = { "cut", "fade" }
M.MAX_SECONDS = 3600 -- of all shots together, where the storyboard does not say max_seconds
M.MAX_SHOTS = 10000

-- key -> { type, min, max } or { "enum", choices }. The order is that of the written file.
M.board_order = { "title", "prompt", "style", "look", "pace", "ending", "seed", "max_seconds", "exact",
  "characters", "places", "shots" }
M.board = {
  title = { "string" }, prompt = { "string" }, look = { "string" }, style = { "name" }, pace = { "enum", M.paces },
  ending = { "enum", M.endings }, seed = { "integer", 0, 2 ^ 53 }, max_seconds = { "number", 1e-3, 1e7 }, exact = { "boolean" },
  characters = { "cast" }, places = { "cast" }, shots = { "shots" },
}
M.shot_order = { "text", "action", "who", "where", "camera", "light", "mood", "seconds", "transition", "overlap", "seed" }
M.shot = {
  text = { "string" }, action = { "string" }, who = { "names" }, where = { "string" }, camera = { "string" },
  light = { "string" }, mood = { "string" }, seconds = { "number", 1e-3, 86400 }, transition = { "enum", M.transitions },
  overlap = { "integer", 0, 10000 }, seed = { "integer", 0, 2 ^ 53 },
}
M.entity = { description = { "string" }, image = { "string" } }

local function shown(value)
  if type(value) == "string" then return "'" .. (#value > 60 and value:sub(1, 60) .. "..." or value) .. "'" end
  return type(value) == "table" and "a table" or tostring(value)
end

local function names_of(map)
  local names = {}
  for name in pairs(map) do names[#names + 1] = tostring(name) end
  table.sort(names)
  return names
end

-- Seconds as a person says them.
function M.duration(seconds)
  if seconds >= 3600 then return ("%.4g hours"):format(seconds / 3600) end
  if seconds >= 120 then return ("%.4g minutes"):format(seconds / 60) end
  return ("%.4g seconds"):format(seconds)
end

local check = {}

local function say(problems, where, format, ...)
  problems[#problems + 1] = where .. ": " .. format:format(...)
end

local function fields(value, specs, where, problems)
  if type(value) ~= "table" then return say(problems, where, "it is %s, must be a table", shown(value)) end
  for _, key in ipairs(names_of(value)) do
    if not specs[key] then
      say(problems, where, "unknown key '%s'%s", key, lib.suggest(key, specs))
    end
  end
  local prefix = where:find("[%]%.]") and where .. "." or where .. ": "
  for key, spec in pairs(specs) do
    if value[key] ~= nil then check[spec[1]](value[key], spec, prefix .. key, problems) end
  end
end

function check.string(value, _, where, problems)
  if type(value) ~= "string" then return say(problems, where, "is %s, must be a text", shown(value)) end
  if #value > 100000 then say(problems, where, "is %d bytes long; 100000 are allowed", #value) end
end

function check.boolean(value, _, where, problems)
  if type(value) ~= "boolean" then return say(problems, where, "is %s, must be true or false", shown(value)) end
end

function check.name(value, _, where, problems)
  if type(value) ~= "string" or not value:find("^[%w_][%w_.+-]*$") then
    say(problems, where, "is %s, must be a name (letters, digits, _ . + -)", shown(value))
  end
end

function check.number(value, spec, where, problems)
  if type(value) ~= "number" or value ~= value then return say(problems, where, "is %s, must be a number", shown(value)) end
  if value < spec[2] or value > spec[3] then
    say(problems, where, "is %.14g, must be %.14g to %.14g", value, spec[2], spec[3])
  end
end

function check.integer(value, spec, where, problems)
  if type(value) == "number" and value % 1 ~= 0 then return say(problems, where, "is %.14g, must be a whole number", value) end
  check.number(value, spec, where, problems)
end

function check.enum(value, spec, where, problems)
  for _, choice in ipairs(spec[2]) do
    if value == choice then return end
  end
  say(problems, where, "is %s, must be one of %s%s", shown(value), table.concat(spec[2], ", "),
    type(value) == "string" and lib.suggest(value, spec[2]) or "")
end

function check.names(value, _, where, problems)
  if type(value) ~= "table" then return say(problems, where, "is %s, must be a list of names, as { \"ball\" }", shown(value)) end
  for key, name in pairs(value) do
    if type(key) ~= "number" or type(name) ~= "string" then
      return say(problems, where, "must be a list of names, as { \"ball\" }")
    end
  end
end

function check.cast(value, _, where, problems)
  if type(value) ~= "table" then return say(problems, where, "is %s, must be a table of names", shown(value)) end
  for _, name in ipairs(names_of(value)) do
    local entry = value[name]
    local here = where .. "." .. name
    if entry == nil then say(problems, where, "%s: a name is wanted in front, as ball = \"a red ball\"", name)
    elseif type(entry) == "table" then
      fields(entry, M.entity, here, problems)
      if entry.description == nil then say(problems, here, "has no description") end
    else check.string(entry, nil, here, problems) end
  end
end

function check.shots(value, _, where, problems)
  if type(value) ~= "table" then return say(problems, where, "is %s, must be a list of shots", shown(value)) end
  if #value == 0 then return say(problems, where, "there is none") end
  if #value > M.MAX_SHOTS then return say(problems, where, "there are %d; %d are allowed", #value, M.MAX_SHOTS) end
  local count = 0
  for _ in pairs(value) do count = count + 1 end
  if count ~= #value then say(problems, where, "must be a list without names or holes") end
  for i, shot in ipairs(value) do fields(shot, M.shot, ("shots[%d]"):format(i), problems) end
end

-- What shots name is there; the whole is no longer than it may be.
local function check_whole(board, problems)
  local characters, places, total, longest = board.characters or {}, board.places or {}, 0, 1
  for i, shot in ipairs(board.shots) do
    for _, name in ipairs(shot.who or {}) do
      if characters[name] == nil then
        local known = names_of(characters)
        say(problems, ("shots[%d].who"):format(i), "'%s' is no character%s (%s)", name, lib.suggest(name, known),
          #known > 0 and "there are " .. table.concat(known, ", ") or "there are none")
      end
    end
    if shot.where and places[shot.where] == nil then
      local known = names_of(places)
      say(problems, ("shots[%d].where"):format(i), "'%s' is no place%s (%s)", shot.where, lib.suggest(shot.where, known),
        #known > 0 and "there are " .. table.concat(known, ", ") or "there are none")
    end
    if not (shot.text or shot.action) then say(problems, ("shots[%d]"):format(i), "has no text") end
    total = total + (shot.seconds or 0)
    if (shot.seconds or 0) > (board.shots[longest].seconds or 0) then longest = i end
  end
  local limit = board.max_seconds or M.MAX_SECONDS
  if total > limit then
    say(problems, "shots", "they last %s together, and %s is the limit; the longest is shots[%d] with %s. Shorten them, or write "
      .. "max_seconds = %d", M.duration(total), M.duration(limit), longest, M.duration(board.shots[longest].seconds),
      math.ceil(total))
  end
end

-- Whole entities in place of bare descriptions.
local function normal_cast(cast)
  local out = {}
  for name, entry in pairs(cast or {}) do
    out[name] = type(entry) == "table" and { description = entry.description, image = entry.image }
      or { description = entry }
  end
  return out
end

-- A checked copy: characters and places as { description=, image= }, shots with a who. nil, the first problem and how
-- many more there are, and the list of all.
function M.check(board, name)
  local problems = {}
  name = name or "storyboard"
  if type(board) ~= "table" then
    return nil, ("%s: it is %s, must be a table with shots"):format(name, shown(board)), {}
  end
  fields(board, M.board, name, problems)
  if board.shots == nil then say(problems, name, "there are no shots") end
  if #problems == 0 then check_whole(board, problems) end
  if #problems > 0 then
    for i, text in ipairs(problems) do
      if text:sub(1, #name + 1) ~= name .. ":" then problems[i] = name .. ": " .. text end
    end
    return nil, problems[1] .. (#problems > 1 and (" (and %d more)"):format(#problems - 1) or ""), problems
  end
  local out = {}
  for key in pairs(M.board) do out[key] = board[key] end
  out.characters, out.places, out.shots = normal_cast(board.characters), normal_cast(board.places), {}
  for i, shot in ipairs(board.shots) do
    local copy = {}
    for key in pairs(M.shot) do copy[key] = shot[key] end
    copy.who = { unpack(shot.who or {}) }
    out.shots[i] = copy
  end
  return out
end

return M
