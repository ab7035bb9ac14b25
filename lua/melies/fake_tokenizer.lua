-- A sentencepiece unigram model of a given size, for fake text encoders: <pad>, </s>, <unk>, the 256 bytes, letters, and made-up
-- words. It splits any text into ids that a real one could give; the words mean nothing.
local ffi = require "ffi"

local function varint(n)
  local out = {}
  repeat
    local low = n % 128
    n = (n - low) / 128
    out[#out + 1] = string.char(n > 0 and low + 128 or low)
  until n == 0
  return table.concat(out)
end
local function bytes(field, text) return varint(field * 8 + 2) .. varint(#text) .. text end
local function number(field, n) return varint(field * 8) .. varint(n) end
local function float(field, x) return varint(field * 8 + 5) .. ffi.string(ffi.new("float[1]", x), 4) end

local NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6

-- fake_tokenizer(size): the bytes of a .model file with so many pieces (at least 300).
return function(size)
  local out, seen, count = {}, {}, 0
  local function piece(text, score, kind)
    if seen[text] or count >= size then return end
    seen[text], count = true, count + 1
    out[#out + 1] = bytes(1, bytes(1, text) .. float(2, score) .. number(3, kind or NORMAL))
  end
  piece("<pad>", 0, CONTROL)
  piece("</s>", 0, CONTROL)
  piece("<unk>", 0, UNKNOWN)
  for i = 0, 255 do piece(("<0x%02X>"):format(i), 0, BYTE) end
  piece("\226\150\129", -3)
  for i = 33, 126 do piece(string.char(i), -6) end
  local syllables = {}
  for c in ("bcdfghjklmnprstvwz"):gmatch "." do
    for v in ("aeiou"):gmatch "." do syllables[#syllables + 1] = c .. v end
  end
  local n = #syllables
  local i = 0
  while count < size do
    local word, rest = {}, i
    repeat
      word[#word + 1] = syllables[rest % n + 1]
      rest = math.floor(rest / n)
    until rest == 0
    piece((i % 2 == 0 and "\226\150\129" or "") .. table.concat(word), -7 - math.log(i + 1) / 2)
    i = i + 1
  end
  out[#out + 1] = bytes(2, number(3, 1) .. number(4, size) .. number(35, 1)) -- unigram, byte fallback
  out[#out + 1] = bytes(3, bytes(1, "identity") .. number(3, 1) .. number(4, 1) .. number(5, 1))
  return table.concat(out)
end
