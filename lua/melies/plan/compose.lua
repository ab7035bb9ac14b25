-- The prompt of a shot: its words with the canonical descriptions of whom and what they name, the place, camera, light
-- and look. Nothing is said twice, and what was added to the user's words can be shown.
local regex = require "melies.regex"
local lexicon = require "melies.plan.lexicon"

local M = {}

local function trim(text) return (text:gsub("^%s+", ""):gsub("[%s,]+$", "")) end

local patterns = {}
local function compiled(pattern)
  local re = patterns[pattern]
  if not re then
    re = regex.new(pattern, "ib")
    patterns[pattern] = re
  end
  return re
end

-- Words of a name at which it may be met: "red ball", "ball" for the first of that kind alone.
local function mention(board, what, name)
  local escaped = regex.escape(name):gsub("\\? ", [[\s+]])
  local head = name:match("(%S+)$")
  local others = 0
  for other in pairs(board[what]) do
    if other:match("(%S+)$") == head then others = others + 1 end
  end
  if others == 1 and head ~= name then escaped = escaped .. "|" .. regex.escape(head) end
  return compiled([[(?<![\w-])(?:(?:the|this|that|a|an|his|her|its|their)\s+)?(?:same\s+)?(?:]] .. escaped .. [[)(?![\w-])]])
end

-- text with the first mention of the entity replaced; nil where there is none. A text that holds the description is as it
-- should be.
local function describe(text, board, what, name, description)
  if text:lower():find(description:lower(), 1, true) then return text end
  local first, last = mention(board, what, name):find(text)
  if not first then return nil end
  local rest = text:sub(last + 1)
  if rest:find("^'s") then return text end
  -- "Anna, a girl in a raincoat" wants a comma before what follows
  if description:find(",", 1, true) and rest:find("^%s+%w") then description = description .. "," end
  local put = description
  if first == 1 and text:find("^%u") then put = put:gsub("^%l", string.upper) end
  return text:sub(1, first - 1) .. put .. rest
end

-- The words of a shot with its characters; mark(name) stands for their descriptions.
function M.words(board, i, mark)
  local shot = board.shots[i]
  local text = trim(shot.action or shot.text)
  text = text:gsub("[.!;]+$", "")
  for _, name in ipairs(shot.who) do
    local whole = board.characters[name].description
    local description = mark and mark(name) or whole
    local at, stop = text:lower():find(whole:lower(), 1, true)
    if mark and at then text = text:sub(1, at - 1) .. description .. text:sub(stop + 1) end
    local found = describe(text, board, "characters", name, description)
    if not found then found = text .. (mark and ", " or ", with ") .. description end
    text = found
  end
  return text
end

local function on_or_in(name)
  return lexicon.on_places[name:match("(%S+)$")] and "on" or "in"
end

local function says(list, canonical, text)
  for _, entry in ipairs(list) do
    if entry[2] == canonical and compiled(entry[1]):find(text) then return true end
  end
  return text:lower():find(canonical:lower(), 1, true) ~= nil
end

-- The whole prompt of shot i. without: a set of what stays out of it (camera, light, mood, look, style).
function M.prompt(board, i, without)
  without = without or {}
  local shot = board.shots[i]
  local text = M.words(board, i)
  local parts = {}
  if shot.where then
    local description = board.places[shot.where].description
    local found = describe(text, board, "places", shot.where, description)
    if found then text = found
    else
      local placed = lexicon.prepositions[description:match("^%a+"):lower()]
      parts[#parts + 1] = placed and description or on_or_in(shot.where) .. " " .. description
    end
  end
  local head = #parts > 0 and text .. " " .. parts[1] or text
  parts = { head }
  for _, field in ipairs { "camera", "light" } do
    if shot[field] and not without[field] and not says(lexicon[field], shot[field], head) then parts[#parts + 1] = shot[field] end
  end
  if shot.mood and not without.mood and not head:lower():find(shot.mood:lower(), 1, true) then parts[#parts + 1] = shot.mood end
  if board.look and not without.look and not head:lower():find(board.look:lower(), 1, true) then
    parts[#parts + 1] = board.look
  end
  local prompt = table.concat(parts, ", ")
  if board.style and not without.style then prompt = require("melies.style").prompt(board.style, prompt) end
  return prompt
end

-- The prompt with what the model has room for, and a list of what was left out of it: the style's further phrases, then
-- mood, camera, light and look; the words of the shot themselves stay.
function M.fitting(board, i, model)
  local style, without, dropped = require "melies.style", {}, {}
  local text = M.prompt(board, i)
  if style.fits(text, model) then return text, dropped end
  if board.style then
    dropped[1], without.style = "style", true
    text = style.fitting(board.style, M.prompt(board, i, without), model)
    if style.fits(text, model) then return text, dropped end
  end
  for _, what in ipairs { "mood", "camera", "light", "look" } do
    if board.shots[i][what] or board[what] then
      dropped[#dropped + 1], without[what] = what, true
      text = M.prompt(board, i, without)
      if style.fits(text, model) then break end
    end
  end
  return text, dropped
end

-- ---- what was added --------------------------------------------------------------------------------

local function words_of(text)
  local out = {}
  for word in text:gmatch("%S+") do out[#out + 1] = word end
  return out
end

local function same(a, b) return a:lower():gsub("[%p]+$", "") == b:lower():gsub("[%p]+$", "") end

-- { "=" | "+" | "-", words } runs that lead from the old words to the new: longest common subsequence.
function M.changes(old, new)
  local a, b = words_of(old), words_of(new)
  if #a * #b > 4000000 then return { { "-", old }, { "+", new } } end
  local rows = {}
  for i = #a + 1, 1, -1 do
    rows[i] = {}
    for j = #b + 1, 1, -1 do
      if i > #a or j > #b then rows[i][j] = 0
      elseif same(a[i], b[j]) then rows[i][j] = rows[i + 1][j + 1] + 1
      else rows[i][j] = math.max(rows[i + 1][j], rows[i][j + 1]) end
    end
  end
  local out = {}
  local function put(kind, word)
    local last = out[#out]
    if last and last[1] == kind then last[2] = last[2] .. " " .. word else out[#out + 1] = { kind, word } end
  end
  local i, j = 1, 1
  while i <= #a or j <= #b do
    if i <= #a and j <= #b and same(a[i], b[j]) then
      put("=", b[j])
      i, j = i + 1, j + 1
    elseif i <= #a and (j > #b or rows[i + 1][j] >= rows[i][j + 1]) then
      put("-", a[i])
      i = i + 1
    else
      put("+", b[j])
      j = j + 1
    end
  end
  return out
end

-- "{+added+} [-taken out-]"; nil where nothing was changed.
function M.marked(old, new)
  local parts, changed = {}, false
  for _, run in ipairs(M.changes(old, new)) do
    changed = changed or run[1] ~= "="
    parts[#parts + 1] = run[1] == "+" and "{+" .. run[2] .. "+}" or run[1] == "-" and "[-" .. run[2] .. "-]" or run[2]
  end
  return changed and table.concat(parts, " ") or nil
end

-- What the prompt of shot i adds to the shot's words.
function M.diff(board, i) return M.marked(board.shots[i].text or "", M.prompt(board, i)) end

return M
