-- What a unit of words shows: noun phrases, who and where of them, pronouns, the verb. Patterns and word lists, no
-- grammar: a phrase is a determiner, adjectives and a noun; a subject is a phrase before a verb.
--   analyse.new() -> reader;  reader:unit(text) -> { who, place, subject, verb, dynamic, action, ... }
--   reader.characters, reader.places: lists of { name, description, head, ... } in the order they were met
local regex = require "melies.regex"
local lexicon = require "melies.plan.lexicon"

local Reader = {}
Reader.__index = Reader

local M = {}

function M.new()
  return setmetatable({ characters = {}, places = {}, things = {}, previous = {} }, Reader)
end

local token = regex.new([=[[A-Za-z0-9\x80-\xff]+(?:(?:['.-]|’)[A-Za-z0-9\x80-\xff]+)*|[^\sA-Za-z0-9] ]=], "bx")

local function tokens_of(text)
  local out, at = {}, 1
  while true do
    local first, last = token:find(text, at)
    if not first then break end
    local w = text:sub(first, last)
    out[#out + 1] = { w = w, l = w:lower(), first = first, last = last, mark = not w:find("[%w\128-\255]"),
      capital = w:find("^%u%l") ~= nil }
    at = last + 1
  end
  return out
end

-- ---- noun phrases ----------------------------------------------------------------------------------

local function known_noun(word) return lexicon.mover(word) or lexicon.place(word) or lexicon.scenery[word] end

local function breaks(t)
  return t.mark or lexicon.prepositions[t.l] or lexicon.conjunctions[t.l] or lexicon.auxiliaries[t.l]
end

-- The phrase that begins at i: { first, last (tokens), head, det, words }, or nil. joined: it follows "and".
local function phrase(tokens, i, joined)
  local j, det = i, nil
  while tokens[j] and lexicon.determiners[tokens[j].l] do
    det = det or tokens[j].l
    if lexicon.plural_determiners[tokens[j].l] then det = tokens[j].l end
    j = j + 1
  end
  local head, last, start = nil, nil, j
  while tokens[j] and j - start < 8 do
    local t, following = tokens[j], tokens[j + 1]
    if t.l == "," or t.l == "and" then
      local before = tokens[j - 1]
      if head or j == start or not lexicon.adjective(before.l) or not following or breaks(following)
        or not lexicon.adjective(following.l) then break end
    elseif breaks(t) or lexicon.determiners[t.l] or (lexicon.pronouns[t.l] and t.l ~= "her") then break
    elseif lexicon.adverbs[t.l] and (head or not det) then break
    else
      local stem, form = lexicon.verb(t.l)
      if head then
        local noun = known_noun(t.l)
        if stem and form ~= "base" and not noun then break end
        if stem and form == "base" and (lexicon.is_plural(tokens[head].l) or joined or not det)
          and not (noun and not lexicon.verb(t.l)) then break end
        if lexicon.adjectives[t.l] and not noun then break end
        if (t.l:find("ly$") or t.l:find("%w%w%wed$")) and not noun then break end
        head = j
      elseif known_noun(t.l) or not lexicon.adjective(t.l) then
        if stem and form == "third" and not known_noun(t.l) and last then
          break -- "the old sleeps": what stood before was the noun
        end
        head = j
      end
      last = j
      if t.l:find("'s$") or t.l:find("’s$") then head = nil end
    end
    j = j + 1
  end
  if not last then return nil end
  head = head or last
  -- "a dog zorbs": an unknown word in s after a noun with "a" is a verb
  if det and (det == "a" or det == "an") and head > start and tokens[head].l:find("[^su]s$")
    and not known_noun(tokens[head].l) and not tokens[head].l:find("'s$") and not lexicon.adjective(tokens[head - 1].l) then
    head = head - 1
    last = head
  end
  return { first = i, last = last, head = head, word = tokens[head].l, det = det, start = start,
    bare = det == nil, proper = tokens[head].capital and tokens[start].capital }
end

local function text_of(tokens, text, first, last) return text:sub(tokens[first].first, tokens[last].last) end

-- Of a whole sentence's words: lower case in front of what is no name.
local function uncapital(text)
  local word = text:match("^%a+")
  if word and not text:find("^%u%u") then return word:sub(1, 1):lower() .. text:sub(2) end
  return text
end

-- The verb after token i: stem, form, index; adverbs and "who" between do not count.
local function verb_after(tokens, i)
  local j = i + 1
  while tokens[j] and (lexicon.adverbs[tokens[j].l] or tokens[j].l:find("ly$") or tokens[j].l == "who"
    or tokens[j].l == "that" or tokens[j].l == "which") do j = j + 1 end
  local t = tokens[j]
  if not t or t.mark then return nil end
  if lexicon.auxiliaries[t.l] then
    if t.l:find("^d[oi]") and tokens[j + 1] and lexicon.determiners[tokens[j + 1].l] then return "do", "third", j end
    local k = j + 1
    while tokens[k] and (lexicon.adverbs[tokens[k].l] or tokens[k].l:find("ly$")) do k = k + 1 end
    local stem, form = nil, nil
    if tokens[k] then stem, form = lexicon.verb(tokens[k].l) end
    if stem and (form == "gerund" or form == "past" or form == "base") and not known_noun(tokens[k].l) then
      return form == "past" and "be" or stem, form, k
    end
    return t.l:find("^ha") and "have" or "be", "third", j
  end
  local stem, form = lexicon.verb(t.l)
  if stem then return stem, form, j end
end

-- ---- characters and places -----------------------------------------------------------------------

local function adjectives_of(tokens, np)
  local out = {}
  for k = np.start, np.head - 1 do
    if not tokens[k].mark and tokens[k].l ~= "and" and tokens[k].l ~= "same" then out[#out + 1] = tokens[k].l end
  end
  return out
end

local function has_all(entity, words)
  for _, word in ipairs(words) do
    if not entity.words[word] then return false end
  end
  return true
end

local function found_among(list, head, words, new)
  local singular, best = lexicon.singular(head), nil
  for _, e in ipairs(list) do
    if lexicon.singular(e.head) == singular then
      if has_all(e, words) then best = e
      elseif not new and not best then best = e end
    end
  end
  return best
end

-- A name that no other of the list has: the head, with words before it where it is taken.
local function name_for(list, tokens, np, proper, text)
  local name = proper and text_of(tokens, text, np.start, np.head):lower() or np.word
  local function taken(n)
    for _, e in ipairs(list) do if e.name == n then return e end end
  end
  local other = taken(name)
  if other then
    -- two balls: both are told apart by their last adjective
    local words = adjectives_of(tokens, np)
    local own = words[#words]
    if own then
      if other.adjective and other.adjective ~= own and not taken(other.adjective .. " " .. name) then
        other.name = other.adjective .. " " .. name
      end
      name = own .. " " .. name
    end
    local base, n = name, 2
    while taken(name) do name, n = base .. " " .. n, n + 1 end
  end
  return name
end

local function make(list, tokens, np, text, proper)
  local words = adjectives_of(tokens, np)
  local e = { head = np.word, words = {}, adjective = words[#words], proper = proper,
    gender = proper and "human" or lexicon.gender(np.word),
    plural = lexicon.is_plural(np.word) or lexicon.plural_determiners[np.det or ""] or false }
  for _, w in ipairs(words) do e.words[w] = true end
  e.name = name_for(list, tokens, np, proper, text)
  e.description = text_of(tokens, text, np.first, np.last)
  if not proper then e.description = uncapital(e.description) end
  list[#list + 1] = e
  return e
end

-- Past "in a yellow raincoat", "with a long tail", "wearing ...", from token i on: the last token of it.
local function adornment(tokens, i)
  local t = tokens[i + 1]
  if not t then return i end
  local from = (t.l == "with" or t.l == "in" or t.l == "wearing") and i + 2 or (t.l == "made" and tokens[i + 2]
    and tokens[i + 2].l == "of" and i + 3) or (t.l == "dressed" and i + 3)
  local np = from and phrase(tokens, from, true)
  if not np then return i end
  local word = np.word
  if lexicon.place(word) or lexicon.mover(word) or (t.l == "in" and (lexicon.scenery[word]
    and not ({ hat = 1, coat = 1, dress = 1, jacket = 1, suit = 1, clothes = 1 })[word] or np.proper)) then return i end
  if t.l == "in" and verb_after(tokens, np.last) == nil and tokens[np.last + 1] and not breaks(tokens[np.last + 1]) then
    return i
  end
  local last = np.last
  if tokens[last + 1] and tokens[last + 1].l == "and" then
    local more = phrase(tokens, last + 2, true)
    if more and more.det and not lexicon.mover(more.word) and not verb_after(tokens, more.last) then last = more.last end
  end
  return last
end

-- ---- one unit --------------------------------------------------------------------------------------

local function add(list, value)
  for _, v in ipairs(list) do if v == value then return end end
  list[#list + 1] = value
end

-- Whom a pronoun means; not those that the clause has named already, where it is no subject.
function Reader:resolve(kind, info, subject)
  local function fits(e)
    if not subject then
      for _, other in ipairs(info.who) do if other == e then return false end end
    end
    if kind == "plural" then return e.plural end
    if e.plural then return false end
    if kind == "thing" then return e.gender == "thing" end
    return e.gender == kind or e.gender == "human"
  end
  -- the subject of this unit, or what it names before any verb ("a star, it spins"); the subject of what came before, then
  -- whom it showed, then all others from the latest
  if subject and kind ~= "plural" then
    for _, e in ipairs(#info.subjects > 0 and info.subjects or not info.verb and info.who or {}) do
      if fits(e) then return { e } end
    end
  end
  for _, e in ipairs(self.previous) do
    if fits(e) then
      if e.gender == "human" and (kind == "male" or kind == "female") then e.gender = kind end
      return { e }
    end
  end
  for i = #self.characters, 1, -1 do
    local e = self.characters[i]
    if fits(e) then
      if e.gender == "human" and (kind == "male" or kind == "female") then e.gender = kind end
      return { e }
    end
  end
  if kind == "plural" then
    local group = #self.previous > 1 and self.previous or self.characters
    if #group > 1 then return { unpack(group) } end
    return group[1] and { group[1] }
  end
  if kind ~= "thing" then -- an animal, where there is no person
    for i = #self.characters, 1, -1 do
      if not self.characters[i].plural and lexicon.animals[lexicon.singular(self.characters[i].head)] then
        return { self.characters[i] }
      end
    end
  elseif self.things[#self.things] and not subject then
    local thing = table.remove(self.things)
    local e = make(self.characters, thing.tokens, thing.np, thing.text)
    return { e }
  end
end

local function reference(e) return e.proper and e.display or "the " .. e.name end

local function place_role(tokens, np, info, verb)
  local before = tokens[np.first - 1]
  local p = before and before.l
  if p == "of" then
    local pp = tokens[np.first - 2]
    if pp and ({ inside = 1, middle = 1, center = 1, centre = 1, edge = 1, top = 1, interior = 1, view = 1 })[pp.l] then
      return true
    end
    return info.view
  end
  if p == "at" and info.verb and lexicon.pointing[info.last_verb or info.verb] then return false end
  if p and (lexicon.at_place[p] or p == "to") then return "at" end
  if info.entering then return true end
  if info.verb and not verb and not lexicon.prepositions[p or "a"] and not info.anywhere then return true end
  if p and lexicon.prepositions[p] then return false end
  return not info.subject and not verb and (np.first == 1 or info.lead == np.first)
end

function Reader:place(tokens, np, text, info)
  local words = adjectives_of(tokens, np)
  local another = np.det == "another" or tokens[np.start].l == "different" or tokens[np.start].l == "second"
  local e = not another and found_among(self.places, np.word, np.det == "a" and words or {}, np.det == "a" or np.det == "an")
    or nil
  if not e and not another then e = found_among(self.places, np.word, {}, false) end
  if not e then
    e = make(self.places, tokens, np, text, np.proper and not lexicon.place(np.word))
    local of = tokens[np.last + 1]
    local more = of and of.l == "of" and phrase(tokens, np.last + 2)
    if more and not lexicon.mover(more.word) then e.description = text_of(tokens, text, np.first, more.last) end
    e.description = uncapital(e.description)
  end
  info.place = info.place or e
end

function Reader:character(tokens, np, text, info, proper)
  local words = adjectives_of(tokens, np)
  local new = np.det == "a" or np.det == "an" or np.det == "another"
  local e
  if np.det ~= "another" then
    if new then
      for _, other in ipairs(self.characters) do -- "a red ball" again is the red ball
        if lexicon.singular(other.head) == lexicon.singular(np.word) and #words > 0 and has_all(other, words) then e = other end
      end
    else e = found_among(self.characters, np.word, words, false) end
    if proper then
      e = nil
      for _, other in ipairs(self.characters) do
        if other.proper and other.head == np.word then e = other end
      end
    end
  end
  local kinds = lexicon.kinds[lexicon.singular(np.word)]
  if not e and kinds and not new then
    for _, other in ipairs(self.characters) do
      if kinds[lexicon.singular(other.head)] then e = other end
    end
  end
  if e then
    add(info.who, e)
    return e, np.last
  end
  e = make(self.characters, tokens, np, text, proper)
  local last = np.last
  if proper then
    e.display = text_of(tokens, text, np.start, np.head)
    -- "Anna, a girl in a yellow raincoat, runs"
    local comma = tokens[last + 1]
    local more = comma and comma.l == "," and phrase(tokens, last + 2)
    if more and more.det and (more.det == "a" or more.det == "an" or more.det == "the") then
      last = adornment(tokens, more.last)
      e.gender = lexicon.gender(more.word)
      if e.gender == "thing" and not lexicon.mover(more.word) then e.gender = "human" end
      e.description = e.display .. ", " .. text_of(tokens, text, more.first, last)
    end
  else
    last = adornment(tokens, last)
    e.description = uncapital(text_of(tokens, text, np.first, last))
  end
  add(info.who, e)
  return e, last
end

local function is_name(tokens, np, i)
  if not np.proper or np.det or lexicon.mover(np.word) or lexicon.place(np.word) or lexicon.scenery[np.word] then return false end
  if lexicon.is_plural(np.word) and not tokens[np.last + 1] then return false end
  if np.start == 1 and np.head == np.start then
    local after = tokens[np.last + 1]
    if lexicon.adjective(np.word) or lexicon.verb(np.word) or lexicon.view_words[np.word] then return false end
    return after and (after.l == "," and tokens[np.last + 2] and lexicon.determiners[tokens[np.last + 2].l]
      or verb_after(tokens, np.last) ~= nil) and not lexicon.is_plural(np.word)
      or (after and after.l == "and" and tokens[np.last + 2] and tokens[np.last + 2].capital) or false
  end
  return i > 0
end

-- Reads one unit. info.who: characters in the order shown; info.place; info.subject; info.verb (stem); info.dynamic: an
-- action; info.camera_subject, info.view; info.action: the words with pronouns resolved.
function Reader:unit(text)
  local tokens = tokens_of(text)
  local info = { who = {}, subjects = {}, tokens = tokens, anywhere = #self.places > 0 }
  local replace, i, clause, joined = {}, 1, true, false
  while tokens[i] do
    local t = tokens[i]
    local following = tokens[i + 1]
    local pronoun = lexicon.pronouns[t.l]
    if pronoun == "female" and t.l == "her" and following and not breaks(following)
      and not lexicon.adverbs[following.l] and not following.l:find("ly$") then pronoun = nil end
    if t.mark then
      if t.l == "," or t.l == ":" or t.l == "(" then clause = true end
      joined = false
      i = i + 1
    elseif lexicon.some_of[t.l] and following and following.l == "of" and tokens[i + 2] and tokens[i + 2].l == "them" then
      local stem, _, at = verb_after(tokens, i + 2) -- "one of them waves"
      for _, e in ipairs(self:resolve("plural", info, true) or {}) do
        add(info.who, e)
        if stem then add(info.subjects, e) end
      end
      if stem then
        info.last_verb, info.subject = stem, info.subject or info.who[1] or true
        if not info.verb or info.verb == "be" then info.verb, info.verb_at = stem, at end
        if not lexicon.static[stem] and stem ~= "be" then info.dynamic = true end
      end
      clause, joined = false, false
      i = i + 3
    elseif pronoun and pronoun ~= "self" then
      local stem, form, at = verb_after(tokens, i)
      local subject = stem ~= nil and t.l ~= "him" and t.l ~= "them" and t.l ~= "her" and form ~= "gerund"
      local found = self:resolve(pronoun, info, subject)
      for _, e in ipairs(found or {}) do
        add(info.who, e)
        if subject then add(info.subjects, e) end
      end
      if found then
        local names = {}
        for k, e in ipairs(found) do names[k] = reference(e) end
        replace[#replace + 1] = { t.first, t.last, table.concat(names, " and ") }
      end
      if subject then
        info.last_verb = stem
        info.subject = info.subject or (found and found[1]) or true
        if not info.verb or info.verb == "be" then info.verb, info.verb_at = stem, at end
        if not lexicon.static[stem] and stem ~= "be" then info.dynamic = true end
      end
      clause, joined = false, false
      i = i + 1
    elseif lexicon.conjunctions[t.l] then
      clause, joined = true, t.l == "and"
      i = i + 1
    elseif lexicon.auxiliaries[t.l] then
      clause = false
      i = i + 1
    elseif lexicon.prepositions[t.l] then
      info.entering = nil
      i = i + 1
    else
      local stem, form = lexicon.verb(t.l)
      local is_verb = stem and not lexicon.determiners[t.l] and not (clause and known_noun(t.l))
        and (form ~= "base" or not clause or info.subject) and not (i > 1 and tokens[i - 1].l == "of")
        and not (form == "past" and (known_noun(t.l)))
        and not (known_noun(t.l) and (form == "base" or not info.subject))
      if is_verb and not (form == "gerund" and following and not breaks(following) and not lexicon.determiners[following.l]
        and not lexicon.adverbs[following.l] and clause and not info.subject and known_noun(following.l)) then
        info.verb, info.last_verb = info.verb or stem, stem
        if i == 1 and form ~= "gerund" and self.previous[1] then info.continued = self.previous[1] end
        if not lexicon.static[stem] and (info.subject and info.subject ~= "scenery") then info.dynamic = true end
        info.entering = lexicon.entering[stem]
        clause = false
        i = i + 1
      else
        local np = phrase(tokens, i, joined)
        if not np then
          i = i + 1
        else i = self:phrase(tokens, np, text, info, clause) clause = false end
      end
      joined = false
    end
  end
  -- from the end, so that places stay true
  local action = text
  for k = #replace, 1, -1 do
    local r = replace[k]
    local put = r[3]
    if r[1] == 1 and text:find("^%u") then put = put:gsub("^%l", string.upper) end
    action = action:sub(1, r[1] - 1) .. put .. action:sub(r[2] + 1)
  end
  if info.continued and #info.subjects == 0 then -- "dives into the sea": who did what came before
    local e = info.continued
    action = reference(e) .. " " .. action
    table.insert(info.who, 1, e)
    info.subjects[1], info.subject, info.dynamic = e, e, true
  end
  info.action = action
  if not info.subject and info.who[1] then info.subject = info.who[1] end
  return info
end

-- What a phrase is; returns the token after it.
function Reader:phrase(tokens, np, text, info, clause)
  local word, singular = np.word, lexicon.singular(np.word)
  local before = tokens[np.first - 1] and tokens[np.first - 1].l
  local after = tokens[np.last + 1]
  local after_of = before == "of"
  local stem, form, at = verb_after(tokens, np.last)
  local free = not before or not lexicon.prepositions[before] or (after_of and info.view)
  if lexicon.view_words[word] or (word == "shot" or word == "close-up") then
    info.view = true
    info.lead = np.last + 2
    return np.last + 1
  end
  if word == "camera" then
    if not info.subject then info.subject, info.camera_subject = "scenery", true end
    return np.last + 1
  end
  if lexicon.group_words[word] and after and after.l == "of" then -- "a group of dancers"
    local inner = phrase(tokens, np.last + 2)
    if inner then
      inner.first, inner.det, inner.start = np.first, np.det, inner.start
      np = inner
      word, singular = np.word, lexicon.singular(np.word)
      stem, form, at = verb_after(tokens, np.last)
    end
  end
  local function subject(e)
    if not free then return end
    if stem or not info.verb then
      info.subject = (not info.subject or info.subject == "scenery") and e or info.subject
      add(info.subjects, e)
    end
    if stem then
      info.last_verb = stem
      if not info.verb or info.verb == "be" then info.verb, info.verb_at = stem, at end
      if not lexicon.static[stem] and stem ~= "be" and not (form == "past" and lexicon.verb(tokens[at].l) == nil) then
        info.dynamic = true
      end
    end
  end
  local mover = lexicon.mover(word)
  if lexicon.place(word) and not (mover and stem and free) then
    local role = place_role(tokens, np, info, stem)
    if role then self:place(tokens, np, text, info)
    elseif free and stem and not info.subject then
      -- "The street is damp": where we are
      info.subject = "scenery"
      info.about_place = true
      if stem and not info.verb then info.verb = stem end
    end
    return np.last + 1
  end
  local there = before == "in" or before == "at" or before == "through" or before == "across" or before == "around"
  if there and np.proper and not mover and not lexicon.scenery[word] then
    self:place(tokens, np, text, info)
    return np.last + 1
  end
  if is_name(tokens, np, np.first) and (free or before == "with" or before == "and") then
    local e, last = self:character(tokens, np, text, info, true)
    stem, form, at = verb_after(tokens, tokens[last + 1] and tokens[last + 1].l == "," and last > np.last and last + 1 or last)
    subject(e)
    return last + 1
  end
  -- in a car: where, if nothing else says it
  if mover and lexicon.vehicles[singular] and (before == "in" or before == "inside" or before == "aboard")
    and not found_among(self.characters, word, {}, false) then
    if not info.place then self:place(tokens, np, text, info) end
    return np.last + 1
  end
  local known = found_among(self.characters, word, {}, false)
  -- "mission control, where engineers cheer"
  local where = after and after.l == "," and tokens[np.last + 2] and tokens[np.last + 2].l == "where"
  if where and free and not mover and not known and not lexicon.scenery[word] then
    self:place(tokens, np, text, info)
    return np.last + 1
  end
  if lexicon.scenery[word] and not known then
    if free and clause and not info.subject and (stem or np.first == 1) then
      info.subject = "scenery"
      info.scenery = word
      if stem and not info.verb then info.verb = stem end
    end
    return np.last + 1
  end
  if before == "like" or before == "as" or (after_of and not info.view and not known) then return np.last + 1 end
  local is_subject = free and (stem ~= nil and (clause or not info.subject) or not info.subject and not info.verb and clause)
    or (after_of and info.view and not info.subject)
  if mover or known or is_subject then
    if np.bare and not mover and not known and not lexicon.is_plural(word) then return np.last + 1 end
    if np.bare and lexicon.adjective(word) and not mover and not known then return np.last + 1 end
    local e, last = self:character(tokens, np, text, info)
    stem, form, at = verb_after(tokens, last)
    if is_subject or clause then subject(e) end
    return last + 1
  end
  if np.det == "a" or np.det == "an" then self.things[#self.things + 1] = { tokens = tokens, np = np, text = text } end
  return np.last + 1
end

return M
