-- Each check finds its planted fault and passes a clean film; the gate; the report as text and on the command line.
local t = require "harness"
local melies = require "melies"
local clips = require "clips"
local T, check, media = melies.tensor, melies.check, melies.media

local function run(frames, list, options)
  local report, message = check.run(frames, list, options)
  return t.ok(report, tostring(message))
end

-- name passes on `clean` and fails on `faulty`; what is found lies in `at` (frames), where that is given.
local function finds(name, clean, faulty, at, options)
  local entry = type(name) == "table" and name or { name }
  local good = run(clean, { entry }, options).results[1]
  t.eq(good.pass, true, ("%s on the clean film (%s)"):format(entry[1], tostring(good.value)))
  local bad = run(faulty, { entry }, options).results[1]
  t.eq(bad.pass, false, ("%s on the faulty film (%s)"):format(entry[1], tostring(bad.value)))
  print(("     %-20s clean %.5g, faulty %.5g, threshold %.5g"):format(entry[1], good.value, bad.value, bad.threshold))
  if at then
    t.ok(#bad.where > 0, "says where")
    local found = false
    for _, f in ipairs(at) do found = found or bad.where[1].frame == f end
    t.ok(found, ("%s: first place is frame %d"):format(entry[1], bad.where[1].frame))
  end
  return good, bad
end

local function ball(count, change) -- a camera that stands still, a ball that rolls
  return clips.film(count, function(i)
    local o = { look = 1, ball = { 15 + 2.4 * i, 58 } }
    if change then change(o, i) end
    return o
  end)
end

local still = ball(24)
local rolling = clips.rolling(24, 1)

t.test("flicker", function()
  finds("flicker", still, clips.flickering(still, 0.1))
  finds({ "flicker", follow = true }, rolling, clips.flickering(rolling, 0.1))
  local none = run(clips.film(8, function(i) return { x = 4 * i } end), { "flicker" }).results[1]
  t.eq(none.pass, nil)
  t.ok(none.note:find("nothing stands still", 1, true))
end)

t.test("motion smoothness", function()
  local jerky = ball(24, function(o, i) if i == 12 then o.ball[1] = o.ball[1] + 40 o.x = 5 end end)
  finds("motion_smoothness", rolling, jerky, { 12, 11, 13 })
end)

t.test("dynamic degree", function()
  finds("dynamic_degree", still, clips.film(12, function() return { look = 2 } end))
end)

t.test("warp error", function()
  finds("warp_error", rolling, clips.flickering(rolling, 0.15))
end)

t.test("colour drift and its slope", function()
  local fast = clips.joined(clips.rolling(24, 1), clips.rolling(24, 1))
  for i = 25, 48 do fast[i] = clips.frame { x = 0.6 * i, ball = { 20 + 1.4 * i, 60 } } end
  local clean = clips.film(48, function(i) return { x = 0.6 * i, ball = { 20 + 1.4 * i, 60 } } end)
  local good, bad = finds("color_drift", clean, clips.drifting(clean, 0.004), { 46, 47, 48 })
  t.ok(bad.slope > 3 and good.slope < 1.5, good.slope .. " " .. bad.slope)
end)

t.test("the subject and the place stay themselves", function()
  -- The ball turns from red to a blue and grows; then the ground changes into another, slowly enough to be no cut.
  local other = clips.film(24, function(i)
    return { look = 1, ball = { 64, 48 }, radius = 10 + 1.2 * i }
  end)
  for i, frame in ipairs(other) do
    local k = i / 24
    local swapped = T.concat({ frame:select(3, 3):unsqueeze(3), frame:select(3, 2):unsqueeze(3),
      frame:select(3, 1):unsqueeze(3) }, 3)
    other[i] = frame * (1 - k) + swapped * k
  end
  local same = clips.film(24, function(i) return { look = 1, ball = { 58 + 0.5 * i, 48 }, radius = 20 } end)
  finds("subject_steadiness", same, other, nil, { cuts = false })
  local a, b = clips.frame { look = 1, ball = { 64, 48 } }, clips.frame { look = 2, ball = { 64, 48 } }
  local place = {}
  for i = 1, 24 do
    local k = math.min(1, i / 8)
    place[i] = a * (1 - k) + b * k
  end
  finds("place_steadiness", same, place, nil, { cuts = false })
end)

t.test("shots of one film", function()
  local one = clips.joined(clips.rolling(6, 1), clips.film(6, function(i) return { look = 1, x = 40 + i, ball = { 70, 50 } } end))
  local two = clips.joined(clips.rolling(6, 1), clips.film(6, function(i) return { look = 2, x = i } end))
  finds("shot_likeness", one, two, { 7 }, { cuts = { 7 } })
  t.eq(run(rolling, { "shot_likeness" }).results[1].pass, nil)
end)

t.test("black, frozen and broken frames", function()
  local function with(at, frame)
    local list = { unpack(rolling) }
    list[at] = frame
    return list
  end
  finds("black_frames", rolling, with(9, T.zeros { 96, 128, 3 }), { 9 }, { cuts = false })
  local frozen = { unpack(rolling) }
  for i = 10, 20 do frozen[i] = frozen[9] end
  finds("frozen_frames", rolling, frozen, { 20 })
  local nan = rolling[5]:clone()
  nan:slice(1, 3, 4):fill_(0 / 0)
  local _, bad = finds("broken_frames", rolling, with(5, nan), { 5 })
  t.eq(bad.where[1].what, "not a number")
  local torn = rolling[11]:clone() -- below row 50 the picture is shifted to the side
  torn:slice(1, 51, 96):slice(2, 1, 98):copy_(rolling[11]:slice(1, 51, 96):slice(2, 31, 128):clone())
  _, bad = finds("broken_frames", rolling, with(11, torn), { 11 })
  t.eq(bad.where[1].what, "torn")
  _, bad = finds("broken_frames", rolling, with(14, clips.frame { look = 6 }), { 14 })
  t.eq(bad.where[1].what, "out of place")
  -- The other checks go on over a frame of NaN.
  local report = run(with(5, nan), nil)
  for _, r in ipairs(report.results) do t.ok(r.value == nil or r.value == r.value, r.name .. " is a number") end
end)

t.test("positions of cuts", function()
  local film = clips.joined(clips.rolling(12, 1), clips.rolling(12, 3))
  finds({ "cuts", expected = { 0.5 } }, film, rolling, { 13 })
  local _, bad = finds({ "cuts", expected = { 0.5 } }, film, clips.joined(clips.rolling(6, 1), clips.rolling(18, 3)))
  t.eq(bad.value, 2)
  finds("cuts", film, clips.joined(clips.rolling(12, 1), clips.rolling(3, 3), clips.rolling(12, 6)), { 13 })
end)

t.test("adherence to the prompt, where something measures it", function()
  local words
  local function score(frame, prompt)
    words = prompt
    return frame:select(3, 1):mean() - frame:select(3, 3):mean() > 0 and 0.9 or 0
  end
  local warm, cold = clips.rolling(6, 1), clips.film(6, function() return { look = 2 } end)
  finds("prompt_adherence", warm, cold, nil, { prompt = "something warm", score = score })
  t.eq(words, "something warm")
  t.eq(run(warm, { "prompt_adherence" }).results[1].pass, nil)
end)

t.test("a clean film passes everything", function()
  local film = clips.joined(still, clips.film(24, function(i) return { look = 1, x = 30 - 1.5 * i, ball = { 70, 40 } } end))
  local report = run(film)
  t.eq(table.concat(report.failed, " "), "", check.text(report))
  t.eq(#report.shots, 2)
  t.eq(report.shots[2].first, 25)
  t.eq(#report.results, 14)
  print(check.text(report))
end)

t.test("the gate asks for another seed, tries the remedy, keeps the best, and says so", function()
  local seeds, said = {}, {}
  local function say(line) said[#said + 1] = line end
  local black = { unpack(still) }
  black[9] = T.zeros { 96, 128, 3 }
  local frames, outcome = check.gate(function(seed)
    seeds[#seeds + 1] = seed
    return seed == 7 and still or black
  end, { "black_frames" }, { tries = 5, seed = 5, say = say, cuts = false })
  t.eq(table.concat(seeds, " "), "5 6 7")
  t.ok(outcome.passed and outcome.kept == 3 and outcome.seed == 7)
  t.ok(frames == still)
  t.ok(said[1]:find("attempt 1 of 5 (seed 5) fails: black_frames", 1, true), said[1])
  t.ok(said[3]:find("passes", 1, true), said[3])
  -- Flicker names a pass: it is tried on the same frames before a new seed.
  local renders = 0
  frames, outcome = check.gate(function()
    renders = renders + 1
    return clips.flickering(still, 0.08)
  end, { "flicker" }, { tries = 3, say = say })
  t.eq(renders, 1)
  t.ok(outcome.passed)
  t.eq(table.concat(outcome.passes, " "), "deflicker")
  t.eq(frames.shape[1], 24)
  -- None passes: the best one of N is kept.
  local worse = { unpack(black) }
  worse[3], worse[4] = black[9], black[9]
  renders = 0
  frames, outcome = check.gate(function()
    renders = renders + 1
    return renders == 2 and black or worse
  end, { "black_frames" }, { tries = 3, say = say, cuts = false })
  t.eq(renders, 3)
  t.ok(not outcome.passed and outcome.kept == 2)
  t.ok(frames == black)
  t.ok(said[#said]:find("attempt 2 is kept", 1, true), said[#said])
  t.eq(table.concat(check.failing_shots(outcome.report), " "), "1")
  local nothing, message = check.gate(function() return nil, "no memory" end, { "flicker" }, {})
  t.eq(nothing, nil)
  t.eq(message, "no memory")
end)

t.test("of a film only the shots that fail are made again", function()
  local function shot(look, x) return clips.film(8, function(i) return { look = look, x = x + 0.5 * i } end) end
  local bad = shot(1, 20)
  bad[4] = T.zeros { 96, 128, 3 }
  local calls = {}
  local shots, outcome = check.repair({ shot(1, 0), bad, shot(1, 40) }, function(i, seed)
    calls[#calls + 1] = i .. ":" .. seed
    return shot(1, 20)
  end, { "black_frames", "broken_frames" }, { seeds = { 5, 6, 7 }, tries = 3, say = false, film = { "shot_likeness" } })
  t.eq(table.concat(calls, " "), "2:7")
  t.ok(outcome.passed and outcome.film.passed)
  t.eq(outcome.shots[2].made_again, 1)
  t.eq(outcome.shots[1].made_again, 0)
  t.ok(outcome.said[2]:find("shot 2: attempt 1 of 3 (seed 6) fails: black_frames", 1, true), outcome.said[2])
  t.eq(#shots[2], 8)
  -- A shot that is sound but belongs to another film.
  calls = {}
  shots, outcome = check.repair({ shot(1, 0), shot(2, 0), shot(1, 40) }, function(i, seed)
    calls[#calls + 1] = i .. ":" .. seed
    return shot(seed == 2 and 1 or 2, 30)
  end, { "black_frames" }, { tries = 4, say = false, film = { { "shot_likeness", threshold = 0.75 } } })
  t.eq(table.concat(calls, " "), "2:1 2:2")
  t.ok(outcome.passed, table.concat(outcome.said, "; "))
  t.eq(outcome.shots[2].seed, 2)
  t.eq(#shots, 3)
  local none, message = check.repair({ bad }, function() return nil, "no power" end, { "black_frames" }, { say = false })
  t.eq(none, nil)
  t.eq(message, "no power")
end)

t.test("passes make the measures better", function()
  local flicker = clips.flickering(rolling, 0.1)
  local calm = melies.pass.apply(flicker, { "deflicker" }, { fps = 24 })
  local before, after = run(flicker, { "warp_error" }).results[1].value, run(calm, { "warp_error" }).results[1].value
  t.ok(after < 0.3 * before, before .. " " .. after)
  local drift = clips.drifting(rolling, 0.006)
  local held = melies.pass.apply(drift, { { "color_match", anchor = 0.1 } }, { fps = 24 })
  before, after = run(drift, { "color_drift" }).results[1].value, run(held, { "color_drift" }).results[1].value
  t.ok(after < 0.5 * before, before .. " " .. after)
end)

t.test("files, wrong names, the command line", function()
  local dir = t.folder()
  local path = dir .. "/film.mp4"
  local film = { unpack(still) }
  film[9] = T.zeros { 96, 128, 3 }
  t.ok(media.save(path, T.stack(film, 1), { fps = 24 }))
  local report = t.ok(check.file(path, { "black_frames", "broken_frames" }))
  t.eq(report.by.black_frames.value, 1)
  t.eq(report.by.black_frames.where[1].frame, 9)
  local _, message = check.file(dir .. "/none.mp4")
  t.ok(message:find("none.mp4", 1, true))
  _, message = check.run(film, { "flikcer" })
  t.ok(message:find("did you mean 'flicker'", 1, true), message)
  t.eq(select(2, check.run({}, { "flicker" })), "there are no frames")
  local program = (os.getenv "MELIES_BUILD" or "build") .. "/melies"
  local function shell(words)
    local pipe = io.popen(("'%s' %s 2>&1; echo \"code $?\""):format(program, words))
    local text = pipe:read("*a")
    pipe:close()
    return text
  end
  local text = shell(("check '%s' black_frames 'flicker: threshold=0.2'"):format(path))
  t.ok(text:find("FAIL  black_frames", 1, true) and text:find("frame 9", 1, true), text)
  t.ok(text:find("ok   flicker", 1, true), text)
  t.ok(text:find("code 1", 1, true))
  t.ok(shell(("check '%s' broken_frames:tear=50"):format(path)):find("broken_frames", 1, true))
  t.ok(shell("check"):find("code 2", 1, true))
  t.ok(shell("list checks"):find("warp_error", 1, true))
  t.ok(shell("list passes"):find("deflicker", 1, true))
end)

t.finish()
