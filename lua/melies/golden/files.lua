-- Fixtures of files: tensors that must come out of safetensors, GGUF and PyTorch files, and files that must be refused
-- (golden.lua).
local melies = require "melies"

local function open(path)
  local file, message = melies.weights.open(path)
  if not file then error(message, 0) end
  return file
end

-- ---- files that hold tensors ------------------------------------------------------------------------------------

local function shape_text(shape) return "[" .. table.concat(shape, ", ") .. "]" end

local function compare_tensors(fixture, file, expected)
  local names = expected:names()
  table.sort(names)
  for _, name in ipairs(names) do
    if not file:has(name) then
      fixture:ok(name, false, "missing")
    else
      -- The expected values are float32: integers past 2^24 are rounded there as well.
      local got, want = file:get(name):to("f32"), expected:get(name):to("f32")
      -- A scalar stands as [1] among the expected values.
      if got.ndim == 0 and want:numel() == 1 then want = want:reshape {} end
      fixture:close(name, got, want)
      local said = (fixture.json.tensors or {})[name]
      if said and shape_text(said.shape) ~= shape_text(file:shape(name)) then
        local found = shape_text(file:shape(name))
        fixture:ok(name .. " shape", false, ("%s, wanted %s"):format(found, shape_text(said.shape)))
      end
    end
  end
  local count = #file:names()
  fixture:ok("tensors in the file", count == #names, ("%d, wanted %d"):format(count, #names))
end

-- Metadata of a GGUF file: numbers, strings, booleans and lists of them.
local function same_value(got, want)
  if type(want) ~= "table" then
    if type(want) == "number" and type(got) == "cdata" then return tonumber(got) == want end
    return got == want
  end
  if type(got) ~= "table" or #got ~= #want then return false end
  for i = 1, #want do
    if not same_value(got[i], want[i]) then return false end
  end
  return true
end

local function tensors(fixture)
  local json = fixture.json
  local file = open(fixture:path(json.file))
  compare_tensors(fixture, file, open(fixture:path(json.expected)))
  if type(json.metadata) == "table" then
    local keys = {}
    for key in pairs(json.metadata) do keys[#keys + 1] = key end
    table.sort(keys)
    for _, key in ipairs(keys) do
      local got = file.metadata[key]
      fixture:ok("metadata " .. key, same_value(got, json.metadata[key]),
        type(got) == "table" and #got .. " values" or tostring(got))
    end
  end
end

-- ---- files that must be refused -----------------------------------------------------------------------------------

-- What opens a file, by its ending. CLIP's merges need a vocabulary beside them.
local function opener(fixture, path)
  local ending = path:match("%.([^.]+)$")
  if ending == "safetensors" or ending == "gguf" or ending == "pth" then
    return function() return melies.weights.open(path) end
  end
  local tokenizer = melies.tokenizer
  if ending == "txt" then
    local vocabulary = fixture:path("tok_clip_vocab.json")
    return function() return tokenizer.load(vocabulary, path) end
  end
  return function() return tokenizer.load(path) end
end

-- Each is refused with one line that names the file, in little memory.
local function malformed(fixture)
  local memory = melies.memory
  for _, entry in ipairs(fixture.json.files) do
    local path = fixture:path(entry.file)
    local f = io.open(path, "rb")
    if not f then
      fixture:ok(entry.file, false, "the file is not there")
    else
      f:close()
      local before = memory().peak
      fixture:refuses(entry.file, opener(fixture, path), entry.file:match("[^/]+$"))
      local grown = memory().peak - before
      if grown > 2 ^ 24 then fixture:ok(entry.file, false, ("took %d bytes"):format(grown)) end
    end
  end
end

return {
  { name = "malformed", run = malformed, applies = function(json)
    return json.expectation ~= nil and type(json.files) == "table"
  end },
  { name = "tensors of a file", run = tensors, applies = function(json)
    return type(json.file) == "string" and type(json.expected) == "string"
  end },
}
