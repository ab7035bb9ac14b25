-- Editing films that are there: what stays stays to the bit, what changes changes, and any film goes in.
local t = require "harness"
local melies = require "melies"
local edit, media, T = melies.edit, melies.media, melies.tensor

local folder = t.folder()
local model = assert(melies.pipeline.load "starter")
local d, stride = model.defaults, model.stride[1]
local prompt = "a big red ball rolls to the right over the grass, cartoon style"

-- A soft picture that drifts, with a square that walks; and the frames as a decoder gives them.
local function source(name, frames, width, height, fps)
  local path, list = folder .. "/" .. name, {}
  local still = melies.video.blur(T.noise({ height, width + frames, 3 }, { seed = 5 }), 3) * 2 + 0.5
  for i = 1, frames do
    local frame = still:slice(2, i, i + width - 1):clamp(0, 1):contiguous()
    local x = 1 + (2 * i) % (width - 8)
    frame:slice(1, height / 2, height / 2 + 6):slice(2, x, x + 6):fill_(0.9)
    list[i] = frame
  end
  assert(media.save(path, list, { fps = fps, pad = true }))
  return path, assert(media.load(path))
end

local W = d.frames
local count = 2 * W + 6
local path, film = source("film.mp4", count, d.width, d.height, d.fps)

local function run(recipe, given)
  given.steps, given.seed = given.steps or 2, given.seed or 1
  given.prompt, given.video = given.prompt or prompt, given.video or path
  local frames, message = melies.run(recipe, given)
  t.ok(frames, message)
  t.eq(frames:nonfinite(), 0)
  return frames
end

local function refused(recipe, given, text, code)
  given.video = given.video or path
  if recipe ~= "consistency_report" then given.steps, given.prompt = 1, given.prompt or "a ball" end
  local frames, message, got = melies.run(recipe, given)
  t.eq(frames, nil) t.eq(got, code or 1, message)
  t.ok(message:find(text, 1, true), ("'%s' in '%s'"):format(text, message))
end

-- Frames first..last of `frames` are those of `film` from `at` on, as bytes and as floats.
local function same(frames, first, last, from, at, what)
  local got = frames:slice(1, first, last):contiguous()
  local want = from:slice(1, at, at + last - first):contiguous()
  t.eq((media.to_u8(got):to("f32") - want:to("f32")):abs():amax(), 0, what)
  t.eq((got - media.to_f32(want)):abs():amax(), 0, what .. ", as floats")
end
local function differ(frames, first, last, from, at, what)
  local off = frames:slice(1, first, last) - media.to_f32(from:slice(1, at, at + last - first):contiguous())
  t.ok(off:abs():mean() > 1e-3, what)
end

-- ---- the pieces --------------------------------------------------------------------------------------

