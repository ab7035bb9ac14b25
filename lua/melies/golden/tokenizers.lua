-- Fixtures of tokenizers: strings with their normalised form, ids, pieces and decoded text (golden.lua).
local melies = require "melies"

local function text_of(list)
  local out = {}
  for i = 1, #list do out[i] = tostring(list[i]) end
  return table.concat(out, " ")
end

-- One line a property, over all rows; the first row that differs is shown.
local function rows(fixture, what, get, want)
  local count, wrong, first = 0, 0, nil
  for _, row in ipairs(fixture.json.rows) do
    local expected = want(row)
    if expected ~= nil then
      count = count + 1
      local got = get(row)
      if got ~= expected then
        wrong = wrong + 1
        first = first or ("'%s': got %s, wanted %s"):format(row.text:sub(1, 40), tostring(got):sub(1, 80),
          expected:sub(1, 80))
      end
    end
  end
  if count > 0 then
    fixture:ok(what, wrong == 0, wrong == 0 and ("%d strings"):format(count)
      or ("%d of %d strings differ, %s"):format(wrong, count, first:gsub("%s+", " ")))
  end
end

local function run(fixture)
  local json = fixture.json
  local tokenizer, message
  if json.files then
    tokenizer, message = melies.tokenizer.load(fixture:path(json.files[1]), fixture:path(json.files[2]))
  else
    tokenizer, message = melies.tokenizer.load(fixture:path(json.model_file))
  end
  if not tokenizer then error(message, 0) end
  local function is_list(value) return type(value) == "table" and value ~= melies.json.null end
  local function is_string(value) return type(value) == "string" end
  rows(fixture, "ids", function(row) return text_of(tokenizer:encode(row.text)) end,
    function(row) return is_list(row.ids) and text_of(row.ids) or nil end)
  rows(fixture, "normalised", function(row) return tokenizer:normalize(row.text) end,
    function(row) return is_string(row.normalized) and row.normalized or nil end)
  rows(fixture, "decoded", function(row) return tokenizer:decode(row.ids) end,
    function(row) return is_string(row.decoded) and row.decoded or nil end)
  rows(fixture, "ids with the end mark", function(row) return text_of(tokenizer:encode(row.text, { eos = true })) end,
    function(row) return is_list(row.ids_with_eos) and text_of(row.ids_with_eos) or nil end)
  -- CLIP's layout: begin, ids, end, zeros up to 77; what is too long is cut before the end mark.
  rows(fixture, "ids in 77 places", function(row)
    return text_of(tokenizer:encode(row.text, { bos = true, eos = true, length = 77, pad = 0 }))
  end, function(row) return is_list(row.context77) and #row.context77 > 0 and text_of(row.context77) or nil end)
  -- An unknown piece is stored as the text that it covers.
  local function spelled(wanted)
    return function(row)
      local out = {}
      for i, id in ipairs(tokenizer:encode(row.text)) do
        out[i] = id == tokenizer.unk and row[wanted][i] or tokenizer:piece(id)
      end
      return table.concat(out, " ")
    end
  end
  for _, field in ipairs { "pieces", "tokens" } do
    rows(fixture, field, spelled(field), function(row)
      return is_list(row[field]) and table.concat(row[field], " ") or nil
    end)
  end
end

return {
  { name = "tokenizer", run = run, applies = function(json)
    return type(json.rows) == "table" and (type(json.model_file) == "string" or type(json.files) == "table")
  end },
}
