-- Rows of text for a parsed prompt: the encoder's rows of the joined words, with the words' weights applied to them.
--
-- The words of a chunk are encoded as one text, so weights of 1 give exactly what the plain text gives. Which row
-- belongs to which span is read off the tokenizer: the pieces are walked along the normalised text, and a span's end is
-- where the normalised text up to there ends. A token that lies over a border belongs to the span of its first letter.
-- Where the pieces do not spell the normalised text, the ids of the text up to the border are counted instead.
--
-- Weights: "comfyui" (z - z_empty) w + z_empty, z_empty being the rows of the empty prompt and zeros after them (what
-- ComfyUI has for encoders that mask their padding); "a1111" z w, and all rows times the ratio of the means before and
-- after.
local T = require "melies.tensor"
local prompt = require "melies.prompt"

local M = {}

-- ---- which token belongs to which span ---------------------------------------------------------------

-- Byte, where the piece is a byte token.
local function byte_of(piece)
  local hex = piece:match("^<0x(%x%x)>$")
  return hex and string.char(tonumber(hex, 16))
end

local BLANK = "\226\150\129" -- the mark that stands for a blank in sentencepiece

-- Start of each token's first letter in the normalised text, or nil where the pieces do not spell it.
local function starts_of(tokenizer, ids, normal)
  local out, at, unknown = {}, 1, false
  for i, id in ipairs(ids) do
    local piece = tokenizer:piece(id) or ""
    local text = byte_of(piece) or piece:gsub("</w>$", "")
    if id == tokenizer.unk and normal:sub(at, at + #text - 1) ~= text then
      out[i], unknown = at, true -- as long as what no piece spells: up to the next piece
    else
      local first = at
      if normal:sub(at, at + #text - 1) ~= text then
        local blank = normal:match("^[ \t\r\n]+()", at)
        if blank and normal:sub(blank, blank + #text - 1) == text then first = blank
        else first = unknown and normal:find(text, at, true) end
      end
      if not first then return nil end
      local letter = text ~= BLANK and text:sub(1, 3) == BLANK and first + 3 or first
      out[i], at, unknown = letter, first + #text, false
    end
  end
  return out
end

-- The weight of each of ids, tokens of the joined spans. Ids past the text (the end mark) have weight 1.
function M.token_weights(tokenizer, ids, spans)
  local words, borders = {}, {}
  for i, span in ipairs(spans) do words[i] = span.text end
  local joined = table.concat(words)
  local own = tokenizer:encode(joined)
  local count = math.min(#own, #ids)
  local normal = tokenizer:normalize(joined)
  local starts = starts_of(tokenizer, own, normal)
  for i = 1, #spans - 1 do
    local up_to = table.concat(words, "", 1, i)
    local before = tokenizer:normalize(up_to)
    if starts and normal:sub(1, #before) ~= before then
      before = before:gsub(BLANK .. "$", "")
      if normal:sub(1, #before) ~= before then starts = nil end
    end
    borders[i] = { bytes = #before, tokens = up_to }
  end
  if not starts then
    for _, border in ipairs(borders) do border.tokens = #tokenizer:encode(border.tokens) end
  end
  local weights, span = {}, 1
  for i = 1, #ids do
    while i <= count and borders[span]
      and (starts and starts[i] > borders[span].bytes or not starts and i > borders[span].tokens) do
      span = span + 1
    end
    weights[i] = i <= count and spans[span] and spans[span].weight or 1
  end
  return weights
end

-- ---- rows ----------------------------------------------------------------------------------------------

local function weigh(model, rows, weights, style)
  local length = rows.shape[1]
  local w = T.full({ length, 1 }, 1)
  for i = 1, math.min(length, #weights) do w:set(i, weights[i]) end
  if style == "a1111" then
    local out = rows * w
    local before, after = rows:mean(), out:mean()
    return math.abs(after) > 1e-12 and out * (before / after) or out
  end
  local empty, message = model:encode("")
  if not empty then return nil, message end
  local have = empty.shape[1]
  if have > length then empty = empty:slice(1, 1, length)
  elseif have < length then empty = empty:pad(1, 0, length - have, 0) end
  return rows * w + empty * (1 - w)
end

-- Rows [L, D] of one condition of prompt.at, or nil and a message; a notice where it was cut.
local function rows_of(model, condition, style, opts)
  local parts, total, notice = {}, 0, nil
  for _, chunk in ipairs(condition.chunks) do
    local words, weighted = {}, false
    for i, span in ipairs(chunk) do words[i], weighted = span.text, weighted or span.weight ~= 1 end
    local text = table.concat(words)
    local rows, message = model:encode(text, opts)
    if not rows then return nil, message end
    notice = notice or message
    if weighted then
      local ids = model:tokens(text, opts)
      rows, message = weigh(model, rows, M.token_weights(model.tokenizer, ids, chunk), style)
      if not rows then return nil, message end
    end
    parts[#parts + 1], total = rows, total + rows.shape[1]
  end
  local rows = #parts == 1 and parts[1] or T.concat(parts, 1)
  local limit = model.text_len
  if limit and total > limit then
    local said = ("the prompt's %d parts are %d tokens; %s takes %d"):format(#parts, total, model.name or "the model",
      limit)
    if not (opts and opts.truncate) then return nil, said .. " (--truncate cuts it)" end
    rows, notice = rows:slice(1, 1, limit):contiguous(), said .. ": cut"
  end
  return rows, notice
end

-- What a step says: { { rows = [L, D], weight = }, ... }, or nil and a message; a notice where something was cut.
-- cache: rows by key, filled here.
function M.encode(parsed, model, step, steps, opts, cache)
  cache = cache or {}
  local out, notice = {}, nil
  for i, condition in ipairs(prompt.at(parsed, step, steps)) do
    local kept = cache[condition.key]
    if not kept then
      local rows, message = rows_of(model, condition, parsed.style, opts)
      if not rows then return nil, message end
      kept, notice = rows, notice or message
      cache[condition.key] = kept
    end
    out[i] = { rows = kept, weight = condition.weight }
  end
  return out, notice
end

-- ---- over a run ------------------------------------------------------------------------------------------

local Conditions = {}
Conditions.__index = Conditions

-- object:now() -> { { rows=, weight= }, ... } of the step that seek was last told (at first step 1); where steps say the
-- same they give the same tensors. seek raises a text that is too long only where the run has other steps than were told.
function Conditions:now() return self.list end
function Conditions:seek(step, steps)
  local list, message = M.encode(self.parsed, self.model, step, steps, self.opts, self.cache)
  self.list = list or error("prompt: " .. message, 0)
end

-- Everything that the run will need, encoded now. A prompt that says one thing throughout gives its rows [L, D] alone.
-- opts: steps (default: parsed.steps, or 1), truncate. nil and a message where a text is too long.
function M.conditions(parsed, model, opts)
  opts = opts or {}
  local steps = opts.steps or parsed.steps or 1
  local own = { truncate = opts.truncate }
  local cache, first, notice, same = {}, nil, nil, not prompt.changes(parsed)
  for step = 1, steps do
    local list, message = M.encode(parsed, model, step, steps, own, cache)
    if not list then return nil, message end
    notice, first = notice or message, first or list
  end
  if same and #first == 1 and first[1].weight == 1 then return first[1].rows, notice end
  return setmetatable({ parsed = parsed, model = model, opts = own, cache = cache, list = first }, Conditions), notice
end

return M
