-- Divides a prompt into units: pieces that are a shot, or join the one before. Each has the words, the rule that began it,
-- and how it is joined where the words say so.
--   divide.units(text) -> { { text=, rule=, hard=, join=, place=, light=, seconds=, overlap=, jump= }, ... }, facts
-- hard: a mark of the writer's, which no later rule takes back. facts: title, ending, look.
local regex = require "melies.regex"

local M = {}

local function trim(text) return (text:gsub("^%s+", ""):gsub("%s+$", "")) end

-- ---- blocks: what the layout divides ---------------------------------------------------------------

local blank = regex.new([[\r?\n[ \t]*(?:\r?\n[ \t]*)+]], "b")
local mark = regex.new([[\s*\[\s*(?:shot |scene )?cut\s*\]\s*]], "ib")
local numbered = regex.new(
  [[(?:^|(?<=\n)|(?<=[.!?])\s+)[ \t]*((?:shot|scene|card|clip)\s+]]
  .. [[(?:\d{1,3}|one|two|three|four|five|six|seven|eight|nine|ten)\s*(?:[:.)-]|–|—)\s*)]], "ib")
local item = regex.new([[(?:^|\n)[ \t]*((?:\d{1,3}[.)]|[-*•])[ \t]+)]], "b")
local slug = regex.new(
  [[^[ \t]*(INT|EXT|INT\.?/EXT)\.?\s+([^\n]+?)(?:\s+(?:-|–|—)+\s*([^\n]+?))?[ \t]*(?:\n|$)]], "b")
local title = regex.new([[^\s*title:[ \t]*([^\n]+)\n]], "ib")

