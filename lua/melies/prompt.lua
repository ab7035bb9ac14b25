-- Prompts: the marks that users of other tools write, read in one place.
--
--   prompt.parse(text, { style=, seed=, wildcards= }) -> parsed          never fails: what is odd is in parsed.warnings
--   prompt.at(parsed, step, steps) -> { { text=, weight=, key=, chunks= }, ... }   what is said at that step
--   prompt.changes(parsed) -> whether it may say something else at another step
--   prompt.encode(parsed, model, step, steps, { truncate= }) -> { { rows=, weight= }, ... } | nil, message
--   prompt.conditions(parsed, model, { steps=, truncate= }) -> object for guides that follows the steps | nil, message
--
-- parsed: conditions (one, or several joined by AND), loras, directives, warnings, plain (there were no marks), style.
-- Emphasis, schedules, alternation, BREAK and AND as in AUTOMATIC1111's web interface; <random:>, <alternate:>,
-- <fromto:> and <wildcard:> as in SwarmUI; (at 2 seconds: ...) and [/duration=5s] as in Wan2GP. docs/prompts.md has all.
-- A bracket that is never closed is closed by the end of its part; one that was never opened is a letter.
local lib = require "melies.ffi.lib"
local regex = require "melies.regex"

local M = {}

local MAX_DEPTH = 64         -- brackets within brackets; deeper ones are letters
local MAX_WILDCARD_DEPTH = 8 -- a line of a wildcard may name a wildcard
local MAX_EXPANSIONS = 1000  -- wildcards of one prompt
local MAX_WEIGHT = 1e4

M.styles = { "comfyui", "a1111", "plain" }

-- ---- tokens ----------------------------------------------------------------------------------------
-- Bytes, not characters: a prompt that is no UTF-8 is read too. Every byte is in one token.

local NUMBER = [[[+-]?(?:\d+\.?\d*|\.\d+)]]
local scanner = regex.new([=[
  (\\(?:AND\b|BREAK\b|[()\[\]<>|:,_\\]))                             # 1 escape
  |(<(?:lora|lyco):([^:<>]+)(?::([^<>]*))?>)                      # 2 LoRA: 3 name, 4 strength
  |(\(\s*at\s+(\d+\.?\d*|\.\d+)\s*(?:s|secs?|seconds?)?\s*:\s*)      # 5 timed text: 6 seconds
  |(\[(/[^\[\]]*)\])                                                 # 7 directive: 8 its text
  |(<(wildcard|random|alternate|alt|fromto)(?:\[([^\]<>]*)\])?:)     # 9 tag: 10 name, 11 argument
  |(__([A-Za-z0-9][\w./-]*?)__)                                      # 12 wildcard: 13 name
  |(\s*\bBREAK\b\s*)                                                 # 14
  |([()\[\]|:,>])                                                    # 15 mark
  |([^\\()\[\]<>|:,_B\s]+|\s+|.)                                     # 16 letters
]=], "bsx")
local and_word = regex.new([[(?<!\\)\bAND\b]], "b")
local part_weight = regex.new([[^(.*?):\s*(]] .. NUMBER .. [[)\s*$]], "bs")
local number_only = regex.new([[^\s*(]] .. NUMBER .. [[)\s*$]], "b")
local when_only = regex.new([[^\s*(\d+\.?\d*|\.\d+)\s*$]], "b")
local range_at = regex.new([[^\s*(]] .. NUMBER
  .. [[)\s*(?:@\s*(\d+\.?\d*|\.\d+)\s*(?:-\s*(\d+\.?\d*|\.\d+)\s*)?)?$]], "b")

-- A place in the run: "0.5" is a share of the steps, "12" a number of steps. As { share= } or { step= }.
local function when(text)
  if text:find(".", 1, true) then return { share = tonumber(text) } end
  return { step = tonumber(text) }
end

-- The steps that are over at that place, as a whole number.
local function steps_before(place, steps)
  return math.floor(place.share and place.share * steps or place.step)
end

-- ---- LoRA strengths --------------------------------------------------------------------------------

