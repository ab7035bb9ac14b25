-- show(x): what a tensor looks like, in the terminal. An image [H, W, 3], a clip [T, H, W, 3] as a contact sheet,
-- a matrix [H, W] as a heat map; by kitty graphics or sixel where the terminal has them, else in coloured
-- half blocks. describe(x): one line of facts about a tensor.
local ffi = require "ffi"
local bit = require "bit"
local term = require "melies.term"

local show = {}

-- ---- one line ---------------------------------------------------------------------------------

local function bytes_text(n)
  local units = { "B", "KiB", "MiB", "GiB", "TiB" }
  local i = 1
  while n >= 1024 and i < #units do n, i = n / 1024, i + 1 end
  return (n == math.floor(n) and "%d %s" or "%.1f %s"):format(n, units[i])
end
show.bytes_text = bytes_text

function show.is_tensor(x)
  local ok, answer = pcall(function()
    return type(x) ~= "string" and type(x.shape) == "table" and type(x.dtype) == "string" and x.numel ~= nil
  end)
  return ok and answer or false
end

-- min, mean and max of the finite values, and how many are NaN and infinite.
local function summary(x)
  local odd = x.dtype:find "f" and x:nonfinite() or 0
  if odd == 0 then return x:amin(), x:mean(), x:amax(), 0, 0 end
  local flat = x:to("f32"):contiguous()
  local p, low, high, sum, n, nans = flat:ptr(), math.huge, -math.huge, 0, 0, 0
  for i = 0, tonumber(flat:numel()) - 1 do
    local v = p[i]
    if v ~= v then nans = nans + 1
    elseif v ~= math.huge and v ~= -math.huge then
      n, sum = n + 1, sum + v
      if v < low then low = v end
      if v > high then high = v end
    end
  end
  if n == 0 then return nil, nil, nil, nans, odd - nans end
  return low, sum / n, high, nans, odd - nans
end

