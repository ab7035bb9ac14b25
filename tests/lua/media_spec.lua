local t = require "harness"
local melies = require "melies"
local T, media = melies.tensor, melies.media

local dir = t.folder()
local function file(name) return dir .. "/" .. name end
local function exists(path)
  local f = io.open(path, "rb")
  if f then f:close() end
  return f ~= nil
end
local function listing()
  local p = io.popen("ls -A '" .. dir .. "'")
  local text = p:read("*a")
  p:close()
  return text
end

-- [count, h, w, 3] f32: frame i is a level of grey with a red stripe that moves.
local function clip(count, h, w)
  local x = T.zeros({ count, h, w, 3 })
  for i = 1, count do
    local frame = x:select(1, i)
    frame:fill_((i - 1) / math.max(1, count - 1))
    frame:slice(2, i, i + 3):select(3, 1):fill_(1)
  end
  return x
end
local function error_of(a, b) return (media.to_f32(a) - media.to_f32(b)):abs():mean() end

t.test("save and load, format by extension", function()
  local x = clip(12, 48, 64)
  for _, name in ipairs { "a.mp4", "a.webm", "a.gif", "a-%03d.png", "a-%03d.jpg" } do
    local path = file(name)
    t.ok(media.save(path, x, { fps = 12, metadata = { melies_seed = 7 } }))
    local back = t.ok(media.load(path))
    t.eq(back.dtype, "u8")
    t.eq(table.concat(back.shape, ","), "12,48,64,3", name)
    t.ok(error_of(back, x) < 0.03, name .. " " .. error_of(back, x))
    if not name:find "%%" then t.eq(media.info(path).metadata.melies_seed, "7", name) end
  end
  t.ok(not listing():find "partial")
end)

t.test("info", function()
  local info = t.ok(media.info(file "a.mp4"))
  t.eq(info.width, 64)
  t.eq(info.height, 48)
  t.eq(info.fps, 12)
  t.eq(info.frames, 12)
  t.near(info.duration, 1, 1e-6)
  t.eq(info.codec, "h264")
  t.eq(info.pixel_format, "yuv420p")
  t.eq(info.has_audio, false)
  t.eq(info.is_image, false)
end)

t.test("a reader streams, seeks, resizes, converts rates", function()
  local r = t.ok(media.reader(file "a.mp4", { width = 32 }))
  t.eq(r:info().height, 24)
  local count, last = 0, -1
  for frame, time in r:frames() do
    count = count + 1
    t.eq(table.concat(frame.shape, ","), "24,32,3")
    t.ok(time > last)
    last = time
  end
  t.eq(count, 12)
  t.eq(r:next(), nil)
  t.ok(r:seek(0.5))
  t.eq(r:read(100).shape[1], 6)
  t.ok(r:seek(0))
  t.eq(r:read(5).shape[1], 5)
  r:close()
  r:close()
  t.raises(function() r:next() end, "closed")
  t.eq(media.load(file "a.mp4", { fps = 24 }).shape[1], 24)
  t.eq(media.load(file "a.mp4", { fps = 24, start = 0.5, frames = 3 }).shape[1], 3)
  t.raises(function() media.reader(file "a.mp4", { widht = 3 }) end, "did you mean 'width'")
  t.raises(function() media.reader(file "a.mp4", { fps = -1 }) end, "fps")
end)

t.test("a writer takes frames, clips and lists", function()
  local path = file "w.mp4"
  local w = t.ok(media.writer(path, { fps = 23.976, crf = 10, preset = "fast", threads = 1 }))
  local x = clip(4, 32, 48)
  t.ok(w:write(x:select(1, 1)))
  t.ok(w:write(x))
  t.ok(w:write { x, media.to_u8(x) })
  t.ok(w:write(x:to("bf16")))
  t.eq(w:count(), 17)
  t.ok(not exists(path))
  t.ok(w:finish())
  t.ok(exists(path))
  t.ok(w:close())
  w:abort()
  local info = media.info(path)
  t.eq(info.fps_num, 24000)
  t.eq(info.fps_den, 1001)
  t.eq(info.frames, 17)
end)

t.test("quality works for every format", function()
  local x = clip(3, 32, 48)
  for _, name in ipairs { "q.mp4", "q.webm", "q.gif", "q.webp", "q-%d.png", "q-%d.jpg" } do
    t.ok(media.save(file(name), x, { quality = 0 }))
    t.ok(media.save(file(name), x, { quality = 100 }))
  end
end)

t.test("images", function()
  local x = media.to_u8(clip(1, 33, 47):select(1, 1))
  t.ok(media.save_image(file "i.png", x, { metadata = { title = "caf\195\169" } }))
  t.near((media.image(file "i.png"):to("f32") - x:to("f32")):abs():amax(), 0, 0)
  t.eq(media.info(file "i.png").metadata.title, "caf\195\169")
  t.eq(media.info(file "i.png").is_image, true)
  t.ok(media.save_image(file "i.jpg", x, { quality = 95, full_chroma = true }))
  t.ok(error_of(media.image(file "i.jpg"), x) < 0.02)
  t.eq(media.load(file "i.png").shape[1], 1)
end)

