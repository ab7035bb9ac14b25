-- Films that are cut to a sound, and that follow an image: the starter model, few steps.
local t = require "harness"
local melies = require "melies"
local T, media = melies.tensor, melies.media
local steer = require "melies.steer"

local folder = t.folder()
local function file(name) return folder .. "/" .. name end
local RATE = 48000

local function clicks(path, bpm, seconds, first)
  local x, at = T.zeros { seconds * RATE, 1 }, first
  local p = x:ptr()
  while at < seconds do
    for i = 0, math.min(719, seconds * RATE - math.floor(at * RATE) - 1) do
      p[math.floor(at * RATE) + i] = 0.7 * math.exp(-i / 200) * math.sin(2 * math.pi * 1500 * i / RATE)
    end
    at = at + 60 / bpm
  end
  assert(media.save_audio(path, x, { rate = RATE }))
end

t.test("music_video: every cut within a frame of a beat, the sound in the film", function()
  clicks(file "c.wav", 97, 4, 0.3)
  local said, recipe = {}, melies.recipe
  local plugin = assert(recipe.find "music_video")
  local values = assert(recipe.check(plugin, { audio = file "c.wav", pace = "fast", steps = 4, seed = 1, checks = "", passes = "",
    anchor = 0, output = file "m.mp4",
    prompt = "A big red ball rolls over the grass. Cut to a small blue star in the night sky." }))
  assert(recipe.run(plugin, values, { notice = function(text) said[#said + 1] = text end, keep = false }))
  local text = table.concat(said, "\n")
  t.ok(text:find("97.0 BPM", 1, true) and text:find("on a beat", 1, true), text)
  local info = media.info(file "m.mp4")
  t.near(info.duration, 4, 0.5 / info.fps + 1e-6)
  t.near(media.audio(file "m.mp4", { rate = RATE }).shape[1] / RATE, info.duration, 0.03)
  -- The largest steps between frames are the cuts.
  local f, steps = media.to_f32(media.load(file "m.mp4")), {}
  for i = 2, f.shape[1] do
    steps[i - 1] = { (f:select(1, i) - f:select(1, i - 1)):abs():mean(), (i - 1) / info.fps }
  end
  table.sort(steps, function(a, b) return a[1] > b[1] end)
  local cuts = #said - 3 -- shots less one: beside them a line of the model's, of the tempo and of the length
  for line in text:gmatch "[^\n]+" do if line:find "^the model reads" then cuts = cuts - 1 end end
  t.ok(cuts >= 1, text)
  for k = 1, cuts do
    local beat = math.floor((steps[k][2] - 0.3) / (60 / 97) + 0.5) * 60 / 97 + 0.3
    t.ok(math.abs(steps[k][2] - beat) <= 1 / info.fps, ("a cut at %.3f s, the beat is at %.3f s"):format(steps[k][2], beat))
  end
end)

t.test("without a beat the film is made, and that is said; a file that holds no sound ends it at once", function()
  assert(media.save_audio(file "s.wav", T.zeros { 2 * RATE, 1 }))
  local said, recipe = {}, melies.recipe
  local plugin = assert(recipe.find "film")
  local values = assert(recipe.check(plugin, { audio = file "s.wav", steps = 1, checks = "", passes = "", anchor = 0,
    prompt = "A red ball rolls over the grass.", output = file "s.gif" }))
  local frames = assert(recipe.run(plugin, values, { notice = function(text) said[#said + 1] = text end }))
  local text = table.concat(said, "\n")
  t.ok(text:find("no beat found: it is silent; cuts fall where the pace says", 1, true), text)
  t.ok(text:find("s.gif: this format holds no sound; MP4 and WebM do", 1, true), text)
  t.ok(frames.shape[1] > 1)
  local f = io.open(file "no.wav", "wb")
  f:write "nothing"
  f:close()
  local _, message = melies.run("film", { audio = file "no.wav", prompt = "A ball.", output = file "n.mp4" })
  t.ok(message:find("no.wav", 1, true), message)
  _, message = melies.run("film", { prompt = "A ball.", reference = file "m.mp4", as = "palete" })
  t.ok(message:find "did you mean 'palette'", message)
end)

t.test("a reference as the first frame: the film begins with it", function()
  local d = melies.pipeline.load("starter").defaults
  local image = T.zeros { d.height, d.width, 3 }
  image:slice(1, 1, d.height / 2):fill_(0.9)
  assert(media.save_image(file "i.png", image))
  local film = assert(melies.run("film", { prompt = "A red ball rolls over the grass.", steps = 1, checks = "", passes = "",
    anchor = 0, reference = file "i.png", seed = 2 }))
  t.eq(film.shape[1], d.frames)
  t.ok((film:select(1, 1) - image):abs():mean() < 0.01)
end)

t.test("a reference as the palette: frames are drawn towards it", function()
  local image = T.zeros { 16, 16, 3 }
  image:select(3, 1):fill_(0.8)
  image:slice(1, 1, 8):select(3, 2):fill_(0.4)
  assert(media.save_image(file "p.png", image))
  local steering = steer.new({}, { reference = file "p.png", as = "palette" })
  local list = steering:passes { { "grain" } }
  t.eq(list[1][1], "color_match")
  t.eq(list[2][1], "grain")
  local frame = T.uniform({ 16, 16, 3 }, { seed = 1 })
  local frames = { frame, frame }
  local next_frame = assert(melies.pass.over(function() return table.remove(frames) end, { list[1] },
    { width = 16, height = 16, fps = 8 }))
  local function away(x) return (x:reshape(-1, 3):mean(1) - image:reshape(-1, 3):mean(1)):abs():mean() end
  t.ok(away(next_frame()) < 0.6 * away(frame))
  local _, message = melies.pass.over(function() end, { { "color_match", reference = file "none.png" } },
    { width = 16, height = 16, fps = 8 })
  t.ok(tostring(message):find("none.png", 1, true), message)
end)

t.test("a reference as a character: its picture is remembered and stands in the storyboard", function()
  local said = {}
  local job = { check = function(_, value, message) return assert(value, message) end,
    notice = function(_, format, ...) said[#said + 1] = format:format(...) end }
  local bank = melies.memory_bank
  local before = bank.folder
  bank.folder = function() return folder .. "/memory" end
  local board = { characters = { ball = "a red ball" }, shots = { { text = "a red ball", who = { "ball" } } } }
  local out = steer.new(job, { reference = file "p.png", as = "character:Ball" }):board(board)
  t.ok(out.characters.ball.image:find "reference%-1.png$", out.characters.ball.image)
  t.eq(bank.get("ball").description, "a red ball")
  t.ok(said[1]:find "remembered as ball", said[1])
  local _, e = pcall(function() steer.new(job, { reference = file "p.png", as = "character:bal" }):board(board) end)
  t.ok(e.failure:find "did you mean 'ball'", e.failure)
  bank.folder = before
end)

t.finish()