-- "0.8", "0.8@0.2-0.7" (only from 20% to 70% of the steps), "0.8@5" (after 5 steps), "1,0.5,0" (spread over the steps),
-- "1;0" (any of these for each expert of a model with two): a number or { value=, from=, to= } or { values= } or
-- { phases= }; nil and a message for anything else.
function M.strength(text)
  if type(text) == "number" then return text end
  if text:find(";", 1, true) then
    local phases = {}
    for item in (text .. ";"):gmatch("([^;]*);") do
      local strength, message = M.strength(item)
      if not strength then return nil, message end
      phases[#phases + 1] = strength
    end
    return { phases = phases }
  end
  if text:find(",", 1, true) then
    local values = {}
    for item in (text .. ","):gmatch("%s*(.-)%s*,") do
      local n = number_only:match(item)
      if not n then return nil, ("strength '%s': '%s' is not a number"):format(text, item) end
      values[#values + 1] = tonumber(n)
    end
    return { values = values }
  end
  local value, from, to = range_at:match(text)
  if not value then return nil, ("strength '%s' is not a number, or NUMBER@FROM-TO"):format(text) end
  if not from then return tonumber(value) end
  return { value = tonumber(value), from = when(from), to = to and when(to) or { share = 1 } }
end

-- The strength in force at a step (from 1) of a run.
function M.strength_at(strength, step, steps)
  if type(strength) == "number" then return strength end
  if strength.phases then return M.strength_at(strength.phases[1], step, steps) end
  if strength.values then
    local n = #strength.values
    return strength.values[math.min(n, math.floor((step - 1) * n / steps) + 1)]
  end
  local on = step > steps_before(strength.from, steps) and step <= steps_before(strength.to, steps)
  return on and strength.value or 0
end

-- ---- building --------------------------------------------------------------------------------------
-- Nodes: { text= }; { weight=, items= }; { before=, after=, place= }; { options= } (one a step, in turn); { stop= }
-- (BREAK); { sep= } (':', '|', ',') only within a frame, until it is closed.

local Build = {}
Build.__index = Build

local function warn(self, format, ...)
  if #self.warnings < 20 then self.warnings[#self.warnings + 1] = format:format(...) end
end

local function text_of(items, first, last)
  local out = {}
  for i = first, last do out[#out + 1] = items[i].text or items[i].sep or nil end
  return table.concat(out)
end

-- items[first..last] as nodes: separators that separated nothing are letters.
local function nodes(items, first, last)
  local out = {}
  for i = first or 1, last or #items do
    local item = items[i]
    out[#out + 1] = item.sep and { text = item.sep } or item
  end
  return out
end

local function is_text(items, first, last)
  for i = first, last do
    if not items[i].text then return false end
  end
  return last >= first
end

-- Parts between the separators `sep`, each a list of nodes.
local function split(items, sep)
  local parts, from = {}, 1
  for i = 1, #items + 1 do
    if i > #items or items[i].sep == sep then
      parts[#parts + 1] = nodes(items, from, i - 1)
      from = i + 1
    end
  end
  return parts
end

local function last_sep(items, sep)
  for i = #items, 1, -1 do
    if items[i].sep == sep then return i end
  end
end

local close = {}

-- (x) and (x:1.3)
close["("] = function(self, items)
  local at, weight, count = last_sep(items, ":"), 1.1, #items
  if at and is_text(items, at + 1, #items) then
    local n = number_only:match(text_of(items, at + 1, #items))
    if n then
      weight, count = tonumber(n), at - 1
      if math.abs(weight) > MAX_WEIGHT then
        warn(self, "weight %s is taken as %g", n, MAX_WEIGHT)
        weight = weight > 0 and MAX_WEIGHT or -MAX_WEIGHT
      end
    end
  end
  return { weight = weight, items = nodes(items, 1, count) }
end

-- [a|b], [a:b:0.5], [b:0.5] and [x]
close["["] = function(_, items)
  if last_sep(items, "|") then return { options = split(items, "|") } end
  local at = last_sep(items, ":")
  local place = at and is_text(items, at + 1, #items) and when_only:match(text_of(items, at + 1, #items))
  if not place then return { weight = 1 / 1.1, items = nodes(items) } end
  local first
  for i = 1, at - 1 do
    if items[i].sep == ":" then first = i break end
  end
  local before, after = nodes(items, 1, (first or 1) - 1), nodes(items, (first or 0) + 1, at - 1)
  return { before = before, after = after, place = when(place) }
end

-- (at 2 seconds: ...): the words stay in the prompt.
close.at = function(self, items, frame)
  local source = self.source:sub(frame.first, self.position - 1)
  self.directives[frame.directive].text = source
  return { weight = 1, items = nodes(items) }
end

-- The list of <random:a,b>: '|' or '||' separates where there is one, else ','.
local function choices(items)
  if not last_sep(items, "|") then return split(items, ",") end
  local single = {}
  for i, item in ipairs(items) do
    if not (item.sep == "|" and i > 1 and items[i - 1].sep == "|") then single[#single + 1] = item end
  end
  return split(single, "|")
end

close.random = function(self, items)
  local list = choices(items)
  return { weight = 1, items = list[self.pick(#list)] }
end
close.alternate = function(_, items) return { options = choices(items) } end
close.alt = close.alternate
close.fromto = function(self, items, frame)
  local list, place = choices(items), when_only:match(frame.argument or "")
  if not place or #list ~= 2 then
    warn(self, "<fromto[%s]:...> wants a place in the brackets and two texts", frame.argument or "")
    return { weight = 1, items = list[1] }
  end
  return { before = list[1], after = list[2], place = when(place) }
end
close.wildcard = function(self, items)
  local name = is_text(nodes(items), 1, #items) and text_of(items, 1, #items):match("^%s*(.-)%s*$")
  return self:wildcard(name or "", "<wildcard:" .. (name or "...") .. ">")
end

-- ---- wildcards -------------------------------------------------------------------------------------

-- Lines of folder/name.txt that are neither empty nor a comment, or nil and a message.
function Build:lines(name)
  local kept = self.files[name]
  if kept then return kept[1], kept[2] end
  local lines, message
  if not self.wildcards then message = "no folder of wildcards is given"
  elseif not name:find("^[%w_][%w_ ./-]*$") or name:find("..", 1, true) then message = "that is not a name"
  else
    local f, why = io.open(self.wildcards .. "/" .. name .. ".txt", "rb")
    if f then
      lines = {}
      for line in ((f:read("*a") or "") .. "\n"):gmatch("([^\n]*)\n") do
        line = line:match("^%s*(.-)%s*$")
        if line ~= "" and line:sub(1, 1) ~= "#" then lines[#lines + 1] = line end
      end
      f:close()
      if #lines == 0 then lines, message = nil, "the file has no lines" end
    else message = why end
  end
  self.files[name] = { lines, message }
  return lines, message
end

-- A line of the file, itself parsed; what cannot be had stays as it is written.
function Build:wildcard(name, written)
  local lines, message = self:lines(name)
  local shared = self.shared
  if lines and (self.level >= MAX_WILDCARD_DEPTH or shared.expansions >= MAX_EXPANSIONS) then
    lines, message = nil, "too many wildcards within wildcards"
  end
  if not lines then
    warn(self, "wildcard '%s': %s", name, message)
    return { text = written }
  end
  shared.expansions = shared.expansions + 1
  local inner = setmetatable({ level = self.level + 1, source = lines[self.pick(#lines)] }, { __index = self })
  return { weight = 1, items = inner:read() }
end

-- ---- reading ---------------------------------------------------------------------------------------

local function trimmed(text) return text:match("^%s*(.-)%s*$") end

-- "/duration=5s,/overlap=9,/new_shot": { duration = 5, overlap = 9, new_shot = true }.
local function settings(text)
  local out = {}
  for item in (text .. ","):gmatch("%s*/?%s*(.-)%s*,") do
    local key, value = item:match("^([%w_]+)%s*=%s*(.*)$")
    if key then out[key] = tonumber((value:gsub("^([%d.]+)%s*s$", "%1"))) or value
    elseif item:find("^[%w_]+$") then out[item] = true end
  end
  return out
end

function Build:add_lora(name, strength)
  local value, message = 1, nil
  if strength and trimmed(strength) ~= "" then value, message = M.strength(strength) end
  if not value then
    warn(self, "<lora:%s>: %s; 1 is taken", name, message)
    value = 1
  end
  self.loras[#self.loras + 1] = { name = trimmed(name), strength = value }
end

-- The nodes of self.source.
function Build:read()
  local stack = { { items = {} } }
  self.position = 1
  local function put(item)
    local items = stack[#stack].items
    items[#items + 1] = item
  end
  local function open(kind, fields, written)
    if #stack > MAX_DEPTH then
      if #stack == MAX_DEPTH + 1 and not self.shared.deep then
        self.shared.deep = true
        warn(self, "brackets are nested deeper than %d: the inner ones are letters", MAX_DEPTH)
      end
      return put { text = written }
    end
    fields = fields or {}
    fields.kind, fields.items = kind, {}
    stack[#stack + 1] = fields
  end
  local function shut()
    local frame = table.remove(stack)
    put(close[frame.kind](self, frame.items, frame))
  end
  local closes = { ["("] = ")", at = ")", ["["] = "]" }

  for escape, lora, name, strength, timed, seconds, directive, body, tag, tag_name, argument, wild, wild_name, stop,
    mark, letters in scanner:gmatch(self.source) do
    local token = escape or lora or timed or directive or tag or wild or stop or mark or letters
    if not letters and (not mark or mark == "(" or mark == "[") then self.shared.marks = true end
    if escape then put { text = escape:sub(2) }
    elseif lora then self:add_lora(name, strength or nil)
    elseif timed then
      if #stack <= MAX_DEPTH then
        self.directives[#self.directives + 1] = { kind = "at", seconds = tonumber(seconds), position = self.position }
      end
      open("at", { first = self.position + #token, directive = #self.directives }, token)
    elseif directive then
      local found = settings(body)
      found.kind, found.position, found.body = "shot", self.position, self.position + #token
      self.directives[#self.directives + 1] = found
      put { text = " " }
    elseif tag then open(tag_name, { argument = argument or nil }, token)
    elseif wild then put(self:wildcard(wild_name, wild))
    elseif stop then put { stop = true }
    elseif mark == "(" or mark == "[" then open(mark, nil, mark)
    elseif mark == ")" or mark == "]" or mark == ">" then
      local kind = stack[#stack].kind
      if kind and (closes[kind] or ">") == mark then shut() else put { text = mark } end
    elseif mark then put { sep = mark }
    else put { text = letters } end
    self.position = self.position + #token
  end
  while #stack > 1 do shut() end
  return nodes(stack[1].items)
end

-- ---- the door --------------------------------------------------------------------------------------

local PARSE = { style = true, seed = true, wildcards = true, steps = true, negative = true }

-- opts: style "comfyui" (default), "a1111" or "plain" (no marks at all); seed of the choices; wildcards: a folder of
-- NAME.txt; steps: the default of prompt.at; negative: AND is a word.
function M.parse(text, opts)
  if type(text) ~= "string" then error("prompt.parse: a text is wanted, not a " .. type(text), 2) end
  opts = opts or {}
  lib.check_options("prompt.parse", opts, PARSE, 2)
  local style = opts.style or "comfyui"
  if style ~= "comfyui" and style ~= "a1111" and style ~= "plain" then
    error(("prompt.parse: style is '%s'%s"):format(tostring(style), lib.suggest(tostring(style), M.styles)), 2)
  end
  local parsed = { source = text, style = style, steps = opts.steps, plain = true, conditions = {}, loras = {},
    directives = {}, warnings = {} }
  if style == "plain" then
    parsed.conditions[1] = { weight = 1, nodes = { { text = text } } }
    return parsed
  end
  local draws = 0
  local function pick(n)
    draws = draws + 1
    local key = { seed = opts.seed or 0, stream = 2 ^ 50, offset = draws - 1 }
    local u = require("melies.tensor").uniform({ 1 }, key):item()
    return math.min(n, math.floor(u * n) + 1)
  end
  local parts = opts.negative and { text } or and_word:split(text)
  local shared = { marks = #parts > 1, expansions = 0 }
  local offset = 0
  for _, part in ipairs(parts) do
    local weight, source = 1, part
    if #parts > 1 then
      local body, n = part_weight:match(part)
      if body then source, weight = body, math.max(-MAX_WEIGHT, math.min(MAX_WEIGHT, tonumber(n))) end
    end
    local first = #parsed.directives + 1
    local build = setmetatable({ source = source, level = 0, pick = pick, shared = shared, files = {},
      wildcards = opts.wildcards, loras = parsed.loras, directives = parsed.directives,
      warnings = parsed.warnings }, Build)
    parsed.conditions[#parsed.conditions + 1] = { weight = weight, nodes = build:read() }
    -- A shot directive holds for the text up to the next one.
    local stop = #source + 1
    for i = #parsed.directives, first, -1 do
      local d = parsed.directives[i]
      if d.kind == "shot" then d.text, stop, d.body = trimmed(source:sub(d.body, stop - 1)), d.position, nil end
      d.position = d.position + offset
    end
    offset = offset + #part + 3
  end
  parsed.plain = not shared.marks
  return parsed
end

-- ---- what is said at a step ------------------------------------------------------------------------

-- Appends { text, weight } spans to the last of chunks; spans of one weight are joined.
local function flatten(list, weight, step, steps, chunks)
  for _, node in ipairs(list) do
    if node.text then
      local chunk = chunks[#chunks]
      local last = chunk[#chunk]
      if last and last.weight == weight then last.text = last.text .. node.text
      elseif node.text ~= "" then chunk[#chunk + 1] = { text = node.text, weight = weight } end
    elseif node.stop then chunks[#chunks + 1] = {}
    elseif node.options then flatten(node.options[(step - 1) % #node.options + 1], weight, step, steps, chunks)
    elseif node.place then
      local branch = step <= steps_before(node.place, steps) and node.before or node.after
      flatten(branch, weight, step, steps, chunks)
    else
      local inner = weight * node.weight
      if math.abs(inner - 1) < 1e-9 then inner = 1 end -- ([x])
      flatten(node.items, inner, step, steps, chunks)
    end
  end
end

local function varies(list)
  for _, node in ipairs(list) do
    if node.options or node.place or node.items and varies(node.items) then return true end
  end
  return false
end

-- Whether the prompt may say something else at another step.
function M.changes(parsed)
  for _, condition in ipairs(parsed.conditions) do
    if varies(condition.nodes) then return true end
  end
  return false
end

-- Blanks at the ends come from marks that were taken out; double ones likewise.
local function tidy(chunk)
  local out, blank = {}, true
  for _, span in ipairs(chunk) do
    local text = span.text:gsub("[ \t\r\n]+", " ")
    if blank then text = text:gsub("^ ", "") end
    if text ~= "" then
      out[#out + 1] = { text = text, weight = span.weight }
      blank = text:sub(-1) == " "
    end
  end
  local last = out[#out]
  if last and blank then
    last.text = last.text:sub(1, -2)
    if last.text == "" then out[#out] = nil end
  end
  return out
end

-- One entry a condition: text (chunks joined by a blank), weight (of AND), chunks (parts between BREAKs, each a list of
-- { text=, weight= }) and key: equal keys are equal conditions, so that only changed ones are encoded again.
function M.at(parsed, step, steps)
  step, steps = step or 1, steps or parsed.steps or 1
  local out = {}
  for i, condition in ipairs(parsed.conditions) do
    local chunks, texts, keys = { {} }, {}, {}
    flatten(condition.nodes, 1, step, steps, chunks)
    for k = #chunks, 1, -1 do
      if not parsed.plain then chunks[k] = tidy(chunks[k]) end
      if #chunks[k] == 0 and #chunks > 1 then table.remove(chunks, k) end
    end
    for k, chunk in ipairs(chunks) do
      local words = {}
      for s, span in ipairs(chunk) do
        words[s] = span.text
        keys[#keys + 1] = ("%d:%s*%.9g"):format(#span.text, span.text, span.weight)
      end
      texts[k] = table.concat(words)
      keys[#keys + 1] = "/"
    end
    out[i] = { text = table.concat(texts, " "), weight = condition.weight, chunks = chunks,
      key = table.concat(keys, "\1") }
  end
  return out
end

function M.encode(...) return require("melies.prompt.encode").encode(...) end
function M.conditions(...) return require("melies.prompt.encode").conditions(...) end

-- denoise(x, sigma) that tells each of `followers` (they have seek(step, steps)) the step that sigma belongs to: the
-- one whose interval (sigmas[i + 1], sigmas[i]] holds it.
function M.follow(denoise, sigmas, followers)
  local n, at = #sigmas - 1, nil
  return function(x, sigma)
    local step = 1
    while step < n and sigma <= sigmas[step + 1] do step = step + 1 end
    if step ~= at then
      at = step
      for _, follower in ipairs(followers) do follower:seek(step, n) end
    end
    return denoise(x, sigma)
  end
end

return M
