-- Personal data out of texts: e-mail addresses, phone, card and ID numbers, IP addresses, and names from a list. What is
-- found is replaced by a word in brackets and counted; the text as it was goes nowhere.
--   local s = scrub.new { names = { "Ada Lovelace" } }
--   s:text("call Ada Lovelace at +44 20 7946 0018")   -> "call [name] at [phone]"
--   s.counts                                            { email =, card =, id =, ip =, phone =, name = }
local regex = require "melies.regex"

local scrub = {}
local Scrubber = {}
Scrubber.__index = Scrubber

scrub.kinds = { "email", "card", "id", "ip", "phone", "name" }

local function digits_of(text) return (text:gsub("%D", "")) end

-- The checksum of card numbers (ISO/IEC 7812-1, annex B).
function scrub.luhn(text)
  local digits, sum = digits_of(text), 0
  for i = 0, #digits - 1 do
    local d = digits:byte(#digits - i) - 48
    if i % 2 == 1 then
      d = d * 2
      if d > 9 then d = d - 9 end
    end
    sum = sum + d
  end
  return #digits > 0 and sum % 10 == 0
end

-- The checksum of an IBAN (ISO 13616: the number mod 97 is 1).
function scrub.iban(text)
  local code = text:gsub("%s", ""):upper()
  code = code:sub(5) .. code:sub(1, 4)
  local rest = 0
  for c in code:gmatch "." do
    local v = tonumber(c, 36)
    if not v then return false end
    rest = v < 10 and (rest * 10 + v) % 97 or (rest * 100 + v) % 97
  end
  return rest == 1
end

local function ipv4(text)
  for part in text:gmatch "%d+" do
    if tonumber(part) > 255 then return false end
  end
  return true
end

-- Seven to fifteen digits (ITU-T E.164), and something that says it is a number to call: a plus, brackets, or groups.
local function phone(text)
  local n = #digits_of(text)
  if n < 7 or n > 15 then return false end
  if text:find "^%d%d%d%d[%-%./]%d%d?[%-%./]%d%d?$" or text:find "^%d%d?[%-%./]%d%d?[%-%./]%d%d%d%d$" then
    return false -- a date
  end
  return text:find "^[%+%(]" ~= nil or text:find "^00" ~= nil or text:find "[%s%-%./%)]" ~= nil or n >= 9
end

-- kind, pattern, flags, and what decides about a match (nil: every one counts). In this order: what is found by an
-- earlier rule is out of the text for the later ones.
local rules = {
  { "email", [[[\p{L}\p{N}._%+\-]+@[\p{L}\p{N}\-]+(?:\.[\p{L}\p{N}\-]+)*\.\p{L}{2,}]] },
  { "id", [[(?<![\p{L}\p{N}])[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}(?![\p{L}\p{N}])]], nil, scrub.iban },
  { "card", [[(?<![\p{N}.\-])\d(?:[ \-]?\d){12,18}(?![\p{N}\-])]], nil, scrub.luhn },
  { "id", [[(?<![\p{N}\-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\p{N}\-])]] }, -- United States
  { "id", [[(?<![\p{L}\p{N}])[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d{2} ?\d{2} ?\d{2} ?[A-D](?![\p{L}\p{N}])]] }, -- UK
  { "id", [[(?<!\p{L})(?:passport|identity card|id card|national id|social security|ssn|driver'?s? licen[cs]e|tax id|tin)]]
    .. [[(?: (?:no|number|nr|id))?[.:#]*\s*(?:is\s+)?(?=[A-Z\-]*\d)[A-Z0-9][A-Z0-9\-]{4,}(?![\p{L}\p{N}])]], "i" },
  { "ip", [[(?<![\p{N}.])\d{1,3}(?:\.\d{1,3}){3}(?![\p{N}]|\.\d)]], nil, ipv4 },
  { "ip", [[(?<![\p{L}\p{N}:])(?:[0-9a-f]{1,4}:){7}[0-9a-f]{1,4}(?![\p{L}\p{N}:])]], "i" },
  { "ip", [[(?<![\p{L}\p{N}:])(?:[0-9a-f]{1,4}:)+(?::[0-9a-f]{1,4}){1,6}(?![\p{L}\p{N}:])]], "i" },
  { "ip", [[(?<![\p{L}\p{N}:])::(?:[0-9a-f]{1,4}:){0,5}[0-9a-f]{1,4}(?![\p{L}\p{N}:])]], "i" },
  { "phone", [[(?<![\p{L}\p{N}.])(?:\+|\()?\d(?:[ ().\/\-]{0,2}\d){6,16}(?![\p{L}\p{N}])]], nil, phone },
}

local compiled

-- scrub.new { names = list of texts }: counts from zero. Names are found as whole words, in any case; longer ones first.
function scrub.new(options)
  if not compiled then
    compiled = {}
    for i, rule in ipairs(rules) do compiled[i] = regex.new(rule[2], rule[3]) end
  end
  local self = setmetatable({ counts = {} }, Scrubber)
  for _, kind in ipairs(scrub.kinds) do self.counts[kind] = 0 end
  local names = {}
  for _, name in ipairs(options and options.names or {}) do
    local text = name:gsub("^%s+", ""):gsub("%s+$", "")
    if text ~= "" then names[#names + 1] = text end
  end
  table.sort(names, function(a, b)
    if #a ~= #b then return #a > #b end
    return a < b
  end)
  if #names > 0 then
    for i, name in ipairs(names) do
      local words = {}
      for word in name:gmatch "%S+" do words[#words + 1] = regex.escape(word) end
      names[i] = table.concat(words, "\\s+")
    end
    self.names = regex.new("(?<![\\p{L}\\p{N}])(?:" .. table.concat(names, "|") .. ")(?![\\p{L}\\p{N}])", "i")
  end
  return self
end

-- Invalid UTF-8 cannot be searched: such bytes become "?".
local function valid(text)
  local out, i = {}, 1
  while i <= #text do
    local c = text:byte(i)
    local n = c < 0x80 and 1 or c >= 0xc2 and c < 0xe0 and 2 or c >= 0xe0 and c < 0xf0 and 3 or c >= 0xf0 and c < 0xf5 and 4
    local tail = n and text:sub(i + 1, i + n - 1)
    local second = n and n > 2 and text:byte(i + 1) or 0x90
    local good = n and #tail == n - 1 and not tail:find "[^\128-\191]" and not (c == 0xe0 and second < 0xa0)
      and not (c == 0xed and second > 0x9f) and not (c == 0xf0 and second < 0x90) and not (c == 0xf4 and second > 0x8f)
    out[#out + 1] = good and text:sub(i, i + n - 1) or "?"
    i = i + (good and n or 1)
  end
  return table.concat(out)
end

-- The text without personal data. Counts add up over the calls.
function Scrubber:text(text)
  text = valid(text)
  local function replace(re, kind, accept)
    text = re:gsub(text, function(match)
      if accept and not accept(match) then return nil end
      self.counts[kind] = self.counts[kind] + 1
      return "[" .. kind .. "]"
    end)
  end
  for i, rule in ipairs(rules) do replace(compiled[i], rule[1], rule[4]) end
  if self.names then replace(self.names, "name") end
  return text
end

return scrub