t.test("expected failures give nil and a message", function()
  local x = clip(3, 32, 48)
  local none, message = media.load(file "none.mp4")
  t.eq(none, nil)
  t.ok(message:find("none.mp4", 1, true) and message:find("No such file", 1, true), message)
  none, message = media.writer(file "no/such/folder.mp4")
  t.eq(none, nil)
  t.ok(message:find("No such file", 1, true), message)
  none, message = media.save("/dev/full", x, { format = "gif" })
  t.eq(none, nil)
  t.ok(message:find("not a regular file", 1, true), message)
  t.eq(media.image(dir), nil)
end)

t.test("misuse raises and leaves nothing", function()
  local before = listing()
  t.raises(function() media.save(file "m.mp4", clip(2, 33, 48)) end, "48x34")
  t.raises(function() media.save(file "m.avi", clip(2, 32, 48)) end, "avi")
  t.raises(function() media.save(file "m.mp4", clip(2, 32, 48), { crf = 99 }) end, "0 to 51")
  t.raises(function() media.save(file "m.mp4", clip(2, 32, 48), { qualiti = 9 }) end, "did you mean 'quality'")
  t.raises(function() media.save(file "m.mp4", T.zeros { 4, 4 }) end, "[4, 4]")
  t.raises(function() media.save(file "m.mp4", {}) end, "no frames")
  t.eq(listing(), before)
  t.ok(media.save(file "pad.mp4", clip(2, 33, 47), { pad = true }))
  t.eq(media.info(file "pad.mp4").width, 48)
end)

t.test("an output is checked before the work", function()
  local before = listing()
  t.ok(media.check_output(file "later.mp4", { crf = 20 }))
  for path, text in pairs { ["later.avi"] = "avi", ["no/folder.mp4"] = "No such file" } do
    local ok, message = media.check_output(file(path))
    t.eq(ok, nil)
    t.ok(message:find(text, 1, true), message)
  end
  t.eq(listing(), before)
end)

t.test("reading more frames than foreseen", function()
  t.ok(media.save(file "long.webm", T.zeros { 150, 16, 16, 3 }))
  t.eq(media.load(file "long.webm").shape[1], 150) -- WebM does not tell how many there are
  t.eq(media.load(file "long.webm", { frames = 1e6 }).shape[1], 150)
  t.eq(media.load(file "long.webm", { frames = 100 }).shape[1], 100)
end)

t.test("cancel is raised and leaves nothing", function()
  local lib = require "melies.ffi.lib"
  lib.C.mel_cancel()
  local ok, message = pcall(media.save, file "c.mp4", clip(2, 32, 48))
  lib.C.mel_cancel_clear()
  t.eq(ok, false)
  t.eq(message, lib.canceled)
  t.ok(not listing():find "c%.mp4" and not listing():find "partial")
end)

t.test("contact sheets", function()
  local x = clip(7, 20, 30)
  local sheet = media.contact_sheet(x, { columns = 3, gap = 2 })
  t.eq(table.concat(sheet.shape, ","), ("%d,%d,3"):format(2 + 3 * 22, 2 + 3 * 32))
  t.eq(sheet:get(1), 24) -- the ground
  local cell = sheet:slice(1, 3, 22):slice(2, 3 + 32, 34 + 30)
  t.near((cell:to("f32") - media.to_u8(x:select(1, 2)):to("f32")):abs():amax(), 0, 0)
  local plain = media.contact_sheet({ x:select(1, 1), x:select(1, 2) }, { scale = 2 })
  t.eq(table.concat(plain.shape, ","), ("%d,%d,3"):format(8 + 48, 8 + 2 * 68))
  local labelled = media.contact_sheet({ x:select(1, 1), x:select(1, 1) }, { labels = { "euler", "heun" } })
  t.ok(labelled.shape[1] > 8 + 28)
  t.ok(labelled:slice(1, 8 + 20 + 1, labelled.shape[1]):amax() == 230)
  local rows = media.contact_sheet({ x, x }, { columns = 5, labels = { "one", "two" }, gap = 0 })
  t.eq(rows.shape[2], 150)
  t.raises(function() media.contact_sheet({}) end, "list of frames")
  t.raises(function() media.contact_sheet({ T.zeros { 3, 3 } }) end, "[3, 3]")
  t.raises(function() media.contact_sheet(x, { colums = 3 }) end, "did you mean 'columns'")
end)

t.test("the same frames are the same bytes in every run, also with sides that are no multiple of 16", function()
  local first
  local same = melies.video.blur(melies.noise({ 40, 36, 3 }, { seed = 4 }), 1):unsqueeze(1):expand { 24, 40, 36, 3 } + 0.5
  local path = t.folder() .. "/same.mp4"
  for i = 1, 5 do
    local junk = T.uniform({ 5000 * i }, { seed = i }) -- what freed memory holds
    junk:free()
    t.ok(melies.media.save(path, melies.media.to_u8(same:contiguous()), { fps = 8 }))
    local bytes = melies.fs.read(path)
    first = first or bytes
    t.ok(bytes == first, "run " .. i)
  end
end)

t.finish()