t.test("frames at uneven times: each at its place, repeated or left out where the rate runs away", function()
  local function through(times, fps)
    local i, told, out = 0, nil, {}
    local next_frame = edit.even(function()
      i = i + 1
      if times[i] then return i, times[i] end
    end, fps, function(again, left) told = again .. " " .. left end)
    for frame in next_frame do out[#out + 1] = frame end
    return table.concat(out, " "), told
  end
  local list, told = through({ 0, 0.1, 0.2, 0.3 }, 10)
  t.eq(list, "1 2 3 4") t.eq(told, "0 0")
  list = through({ 0, 0.101, 0.2, 0.304, 0.405 }, 9.95) -- the file's mean is a little off
  t.eq(list, "1 2 3 4 5")
  list, told = through({ 0, 0.1, 0.4, 0.5 }, 10)
  t.eq(list, "1 2 2 2 3 4") t.eq(told, "2 0")
  list, told = through({ 0, 0.05, 0.1, 0.15, 0.2 }, 10)
  t.eq(list, "1 2 4") t.eq(told, "0 2")
  local ok, raised = pcall(edit.even(function() return nil, "damaged" end, 10, print))
  t.ok(not ok and raised.failure == "damaged")
end)

t.test("sizes: to the model's grid and back", function()
  local odd = assert(edit.fit(model, d.width - 3, d.height - 5))
  t.eq(odd.width, d.width) t.eq(odd.height, d.height)
  local frame = T.uniform({ d.height - 5, d.width - 3, 3 }, { seed = 1 })
  t.eq(odd.to(frame):shape_text(), ("[%d, %d, 3]"):format(d.height, d.width))
  t.close(odd.from(odd.to(frame)), frame, 0, 0, "only padded")
  local large = assert(edit.fit(model, 16 * d.width, 9 * d.height))
  t.ok(large.width * large.height < 3 * d.width * d.height and large.width > large.height, "scaled down")
  t.eq(large.from(T.zeros { large.height, large.width, 3 }):shape_text(), ("[%d, %d, 3]"):format(9 * d.height, 16 * d.width))
  local none, message = edit.fit(model, 64, 64, { width = d.width + 1, height = d.height })
  t.eq(none, nil) t.ok(message:find("the nearest is", 1, true), message)
  -- One free pixel frees its cell and no other.
  local free = T.zeros { d.height, d.width }
  free:slice(1, 1, 1):slice(2, d.width, d.width):fill_(1)
  local cells = assert(edit.fit(model, d.width, d.height)).cells(free)
  t.eq(cells:sum(), 1) t.eq(cells:select(1, 1):get(cells.shape[2]), 1)
end)

t.test("boxes and regions: outside nothing changes, inside the new comes in softly", function()
  local boxes = assert(edit.boxes("4,6,10,12@0.5-1; 0,0,2,2", 40, 30))
  t.eq(#boxes, 2) t.eq(boxes[1].to, 1) t.eq(boxes[2].from, nil)
  for text, why in pairs { ["1,2,3"] = "x,y,w,h", ["1,2,3,4@2"] = "x,y,w,h", ["30,0,20,5"] = "reaches outside",
    ["1,1,0,4"] = "empty", ["0,0,4,4@2-1"] = "before it begins", [""] = "none is given" } do
    local none, message = edit.boxes(text, 40, 30)
    t.eq(none, nil) t.ok(message:find(why, 1, true), message)
  end
  local at = edit.box_regions(boxes, 40, 30, { feather = 4 })
  t.ok(rawequal(at(0.5), at(0.9)) and not rawequal(at(0.5), at(1)), "one region for each set of boxes")
  local region = at(0.7)
  t.eq(region.free:sum(), 10 * 12 + 4)
  t.eq((region.alpha:squeeze(3) * (1 - region.free)):amax(), 0)
  t.ok(region.alpha:amax() > 0.9 and region.alpha:slice(1, 7, 7):amax() < 0.5, "soft inside")
  local old, new = T.uniform({ 30, 40, 3 }, { seed = 1 }), T.uniform({ 30, 40, 3 }, { seed = 2 })
  local out = edit.compose(old, new, region)
  t.eq(((out - old):abs() * (1 - region.free:unsqueeze(3))):amax(), 0, "to the bit")
  t.eq(edit.box_regions({ { 0, 0, 4, 4, from = 1, to = 2 } }, 40, 30, {})(0), nil)
end)

t.test("held latents stay under every sampler; shares are let go on the way", function()
  local space = { add_noise = function(_, z, n, s) return T.lincomb { 1 - s, z, s, n } end }
  local shape = { 3, 4, 4, 4 }
  local z, n = T.noise(shape, { seed = 1 }), T.noise(shape, { seed = 2 })
  local mask = T.zeros { 1, 4, 4, 4 }
  mask:slice(2, 2, 2):fill_(1)
  mask:slice(2, 3, 3):slice(3, 1, 2):fill_(0.5)
  local sigmas = melies.schedule.flow(8, { shift = 1 })
  for _, sampler in ipairs { "euler", "heun", "dpmpp_2m", "euler_ancestral" } do
    local held = edit.hold(function(x, sigma)
      local off = (x - space:add_noise(z, n, sigma)):abs()
      t.ok(off:slice(2, 1, 1):amax() < 1e-6 and off:slice(2, 4, 4):amax() < 1e-6, "on its path")
      if sigma > 0.5 then t.ok(off:slice(2, 3, 3):amax() < 1e-6, "a share is held at first") end
      return x * 0
    end, space, z, mask, n, sigmas[1])
    local out = melies.sampling.run(sampler, held, n, sigmas, { seed = 1 })
    local off = (out - z):abs()
    t.ok(off:slice(2, 1, 1):amax() < 1e-5 and off:slice(2, 4, 4):amax() < 1e-5, sampler)
    t.ok(out:slice(2, 2, 2):abs():amax() < 1e-4, "free")
    t.ok(out:slice(2, 3, 3):slice(3, 1, 2):abs():amax() < 1e-4 and off:slice(2, 3, 3):slice(3, 3, 4):amax() < 1e-5, "a share")
  end
end)

-- ---- retake ------------------------------------------------------------------------------------------

t.test("retake: a range is new, every other frame is the same to the bit; in the file too but for its encoding", function()
  local first, last = 7, 13
  local output = folder .. "/retake.mp4"
  local given = { from = (first - 1) / d.fps, to = last / d.fps, output = output }
  local frames = run("retake", given)
  t.eq(frames.shape[1], count)
  same(frames, 1, first - 1, film, 1, "before")
  same(frames, last + 1, count, film, last + 1, "after")
  differ(frames, first, last, film, first, "the range")
  local written = assert(media.load(output))
  t.ok((written:to("f32") - media.to_u8(frames):to("f32")):abs():mean() < 6, "the file holds these frames")
  local info = assert(media.info(output))
  t.eq(info.metadata.melies_recipe, "retake") t.near(info.fps, d.fps, 1e-6)
  t.close(run("retake", given), frames, 0, 0, "the same from the same seed")
end)

t.test("retake: over several chunks, from the first frame, to the end, little noise, an odd file", function()
  local frames = run("retake", { from = 3 / d.fps, to = (count - 2) / d.fps })
  same(frames, 1, 3, film, 1, "before") same(frames, count - 1, count, film, count - 1, "after")
  differ(frames, 4, count - 2, film, 4, "the range")
  frames = run("retake", { from = 0, to = 4 / d.fps })
  same(frames, 5, count, film, 5, "after the first frames")
  frames = run("retake", { from = (count - 3) / d.fps, to = count })
  same(frames, 1, count - 3, film, 1, "before the last ones") t.eq(frames.shape[1], count)
  local near = run("retake", { from = 8 / d.fps, to = 12 / d.fps, strength = 0.05, steps = 4 })
  local far = run("retake", { from = 8 / d.fps, to = 12 / d.fps, steps = 4 })
  local function off(x) return (x:slice(1, 9, 12) - media.to_f32(film:slice(1, 9, 12):contiguous())):abs():mean() end
  t.ok(off(near) < 0.85 * off(far), ("strength: %g and %g"):format(off(near), off(far)))
  local odd, clip = source("odd.mp4", 20, d.width - 10, d.height + 6, 29.97)
  frames = run("retake", { video = odd, from = 0.2, to = 0.4, output = folder .. "/odd_retake.mp4" })
  t.eq(frames:shape_text(), clip:shape_text())
  same(frames, 1, 6, clip, 1, "before") same(frames, 13, 20, clip, 13, "after") differ(frames, 7, 12, clip, 7, "the range")
  local info = assert(media.info(folder .. "/odd_retake.mp4"))
  t.eq(info.fps_num, 30000) t.eq(info.fps_den, 1001)
end)

t.test("retake: a range outside the film, or none", function()
  refused("retake", { from = 100 }, "nothing of it is after 100 s")
  refused("retake", { from = 1, to = 0.5 }, "before it begins", 2)
  refused("retake", { from = 0.2, overlap = 50 }, "cannot share 50 latent frames")
  refused("retake", { from = 0, video = folder .. "/none.mp4" }, "none.mp4")
end)

t.test("a job that was interrupted goes on with its finished chunks", function()
  local work, given = folder .. "/work", { from = 2 / d.fps, to = (count - 1) / d.fps, seed = 3, steps = 2, prompt = prompt,
    video = path }
  local whole = run("retake", given)
  given.job = work
  local notices = {}
  t.close(assert(melies.run("retake", given)), whole, 0, 0)
  local finished = melies.fs.list(work)
  local last
  for _, name in ipairs(finished) do
    if name:find "latent.safetensors$" and (not last or name > last) then last = name end
  end
  os.remove(work .. "/" .. last)
  local again = assert(melies.run("retake", given, { notice = function(text) notices[#notices + 1] = text end }))
  t.close(again, whole, 0, 0, "to the bit")
  t.ok(table.concat(notices):find("going on with the job", 1, true), "it went on")
end)

-- ---- parts of the picture --------------------------------------------------------------------------------

t.test("inpaint: a box over time; no other pixel changes", function()
  local x, y, w, h = 10, 8, math.floor(d.width / 2), math.floor(d.height / 2)
  local from, to = 5, count - 4 -- frames
  local frames = run("inpaint", { box = ("%d,%d,%d,%d@%g-%g"):format(x, y, w, h, (from - 1) / d.fps, to / d.fps) })
  t.eq(frames:shape_text(), film:shape_text())
  same(frames, 1, from - 1, film, 1, "before") same(frames, to + 1, count, film, to + 1, "after")
  local off = (media.to_u8(frames):to("f32") - film:to("f32")):abs()
  t.ok(off:slice(1, from, to):slice(2, y + 1, y + h):slice(3, x + 1, x + w):mean() > 0.5, "the box")
  off:slice(2, y + 1, y + h):slice(3, x + 1, x + w):fill_(0)
  t.eq(off:amax(), 0, "outside the box")
end)

t.test("inpaint: a mask from an image, inverted, of another size, that marks nothing", function()
  local mask = T.zeros { d.height, d.width, 3 }
  mask:slice(1, 1, 12):fill_(1)
  local file, wrong, black = folder .. "/mask.png", folder .. "/wrong.png", folder .. "/black.png"
  assert(media.save_image(file, mask))
  assert(media.save_image(wrong, T.zeros { d.height + 8, d.width, 3 }))
  assert(media.save_image(black, mask * 0))
  local frames = run("inpaint", { mask = file, feather = 2 })
  local off = (media.to_u8(frames):to("f32") - film:to("f32")):abs()
  t.eq(off:slice(2, 13):amax(), 0, "the black part") t.ok(off:slice(2, 1, 12):mean() > 0.5, "the white part")
  frames = run("inpaint", { mask = file, invert = true })
  off = (media.to_u8(frames):to("f32") - film:to("f32")):abs()
  t.eq(off:slice(2, 1, 12):amax(), 0, "the white part stays") t.ok(off:slice(2, 13):mean() > 0.5)
  refused("inpaint", { mask = wrong }, ("wrong.png is %dx%d, the film is %dx%d"):format(d.width, d.height + 8, d.width, d.height))
  refused("inpaint", { mask = black }, "marks nothing")
  refused("inpaint", {}, "either --mask IMAGE or --box", 2)
  refused("inpaint", { mask = file, box = "0,0,4,4" }, "either --mask IMAGE or --box", 2)
  refused("inpaint", { box = "0,0,4000,4" }, "reaches outside")
  refused("inpaint", { box = "0,0,4,4@90-91" }, "s long")
end)

t.test("outpaint: the film stands in the new picture to the bit", function()
  local w, h = d.width + 32, d.height + 11
  local frames = run("outpaint", { size = { width = w, height = h }, offset = "5,7", output = folder .. "/out.webm" })
  t.eq(frames:shape_text(), ("[%d, %d, %d, 3]"):format(count, h, w))
  local inside = frames:slice(2, 8, 7 + d.height):slice(3, 6, 5 + d.width):contiguous()
  same(inside, 1, count, film, 1, "the film")
  t.ok(frames:slice(3, d.width + 6):std() > 1e-3, "something around it")
  refused("outpaint", { size = { width = 16, height = 16 } }, "does not hold the film")
  refused("outpaint", { size = { width = d.width, height = d.height } }, "already")
  refused("outpaint", { size = { width = w, height = h }, offset = "30,30" }, "reaches outside")
  refused("outpaint", { size = { width = w, height = h }, offset = "middle" }, "x,y in pixels", 2)
end)

-- ---- whole films ---------------------------------------------------------------------------------------------

t.test("restyle: the whole film, chunk after chunk, nearer to it with less noise; a style and its passes", function()
  local function off(x) return (x - media.to_f32(film)):abs():mean() end
  local near = run("restyle", { strength = 0.1, steps = 4 })
  local far = run("restyle", { strength = 0.9, steps = 4 })
  t.eq(near:shape_text(), film:shape_text())
  t.ok(off(near) < 0.85 * off(far), ("%g and %g"):format(off(near), off(far)))
  local noir = run("restyle", { style = "film_noir", steps = 2, strength = 0.5, passes = "" })
  local grain = run("restyle", { style = "film_noir", steps = 2, strength = 0.5 })
  t.eq(grain:shape_text(), film:shape_text())
  t.ok((noir - grain):abs():mean() > 1e-4, "the style's passes")
  refused("restyle", { prompt = "" }, "give --style NAME", 2)
end)

t.test("extend: forwards, backwards, both; the film in between is the same to the bit", function()
  local n = W + 3 -- more than a chunk gives
  for direction, at in pairs { forward = { 0, n }, backward = { n, 0 }, both = { n, n } } do
    local frames = run("extend", { seconds = n / d.fps, direction = direction })
    t.eq(frames.shape[1], at[1] + count + at[2], direction)
    same(frames, at[1] + 1, at[1] + count, film, 1, direction)
  end
  local short, clip = source("short.mp4", 2, d.width - 6, d.height, 12)
  local frames = run("extend", { video = short, seconds = 0.5, direction = "both", overlap = 2 })
  t.eq(frames.shape[1], 14) same(frames, 7, 8, clip, 1, "a film of two frames")
end)

t.test("loop: a ring from a prompt has no seam; a film gets a join between its ends", function()
  local output = folder .. "/loop.mp4"
  local frames = run("loop", { tries = 1 })
  t.ok(frames.shape[1] > count and (frames.shape[1] - count) % stride == 0, "a join")
  same(frames, 1, count, film, 1, "the film")
  frames = assert(melies.run("loop", { prompt = prompt, steps = 6, seed = 2, output = output, frames = 2 * stride + 1 }))
  t.eq(frames.shape[1], 2 * stride)
  local report = assert(melies.check.run(frames, { { "loop_seam", judge = true, threshold = 1.5 } }, { cuts = false }))
  t.ok(report.passed, melies.check.text(report))
  local kept = run("loop", { keep_length = true, seconds = stride / d.fps, tries = 1 })
  t.eq(kept.shape[1], count) same(kept, 1, count - stride, film, 1, "but for the last frames")
  differ(kept, count - stride + 1, count, film, count - stride + 1, "the join")
  local short = source("loop_short.mp4", 3, d.width, d.height, 12)
  refused("loop", { video = short, keep_length = true }, "takes the place of all of them")
end)

t.test("sound goes with the film where its time stays the same", function()
  local tone, loud = folder .. "/tone.wav", folder .. "/loud.mp4"
  assert(media.save_audio(tone, T.noise({ 16000, 1 }, { seed = 1 }):clamp(-1, 1) * 0.5, { rate = 8000 }))
  assert(media.add_audio(folder .. "/short.mp4", tone, loud))
  local function has(recipe, given)
    given.output = folder .. "/sound.mp4"
    given.video, given.steps = loud, given.prompt and 1 or nil
    assert(melies.run(recipe, given))
    return assert(media.info(given.output)).has_audio
  end
  t.eq(has("retake", { from = 0.05, prompt = "a ball" }), true)
  t.eq(has("interpolate", {}), true)
  t.eq(has("interpolate", { slow = 2 }), false)
  t.eq(has("extend", { prompt = "a ball", seconds = 0.2, direction = "backward" }), false)
end)

t.test("loop_seam: judged where it is asked for, right about a loop and about a film that is none", function()
  local still = melies.video.blur(T.noise({ 48, 160, 3 }, { seed = 3 }), 3) + 0.5
  local function drift(n, step)
    local list = {}
    for i = 1, n do list[i] = still:slice(2, 1 + step(i), 64 + step(i)):contiguous() end
    return list
  end
  local function there_and_back(i) return i <= 12 and 2 * i or 2 * (24 - i) end
  local function away(i) return 2 * i end
  local function verdict(list, judge)
    return melies.check.run(list, { { "loop_seam", judge = judge } }, { cuts = false }).by.loop_seam
  end
  t.eq(verdict(drift(24, there_and_back), true).pass, true) t.eq(verdict(drift(24, away), true).pass, false)
  t.eq(verdict(drift(24, away), false).pass, nil)
end)

t.test("interpolate: any rate, the film's own frames among the new ones; slower", function()
  local output = folder .. "/fast.mp4"
  local function made(given)
    given.video, given.output = path, output
    local frames = assert(melies.run("interpolate", given))
    return frames, assert(media.info(output))
  end
  local frames, info = made { factor = 2 }
  t.eq(frames.shape[1], 2 * count) t.near(info.fps, 2 * d.fps, 1e-6)
  for i = 1, count, 7 do same(frames, 2 * i - 1, 2 * i - 1, film, i, "frame " .. i) end
  frames, info = made { fps = 30 }
  t.eq(frames.shape[1], math.ceil(count * 30 / d.fps)) t.near(info.fps, 30, 1e-6)
  frames, info = made { slow = 1.5 }
  t.eq(frames.shape[1], math.ceil(count * 1.5)) t.near(info.fps, d.fps, 1e-6)
  local none, message = melies.run("interpolate", { video = path, fps = 3, factor = 2 })
  t.eq(none, nil) t.ok(message:find("either --fps or --factor", 1, true), message)
end)

t.test("consistency_report: what all checks say of any film, as data", function()
  local output, printed, before = folder .. "/report.json", {}, print
  _G.print = function(text) printed[#printed + 1] = text end
  local ok, report, message = pcall(melies.run, "consistency_report", { video = path, output = output })
  _G.print = before
  t.ok(ok and report, message or report)
  local read = melies.json.decode(assert(melies.fs.read(output)))
  t.eq(read.frames, count) t.eq(read.width, d.width) t.eq(#read.checks, #melies.registry.list "check")
  t.eq(#read.cuts, #read.shots - 1)
  local by = {}
  for _, each in ipairs(read.checks) do
    by[each.name] = each
    t.ok(each.params and each.where and printed[1]:find(each.name, 1, true), each.name)
    if each.series then t.eq(#each.series.frames, #each.series.values, each.name) end
  end
  t.ok(#by.color_drift.series.frames > 3 and by.color_drift.better == "low" and by.color_drift.threshold, "a series")
  -- Frames in place of a file; cuts that are known; a film that melies made says what it should show.
  local data, raw = melies.consistency.report(film, { fps = 10, cuts = { 1, 9 }, checks = "black_frames" })
  t.eq(data.cuts[1], 9) t.eq(data.shots[2].from, 0.8) t.eq(raw.by.black_frames.pass, data.checks[1].pass)
  t.eq(assert(melies.consistency.report(folder .. "/retake.mp4", { checks = "cuts" })).prompt, prompt)
  refused("consistency_report", { output = "x.mp4" }, ".json", 2)
  t.eq(melies.consistency.report(folder .. "/none.mp4"), nil)
end)

-- ---- other models ---------------------------------------------------------------------------------------------

t.test("models with an input for images get the known frame there, or say what they lack", function()
  local root = t.folder()
  local function make(name, parts)
    for _, part in ipairs(parts) do assert(melies.fake.make(part, root .. "/" .. name)) end
    return root .. "/" .. name
  end
  local text = { "umt5-xxl-tiny", "wan2.1-vae-tiny" }
  local i2v = make("i2v", { "wan2.1-i2v-14b-tiny", "clip-vision-tiny", unpack(text) })
  local small, clip = source("small.mp4", 12, 64, 64, 16)
  local given = { video = small, model = i2v, from = 4 / 16, to = 8 / 16, window = 9 }
  local frames = run("retake", given)
  same(frames, 1, 4, clip, 1, "before") same(frames, 9, 12, clip, 9, "after")
  refused("inpaint", { video = small, model = i2v, box = "0,0,8,8", window = 9 }, "begins its films with an image")
  local flf = make("flf", { "wan2.1-flf2v-14b-tiny", "clip-vision-tiny", unpack(text) })
  frames = run("loop", { video = small, model = flf, seconds = 0.25, tries = 1 })
  t.eq(frames.shape[1], 16) same(frames, 1, 12, clip, 1, "the film")
  given = { video = small, model = flf, from = 4 / 16, window = 9 }
  refused("retake", given, "the last one is not known")
  local ti2v = make("ti2v", { "wan2.2-ti2v-5b-tiny", "umt5-xxl-tiny", "wan2.2-vae-tiny" })
  frames = run("retake", { video = small, model = ti2v, from = 4 / 16, to = 8 / 16, window = 9 })
  same(frames, 1, 4, clip, 1, "before") same(frames, 9, 12, clip, 9, "after")
end)

t.finish()
