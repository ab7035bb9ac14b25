-- Each pass on films where the right answer is known; chains, texts, files, bounded memory.
local t = require "harness"
local melies = require "melies"
local clips = require "clips"
local T, pass, video, media = melies.tensor, melies.pass, melies.video, melies.media

local function run(frames, list, info)
  local out, after = pass.apply(frames, list, info or { fps = 24 })
  t.ok(out, tostring(after))
  local result = {}
  for i = 1, out.shape[1] do result[i] = out:select(1, i) end
  return result, after
end

local function brightness(frames)
  local list = {}
  for i, frame in ipairs(frames) do list[i] = frame:mean() end
  return list
end

local function unrest(list) -- mean difference of neighbours
  local sum = 0
  for i = 2, #list do sum = sum + math.abs(list[i] - list[i - 1]) / (#list - 1) end
  return sum
end

local function detail(frame) return (frame - video.blur(frame, 1.5)):abs():mean() end

t.test("flow, warp, the check and frames between from Lua", function()
  local a, b = clips.frame { x = 0 }, clips.frame { x = 3, y = -2 }
  local forward, backward = video.flow(a, b), video.flow(b, a)
  local mean = forward:mean(1):mean(1):list()
  t.near(mean[1], -3, 0.15)
  t.near(mean[2], 2, 0.15)
  t.ok(clips.apart(a, video.warp(b, forward)) < 0.15 * clips.apart(a, b))
  t.ok(video.consistent(forward, backward):mean() > 0.85)
  local middle = clips.frame { x = 1.5, y = -1 }
  t.ok(clips.apart(middle, video.between(a, b, 0.5)) < 0.2 * clips.apart(a, b))
  t.raises(function() video.flow(a, b, { fines = 1 }) end, "did you mean 'finest'")
  t.raises(function() video.flow(a, b:slice(1, 1, 40)) end, "[40, 128, 3]")
end)

