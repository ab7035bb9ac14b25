-- Sound in files, and what is found in it: signals whose tempo, loudness, brightness and parts are known.
local t = require "harness"
local melies = require "melies"
local T, media, sound = melies.tensor, melies.media, melies.sound

local folder = t.folder()
local function file(name) return folder .. "/" .. name end
local RATE = 48000

-- [seconds, 1]: value(i / RATE) for every sample; where nothing is given, silence.
local function signal(seconds, value)
  local n = math.floor(seconds * RATE)
  local x = T.zeros { n, 1 }
  local p = x:ptr()
  for i = 0, value and n - 1 or -1 do p[i] = value(i / RATE) end
  return x
end

-- Clicks of 15 ms over noise; the times that they begin at.
local function clicks(bpm, seconds, noise, level, first)
  local x = signal(seconds)
  if noise then x = x + T.noise({ x.shape[1], 1 }, { seed = 3 }) * noise end
  local p, n, times, at = x:ptr(), x.shape[1], {}, first or 0.35
  while at < seconds do
    times[#times + 1] = at
    local from = math.floor(at * RATE + 0.5)
    for i = 0, math.min(719, n - from - 1) do
      p[from + i] = p[from + i] + (level or 0.5) * math.exp(-i / 200) * math.sin(2 * math.pi * 1500 * i / RATE)
    end
    at = at + 60 / bpm
  end
  return x, times
end

local function analysed(x, opts)
  assert(media.save_audio(file "x.wav", x))
  local a, message = sound.analyse(file "x.wav", opts)
  return a, message
end

t.test("samples: a file's own, a part of it, as a stream", function()
  local x = signal(0.5, function(s) return 0.5 * math.sin(440 * s) end)
  local two = T.concat({ x, x * -0.5 }, 2)
  assert(media.save_audio(file "two.wav", two, { rate = RATE }))
  local y, info = media.audio(file "two.wav")
  t.eq(table.concat(y.shape, "x"), "24000x2")
  t.eq(info.rate, RATE)
  t.eq(info.codec, "pcm_s16le")
  t.ok((y - two):abs():amax() < 1e-4)
  local part = media.audio(file "two.wav", { channels = 1, start = 0.1, seconds = 0.2 })
  t.eq(table.concat(part.shape, "x"), "9600x1")
  t.ok((part - x:slice(1, 4801, 14400) * 0.25):abs():amax() < 1e-4)
  local reader, count = assert(media.audio_reader(file "two.wav", { rate = 16000 })), 0
  for _ = 1, 100 do
    local some = reader:read(1000)
    if not some then break end
    count = count + some.shape[1]
  end
  reader:close()
  t.ok(math.abs(count - 8000) <= 2, count)
  t.raises(function() media.audio(file "two.wav", { rat = 1 }) end, "did you mean 'rate'")
  t.raises(function() reader:read(1) end, "closed")
end)

t.test("a film gets sound: cut off or followed by silence, in time, from where it is wanted", function()
  local x, times = clicks(120, 3, nil, 0.8, 0.5)
  assert(media.save_audio(file "c.wav", x))
  local clip = T.zeros { 32, 32, 32, 3 }
  for _, name in ipairs { "f.mp4", "f.webm" } do
    assert(media.save(file(name), clip, { fps = 16, audio = file "c.wav", metadata = { note = "kept" } }))
    local y = assert(media.audio(file(name), { rate = RATE, channels = 1 }))
    t.near(y.shape[1] / RATE, 2, 0.03, name)
    local p, found, i = y:ptr(), {}, 0
    while i < y.shape[1] do
      if math.abs(p[i]) > 0.3 then
        found[#found + 1] = i / RATE
        i = i + 4800
      end
      i = i + 1
    end
    t.eq(#found, 3, name)
    for k, at in ipairs(found) do t.near(at, times[k], 0.003, name) end
    t.eq(media.info(file(name)).metadata.note, "kept")
    t.eq(media.info(file(name)).has_audio, true)
  end
  assert(media.add_audio(file "f.mp4", file "c.wav", file "g.mp4", { from = 2.5 }))
  local y = assert(media.audio(file "g.mp4", { rate = RATE, channels = 1 }))
  t.ok(y:slice(1, 1, 2000):abs():amax() > 0.3 and y:slice(1, 30000, 90000):abs():amax() < 0.05)
  t.ok((media.load(file "g.mp4"):to "f32" - media.load(file "f.mp4"):to "f32"):abs():amax() == 0)
  t.raises(function() media.save(file "f.gif", clip, { audio = file "c.wav" }) end, "gif holds no sound")
  local _, message = media.save(file "h.mp4", clip, { audio = file "none.wav" })
  t.ok(message:find("none.wav", 1, true), message)
  t.eq(media.holds_sound("a.webm"), true)
  t.eq(media.holds_sound("a.png"), false)
end)

for _, bpm in ipairs { 60, 97, 120, 174 } do
  for _, noise in ipairs { 0, 0.05 } do
    t.test(("clicks at %d BPM%s: the tempo, and a beat at each"):format(bpm, noise > 0 and " in noise" or ""), function()
      local x, times = clicks(bpm, 12, noise > 0 and noise)
      local a = assert(analysed(x))
      t.near(a.tempo, bpm, 0.01 * bpm)
      local hit = 0
      for _, at in ipairs(times) do
        for _, beat in ipairs(a.beats) do
          if math.abs(beat - at) < 0.02 then hit = hit + 1 break end
        end
      end
      t.ok(hit >= #times - 1, ("%d of %d"):format(hit, #times))
      t.ok(#a.beats <= #times + 1, #a.beats)
      t.eq(a.no_beat, nil)
    end)
  end
end

t.test("drums: the beat is on the low ones, also where the cymbals between them are the stronger onsets", function()
  local random = T.uniform({ 200000 }, { seed = 7 })
  local r, used = random:ptr(), 0
  local function noise()
    used = (used + 1) % 200000
    return 2 * r[used] - 1
  end
  local kinds = {
    kick = { 4000, function(s) return math.sin(2 * math.pi * (50 + 100 * math.exp(-40 * s)) * s) * math.exp(-18 * s) end },
    snare = { 4000, function(s) return noise() * math.exp(-25 * s) + 0.4 * math.sin(1194 * s) * math.exp(-20 * s) end },
    hat = { 1500, function(s) return 0.5 * noise() * math.exp(-120 * s) end },
  }
  for _, case in ipairs { { 126, "kick", "hat", "kick", "hat" }, { 128, "kick hat", "hat", "snare hat", "hat" } } do
    local x, k, at = signal(10), 0, 0.2
    local p, n = x:ptr(), x.shape[1]
    while at < 9.9 do
      for kind in case[2 + k % 4]:gmatch "%a+" do
        local from = math.floor((at + 0.01 * noise()) * RATE)
        for i = 0, math.min(kinds[kind][1], n - from) - 1 do p[from + i] = p[from + i] + 0.4 * kinds[kind][2](i / RATE) end
      end
      k, at = k + 1, at + 30 / case[1]
    end
    local a = assert(analysed(x))
    t.near(a.tempo, case[1], 0.01 * case[1])
    for _, beat in ipairs(a.beats) do
      local phase = (beat - 0.2) * case[1] / 60 % 1
      t.ok(math.min(phase, 1 - phase) < 0.12, ("%d BPM: a beat at %.2f s"):format(case[1], beat))
    end
  end
end)

t.test("no beat: silence, noise, a tone, a tone that glides, too short", function()
  local function reason(x)
    local a = assert(analysed(x))
    t.eq(#a.beats, 0)
    t.eq(a.tempo, nil)
    t.ok(sound.text(a):find("no beat found: ", 1, true))
    return a.no_beat
  end
  t.eq(reason(signal(6)), "no beat found: it is silent")
  t.ok(reason(T.noise({ 6 * RATE, 1 }, { seed = 1 }) * 0.1):find "repeat at no tempo")
  t.ok(reason(signal(6, function(s) return 0.1 * math.sin(2 * math.pi * 440 * s) end)):find "no onsets")
  t.ok(reason(signal(6, function(s) return 0.3 * math.sin(2 * math.pi * 50 * 6 / math.log(100) * 100 ^ (s / 6)) end)))
  t.ok(reason(signal(1, function(s) return 0.1 * math.sin(440 * s) end)):find "1.0 s are too short; 3 s at least")
  local _, message = analysed(signal(0.01))
  t.ok(message:find "x.wav: 0.010 s of sound; 0.05 s at least are wanted", message)
  _, message = analysed(signal(1), { from = 2 })
  t.ok(message:find "from 2 s on", message)
end)

t.test("damaged files say so", function()
  local text = assert(melies.fs or require "melies.fs").read(file "c.wav")
  local f = io.open(file "cut.wav", "wb")
  f:write(text:sub(1, #text / 3))
  f:close()
  local _, message = sound.analyse(file "cut.wav")
  t.ok(message:find "cut.wav: damaged or cut short after 0.9", message)
  f = io.open(file "text.mp3", "wb")
  f:write(("no sound at all. "):rep(500))
  f:close()
  _, message = sound.analyse(file "text.mp3")
  t.ok(message and message:find("text.mp3", 1, true), message)
  _, message = sound.analyse(file "none.mp3")
  t.ok(message:find "No such file", message)
end)

-- EBU Tech 3341, cases 1 to 3, shortened; the tolerance there is 0.1 LU. Two channels of 1 kHz.
t.test("loudness of the standard's tones; its range; one channel", function()
  local function tone(db, seconds)
    local x = signal(seconds, function(s) return 10 ^ (db / 20) * math.sin(2 * math.pi * 1000 * s) end)
    return T.concat({ x, x }, 2)
  end
  local a = assert(analysed(tone(-23, 4)))
  t.near(a.loudness.integrated, -23, 0.1)
  t.near(a.loudness.momentary_max, -23, 0.1)
  t.near(a.loudness.short_term_max, -23, 0.1)
  t.near(a.peak, -23, 0.01)
  t.near(assert(analysed(tone(-33, 1))).loudness.integrated, -33, 0.1)
  t.near(assert(analysed(tone(-23, 1):slice(2, 1, 1):contiguous())).loudness.integrated, -26, 0.1)
  local cases = {} -- case 3: 10 s at -36, 60 s at -23, 10 s at -36
  for i = 1, 800 do cases[i] = 10 ^ (((i > 100 and i <= 700 and -23 or -36) + 0.691) / 10) end
  t.near(sound.loudness.measure(cases).integrated, -23, 0.1)
  local blocks = {} -- Tech 3342, case 1: 20 s at -20 and 20 s at -30 are a range of 10 LU
  for i = 1, 400 do blocks[i] = 10 ^ (((i <= 200 and -20 or -30) + 0.691) / 10) end
  t.near(sound.loudness.measure(blocks).range, 10, 1)
  t.eq(sound.loudness.measure({ 0, 0 }).integrated, -70)
end)

t.test("brightness follows a tone; energy follows what is loud and busy", function()
  local a = assert(analysed(signal(6, function(s)
    return 0.3 * math.sin(2 * math.pi * (s < 3 and 500 or 4000) * s) end)))
  t.near(sound.at(a.brightness, 1.5), 500, 5)
  t.near(sound.at(a.brightness, 4.5), 4000, 5)
  local x = T.concat({ (clicks(120, 6, 0.01, 0.05)), (clicks(240, 6, 0.01, 0.8)) }, 1)
  a = assert(analysed(x))
  t.ok(sound.mean(a.energy, 0, 4) < 0.3 and sound.mean(a.energy, 8, 12) > 0.7)
end)

t.test("AABA: borders and labels; one part alone", function()
  local function part(x, from, seconds, chord, harmonics)
    local p = x:ptr()
    for i = 0, seconds * RATE - 1 do
      local s, v = i / RATE, 0
      for _, f in ipairs(chord) do
        for h = 1, harmonics do v = v + math.sin(2 * math.pi * f * h * s) / h end
      end
      p[from * RATE + i] = v * 0.05 * (0.4 + 0.6 * math.exp(-6 * (s % 0.5)))
    end
  end
  local x = signal(40)
  part(x, 0, 20, { 262, 392 }, 1)
  part(x, 20, 10, { 220, 349 }, 8)
  part(x, 30, 10, { 262, 392 }, 1)
  local a = assert(analysed(x))
  t.eq(#a.sections, 3)
  local labels = ""
  for _, s in ipairs(a.sections) do labels = labels .. s.label end
  t.eq(labels, "ABA")
  t.near(a.sections[2].from, 20, 0.6)
  t.near(a.sections[3].from, 30, 0.6)
  t.eq(a.sections[3].to, a.duration)
  t.eq(#assert(analysed(T.noise({ 20 * RATE, 1 }, { seed = 1 }) * 0.1)).sections, 1)
  local data = melies.json.decode(melies.json.encode(sound.data(a)))
  t.eq(#data.sections, 3)
  t.near(data.beats[2] - data.beats[1], 0.5, 0.02)
  t.ok(sound.plot(a):find("</svg>", 1, true))
end)

t.test("melies sound: text, JSON, a plot; wrong words", function()
  local cli, lines = require "melies.sound.cli", {}
  local function write(text) lines[#lines + 1] = text end
  assert(media.save_audio(file "x.wav", (clicks(120, 4))))
  t.eq(cli.main({ file "x.wav", "--plot", file "x.svg" }, write), 0)
  t.ok(lines[1]:find "tempo       1[12]%d%.%d BPM", lines[1])
  t.ok(require("melies.fs").read(file "x.svg"):find "<svg")
  t.eq(cli.main({ "--json", file "x.wav", "--seconds=3.5" }, write), 0)
  local data = melies.json.decode(lines[2])
  t.near(data.duration, 3.5, 1e-6)
  t.eq(#data.energy, 35)
  local code, message = cli.main({ "--jsn", "x" }, write)
  t.eq(code, 2)
  t.ok(message:find "did you mean '%-%-json'", message)
  code, message = cli.main({}, write)
  t.eq(code, 2)
  t.ok(message:find "which file", message)
  code, message = cli.main({ file "no.wav" }, write)
  t.eq(code, 1)
  t.ok(message:find("no.wav", 1, true), message)
end)

-- ---- storyboards in time ------------------------------------------------------------------------------------

local grid = { fps = 8, step = 8, window = 2.125,
  frames = function(s) return 1 + 8 * math.max(1, math.floor((s * 8 - 1) / 8 + 0.5)) end }
local function board()
  return { prompt = "p", seed = 4, shots = {
    { text = "a red ball rolls", seconds = 2.125, transition = "none" },
    { text = "a blue star at night", seconds = 2.125, transition = "dissolve" },
    { text = "a yellow cube moves slowly", seconds = 2.125, transition = "overlap" } } }
end
-- An analysis as sound.analyse makes them: beats every half second from 0.25 s on, quiet, then loud.
local function beating(seconds)
  local a = { path = "song", duration = seconds, tempo = 120, beats = {}, energy = {}, brightness = {},
    sections = { { from = 0, to = seconds / 2, label = "A" }, { from = seconds / 2, to = seconds, label = "B" } } }
  for at = 0.25, seconds, 0.5 do a.beats[#a.beats + 1] = at end
  for i = 1, seconds * 10 do a.energy[i], a.brightness[i] = i <= seconds * 5 and 0.1 or 0.9, 2000 end
  return a
end
local cut = require("melies.steer_cuts").cut

t.test("cuts: the board's shots end on beats, to the frame", function()
  local b, lines = assert(cut(board(), beating(20), { grid = grid }))
  local at = 0
  for i, shot in ipairs(b.shots) do
    at = at + shot.seconds
    t.near((at - 0.25) % 0.5, 0, 1e-6, "shot " .. i)
  end
  t.eq(b.exact, true)
  t.eq(b.shots[2].transition, "cut")
  t.eq(b.shots[3].transition, "overlap")
  t.eq(b.shots[1].mood, "slow gentle movement")
  t.eq(b.shots[3].mood, nil, "the words say slowly")
  t.ok(melies.plan.diff(b, 1):find("{+slow gentle movement+}", 1, true), melies.plan.diff(b, 1))
  local text = table.concat(lines, "\n")
  t.ok(text:find("in place of the transition before shot 2 (dissolve)", 1, true), text)
  local shots, frames = assert(melies.plan.shots(b, { grid = grid })), 0
  for _, shot in ipairs(shots) do
    t.ok(shot.frames >= shot.length and (shot.frames - 1) % 8 == 0)
    frames = frames + shot.length
    local seconds = frames / 8
    t.ok(math.abs((seconds - 0.25 + 0.25) % 0.5 - 0.25) <= 1 / 16 + 1e-6, "within half a frame of a beat")
  end
  local only = assert(cut(board(), beating(20), { grid = grid, words = false }))
  t.eq(only.shots[1].mood, nil)
  t.ok(melies.plan.text(b, "lua"):find("exact = true", 1, true))
  t.eq(melies.plan.parse(melies.plan.text(b, "json"), "json").exact, true)
end)

t.test("shots are repeated until the sound is over: shorter where more goes on, parts begin with a cut", function()
  local b = assert(cut(board(), beating(24), { grid = grid, fill = true }))
  local at, slow, fast, border = 0, 0, 0, false
  for _, shot in ipairs(b.shots) do
    if at < 11.9 then slow = math.max(slow, shot.seconds) elseif at < 20 then fast = math.max(fast, shot.seconds) end
    border = border or math.abs(at - 12) < 1e-6
    at = at + shot.seconds
  end
  t.near(at, 24, 1e-6)
  t.ok(border, "the second part begins with a cut")
  t.ok(slow >= 4 and fast <= 2.1, slow .. " " .. fast)
  t.eq(b.shots[4].text, "a red ball rolls")
  local none = beating(10)
  none.tempo, none.beats, none.no_beat = nil, {}, "no beat found: it is silent"
  local _, lines = assert(cut(board(), none, { grid = grid, fill = true }))
  t.ok(lines[1]:find("no beat found: it is silent; cuts fall where the pace says", 1, true), lines[1])
  _, lines = assert(cut(board(), beating(4), { grid = grid }))
  t.ok(table.concat(lines, "\n"):find("silence after it", 1, true))
end)

t.test("references: what an image is", function()
  local steer = require "melies.steer"
  t.eq(steer.reference("character: red ball").name, "red ball")
  t.eq(steer.reference("palette").as, "palette")
  local _, message = steer.reference("palete")
  t.ok(message:find "did you mean 'palette'", message)
  _, message = steer.reference("character")
  t.ok(message:find "which name", message)
  _, message = steer.reference("palette:x")
  t.ok(message:find "takes no name", message)
end)

t.finish()