-- "f32 [2, 3, 4] 96 B min -1.2 mean 0.1 max 3.4 (1 nan)"; never the data.
function show.describe(x)
  local dims = {}
  for i, d in ipairs(x.shape) do dims[i] = tostring(tonumber(d)) end
  local text = ("%s [%s] %s"):format(x.dtype, table.concat(dims, ", "), bytes_text(tonumber(x:bytes())))
  if tonumber(x:numel()) == 0 then return text .. " empty" end
  local low, mean, high, nans, infinite = summary(x)
  if low then text = text .. (" min %.4g mean %.4g max %.4g"):format(low, mean, high) end
  local odd = {}
  if nans > 0 then odd[#odd + 1] = nans .. " nan" end
  if infinite > 0 then odd[#odd + 1] = infinite .. " inf" end
  if #odd > 0 then text = text .. " (" .. table.concat(odd, ", ") .. ")" end
  return text
end

-- ---- pixels -----------------------------------------------------------------------------------
-- A picture is { w =, h =, data = uint8_t[w*h*3] }, row by row.

local function picture(w, h) return { w = w, h = h, data = ffi.new("uint8_t[?]", math.max(1, w * h * 3)) } end

-- frame: [H, W, 3] u8 or float in [0, 1]; returns a picture of w x h.
local function scaled(frame, w, h)
  local x = frame.dtype == "u8" and frame:to("f32") or frame:to("f32") * 255
  if x.shape[1] ~= h then x = x:resize(1, h, "bilinear", true) end
  if x.shape[2] ~= w then x = x:resize(2, w, "bilinear", true) end
  x = x:clamp(0, 255):to("u8"):contiguous()
  local out = picture(w, h)
  ffi.copy(out.data, x:ptr(), w * h * 3)
  return out
end

-- blue, green, yellow of growing brightness (the anchors of matplotlib's viridis)
local ramp = { { 68, 1, 84 }, { 59, 82, 139 }, { 33, 145, 140 }, { 94, 201, 98 }, { 253, 231, 37 } }

local function heat(x, w, h)
  x = x:to("f32")
  if x.shape[1] ~= h then x = x:resize(1, h, "bilinear", true) end
  if x.shape[2] ~= w then x = x:resize(2, w, "bilinear", true) end
  x = x:contiguous()
  local low, _, high = summary(x)
  local span = low and high > low and high - low or 1
  local p, out = x:ptr(), picture(w, h)
  for i = 0, w * h - 1 do
    local v = p[i]
    for c = 0, 2 do
      if v ~= v or not low then
        out.data[3 * i + c] = c == 0 and 255 or 0 -- NaN: red
      else
        local at = math.max(0, math.min(1, (v - low) / span)) * (#ramp - 1)
        local k = math.min(#ramp - 2, math.floor(at))
        local a, b = ramp[k + 1][c + 1], ramp[k + 2][c + 1]
        out.data[3 * i + c] = a + (b - a) * (at - k)
      end
    end
  end
  return out
end

local function paste(sheet, tile, left, top)
  for row = 0, tile.h - 1 do
    ffi.copy(sheet.data + 3 * ((top + row) * sheet.w + left), tile.data + 3 * row * tile.w, 3 * tile.w)
  end
end

-- The largest size of the aspect w:h within the room, never larger than limit times the source.
local function fit(w, h, room_w, room_h, limit)
  local k = math.min(room_w / w, room_h / h, limit)
  local function side(length, room) return math.max(1, math.min(math.floor(room), math.floor(length * k + 0.5))) end
  return side(w, room_w), side(h, room_h)
end

-- A picture of x that fits into room_w x room_h pixels. frames: how many of a clip are shown.
local function render(x, room_w, room_h, frames, limit)
  local ndim, shape = #x.shape, x.shape
  if ndim == 2 then return heat(x, fit(shape[2], shape[1], room_w, room_h, limit)) end
  if ndim == 3 then return scaled(x, fit(shape[2], shape[1], room_w, room_h, limit)) end
  local count = math.min(frames, shape[1])
  local gap = 1
  -- the number of columns that leaves the largest tiles
  local best
  for columns = 1, count do
    local rows = math.ceil(count / columns)
    local w, h = fit(shape[3], shape[2], (room_w - gap * (columns - 1)) / columns,
      (room_h - gap * (rows - 1)) / rows, limit)
    if not best or w > best.w then best = { w = w, h = h, columns = columns, rows = rows } end
  end
  local sheet = picture(best.columns * (best.w + gap) - gap, best.rows * (best.h + gap) - gap)
  for i = 0, count - 1 do
    local at = count == 1 and 1 or 1 + math.floor(i * (shape[1] - 1) / (count - 1) + 0.5)
    local column, row = i % best.columns, math.floor(i / best.columns)
    paste(sheet, scaled(x:select(1, at), best.w, best.h), column * (best.w + gap), row * (best.h + gap))
  end
  return sheet
end

-- ---- protocols --------------------------------------------------------------------------------

local alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
-- Base64 of n bytes at a pointer.
local function base64(data, n)
  local out = {}
  local function letter(v) return alphabet:sub(v + 1, v + 1) end
  for i = 0, n - 1, 3 do
    local a, b, c = data[i], i + 1 < n and data[i + 1] or 0, i + 2 < n and data[i + 2] or 0
    local v = a * 65536 + b * 256 + c
    out[#out + 1] = letter(bit.rshift(v, 18)) .. letter(bit.band(bit.rshift(v, 12), 63))
      .. (i + 1 < n and letter(bit.band(bit.rshift(v, 6), 63)) or "=") .. (i + 2 < n and letter(bit.band(v, 63)) or "=")
  end
  return table.concat(out)
end

show.base64 = base64

-- https://sw.kovidgoyal.net/kitty/graphics-protocol/: f=24 is RGB, chunks of at most 4096 bytes, m=1: more follow.
function show.kitty(p)
  local text, out = base64(p.data, p.w * p.h * 3), {}
  local position, size = 1, 4096
  repeat
    local chunk = text:sub(position, position + size - 1)
    local head = position == 1 and ("a=T,q=2,f=24,s=%d,v=%d,"):format(p.w, p.h) or ""
    position = position + size
    out[#out + 1] = ("\27_G%sm=%d;%s\27\\"):format(head, position <= #text and 1 or 0, chunk)
  until position > #text
  return table.concat(out) .. "\n"
end

-- DEC sixel: a fixed palette of 6 x 7 x 6 colours with a 4 x 4 ordered dither; bands of 6 rows, one run-length
-- coded line a colour.
local bayer = { [0] = 0, 8, 2, 10, 12, 4, 14, 6, 3, 11, 1, 9, 15, 7, 13, 5 }
function show.sixel(p)
  local out = { "\27Pq", ('"1;1;%d;%d'):format(p.w, p.h) }
  for i = 0, 251 do
    local r, g, b = math.floor(i / 42), math.floor(i / 6) % 7, i % 6
    out[#out + 1] = ("#%d;2;%d;%d;%d"):format(i, r * 20, math.floor(g * 100 / 6 + 0.5), b * 20)
  end
  local function level(v, steps, threshold) return math.min(steps, math.floor(v / 255 * steps + threshold)) end
  for top = 0, p.h - 1, 6 do
    local columns, colours = {}, {}
    for y = top, math.min(top + 5, p.h - 1) do
      for x = 0, p.w - 1 do
        local at = 3 * (y * p.w + x)
        local threshold = (bayer[(y % 4) * 4 + x % 4] + 0.5) / 16
        local c = level(p.data[at], 5, threshold) * 42 + level(p.data[at + 1], 6, threshold) * 6
          + level(p.data[at + 2], 5, threshold)
        local line = columns[c]
        if not line then line = {} columns[c] = line colours[#colours + 1] = c end
        line[x] = bit.bor(line[x] or 0, bit.lshift(1, y - top))
      end
    end
    table.sort(colours)
    for k, c in ipairs(colours) do
      out[#out + 1] = "#" .. c
      local line, x = columns[c], 0
      while x < p.w do
        local bits, first = line[x] or 0, x
        repeat x = x + 1 until x >= p.w or (line[x] or 0) ~= bits
        local char, run = string.char(63 + bits), x - first
        if not (x >= p.w and bits == 0) then
          out[#out + 1] = run > 3 and ("!%d%s"):format(run, char) or char:rep(run)
        end
      end
      out[#out + 1] = k < #colours and "$" or "-"
    end
  end
  out[#out + 1] = "\27\\\n"
  return table.concat(out)
end

-- Two pixels a character cell: the upper in the foreground of "▀", the lower in its background.
function show.blocks(p, colors)
  local function code(layer, at)
    local r, g, b = p.data[at], p.data[at + 1], p.data[at + 2]
    if colors == "truecolor" then return ("%d;2;%d;%d;%d"):format(layer, r, g, b) end
    local function cube(v) return math.floor(v / 255 * 5 + 0.5) end
    return ("%d;5;%d"):format(layer, 16 + 36 * cube(r) + 6 * cube(g) + cube(b)) -- xterm's 6 x 6 x 6 cube
  end
  local out = {}
  for y = 0, p.h - 1, 2 do
    local before
    for x = 0, p.w - 1 do
      local style = code(38, 3 * (y * p.w + x))
      if y + 1 < p.h then style = style .. ";" .. code(48, 3 * ((y + 1) * p.w + x)) end
      if style ~= before then out[#out + 1] = "\27[" .. style .. "m" before = style end
      out[#out + 1] = "▀"
    end
    out[#out + 1] = "\27[0m\n"
  end
  return table.concat(out)
end

-- "kitty", "sixel" or "blocks": what the terminal understands. Asked once.
local known
function show.protocol()
  if known then return known end
  local name, program = os.getenv "TERM" or "", os.getenv "TERM_PROGRAM" or ""
  if os.getenv "TMUX" or name:find "^screen" then
    known = "blocks" -- a multiplexer passes neither on by itself
  elseif os.getenv "KITTY_WINDOW_ID" or name == "xterm-kitty" or name == "xterm-ghostty" or program == "WezTerm" then
    known = "kitty"
  else
    -- device attributes: 4 among them means sixel
    local answer = term.query("\27[c", "\27%[%?([%d;]*)c", 500)
    known = answer and (";" .. answer .. ";"):find(";4;", 1, true) and "sixel" or "blocks"
  end
  return known
end

-- show(x, options): draws x on the terminal. Options: protocol = "kitty" | "sixel" | "blocks"; frames = 8 of a clip;
-- columns and rows to use; force = true draws (half blocks) where the output is no terminal; to = file.
local function draw(_, x, options)
  options = options or {}
  local out = options.to or io.stdout
  if not show.is_tensor(x) then error("show: wants a tensor, got a " .. type(x), 2) end
  local ndim, dims = #x.shape, "[" .. table.concat(x.shape, ", ") .. "]"
  if not (ndim == 2 or ((ndim == 3 or ndim == 4) and x.shape[ndim] == 3)) or x:numel() == 0 then
    error("show: wants an image [H, W, 3], a clip [T, H, W, 3] or a matrix [H, W]; this is " .. dims, 2)
  end
  if not (options.force or term.isatty(1)) then
    out:write(show.describe(x), " (not drawn: the output is no terminal)\n")
    return
  end
  local protocol = options.protocol or (term.isatty(1) and show.protocol() or "blocks")
  local columns, rows, wide, high = term.size(1)
  columns, rows = options.columns or columns, options.rows or rows - 2
  local frames = options.frames or 8
  if protocol == "blocks" then
    out:write(show.blocks(render(x, columns, rows * 2, frames, 4), options.colors or term.colors()))
  elseif protocol == "kitty" or protocol == "sixel" then
    local cell_w, cell_h = wide > 0 and wide / columns or 8, high > 0 and high / (rows + 2) or 16
    local p = render(x, math.min(1200, columns * cell_w), math.min(900, rows * cell_h), frames, 3)
    out:write(show[protocol](p))
  else
    error(("show: no protocol '%s'; there are kitty, sixel, blocks"):format(tostring(protocol)), 2)
  end
  out:flush()
end

return setmetatable(show, { __call = draw })
