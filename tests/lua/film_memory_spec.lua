-- What films remember: one job fills the project's memory, another uses it; shots of one place; remedies of failed checks.
local t = require "harness"
local melies = require "melies"
local fs = require "melies.fs"
local bank, recipe, shots, T = melies.memory_bank, melies.recipe, melies.shots, melies.tensor

local root = os.getenv "MELIES_ROOT"
local program = (os.getenv "MELIES_BUILD" or root .. "/build") .. "/melies"
local folder = t.folder()

local function sh(words)
  local pipe = io.popen(("cd '%s' && MELIES_JOB_INTERVAL=0 '%s' --threads 1 %s 2>&1; echo \"code $?\""):format(folder, program,
    words))
  local text = pipe:read "*a"
  pipe:close()
  return text
end

local function story(path, board)
  fs.write(folder .. "/" .. path, melies.json.encode(board))
  return path
end

local function film(path)
  return melies.media.to_f32(assert(melies.media.load(folder .. "/" .. path)))
end

t.test("two jobs: what the first one's shots show is what the second one uses", function()
  story("first.json", { title = "first", seed = 5, look = "in the evening light",
    characters = { ball = "a big red ball" }, places = { meadow = "the meadow" },
    shots = { { text = "the ball rolls", who = { "ball" }, where = "meadow", seconds = 1 } } })
  story("second.json", { title = "second", seed = 77, characters = { ball = "the ball" }, places = { meadow = "the meadow" },
    shots = { { text = "the ball jumps", who = { "ball" }, where = "meadow", seconds = 1 } } })
  local make = "run film_from_storyboard --steps 3 --passes '' --checks '' "
  local text = sh(make .. "--storyboard second.json -o alone.webp")
  t.ok(text:find "code 0", text)
  t.eq(fs.stat(folder .. "/melies/memory"), nil, "nothing is remembered unasked")
  text = sh(make .. "--storyboard first.json --bank on -o first.webp")
  t.ok(text:find "code 0", text)
  text = sh "memory list"
  for _, name in ipairs { "ball", "meadow", "look of first" } do t.ok(text:find(name, 1, true), text) end
  t.ok(sh("memory show ball"):find("a big red ball", 1, true))
  -- the same job once more adds no second picture
  text = sh(make .. "--storyboard first.json --bank on -o again.webp")
  t.ok(text:find "code 0", text)
  t.eq(#assert(bank.get("meadow", { folder = folder .. "/melies/memory" })).references, 1)
  text = sh(make .. "--storyboard second.json -o second.webp")
  t.ok(text:find "code 0", text)
  t.ok(text:find("memory: ball is ball: ", 1, true) and text:find("{+a big red+}", 1, true), text)
  local alone, second = film "alone.webp", film "second.webp"
  t.ok((alone - second):abs():mean() > 0.005, "the memory changes the film")
  -- with --bank off it does not
  text = sh(make .. "--storyboard second.json --bank off -o off.webp")
  t.ok(text:find "code 0", text)
  t.eq((film "off.webp" - alone):abs():amax(), 0)
  -- a look by its name
  story("third.json", { title = "third", look = "look of first", shots = { { text = "a blue cube bounces", seconds = 1 } } })
  text = sh(make .. "--storyboard third.json -o third.webp")
  t.ok(text:find("{+in the evening light+}", 1, true) or text:find("in the evening light", 1, true), text)
  t.ok(sh("memory forget ball"):find "code 0")
  t.ok(not sh("memory list"):find("big red", 1, true))
end)

t.test("shots of one place share noise and come nearer to each other, and what moves still moves", function()
  local board = { seed = 2, places = { meadow = "the meadow" }, shots = {} }
  for i = 1, 3 do
    board.shots[i] = { text = "a ball rolls", where = "meadow", transition = i > 1 and "cut" or "none", seconds = 1 }
  end
  local path = folder .. "/" .. story("place.json", board)
  local function made(likeness)
    local frames = assert(melies.run("film_from_storyboard", { storyboard = path, steps = 6, passes = "", checks = "",
      likeness = likeness, bank = "off", anchor = 0 }))
    local n = frames.shape[1] / 3
    local first = frames:slice(1, 1, n):mean(1)
    local apart = 0
    for i = 1, 2 do apart = apart + (frames:slice(1, i * n + 1, (i + 1) * n):mean(1) - first):abs():mean() end
    local motion = (frames:slice(1, n + 2, 2 * n) - frames:slice(1, n + 1, 2 * n - 1)):abs():mean()
    return apart, motion
  end
  local apart, motion = made(0)
  local near, still = made(0.8)
  print(("     apart %.4f, sharing %.4f; motion %.4f, %.4f"):format(apart, near, motion, still))
  t.ok(near < apart, "nearer")
  t.ok(still > 0.5 * motion, "still moves")
end)

t.test("a shot like none before it is tried with other seeds, for the film's good, with a folder or without", function()
  local board = { seed = 3, shots = {} }
  for i, text in ipairs { "a red ball rolls over the grass", "a blue cube in the snow", "a red ball bounces" } do
    board.shots[i] = { text = text, transition = i > 1 and "cut" or "none", seconds = 1 }
  end
  story("unlike.json", board)
  local words = "run film_from_storyboard --storyboard unlike.json --steps 6 --passes '' --checks '' --bank off "
  local function made(options, path)
    local began, text = melies.seconds(), sh(words .. options .. " -o " .. path)
    t.ok(text:find "code 0", text)
    return film(path), text, melies.seconds() - began
  end
  local function likeness(frames)
    local n = frames.shape[1] / 3
    return assert(melies.check.run(frames, "shot_likeness", { fps = 8, cuts = { 1 + n, 1 + 2 * n } })).results[1].value
  end
  local before, said = made("", "one.webp")
  t.ok(not said:find "like no shot before", "nothing is tried unasked")
  local after, seconds
  after, said, seconds = made("--film-tries 3", "three.webp")
  print(("     likeness %.3f, then %.3f"):format(likeness(before), likeness(after)))
  t.ok(said:find "like no shot before", said)
  t.ok(likeness(after) > likeness(before) + 0.005, "better")
  for k, share in ipairs { 0.5, 0.8 } do -- killed, most likely while other seeds are tried
    os.execute(("cd '%s' && MELIES_JOB_INTERVAL=0 timeout -s KILL %.2f '%s' --threads 1 %s --film-tries 3 --job k%d -o k.webp"
      .. " >/dev/null 2>&1"):format(folder, share * seconds, program, words, k))
    t.eq((made("--film-tries 3 --job k" .. k, "k.webp") - after):abs():amax(), 0)
  end
end)

t.test("a character's picture draws what looks like it, and nothing where the strength is 0", function()
  local x = T.zeros { 2, 2, 8, 8 }
  x:slice(3, 3, 6):slice(4, 1, 4):fill_(0.6) -- a patch that is a little like it
  local picture = T.full({ 2, 2, 8, 8 }, 1)
  local function drawn(strength)
    return melies.consistency.draw_subject(function() return x end, picture, 0.12, strength)(x, 1)
  end
  t.eq((drawn(0) - x):abs():amax(), 0)
  local near = drawn(0.8)
  t.ok(near:slice(3, 4, 5):slice(4, 1, 3):mean() > 0.75, "the patch comes nearer")
  t.ok(near:slice(3, 1, 8):slice(4, 7, 8):abs():amax() < 0.01, "what is far from it stays")
  t.eq((melies.consistency.draw_subject(function() return x end, picture, 0.12, 0.8)(x, 0.5) - x):abs():amax(), 0)

  local image = T.full({ 32, 32, 3 }, 0.2)
  for i, value in ipairs { 0.75, 0.15, 0.6 } do image:select(3, i):fill_(value) end
  assert(bank.remember { name = "ball", kind = "character", description = "the ball", frames = image:unsqueeze(1),
    box = { 0.2, 0.2, 0.6, 0.6 }, folder = folder .. "/cast" })
  local picture_path = assert(bank.get("ball", { folder = folder .. "/cast" })).path .. "/reference-1.png"
  local board = { seed = 6, characters = { ball = { description = "the ball", image = picture_path } }, shots = {} }
  for i = 1, 2 do
    board.shots[i] = { text = i == 1 and "the ball rolls over the grass" or "the ball jumps in the snow", who = { "ball" },
      seconds = 1, transition = i == 2 and "cut" or "none" }
  end
  local path = folder .. "/" .. story("cast.json", board)
  local lab = melies.video.to_lab(image):select(1, 1):select(1, 1):list()
  local function made(casting)
    local frames = assert(melies.run("film_from_storyboard", { storyboard = path, steps = 6, passes = "", checks = "",
      casting = casting, bank = "off", anchor = 0 }))
    local sum, motion = 0, 0
    for k = 1, frames.shape[1] do -- the eighth of each frame that is nearest to the character's colour
      local d = (melies.video.to_lab(frames:select(1, k):contiguous()) - T.of(lab, { 1, 1, 3 })):square():sum(3):sqrt():list()
      table.sort(d)
      for m = 1, math.floor(#d / 8) do sum = sum + d[m] / math.floor(#d / 8) / frames.shape[1] end
      if k > 1 then motion = motion + (frames:select(1, k) - frames:select(1, k - 1)):abs():mean() end
    end
    return sum, motion, frames
  end
  local far, motion, plain = made(0)
  local close, moving = made(0.8)
  print(("     colour apart %.1f, drawn %.1f (Lab); motion %.3f, %.3f"):format(far, close, motion, moving))
  t.ok(close < 0.95 * far, "nearer to the picture")
  t.ok(moving > 0.5 * motion, "still moves")
  board.characters.ball = "the ball"
  story("cast.json", board)
  local _, _, without = made(0.8)
  t.eq((without - plain):abs():amax(), 0, "without a picture, and with strength 0, the bits are the same")
end)

t.test("a failed check's own remedy is applied, to the parts from the failing one on", function()
  local function attempts(checks, seconds)
    local said = {}
    local plugin = assert(recipe.find "film")
    local values = assert(recipe.check(plugin, { prompt = "A red ball rolls over the grass.", steps = 2, tries = 2,
      checks = checks, passes = "", bank = "off", pace = seconds and "calm" or nil }))
    assert(recipe.run(plugin, values, { notice = function(text) said[#said + 1] = text end }))
    return table.concat(said, "\n")
  end
  local text = attempts "flicker: threshold=1, still=16"
  t.ok(text:find("flicker failed; deflicker is tried", 1, true), text)
  text = attempts "flicker: threshold=1, still=16, remedy=steps"
  t.ok(text:find("flicker failed; 1.5 times the steps is tried", 1, true), text)
  text = attempts "dynamic_degree: threshold=1, remedy=anchor; black_frames: level=1, remedy=window"
  t.ok(text:find("a stronger anchor, shorter parts is tried", 1, true), text)
  local ok, message = melies.run("film", { prompt = "A ball.", steps = 1, checks = "flicker: remedy=magic", bank = "off" })
  t.ok(not ok and message:find("remedy is 'magic'", 1, true), message)
end)

t.test("of a long shot the parts before the failing one stay", function()
  local model = assert(melies.pipeline.load "starter")
  local d = model.defaults
  local film_of = { model = model, overlap = 1, anchor = 0.5, shots = { { frames = 3 * d.frames, seed = 9 } },
    job = { params = { frames = d.frames, width = d.width, height = d.height, steps = 8 } },
    recall = { first = function() end }, steer = { first_frame = function() end } }
  local first = shots.first_attempt(film_of, 1)
  local report = { results = { { name = "broken_frames", pass = false, remedy = { seed = true },
    where = { { frame = d.frames + 3 } } } } }
  local attempt, words = shots.next_attempt(film_of, 1, first, report, 2)
  t.eq(attempt.from, 2)
  t.eq(words, "another seed from part 2 on")
  t.eq(attempt.store, 2)
  t.eq(#attempt.seeds, 2)
  report.results[1] = { name = "flicker", pass = false, remedy = { pass = "deflicker" }, where = {} }
  local after = shots.next_attempt(film_of, 1, attempt, report, 3)
  t.eq(after.store, 2, "a pass renders nothing")
  t.eq(after.passes[1].name, "deflicker")
  after = shots.next_attempt(film_of, 1, after, report, 4)
  t.eq(#after.passes, 1, "each remedy once")
  t.eq(after.store, 4)
end)

t.test("known cuts and transitions: no check judges a fade, nor takes a blink for a cut", function()
  local frames, cuts, joints = {}, {}, {}
  local next_frame = assert(melies.pass.join({ T.full({ 10, 16, 16, 3 }, 0.5), T.full({ 10, 16, 16, 3 }, 0.7) },
    { "fade" }, { fps = 8, joint = function(_, cut, first, last) cuts[1], joints[1] = cut, { first, last } end }))
  for frame in next_frame do frames[#frames + 1] = frame end
  t.ok(joints[1][1] <= cuts[1] and cuts[1] <= joints[1][2] + 1)
  local report = assert(melies.check.run(frames, { "black_frames" }, { fps = 8, cuts = cuts }))
  local judged = assert(melies.check.run(frames, { "black_frames" }, { fps = 8, cuts = cuts, joints = joints }))
  t.ok(not report.passed and judged.passed)
  t.eq(#judged.shots, 2)
end)

t.test("a camera that moves in the latent: the scene of the estimates goes the other way", function()
  local ground = melies.video.blur(melies.noise({ 24, 24, 3 }, { seed = 4 }), 1.5)
  local still = ground:permute(3, 1, 2):unsqueeze(2):expand { 3, 5, 24, 24 }:contiguous()
  local denoise = melies.latent_camera.around { pan = 0.25, strength = 1 }(function() return still end, still.shape)
  t.eq((denoise(still, 0.3) - still):abs():amax(), 0, "where there is little noise nothing is moved")
  local x0 = still
  for _ = 1, 6 do -- as over steps: each estimate goes on from the one before
    local last = x0
    x0 = melies.latent_camera.around { pan = 0.25, strength = 1 }(function() return last end, still.shape)(last, 1)
  end
  local function shifted(t1, by) -- frame t1 against the ground, `by` columns further to the right
    local a = x0:select(2, t1):slice(3, 9, 16)
    return (a - still:select(2, 1):slice(3, 9 + by, 16 + by)):abs():mean()
  end
  print(("     apart at the end %.4f, shifted %.4f"):format(shifted(5, 0), shifted(5, 3)))
  t.ok(shifted(5, 3) < 0.85 * shifted(5, 0), "at the end what was on the right is in the middle")
  t.ok(shifted(1, -3) < 0.85 * shifted(1, 0), "at the beginning what was on the left")
  local function motion(passes)
    local frames = assert(melies.run("film", { prompt = "A red ball on the grass.", steps = 6, checks = "", passes = passes,
      bank = "off", seed = 3 }))
    local n, sum = frames.shape[1], 0
    for i = 2, n do sum = sum + melies.video.flow(frames:select(1, i - 1), frames:select(1, i)):select(3, 1):mean() end
    return sum
  end
  local pan, none = motion "camera: pan=0.6, space=latent", motion ""
  print(("     columns of motion: %.2f, with the camera to the right %.2f"):format(none, pan))
  t.ok(pan < none, "the picture goes to the left")
  local _, message = melies.run("film", { prompt = "A ball.", steps = 1, bank = "off",
    passes = "camera: dolly=0.2, space=latent" })
  t.ok(tostring(message):find("dolly", 1, true), message)
end)

t.test("opposite moves in the latent turn, enlarge and tilt the picture in opposite ways", function()
  local ground = melies.video.blur(melies.noise({ 24, 24, 3 }, { seed = 4 }), 1.5)
  local still = ground:permute(3, 1, 2):unsqueeze(2):expand { 3, 5, 24, 24 }:contiguous()
  -- The mean over the inner picture of the flow from the first frame to the last along direction(x, y) from the middle.
  local function flow_along(move, direction)
    local x0 = still
    for _ = 1, 6 do
      local last = x0
      x0 = melies.latent_camera.around(move)(function() return last end, still.shape)(last, 1)
    end
    local function frame(k)
      local one = x0:select(2, k):permute(2, 3, 1):contiguous()
      return ((one - one:amin()) * (1 / (one:amax() - one:amin()))):resize(1, 96, "bilinear"):resize(2, 96, "bilinear")
    end
    local flow, sum = melies.video.flow(frame(1):contiguous(), frame(5):contiguous()), 0
    for y = 25, 72 do
      for x = 25, 72 do
        local dx, dy = direction(x - 48.5, y - 48.5)
        local at = ((y - 1) * 96 + x - 1) * 2
        sum = sum + dx * flow:get(at + 1) + dy * flow:get(at + 2)
      end
    end
    return sum / 48 ^ 2
  end
  local function outwards(x, y) return x / 34, y / 34 end
  local function clockwise(x, y) return -y / 34, x / 34 end
  local function down() return 0, 1 end
  for _, case in ipairs { { "zoom in", { zoom = 1.3 }, { zoom = 1 / 1.3 }, outwards },
    { "tilt up", { tilt = -0.2 }, { tilt = 0.2 }, down }, { "roll", { roll = 15 }, { roll = -15 }, clockwise } } do
    case[2].strength, case[3].strength = 1, 1
    local one, other = flow_along(case[2], case[4]), flow_along(case[3], case[4])
    print(("     %-8s %.2f pixels, the opposite %.2f"):format(case[1], one, other))
    t.ok(one > 0.2 and other < -0.2, case[1])
  end
end)

t.finish()