t.test("cuts are found, motion and flicker are none", function()
  local film = clips.joined(clips.rolling(8, 1), clips.rolling(6, 3), clips.rolling(7, 6))
  local function cuts(frames)
    local detect, found = video.cut_detector(), {}
    for i, frame in ipairs(frames) do if detect(frame) then found[#found + 1] = i end end
    return table.concat(found, " ")
  end
  t.eq(cuts(film), "9 15")
  t.eq(cuts(clips.flickering(film, 0.12)), "9 15")
  t.eq(cuts(clips.film(12, function(i) return { x = 5 * i, turn = 0.02 * i } end)), "")
end)

t.test("color_match holds the film's look, also over a cut", function()
  local clean = clips.rolling(16, 1)
  local drift = clips.drifting(clean, 0.008)
  local fixed = run(drift, { { "color_match", anchor = 0.05, smooth = 0.05 } })
  local function de(a, b) -- distance of the mean colours in Lab
    local m, n = video.lab_stats(a), video.lab_stats(b)
    return math.sqrt((m[1] - n[1]) ^ 2 + (m[2] - n[2]) ^ 2 + (m[3] - n[3]) ^ 2)
  end
  t.ok(de(drift[16], drift[1]) > 8, "the fault is there")
  t.ok(de(fixed[16], fixed[1]) < 2, "and gone: " .. de(fixed[16], fixed[1]))
  local other = {}
  for i, frame in ipairs(clips.rolling(8, 1)) do other[i] = frame * 0.7 end
  local film = clips.joined(clean, other)
  local info = { fps = 24, cuts = { 17 } }
  local whole = run(film, { { "color_match", smooth = 0.05 } }, info)
  local inside = run(film, { { "color_match", scope = "shot", smooth = 0.05 } }, info)
  t.ok(de(whole[20], whole[10]) < 2, "matched to the film")
  t.ok(de(inside[20], inside[10]) > 8, "each shot its own")
  clips.look("color_match", { drift, fixed }, { "drift", "color_match" })
end)

t.test("deflicker calms the light and keeps the detail", function()
  local clean = clips.rolling(18, 1)
  local flicker = clips.flickering(clean, 0.1)
  local calm = run(flicker, { "deflicker" })
  t.eq(#calm, 18)
  local before, after, natural = unrest(brightness(flicker)), unrest(brightness(calm)), unrest(brightness(clean))
  t.ok(before > 0.02 and after - natural < 0.25 * (before - natural), ("%.4f -> %.4f (%.4f)"):format(before, after, natural))
  local wrong_before, wrong_after = 0, 0
  for i = 5, 14 do
    wrong_before = wrong_before + clips.apart(flicker[i], clean[i])
    wrong_after = wrong_after + clips.apart(calm[i], clean[i])
  end
  t.ok(wrong_after < 0.6 * wrong_before, wrong_after .. " " .. wrong_before)
  t.near(detail(calm[9]) / detail(flicker[9]), 1, 0.03)
  clips.look("deflicker", { flicker, calm }, { "flicker", "deflicker" })
end)

t.test("deflicker does not mix shots", function()
  local a, b = clips.rolling(6, 1), clips.rolling(6, 3)
  local film = run(clips.joined(a, b), { "deflicker" })
  t.eq(#film, 12)
  t.ok(clips.apart(film[6], a[6]) < 0.01)
  t.ok(clips.apart(film[7], b[1]) < 0.01)
end)

t.test("interpolate makes the frames that were left out", function()
  local full = clips.rolling(13, 1)
  local half = {}
  for i = 1, 13, 2 do half[#half + 1] = full[i] end
  local made, info = run(half, { { "interpolate", factor = 2 } }, { fps = 12 })
  t.eq(#made, 14)
  t.eq(info.fps, 24)
  for i = 2, 12, 2 do
    local blend = clips.apart((full[i - 1] + full[i + 1]) * 0.5, full[i])
    t.ok(clips.apart(made[i], full[i]) < 0.6 * blend, i .. ": " .. clips.apart(made[i], full[i]) .. " " .. blend)
    t.ok(clips.apart(made[i - 1], full[i - 1]) < 1e-6)
  end
  clips.look("interpolate", { { unpack(made, 5, 10) }, { unpack(full, 5, 10) } }, { "made", "true" })
  -- Any rate, and no frame mixes two shots.
  local film = clips.joined(clips.rolling(5, 1), clips.rolling(5, 3))
  made, info = run(film, { { "interpolate", fps = 60 } }, { fps = 24, cuts = { 6 }, frames = 10 })
  t.eq(#made, 25)
  t.eq(info.frames, 25)
  for i, frame in ipairs(made) do
    local k = (i - 1) * 24 / 60
    local near = film[math.min(10, math.floor(k) + 1)]
    t.ok(clips.apart(frame, near) < 0.06, i .. " " .. clips.apart(frame, near))
  end
  t.eq(#run(film, { { "interpolate", fps = 10 } }, { fps = 24 }), 5)
end)

t.test("stabilise takes the shaking out and leaves a pan", function()
  local random = clips.random(3)
  local shaken = clips.film(24, function(i)
    return { x = 0.8 * i + 3 * random(), y = 3 * random(), turn = 0.02 * random(), look = 2 }
  end)
  local calm = run(shaken, { { "stabilise", seconds = 0.4, zoom = 1.1 } })
  t.eq(#calm, 24)
  local function motion(frames)
    local sum, mean, count = 0, 0, 0
    for i = 6, 18 do
      local f = video.flow(frames[i], frames[i + 1]):slice(1, 20, 76):slice(2, 20, 108)
      local m = f:mean(1):mean(1):list()
      sum, mean, count = sum + math.abs(m[1] + 0.8) + math.abs(m[2]), mean + m[1], count + 1
    end
    return sum / count, mean / count
  end
  local before = motion(shaken)
  local after, pan = motion(calm)
  t.ok(after < 0.3 * before, ("%.3f -> %.3f"):format(before, after))
  t.near(pan, -0.88, 0.35)
  clips.look("stabilise", { shaken, calm }, { "shaken", "stabilise" })
end)

t.test("sharpen and grain", function()
  local frame = clips.frame { ball = { 50, 50 } }
  local soft = video.blur(frame, 1)
  local sharp = run({ soft }, { { "sharpen", amount = 1 } })[1]
  t.ok(detail(sharp) > 1.15 * detail(soft))
  t.ok(clips.apart(sharp, frame) < clips.apart(soft, frame))
  local flat = T.full({ 64, 64, 3 }, 0.5)
  local film = run({ flat, flat }, { { "grain", amount = 0.05, seed = 4 } })
  t.near((film[1] - 0.5):std(), 0.05, 0.005)
  t.ok(clips.apart(film[1], film[2]) > 0.02, "new in every frame")
  local again = run({ flat, flat }, { { "grain", amount = 0.05, seed = 4 } })
  t.eq(clips.apart(film[2], again[2]), 0)
  local black = run({ T.zeros { 64, 64, 3 } }, { { "grain", amount = 0.05 } })[1]
  t.ok(black:std() < 0.02, "less in the shadows")
  local coarse = run({ flat }, { { "grain", amount = 0.05, size = 3 } })[1]
  t.ok(detail(coarse) < 0.7 * detail(film[1]))
  clips.look("grain", { (run(clips.rolling(6, 1), { { "grain", amount = 0.08, size = 1.5 } })) }, { "grain" })
end)

t.test("upscale", function()
  local large = clips.frame {}
  local small = video.resize(large, 48, 64)
  local out, info = run({ small }, { { "upscale", factor = 2 } })
  t.eq(table.concat(out[1].shape, "x"), "96x128x3")
  t.eq(info.width, 128)
  local plain = small:resize(1, 96, "nearest"):resize(2, 128, "nearest")
  t.ok(clips.apart(out[1], large) < 0.8 * clips.apart(plain, large))
  out = run({ large }, { { "upscale", width = 32 } })
  t.eq(table.concat(out[1].shape, "x"), "24x32x3")
end)

t.test("filter: FFmpeg's words", function()
  local film = clips.rolling(6, 1)
  local out = run(film, { { "filter", graph = "hflip" } })
  local info
  t.eq(#out, 6)
  t.ok(clips.apart(out[3]:slice(2, 1, 1), film[3]:slice(2, 128, 128)) < 0.005)
  out, info = run(film, { { "filter", graph = "fps=48,scale=64:48" } })
  t.eq(#out, 12)
  t.eq(info.fps, 48)
  t.eq(info.width, 64)
  local _, message = pass.apply(film, { { "filter", graph = "nonsense" } })
  t.ok(message:find("nonsense", 1, true), message)
  _, message = pass.apply(film, { { "filter", graph = "movie=x.mp4" } })
  t.ok(message:find("not allowed", 1, true), message)
end)

t.test("camera moves show no border and end where they should", function()
  local still = {}
  for i = 1, 12 do still[i] = clips.frame { look = 4 } end
  local function shift(frames)
    return video.flow(frames[1], frames[12]):slice(1, 40, 56):slice(2, 56, 72):mean(1):mean(1):list()
  end
  local pan = run(still, { { "camera", pan = 0.1 } })
  t.near(shift(pan)[1], -0.1 * 128, 1.0)
  local tilt = run(still, { { "camera", tilt = 0.1 } })
  t.near(shift(tilt)[2], -0.1 * 96, 1.0)
  local zoom = run(still, { { "camera", zoom = 1.3 } })
  t.ok(clips.apart(zoom[1], still[1]) < 0.005, "begins with the whole picture")
  local f = video.flow(zoom[1], zoom[12])
  t.near(f:select(1, 48):select(1, 100):list()[1], 0.3 * (99 - 63.5), 2)
  local roll = run(still, { { "camera", roll = 10, ease = false } })
  f = video.flow(roll[1], roll[12]):select(1, 48):select(1, 100):list()
  t.near(f[2], math.sin(math.rad(10)) * 36, 2.0) -- right of the centre goes down: clockwise
  local dolly = run(still, { { "camera", dolly = 0.3 } })
  f = video.flow(dolly[1], dolly[12])
  local low = f:select(1, 85):select(1, 64):list()[2]
  local high = f:select(1, 12):select(1, 64):list()[2]
  t.ok(low > 2 and -high < low, ("near %.2f, far %.2f"):format(low, high))
  clips.look("camera", { pan, zoom, roll, dolly }, { "pan", "zoom", "roll", "dolly" })
end)

t.test("lists as text, order, wrong names", function()
  local list = pass.parse('deflicker; sharpen: amount=0.4, radius=2;filter: graph="eq=contrast=1.1,hflip"')
  t.eq(#list, 3)
  t.eq(list[2].amount, 0.4)
  t.eq(list[3].graph, "eq=contrast=1.1,hflip")
  local film = clips.rolling(3, 1)
  local a = run(film, "grain: amount=0.1; sharpen: amount=2")
  local b = run(film, "sharpen: amount=2; grain: amount=0.1")
  t.ok(clips.apart(a[1], b[1]) > 0.01, "order counts")
  local _, message = pass.apply(film, { "deflikcer" })
  t.ok(message:find("did you mean 'deflicker'", 1, true), message)
  _, message = pass.apply(film, { { "sharpen", amonut = 1 } })
  t.ok(message:find("did you mean 'amount'", 1, true), message)
  _, message = pass.apply(film, { { "sharpen", amount = 77 } })
  t.ok(message:find("must be 0 to 5", 1, true), message)
  _, message = pass.parse("sharpen: amount")
  t.ok(message:find("no NAME=VALUE", 1, true), message)
  t.raises(function() pass.apply(7, { "grain" }) end, "frames are a clip")
end)

t.test("a file passes through in bounded memory", function()
  local dir = t.folder()
  local input, output = dir .. "/in.mp4", dir .. "/out.mp4"
  t.ok(media.save(input, T.stack(clips.rolling(30, 1), 1), { fps = 24 }))
  local info = t.ok(pass.file(input, output, "deflicker; color_match; stabilise; sharpen; interpolate: fps=48; grain"))
  t.eq(info.frames, 60)
  local made = media.info(output)
  t.eq(made.frames, 60)
  t.eq(made.fps, 48)
  local _, message = pass.file(dir .. "/none.mp4", output, "grain")
  t.ok(message:find("none.mp4", 1, true))
  _, message = pass.file(input, dir .. "/no/out.mp4", "grain")
  t.ok(message:find("no", 1, true))
  -- How many frames are alive at most does not grow with the film.
  local function peak(count)
    collectgarbage() collectgarbage()
    melies.memory_limit(0)
    local frame, base = clips.frame {}, melies.memory().live
    local chain, most = t.ok(pass.chain("deflicker; stabilise", { width = 128, height = 96, cuts = false })), 0
    for _ = 1, count do
      for _, each in ipairs(chain:push(frame)) do each:free() end
      collectgarbage() collectgarbage()
      most = math.max(most, melies.memory().live - base)
    end
    return most
  end
  local short = peak(40)
  t.ok(peak(80) < 1.1 * short)
end)

t.test("the same bits for any number of threads", function()
  local film = clips.flickering(clips.rolling(8, 1), 0.1)
  local list = "deflicker; stabilise; interpolate: factor=1.5; grain"
  melies.threads(1)
  local one = T.stack(run(film, list), 1)
  melies.threads(3)
  local three = T.stack(run(film, list), 1)
  melies.threads(0)
  t.eq((one - three):abs():amax(), 0)
end)

t.finish()
