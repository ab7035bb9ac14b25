local t = require "harness"
local T = require "melies.tensor"
local show = require "melies.show"

-- What show writes, drawn with force (the tests have no terminal).
local function drawn(x, options)
  local parts = {}
  options.to = { write = function(_, ...) for _, s in ipairs { ... } do parts[#parts + 1] = s end end, flush = function() end }
  show(x, options)
  return table.concat(parts)
end

local function options(more)
  local o = { force = true, columns = 40, rows = 20, colors = "truecolor" }
  for key, value in pairs(more or {}) do o[key] = value end
  return o
end

-- An image whose left half is red and whose right half is blue.
local function two_halves(h, w)
  local values = {}
  for _ = 1, h do
    for x = 1, w do
      local left = x <= w / 2
      values[#values + 1], values[#values + 2], values[#values + 3] = left and 1 or 0, 0, left and 0 or 1
    end
  end
  return T.of(values, { h, w, 3 })
end

local function lines(text)
  local out = {}
  for line in text:gmatch "[^\n]+" do out[#out + 1] = line end
  return out
end

local function cells(line) return select(2, line:gsub("▀", "")) end

t.test("half blocks: two pixels a cell, the right colours", function()
  local rows = lines(drawn(two_halves(4, 4), options()))
  t.eq(#rows, 8) -- four times as large: 16 x 16 pixels
  t.eq(cells(rows[1]), 16)
  t.ok(rows[1]:find("38;2;255;0;0;48;2;255;0;0m", 1, true), rows[1])
  t.ok(rows[1]:find("38;2;0;0;255;48;2;0;0;255m", 1, true), rows[1])
  t.ok(rows[1]:find("\27[0m", 1, true))
end)

t.test("u8 and 256 colours", function()
  local text = drawn((two_halves(4, 4) * 255):to "u8", options { colors = "256" })
  t.ok(text:find("38;5;196;48;5;196m", 1, true), text) -- pure red of the colour cube
  t.ok(text:find("38;5;21;48;5;21m", 1, true), text)
end)

t.test("a large image keeps within the terminal, and its proportions", function()
  local rows = lines(drawn(two_halves(90, 160), options()))
  t.eq(cells(rows[1]), 40)
  t.eq(#rows, 12) -- 40 x 22.5 pixels
  rows = lines(drawn(two_halves(160, 20), options()))
  t.eq(#rows, 20)
  t.eq(cells(rows[1]), 5)
end)

t.test("a clip becomes a contact sheet of evenly chosen frames", function()
  local frames = {}
  for i = 1, 9 do frames[i] = T.full({ 8, 8, 3 }, (i - 1) / 8) end
  local clip = T.stack(frames, 1)
  local text = drawn(clip, options { frames = 3 })
  t.ok(text:find("38;2;0;0;0", 1, true))
  t.ok(text:find("38;2;128;128;128", 1, true), text)
  t.ok(text:find("38;2;255;255;255", 1, true))
  t.ok(not text:find("38;2;64;64;64", 1, true))
  t.ok(cells(lines(text)[1]) <= 40)
end)

t.test("a matrix is a heat map; NaN is red; a constant one is drawn", function()
  local text = drawn(T.of({ 0, 1, 2, 3 }, { 2, 2 }), options())
  t.ok(text:find("2;68;1;84", 1, true) and text:find("2;253;231;37", 1, true), text)
  t.ok(drawn(T.of({ 0, 0 / 0, 2, 3 }, { 2, 2 }), options()):find("2;255;0;0", 1, true))
  t.ok(#drawn(T.zeros { 3, 3 }, options()) > 0)
end)

t.test("kitty: chunks of base64 with the size in the first", function()
  local text = drawn(two_halves(64, 64), options { protocol = "kitty" })
  local w, h = text:match "^\27_Ga=T,q=2,f=24,s=(%d+),v=(%d+),m=1;"
  t.ok(w, text:sub(1, 60))
  local payload, chunks, last = {}, 0, nil
  for more, data in text:gmatch "m=([01]);([^\27]*)\27\\" do
    t.ok(#data <= 4096)
    payload[#payload + 1], chunks, last = data, chunks + 1, more
  end
  t.eq(last, "0")
  t.eq(#table.concat(payload), math.ceil(w * h * 3 / 3) * 4)
  t.ok(chunks > 1)
  t.eq(table.concat(payload):sub(1, 4), "/wAA") -- ff 00 00
end)

t.test("base64 of lengths that are no multiple of three", function()
  local ffi = require "ffi"
  local one = { w = 1, h = 1, data = ffi.new("uint8_t[3]", { 77, 97, 110 }) }
  t.ok(show.kitty(one):find(";TWFu\27", 1, true))
end)

t.test("sixel: decoding gives the picture back", function()
  local text = drawn(two_halves(4, 4), options { protocol = "sixel" })
  local w, h = text:match '^\27Pq"1;1;(%d+);(%d+)'
  w, h = tonumber(w), tonumber(h)
  t.ok(text:sub(-3) == "\27\\\n")
  local palette, pixels = {}, {}
  for index, r, g, b in text:gmatch "#(%d+);2;(%d+);(%d+);(%d+)" do palette[index] = ("%s %s %s"):format(r, g, b) end
  local body = text:gsub("^\27Pq[^#]*", ""):gsub("#%d+;2;%d+;%d+;%d+", ""):gsub("\27\\\n$", "")
  local colour, x, top, at = nil, 0, 0, 1
  while at <= #body do
    local index, stop = body:match("^#(%d+)()", at)
    local count, char, stop2 = body:match("^!(%d+)([?-~])()", at)
    if index then colour, at = index, stop
    elseif body:sub(at, at) == "$" then x, at = 0, at + 1
    elseif body:sub(at, at) == "-" then x, top, at = 0, top + 6, at + 1
    else
      if not count then count, char, stop2 = 1, body:sub(at, at), at + 1 end
      for _ = 1, tonumber(count) do
        for bit = 0, 5 do
          if math.floor((char:byte() - 63) / 2 ^ bit) % 2 == 1 then pixels[(top + bit) * w + x] = palette[colour] end
        end
        x = x + 1
      end
      at = stop2
    end
  end
  for y = 0, h - 1 do
    t.eq(pixels[y * w], "100 0 0", "left of row " .. y)
    t.eq(pixels[y * w + w - 1], "0 0 100", "right of row " .. y)
  end
end)

t.test("without a terminal a line says what it is", function()
  local text = drawn(two_halves(4, 4), { force = false })
  t.eq(text, "f32 [4, 4, 3] 192 B min 0 mean 0.3333 max 1 (not drawn: the output is no terminal)\n")
end)

t.test("misuse raises at the caller's line", function()
  t.raises(function() show(T.zeros { 2, 3, 4, 5 }, { force = true }) end, "this is [2, 3, 4, 5]")
  t.raises(function() show "x" end, "show_spec.lua")
  t.raises(function() show(T.zeros { 2, 2, 3 }, { force = true, protocol = "smoke" }) end, "no protocol 'smoke'")
end)

t.test("describe", function()
  t.eq(show.describe(T.of({ 1, -2, 0 / 0, 1 / 0 }, { 4 })), "f32 [4] 16 B min -2 mean -0.5 max 1 (1 nan, 1 inf)")
  t.eq(show.describe(T.of({ 0 / 0 }, { 1 })), "f32 [1] 4 B (1 nan)")
  t.eq(show.describe(T.zeros({ 1024, 3 }, "u8")), "u8 [1024, 3] 3 KiB min 0 mean 0 max 0")
  t.eq(show.bytes_text(1536), "1.5 KiB")
  t.ok(not show.is_tensor {} and not show.is_tensor "x" and not show.is_tensor(nil))
end)

t.finish()
