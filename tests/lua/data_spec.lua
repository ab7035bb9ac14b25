-- melies data: films into captioned clips. What is kept and why not, captions, privacy, resuming, bad input.
local t = require "harness"
local melies = require "melies"
local T, media, data = melies.tensor, melies.media, melies.data
local scrub, look, store = require "melies.data.scrub", require "melies.data.look", require "melies.data.store"
local log = require "melies.log"
local root = os.getenv "MELIES_ROOT" or "."
local program = (os.getenv "MELIES_BUILD" or root .. "/build") .. "/melies"
local world = dofile(root .. "/recipes/starter/world/init.lua")
log.quiet = true
local warnings = {}
function log.warn(format, ...) warnings[#warnings + 1] = format:format(...) end

local function write(path, text)
  local f = assert(io.open(path, "wb"))
  f:write(text)
  f:close()
end
local function read(path)
  local f = assert(io.open(path, "rb"))
  local text = f:read "*a"
  f:close()
  return text
end

-- A film of 17 frames in which something moves.
local function shot(i, place, frames)
  return (world.render({ subject = "car", colour = "red", texture = "striped", size = "large", motion = "right",
    camera = "still", place = place, light = "day", style = "realistic", relation = "none" },
    { seed = 6, index = i, size = 128, frames = frames or 17 }))
end
local function film(path, clips, options)
  options = options or {}
  options.fps = options.fps or 8
  t.ok(media.save(path, clips, options))
end

t.test("personal data is found, and what only looks like it is not", function()
  local s = scrub.new { names = { "Ada Lovelace", "Bo", "O'Neil (jr)" } }
  local function is(text, want) t.eq(s:text(text), want) end
  is("mail jane.doe+x@mail.example.org now", "mail [email] now")
  is("m\195\188ller@b\195\188cher.de", "[email]")
  is("call +44 20 7946 0018 or (030) 123 45 67 or 555-867-5309", "call [phone] or [phone] or [phone]")
  is("card 4111 1111 1111 1111 and 4111-1111-1111-1111", "card [card] and [card]")
  t.ok(not s:text("4111 1111 1111 1112"):find "card", "a wrong checksum is no card")
  is("from 192.168.0.17 and 2001:db8::ff00:42:8329, ::1", "from [ip] and [ip], [ip]")
  is("ssn 123-45-6789, DE89 3704 0044 0532 0130 00, QQ 12 34 56 C", "ssn [id], [id], QQ 12 34 56 C")
  is("passport no. X1234567", "[id]")
  is("AB 12 34 56 C", "[id]")
  is("ada   LOVELACE met Bo, not Bob or Robo; O'Neil (jr)", "[name] met [name], not Bob or Robo; [name]")
  for _, text in ipairs { "a red ball in 1984", "on 2024-01-15 at 12:30", "1920x1080 at 24 fps", "3 cats, 12 dogs and 7 birds",
    "pi is 3.14159", "the year 2001: a space film", "ratio 16:9", "a star [email] is born", "50 000 people" } do
    is(text, text)
  end
  is("bad \255 byte", "bad ? byte")
  local n = s.counts
  t.eq(("%d %d %d %d %d %d"):format(n.email, n.card, n.id, n.ip, n.phone, n.name), "2 2 4 3 3 3")
  t.ok(scrub.luhn "79927398713" and not scrub.luhn "79927398710")
  t.ok(scrub.iban "GB82 WEST 1234 5698 7654 32" and not scrub.iban "GB82 WEST 1234 5698 7654 33")
end)

t.test("frames are looked at", function()
  local clip = shot(1, "meadow")
  local a, b = look.frame(clip:select(1, 1)), look.frame(clip:select(1, 2))
  local other = look.frame(shot(2, "moon"):select(1, 1))
  local motion, change = look.pair(a, b)
  t.ok(motion > 0.002 and change < 0.1, motion .. " " .. change)
  motion, change = look.pair(a, other)
  t.ok(motion > 0.1 and change > 0.3, motion .. " " .. change)
  t.eq(look.pair(a, a), 0)
  t.ok(look.distance(look.hash(a), look.hash(other)) > 16)
  local small = media.to_u8(media.to_f32(clip:select(1, 1)):resize(1, 48, "bilinear", true):resize(2, 80, "bilinear", true))
  t.ok(look.distance(look.hash(a), look.hash(look.frame(small))) <= 4, "the same picture at another size")
  local blurred = look.frame(media.to_u8(melies.video and melies.video.blur and melies.video.blur(clip:select(1, 1), 3)
    or media.to_f32(clip:select(1, 1)):resize(1, 8):resize(2, 8):resize(1, 128):resize(2, 128)))
  t.ok(blurred.sharp < a.sharp / 10)
  t.eq(look.distance("ffffffffffffffff", "0000000000000000"), 64)
  local flat = look.frame(T.full({ 3, 5, 3 }, 100, "u8"))
  t.near(flat.light, 100 / 255, 1e-6)
  t.near(flat.sharp, 0, 1e-9)
end)

local dir = t.folder()
local films, out = dir .. "/films", dir .. "/out"
os.execute(("mkdir -p '%s/more'"):format(films))

t.test("a folder of films: shots, filters, captions, privacy, the card", function()
  film(films .. "/a.mp4", { shot(1, "meadow", 21), shot(2, "moon"), shot(3, "room", 9) })
  write(films .. "/a.txt", "A car;  mail jane@example.org\nfilmed by Ada Lovelace\n")
  film(films .. "/more/b Bo.mp4", shot(4, "sea", 37))
  write(films .. "/more/b Bo.json", melies.json.encode { licence = "CC0", captions = { { start = 0, ["end"] = 2.1,
    caption = "first" }, { start = 2.1, ["end"] = 9, caption = "second" } } })
  film(films .. "/black.mp4", T.zeros { 20, 64, 64, 3 })
  film(films .. "/frozen.mp4", shot(5, "snow"):slice(1, 1, 1):expand({ 20, 128, 128, 3 }):contiguous())
  film(films .. "/copy.mp4", shot(1, "meadow", 21), { crf = 32 })
  film(films .. "/noise.mp4", T.uniform({ 20, 64, 64, 3 }, { seed = 1 }))
  local soft = media.to_f32(shot(6, "city")):resize(2, 8, "area"):resize(3, 8, "area"):resize(2, 128):resize(3, 128)
  film(films .. "/soft.mp4", soft)
  film(films .. "/silent.mp4", shot(7, "forest"))
  write(films .. "/broken.mp4", "no film")
  write(films .. "/readme.md", "not a film")
  local list = read(films .. "/a.mp4")
  write(films .. "/cut.mkv", list:sub(1, #list / 2))

  local names = dir .. "/names.txt"
  write(names, "# people\nAda Lovelace\nBo\n")
  local report = t.ok(data.ingest(films, out, { width = 64, height = 48, names = names, licence = "of the house" }))
  t.eq(report.films, 10)
  t.eq(report.clips, 4)
  t.ok(report.damaged >= 1)
  local d = report.dropped
  t.eq(d.black, 1)
  t.eq(d.frozen, 1)
  t.eq(d["near-duplicate"], 2) -- the copy, and what is left of the film that was cut off
  t.eq(d["too much motion"], 1)
  t.eq(d.blurred, 1)
  t.eq(d["no caption"], 1)
  t.eq(d["shot too short"], 1)

  local set = t.ok(data.open(out))
  t.eq(set.count, 4)
  local frames, clip = set:get(1)
  t.eq(frames.dtype .. table.concat(frames.shape, "x"), "u817x48x64x3")
  t.eq(clip.caption, "A car; mail [email] filmed by [name]")
  t.eq(clip.licence, "of the house")
  local captions = {}
  for i = 1, 4 do captions[#captions + 1] = set.clips[i].caption end
  t.eq(captions[3] .. captions[4], "firstsecond")
  t.eq(set.clips[3].licence, "CC0")
  t.eq(set.clips[3].file, "more/b [name].mp4")
  t.near(set.clips[4].start, 17 / 8, 0.01)

  local card = read(out .. "/card.md")
  for _, text in ipairs { "4 clips of 17 frames, 64x48 at 8", "| near-duplicate | 2 |", "| CC0 | 2 |", "| email | 1 |",
    "broken.mp4: ", "| car | 2 |" } do
    t.ok(card:find(text, 1, true), text)
  end
  for _, file in ipairs { "card.md", "card.json", "index.jsonl", "sources.jsonl", "settings.json" } do
    local text = read(out .. "/" .. file)
    t.ok(not text:find "jane" and not text:find "Lovelace" and not text:find "Bo", file .. " tells what it should not")
  end
  t.eq(melies.json.read(out .. "/card.json").clips, 4)
end)

t.test("again: known films are passed over, under other names too; new ones are added", function()
  local before = read(out .. "/index.jsonl")
  os.rename(films .. "/a.mp4", films .. "/z.mp4")
  local options = { width = 64, height = 48 }
  local report = t.ok(data.ingest(films, out, options))
  t.eq(report.films, 1, "the film that had no caption is looked at again")
  t.eq(report.known, 9)
  t.eq(read(out .. "/index.jsonl"), before)
  write(films .. "/silent.txt", "a forest")
  film(films .. "/new.mp4", shot(11, "desert"))
  write(films .. "/new.txt", "new")
  report = t.ok(data.ingest(films, out, options))
  t.eq(report.clips, 2)
  t.eq(t.ok(data.open(out)).count, 6)
  -- A run that was killed: a line cut off, clips of a film that is not done, a shard of nobody.
  local sources = read(out .. "/sources.jsonl")
  local lines = {}
  for line in sources:gmatch "[^\n]+" do lines[#lines + 1] = line end
  local last = table.remove(lines)
  write(out .. "/sources.jsonl", table.concat(lines, "\n") .. "\n" .. last:sub(1, 20))
  write(out .. "/shards/clips-00099.safetensors", "half")
  t.eq(t.ok(data.open(out)).count, 5)
  report = t.ok(data.ingest(films, out, options))
  t.eq(report.films, 1)
  t.eq(t.ok(data.open(out)).count, 6)
  t.ok(t.ok(data.open(out)):get(6))
  t.ok(not melies.fs.stat(out .. "/shards/clips-00099.safetensors"))
  -- other settings
  local nothing, message = data.ingest(films, out, { width = 64, height = 48, fps = 4 })
  t.ok(not nothing and message:find("fps was 8, is 4 now", 1, true), message)
  -- another process
  local held = t.ok(store.open(out, melies.json.read(out .. "/settings.json")))
  nothing, message = data.ingest(films, out, options)
  t.ok(not nothing and message:find "locked", message)
  held:close()
end)

t.test("captions from a list, and from a command", function()
  local from = t.folder()
  film(from .. "/x.mp4", shot(20, "room"))
  film(from .. "/y.mp4", shot(21, "moon"))
  write(from .. "/list.jsonl", '{"file": "x.mp4", "caption": "listed", "license": "CC-BY"}\n\n')
  t.ok(data.ingest(from, from .. "/out", { captions = from .. "/list.jsonl", caption_command = "test -s {} && echo told of" }))
  local set = t.ok(data.open(from .. "/out"))
  t.eq(set.clips[1].caption .. set.clips[1].licence, "listedCC-BY")
  t.eq(set.clips[2].caption, "told of")
  for _, name in ipairs(melies.fs.list(from .. "/out")) do t.ok(not name:find "^caption", name) end
  local nothing, message = data.ingest(from, from .. "/out2", { caption_command = "exit 3 #" })
  t.ok(not nothing and message:find("ended with 3", 1, true), message)
  -- nothing is there yet: other settings are no trouble
  t.eq(t.ok(data.ingest(from, from .. "/out2", { width = 32, uncaptioned = true })).clips, 2)
  write(from .. "/list.jsonl", '{"file": "x.mp4"\n')
  nothing, message = data.ingest(from, from .. "/out3", { captions = from .. "/list.jsonl" })
  t.ok(not nothing and message:find("list.jsonl:1", 1, true), message)
end)

t.test("an interrupt keeps the films that were done, and the next run goes on", function()
  local from = t.folder()
  for i = 1, 3 do film(("%s/%d.mp4"):format(from, i), shot(60 + i, "meadow", 17)) end
  local lib, ask = require "melies.ffi.lib", nil
  local captions = require "melies.data.captions"
  local open = captions.open
  local asked = 0
  captions.open = function(...)
    local source = open(...)
    ask = source.ask
    source.ask = function(self, path)
      asked = asked + 1
      if asked == 2 then lib.C.mel_cancel() end
      return ask(self, path)
    end
    return source
  end
  local ok, message = pcall(data.ingest, from, from .. "/out", { caption_command = "echo told #", duplicates = -1 })
  lib.C.mel_cancel_clear()
  captions.open = open
  t.ok(not ok and type(message) == "table" and message.canceled, tostring(message))
  t.eq(t.ok(data.open(from .. "/out")).count, 1)
  for _, name in ipairs(melies.fs.list(from .. "/out")) do t.ok(not name:find "^caption", name) end
  local report = t.ok(data.ingest(from, from .. "/out", { caption_command = "echo told #", duplicates = -1 }))
  t.eq(report.films .. " " .. report.known .. " " .. report.total, "2 1 3")
end)

t.test("latents of a model", function()
  local from = t.folder()
  film(from .. "/x.mp4", shot(30, "meadow"))
  t.ok(data.ingest(from, from .. "/out", { width = 64, height = 64, model = "starter", uncaptioned = true }))
  local latent, clip = t.ok(data.open(from .. "/out")):get(1)
  local model = melies.pipeline.load "starter"
  t.eq(table.concat(latent.shape, "x"), table.concat(model:latent_shape { frames = 17, height = 64, width = 64 }, "x"))
  t.eq(clip.kind .. clip.caption, "latent")
  local nothing, message = data.ingest(from, from .. "/out2", { width = 65, height = 64, model = "starter" })
  t.ok(not nothing and message:find "does not fit", message)
  nothing, message = data.ingest(from, from .. "/out2", { model = "nomodel" })
  t.ok(not nothing and message, message)
end)

t.test("bad input says what is wrong", function()
  local from = t.folder()
  local function fails(pattern, ...)
    local nothing, message = data.ingest(...)
    t.ok(not nothing and message:find(pattern, 1, true), tostring(message))
  end
  fails("holds no films", from, from .. "/out")
  fails("No such file", from .. "/none", from .. "/out")
  write(from .. "/x.mp4", "")
  fails("1 damaged", from, from .. "/out")
  fails("1 + 4 k", from, from .. "/out", { frames = 16 })
  fails("fps is -1", from, from .. "/out", { fps = -1 })
  fails("width is 64.5", from, from .. "/out", { width = 64.5 })
  fails("No such file", from, from .. "/out", { names = from .. "/none" })
  fails("x.mp4: not a folder", from .. "/x.mp4", from .. "/out")
  t.raises(function() data.ingest(from, from .. "/out", { widht = 64 }) end, "did you mean 'width'?")
  film(from .. "/y.mp4", shot(40, "sea"))
  fails("put film.txt beside film.mp4", from, from .. "/out")
  local nothing, message = data.card(from .. "/none")
  t.ok(not nothing and message:find "no folder of clips", message)
end)

t.test("melies data", function()
  local function says(arguments)
    local p = io.popen(("'%s' data %s 2>&1; echo \"[$?]\""):format(program, arguments))
    local text = p:read "*a"
    p:close()
    return text
  end
  local from = t.folder()
  film(from .. "/x.mp4", shot(50, "moon"))
  local text = says(("ingest '%s' -o '%s/out' --size 32x32 --uncaptioned --fps=8"):format(from, from))
  t.ok(text:find("1 clips, 1 new from 1 film", 1, true) and text:find("[0]", 1, true), text)
  text = says(("card '%s/out'"):format(from))
  t.ok(text:find("# Data card", 1, true) and text:find("[0]", 1, true), text)
  t.ok(says("ingest --help"):find("caption-command", 1, true))
  t.ok(says("ingset x"):find("did you mean 'ingest'?", 1, true))
  t.ok(says(("ingest '%s' -o '%s/out' --sise 3"):format(from, from)):find("did you mean '--size'?", 1, true))
  t.ok(says(("ingest '%s' -o '%s/out' --fps many"):format(from, from)):find("[2]", 1, true))
  t.ok(says("card /nonexistent"):find("[1]", 1, true))
end)

t.finish()