-- Pieces between the matches of a pattern, which are taken out; rule is what begins a piece after a match.
local function cut_at(pieces, pattern, rule, join)
  local out = {}
  for _, piece in ipairs(pieces) do
    local from, at, begun = 1, 1, nil
    local function put(to)
      local text = piece.text:sub(from, to)
      if text:find("%S") then
        local new = { text = text, rule = begun and rule or piece.rule, hard = begun and true or piece.hard,
          join = begun and join or piece.join }
        out[#out + 1] = new
      end
    end
    while true do
      local first, last = pattern:find(piece.text, at)
      if not first then break end
      put(first - 1)
      from, at, begun = last + 1, math.max(last, first) + 1, true
    end
    put(#piece.text)
  end
  return out
end

-- ---- cuts, sentences, "then" -------------------------------------------------------------------------

local cut = regex.new([[(?:^|(?<=[.!?;,])|(?<=\n))\s*(?:and\s+|then\s+|we\s+)*]]
  .. [[((?:smash |hard |jump |quick |match )?cuts?(?: back| away)?|]]
  .. [[(?:cross[- ]?)?dissolves?|cross[- ]?fades?|fades?(?: in| out)?(?: and in)?|wipes?)]]
  .. [[\s+(?:in)?to\b:?\s*]], "ib")
local fade_out = regex.new([[(?:^|(?<=[.!?;,]))\s*(?:and\s+|then\s+)*]]
  .. [[(?:the (?:scene|image|screen|film) )?(?:fades?|cuts?) (?:out|to (?:black|white))(?:\s+at the end)?[.!]*\s*$]], "ib")
local sentence = regex.new([=[(?<=[.!?;])(?<!\b(?:mr|ms|dr|st|vs|jr|sr)\.)(?<!\b(?:mrs|etc)\.)["')\]]*\s+]=], "ib")
local line = regex.new([[\s*\n\s*]], "b")
local then_word = regex.new([[(?:,|;|^)?\s*\b(?:and\s+|but\s+)?then\b,?\s+]], "ib")
local next_word = regex.new(
  [[[,;]\s*(?:and\s+)?(?=(?:after that|afterwards?|finally|later|suddenly|meanwhile|moments later|next)\b)]], "ib")
-- Time goes on, or jumps.
local jump = regex.new([[^(?:(?:much |a (?:little |few \w+ ))?later\b|(?:the |that )?(?:next|following|same) ]]
  .. [[(?:day|morning|evening|night|week|year|spring|summer|autumn|winter)|]]
  .. [[(?:\w+ )?(?:seconds|minutes|hours|days|weeks|months|years) later|that (?:night|evening|morning|afternoon)|]]
  .. [[(?:at|by|in the) (?:dawn|sunrise|noon|midday|dusk|sunset|night|midnight|morning|evening|afternoon|end)\b|]]
  .. [[one (?:day|night|morning|evening)\b|in (?:spring|summer|autumn|winter)\b|(?:as )?night falls\b)]], "ib")
local follow = regex.new(
  [[^(?:after (?:that|this|a while|a moment)|afterwards?|finally|suddenly|next|moments later|soon|at last|eventually)\b]], "ib")
local meanwhile = regex.new([[^(?:meanwhile|elsewhere|at the same time|on the other side)\b]], "ib")

local function join_of(words)
  words = words:lower()
  if words:find("match") then return "match cut" end
  if words:find("dissolve") or words:find("cross") then return "dissolve" end
  if words:find("fade") then return "fade" end
  return "cut"
end

-- Pieces at the words of a cut; the words themselves are taken out.
local function cuts(pieces)
  local out = {}
  for _, piece in ipairs(pieces) do
    local from, current = 1, { rule = piece.rule, hard = piece.hard, join = piece.join, place = piece.place, light = piece.light }
    while true do
      local first, last, words = cut:find(piece.text, from)
      if not first then break end
      local before = piece.text:sub(from, first - 1)
      if before:find("%w") then
        current.text = before
        out[#out + 1] = current
        current = {}
      else current = { place = current.place, light = current.light } end
      current.rule, current.hard, current.join = "'" .. trim(words):lower() .. " to'", true, join_of(words)
      from = last + 1
    end
    local rest = piece.text:sub(from)
    if rest:find("%w") then
      current.text = rest
      out[#out + 1] = current
    end
  end
  return out
end

local function inherit(unit, piece)
  for _, key in ipairs { "join", "place", "light", "seconds", "overlap" } do unit[key] = piece[key] end
end

local function sentences(pieces)
  local out = {}
  for _, piece in ipairs(pieces) do
    local first = true
    for _, l in ipairs(line:split(trim(piece.text))) do
      for _, s in ipairs(sentence:split(l)) do
        local at, rule, hard = 1, nil, nil
        local function put(text)
          text = trim(text)
          if not text:find("%w") then return end
          local unit = { text = text, rule = rule or "sentence", hard = hard }
          if first then
            unit.rule, unit.hard = piece.rule or unit.rule, piece.hard or hard
            inherit(unit, piece)
          end
          if jump:find(text) then unit.jump, unit.rule = true, unit.hard and unit.rule or "a word of time"
          elseif meanwhile:find(text) then unit.elsewhere, unit.rule = true, unit.hard and unit.rule or "'meanwhile'"
          elseif follow:find(text) then unit.follow, unit.rule = true, unit.hard and unit.rule or "a word of order" end
          out[#out + 1], first = unit, false
        end
        while true do
          local a, b = then_word:find(s, at)
          local c, d = next_word:find(s, at)
          if c and (not a or c < a) then
            put(s:sub(at, c - 1))
            at, rule, hard = d + 1, nil, nil
          elseif a then
            put(s:sub(at, a - 1))
            at, rule, hard = b + 1, "'then'", true
          else break end
        end
        put(s:sub(at))
      end
    end
  end
  return out
end

-- ---- the door --------------------------------------------------------------------------------------

-- Wan2GP's marks, as prompt.parse reads them.
local function directed(text)
  if not (text:find("[/", 1, true) or text:lower():find("%(%s*at%s+[%d.]")) then return nil end
  local ok, board = pcall(require("melies.plan.forms").read, text, "wan2gp", "prompt")
  if not ok or not board then return nil end
  local units = {}
  for i, shot in ipairs(board.shots) do
    units[i] = { text = shot.text, rule = "a mark of Wan2GP", hard = true, seconds = shot.seconds, overlap = shot.overlap,
      join = shot.transition == "cut" and "cut" or nil }
  end
  return units, { look = board.look }
end

function M.units(text)
  local units, facts = directed(text)
  if units then return units, facts end
  facts = {}
  local _, last, name = title:find(text)
  if last then facts.title, text = trim(name), text:sub(last + 1) end
  local first = fade_out:find(text)
  if first then facts.ending, text = "fade", text:sub(1, first - 1) end
  local pieces = { { text = text, rule = "the beginning" } }
  pieces = cut_at(pieces, blank, "a blank line")
  pieces = cut_at(pieces, mark, "[shot cut]", "cut")
  pieces = cut_at(pieces, numbered, "a numbered shot")
  pieces = cut_at(pieces, item, "an item of a list")
  for _, piece in ipairs(pieces) do
    local _, stop, where, place, time = slug:find(piece.text)
    if where then
      piece.place, piece.light, piece.rule, piece.hard = trim(place):lower(), time and time:lower() or nil, "a slug line", true
      piece.text = piece.text:sub(stop + 1)
      if not piece.text:find("%w") then piece.text = piece.place end
    end
  end
  return sentences(cuts(pieces)), facts
end

return M
