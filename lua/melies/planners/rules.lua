-- melies-api: 1
-- Divides a prompt by rules: layout, words of cuts, "then", sentences; names who and where. Needs no language model.
-- plan(text, options, note) -> board. options: seed, fill (camera and light where the words are silent), pace, grid
-- (seconds(s) -> seconds on the model's frame grid, window: its own length). note(shot, field, value, rule, words).
local analyse = require "melies.plan.analyse"
local divide = require "melies.plan.divide"
local lexicon = require "melies.plan.lexicon"
local regex = require "melies.regex"

local function compile(list)
  local out = {}
  for i, entry in ipairs(list) do out[i] = { regex.new(entry[1], "ib"), entry[2], entry[3] } end
  return out
end
local cameras, lights = compile(lexicon.camera), compile(lexicon.light)
local look_words = regex.new(lexicon.look, "ib")
local calm, quick = regex.new(lexicon.calm, "ib"), regex.new(lexicon.quick, "ib")
local style_tail = regex.new([[,\s*((?:in (?:the |an? )?)?[^,.]*\b(?:style|cinematic|photo-?realistic|35 ?mm(?: film)?|[48]k|]]
  .. [[black[ -]and[ -]white|film noir|]]
  .. [[anime|watercolou?r|oil painting|claymation|highly detailed|film grain)\b[^,.]*)(?=[,.]|$)]], "ib")
local number = [[(\d{1,3}(?:\.\d+)?|half an?|an?|one|two|three|four|five|six|seven|eight|nine|ten|twelve|]]
  .. [[fifteen|twenty|thirty|forty|fifty|sixty)]]
local seconds_in = regex.new(
  [[(?<![\w.])(\s*[(,]?\s*(?:for|lasting|over|during|about)?\s*(?:about|around)?\s*)?]] .. number
  .. [[(?:\s*|-)(s|secs?|seconds?|minutes?|mins?)\b(?! (?:later|ago|after|hand|floor|time))(\s+long)?(\s*\))?]], "ib")

local function first_of(list, text)
  local best, at
  for _, entry in ipairs(list) do
    local first = entry[1]:find(text)
    if first and not (entry[3] and not text:lower():find(entry[3], 1, true)) and (not at or first < at) then
      best, at = entry[2], first
    end
  end
  return best
end

-- Seconds that the words say, and the words without them.
local function duration(text)
  local first, last, _, count, unit = seconds_in:find(text)
  if not first then return nil, text end
  local n = tonumber(count) or lexicon.numbers[count:lower():match("^%a+")]
  if unit:lower() == "s" and not tonumber(count) then return nil, text end
  if unit:lower():find("^m") then n = n * 60 end
  if n <= 0 then return nil, text end
  return n, text:sub(1, first - 1):gsub("%s+$", "") .. text:sub(last + 1)
end

-- A choice by the seed: the same for the same shot whatever came before (a hash, as in PCG's output step).
local function choose(list, seed, index)
  local h = (seed % 2147483647) * 48271 % 2147483647
  h = (h + index * 69621 + 1) * 16807 % 2147483647
  h = h * 48271 % 2147483647
  return list[h % #list + 1]
end

local function trim(text) return (text:gsub("^[%s,;]+", ""):gsub("[%s,;]+$", "")) end

-- A sentence that only says how the film looks.
local function is_look(unit, info)
  return not info.dynamic and #info.who == 0 and not info.place and look_words:find(unit.text) ~= nil
    and not unit.hard
end

-- ---- shots ----------------------------------------------------------------------------------------

-- Whether a unit that no mark began is a shot by itself, and by which rule.
local function begins(unit, info, current)
  if not current then return "the beginning" end
  if unit.hard then return unit.rule end
  if info.camera_subject then return nil end
  -- a place alone waits for who does something there
  if not current.subject and not current.seen and not unit.jump then return nil end
  if unit.jump or unit.elsewhere or unit.follow then return unit.rule end
  if info.view then return info.subject and info.subject ~= "scenery" and "a word of the camera" or nil end
  if info.subject == "scenery" then return nil end
  if info.place and current.place and info.place ~= current.place and #info.who > 0 then return "a new place" end
  if info.dynamic and info.subject then return "a sentence with an action" end
  return nil
end

local function merge(list, more)
  for _, v in ipairs(more) do
    local there = false
    for _, w in ipairs(list) do there = there or w == v end
    if not there then list[#list + 1] = v end
  end
end

-- "She wears a black jacket": part of her from now on.
local function adorn(info, unit)
  local e = info.subject
  if type(e) ~= "table" or e.name == nil or (info.verb ~= "wear" and info.verb ~= "have") then return false end
  local t = info.verb_at and info.tokens[info.verb_at]
  if not t or e.plural and info.verb == "have" then return false end
  local rest = unit.text:sub(t.last + 1):gsub("[.!]+%s*$", "")
  if rest == "" then return false end
  e.description = e.description .. (info.verb == "wear" and ", wearing" or ", with") .. rest
  return true
end

local function gather(text, note)
  local units, facts = divide.units(text)
  local reader, shots, current, looks = analyse.new(), {}, nil, {}
  if facts.look then looks[1] = facts.look end
  for _, unit in ipairs(units) do
    unit.text = style_tail:gsub(unit.text, function(words)
      looks[#looks + 1] = trim(words)
      return ""
    end)
    local info = reader:unit(unit.text)
    if unit.place then
      local there = reader:unit("in the " .. unit.place)
      info.place = there.place or info.place
      if there.place then there.place.description = "the " .. unit.place end
    end
    if is_look(unit, info) then
      looks[#looks + 1] = (unit.text:gsub("[.!]+$", ""))
      note(#shots + 1, "look", looks[#looks], "a sentence that says only how it looks", unit.text)
    else
      local rule = begins(unit, info, current)
      local seconds, action = duration(info.action)
      if rule then
        current = { text = unit.text, action = trim(action), who = { unpack(info.who) }, place = info.place,
          subject = info.subject ~= "scenery" and info.subject or nil, seconds = unit.seconds or seconds, overlap = unit.overlap,
          join = unit.join, light = unit.light, jump = unit.jump, seen = info.camera_subject or info.view,
          elsewhere = unit.elsewhere, rule = rule }
        if unit.hard and rule ~= "'then'" and not unit.join then current.marked = rule end
        shots[#shots + 1] = current
        note(#shots, "shot", trim(unit.text), rule, unit.text)
        reader.previous = {}
      else
        note(#shots, "joined", trim(unit.text), adorn(info, unit) and "a sentence that describes a character"
          or info.camera_subject and "a sentence about the camera" or not current.subject and "a place waits for its action"
          or "a sentence that describes", unit.text)
        current.text = current.text .. " " .. unit.text
        current.action = trim(current.action):gsub("([^.!?])$", "%1.") .. " " .. trim(action)
        merge(current.who, info.who)
        current.place = current.place or info.place
        current.subject = current.subject or (info.subject ~= "scenery" and info.subject or nil)
        current.seconds = current.seconds or seconds
      end
      -- the subject first: it is whom "it" means next
      local previous = {}
      merge(previous, info.subjects)
      merge(previous, info.who)
      merge(previous, reader.previous)
      reader.previous = previous
    end
  end
  return shots, reader, looks, facts
end

-- ---- joins, camera, light, time -----------------------------------------------------------------------

local function share(a, b)
  for _, v in ipairs(a) do
    for _, w in ipairs(b) do if v == w then return true end end
  end
  return false
end

local function transition(shot, before)
  if not before then return "none", "the first shot" end
  if shot.join then return shot.join, "the words say it" end
  if shot.place ~= before.place then return "cut", "a new place" end
  if shot.jump then return "cut", "time has passed" end
  if shot.marked == "a mark of Wan2GP" then return shot.join or "overlap", "the mark says it" end
  if shot.place then return "overlap", "the same place" end
  if share(shot.who, before.who) or not shot.marked then return "overlap", "the same place, as far as the words say" end
  return "cut", "nothing in common"
end

local function title_of(shots)
  local words, from = {}, shots[1].text
  for word in from:gmatch("[^%s,.;:!?]+") do
    words[#words + 1] = word
    if #words == 6 or from:find("^[,.;:!?]", select(2, from:find(word, 1, true)) + 1) then break end
  end
  while #words > 1 and (lexicon.determiners[words[#words]:lower()] or lexicon.prepositions[words[#words]:lower()]
    or lexicon.conjunctions[words[#words]:lower()]) do words[#words] = nil end
  return (table.concat(words, " "):gsub("^%l", string.upper))
end

local function plan(text, options, note)
  local shots, reader, looks, facts = gather(text, note)
  if #shots == 0 then
    if #looks == 0 then return nil, "the prompt has no words" end
    shots[1] = { text = text, action = text, who = {} }
    note(1, "shot", text, "there is nothing else", text)
  end
  local board = { title = facts.title or title_of(shots), prompt = text, seed = options.seed, ending = facts.ending,
    characters = {}, places = {}, shots = {} }
  if #looks > 0 then board.look = table.concat(looks, ", ") end
  board.pace = options.pace or (calm:find(board.look or "") and "calm") or (quick:find(text) and "fast")
    or (calm:find(text) and #shots <= 3 and "calm") or "normal"
  for _, e in ipairs(reader.characters) do
    local used = false
    for _, shot in ipairs(shots) do used = used or share(shot.who, { e }) end
    if used then
      board.characters[e.name] = e.description
      note(0, "character", e.name, e.proper and "a name" or "a phrase that acts", e.description)
    end
  end
  local place, light, place_lights = nil, nil, {}
  local factor = ({ calm = 1.5, normal = 1, fast = 0.6 })[board.pace]
  for i, shot in ipairs(shots) do
    if shot.place then note(i, "where", shot.place.name, "the words name it", shot.place.description)
    elseif place and not shot.elsewhere then
      shot.place = place
      note(i, "where", place.name, "no other place is named", "")
    end
    place = shot.place
    local before = shots[i - 1]
    local join, why = transition(shot, before)
    note(i, "transition", join, why, "")
    local out = { text = trim(shot.text), who = {}, transition = join, overlap = shot.overlap }
    local action = trim(shot.action)
    if action ~= out.text and action ~= "" then
      out.action = action
      note(i, "action", action, "pronouns stand for whom they mean", out.text)
    end
    for k, e in ipairs(shot.who) do out.who[k] = e.name end
    if #out.who > 0 then note(i, "who", table.concat(out.who, ", "), "named, or meant by a pronoun", "") end
    if place then
      out.where = place.name
      board.places[place.name] = place.description
    end

    out.camera = first_of(cameras, shot.text)
    if out.camera then note(i, "camera", out.camera, "the words say it", "")
    elseif options.fill then
      local fresh = not before or before.place ~= shot.place
      out.camera = choose(fresh and lexicon.camera_first or lexicon.camera_later, options.seed, i * 2)
      note(i, "camera", out.camera, fresh and "chosen by the seed for a new place" or "chosen by the seed", "")
    end
    local said = first_of(lights, shot.light or "") or first_of(lights, shot.text)
    local key = place or "nowhere"
    if shot.jump and before and before.place == place then place_lights[key] = nil end
    if said then note(i, "light", said, "the words say it", "")
    elseif place_lights[key] then note(i, "light", place_lights[key], "the light of the place", "")
    elseif options.fill then
      local inside = place and lexicon.indoors[place.head]
      light = choose(inside and lexicon.light_indoors or lexicon.light_outdoors, options.seed, i * 2 + 1)
      note(i, "light", light, inside and "chosen by the seed, indoors" or "chosen by the seed", "")
    end
    out.light = said or place_lights[key] or (options.fill and light) or nil
    place_lights[key] = out.light

    local seconds, rule = shot.seconds, "the words say it"
    if not seconds then seconds, rule = options.grid.window * factor, "the model's length at a " .. board.pace .. " pace" end
    out.seconds = options.grid.seconds(seconds)
    note(i, "seconds", ("%.4g"):format(out.seconds), rule .. (out.seconds ~= seconds
      and (", %.4g on the frame grid"):format(seconds) or ""), "")
    board.shots[i] = out
  end
  return board
end

return { kind = "planner", name = "rules", params = {}, plan = plan }
