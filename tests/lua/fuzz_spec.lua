-- A short replay of what the fuzzers do for minutes: mutated files and random words, from fixed seeds. Everything
-- either works or gives nil and one line that says why.
local t = require "harness"
local melies = require "melies"

local root = os.getenv("MELIES_ROOT") or "."
local random = math.random

local function bytes_of(path)
  local f = assert(io.open(path, "rb"))
  local text = f:read("*a")
  f:close()
  return text
end

local folder = t.folder()
local function write(name, text)
  local path = folder .. "/" .. name
  local f = assert(io.open(path, "wb"))
  f:write(text)
  f:close()
  return path
end

local interesting = { "\0", "\255", "\127", "\128", "0", "9", "-", "\"", "{", "}", "[", "]", ",", ":", "\n", "\\u0000",
  "18446744073709551615", "-1", "1e99", "null", "\255\255\255\255\255\255\255\127", "\0\0\0\0\0\0\0\0" }

-- One to four edits within the first `reach` bytes.
local function mutate(text, reach)
  for _ = 1, random(4) do
    local at = random(math.min(reach, #text))
    local kind = random(6)
    if kind == 1 then
      text = text:sub(1, at - 1) .. string.char(random(0, 255)) .. text:sub(at + 1)
    elseif kind == 2 then
      local new = interesting[random(#interesting)]
      text = text:sub(1, at - 1) .. new .. text:sub(at + #new)
    elseif kind == 3 then
      text = text:sub(1, at - 1) .. interesting[random(#interesting)] .. text:sub(at)
    elseif kind == 4 then
      text = text:sub(1, at - 1) .. text:sub(at + random(16))
    elseif kind == 5 then
      local n = random(32)
      text = text:sub(1, at - 1) .. text:sub(at, at + n):rep(2) .. text:sub(at + n + 1)
    elseif random(8) == 1 then
      text = text:sub(1, at)
    end
    if text == "" then return text end
  end
  return text
end

-- nil and one printable line that names the file; anything else ends the test.
local function refused(path, message, round)
  local fine = type(message) == "string" and message:find(path, 1, true) and not message:find("\n")
  t.ok(fine, ("round %d: the message is %q"):format(round, tostring(message)))
end

local function replay(rounds, file, reach, name, try)
  local original, accepted = bytes_of(root .. "/tests/golden/" .. file), 0
  math.randomseed(7)
  for round = 1, rounds do
    local path = write(name, mutate(original, reach))
    local ok, loaded, message = pcall(try, path)
    t.ok(ok, ("round %d raised: %s"):format(round, tostring(loaded)))
    if loaded then accepted = accepted + 1 else refused(path, message, round) end
    if round % 64 == 0 then collectgarbage() end
  end
  t.ok(accepted > 0 and accepted < rounds, ("%d of %d were accepted"):format(accepted, rounds))
end

-- Opens, and reads everything that the file says is there.
local function open_weights(path)
  local file, message = melies.weights.open(path)
  if not file then return nil, message end
  for _, name in ipairs(file:names()) do
    local x = file:get(name)
    local n = 1
    for _, size in ipairs(file:shape(name)) do n = n * size end
    t.eq(x:numel(), n, name)
    if n > 0 then x:get(n) end
    x:free()
  end
  t.eq(type(file.metadata), "table")
  file:close()
  return true
end

local function load_tokenizer(path)
  local tok, message = melies.tokenizer.load(path)
  if not tok then return nil, message end
  local ids = tok:encode("The  quick br\195\182wn\226\150\129 fox \240\159\152\128 \255 </s> 1234")
  t.eq(type(tok:decode(ids)), "string")
  tok:free()
  return true
end

t.test("safetensors: a mutated header loads or is refused", function()
  local text = bytes_of(root .. "/tests/golden/st_valid.safetensors")
  local header = text:byte(1) + 256 * text:byte(2) + 8
  replay(1000, "st_valid.safetensors", header, "mutated.safetensors", open_weights)
end)

t.test("GGUF and pth: mutated bytes load or are refused", function()
  replay(300, "gguf_basic.gguf", 1200, "mutated.gguf", open_weights)
  replay(300, "pth_valid.pth", 4000, "mutated.pth", open_weights)
end)

t.test("sentencepiece: a mutated model loads or is refused", function()
  replay(600, "tok_spm_unigram_identity.model", 15000, "mutated.model", load_tokenizer)
  replay(400, "tok_spm_bpe_identity.model", 15000, "mutated.model", load_tokenizer)
end)

t.test("tokenizer.json: mutated text loads or is refused", function()
  replay(200, "tok_hf_unigram.tokenizer.json", 20000, "mutated.json", load_tokenizer)
end)

t.test("recipes: random words give values or a message", function()
  local fuzz = dofile(root .. "/tests/fuzz/fuzz_recipe.lua")
  local recipes = fuzz.recipes(root)
  t.ok(#recipes >= 5, "recipes were found")
  for i, plugin in ipairs(recipes) do fuzz.run(plugin, 400, i) end
end)

t.finish()
