local t = require "harness"
local tokenizer = require "melies.tokenizer"
local json = require "melies.json"
local ffi = require "ffi"

local root = os.getenv("MELIES_ROOT")
local golden = root .. "/tests/golden/"
local function load(...) return assert(tokenizer.load(...)) end
local function joined(list) return table.concat(list, " ") end

t.test("recorded rows", function()
  for _, name in ipairs { "tok_spm_unigram_bytefallback", "tok_spm_bpe_identity" } do
    local tok, fixture = load(golden .. name .. ".model"), assert(json.read(golden .. name .. ".json"))
    for _, row in ipairs(fixture.rows) do
      t.eq(joined(tok:encode(row.text)), joined(row.ids), row.text)
      t.eq(tok:normalize(row.text), row.normalized, row.text)
      t.eq(joined(tok:pieces(row.text)), joined(row.pieces), row.text)
      t.eq(tok:decode(row.ids), row.decoded, row.text)
    end
    tok:free()
  end
end)

t.test("Hugging Face rows with the end mark", function()
  local tok = load(golden .. "tok_hf_unigram.tokenizer.json")
  t.eq(tok.kind, "hf_unigram")
  for _, row in ipairs(assert(json.read(golden .. "tok_hf_unigram.json")).rows) do
    t.eq(joined(tok:encode(row.text, { eos = true })), joined(row.ids_with_eos), row.text)
  end
  t.eq(joined(tok:encode("a</s>")), joined { 261, 1 })
  t.eq(tok:decode(tok:encode("two  words")), "two  words")
end)

t.test("CLIP rows in a context of 77", function()
  local tok, long = load(golden .. "tok_clip_vocab.json", golden .. "tok_clip_merges.txt"), 0
  for _, row in ipairs(assert(json.read(golden .. "tok_clip.json")).rows) do
    if row.context77 ~= json.null then
      long = long + 1
      t.eq(joined(tok:encode(row.text, { bos = true, eos = true, length = 77, pad = 0 })), joined(row.context77))
    end
  end
  t.ok(long > 10)
  t.eq(tok:decode(tok:encode("A CAT, on the moon!", { bos = true, eos = true })), "a cat , on the moon !")
end)

t.test("the starter model's ids", function()
  local tok = load(root .. "/tests/models/starter")
  t.eq(tok.eos, 1)
  t.eq(tok.pad, 0)
  local prompts = assert(json.read(golden .. "starter/reference.json"))
  -- A safetensors file: length of its header in 8 bytes, the header in JSON, the values.
  local file = assert(io.open(golden .. "starter/reference.safetensors", "rb"))
  local size = ffi.cast("const uint64_t *", file:read(8))[0]
  local entry = assert(json.decode(file:read(tonumber(size)))).ids
  file:seek("cur", entry.data_offsets[1])
  local bytes = file:read(entry.data_offsets[2] - entry.data_offsets[1])
  file:close()
  local values, width, want = ffi.cast("const int32_t *", bytes), entry.shape[2], {}
  for i = 1, entry.shape[1] * width do want[i] = values[i - 1] end
  for i, prompt in ipairs(prompts) do
    t.eq(joined(tok:encode(prompt, { eos = true, length = width })),
      joined { unpack(want, (i - 1) * width + 1, i * width) }, prompt)
  end
end)

t.test("fields and pieces", function()
  local tok = load(golden .. "tok_spm_unigram_bytefallback.model")
  t.eq(tok.size, 1500)
  t.eq(tok.eos, 1)
  t.eq(tok.bos, nil)
  t.eq(tok.unk, 2)
  t.eq(tok:piece(1), "</s>")
  t.eq(tok:id("</s>"), 1)
  t.eq(tok:piece(1500), nil)
  t.eq(tok:id("no such piece"), nil)
  t.ok(tostring(tok):find("spm_unigram of 1500"))
end)

t.test("failures and misuse", function()
  local tok, message = tokenizer.load(golden .. "malformed/spm_truncated.model")
  t.ok(tok == nil and message:find("spm_truncated.model", 1, true), message)
  tok, message = tokenizer.load(golden .. "missing.model")
  t.ok(tok == nil and message:find("No such file", 1, true), message)
  tok, message = tokenizer.load(golden .. "malformed")
  t.ok(tok == nil and message:find("no spiece.model", 1, true), message)
  t.raises(function() tokenizer.load() end, "a path is wanted")
  tok = load(golden .. "tok_spm_unigram_unk.model")
  t.raises(function() tok:encode(3) end, "a string is wanted, not a number")
  t.raises(function() tok:encode("a", { esc = true }) end, "did you mean 'eos'?")
  t.raises(function() tok:encode("a", { bos = true }) end, "has no bos")
  t.raises(function() tok:encode("a", { eos = true, length = 0 }) end, "no room")
  t.raises(function() tok:decode { 1, 800 } end, "id 800 at 1 is outside the vocabulary of 800")
  t.raises(function() tok:decode { "a" } end, "entry 1 is a, not an id")
  tok:free()
  tok:free()
  t.raises(function() tok:encode("a") end, "used after free")
end)

t.finish()
