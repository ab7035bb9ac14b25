-- Transitions and the joining of shots.
local t = require "harness"
local melies = require "melies"
local clips = require "clips"
local T, pass = melies.tensor, melies.pass

local function join(shots, transitions, fps)
  local next_frame, cuts = pass.join(shots, transitions, { fps = fps or 10 })
  t.ok(next_frame, tostring(cuts))
  local frames = {}
  for frame in next_frame do frames[#frames + 1] = frame end
  return frames, cuts
end

-- n frames of one grey, so that the mean tells what is mixed.
local function grey(n, level)
  local list = {}
  for i = 1, n do list[i] = T.full({ 16, 16, 3 }, level) end
  return list
end
local function levels(frames)
  local list = {}
  for i, frame in ipairs(frames) do list[i] = ("%.2f"):format(frame:mean()) end
  return table.concat(list, " ")
end

t.test("cut", function()
  local frames, cuts = join({ grey(3, 0.2), grey(2, 0.8), grey(1, 0.4) })
  t.eq(levels(frames), "0.20 0.20 0.20 0.80 0.80 0.40")
  t.eq(table.concat(cuts, " "), "4 6")
  t.eq(#join({}), 0)
  t.eq(#join({ grey(2, 0.1) }), 2)
end)

t.test("dissolve overlaps", function()
  local frames, cuts = join({ grey(5, 0), grey(5, 1) }, { "dissolve", seconds = 0.3 })
  t.eq(levels(frames), "0.00 0.00 0.25 0.50 0.75 1.00 1.00")
  t.eq(table.concat(cuts, " "), "4")
  frames = join({ grey(5, 0), grey(5, 1) }, { "dissolve", seconds = 0.3, ease = true })
  t.eq(levels(frames), "0.00 0.00 0.16 0.50 0.84 1.00 1.00")
  t.eq(#join({ grey(2, 0), grey(9, 1) }, { "dissolve", seconds = 0.5 }), 9) -- a short shot overlaps as far as it goes
end)

t.test("fade goes through a colour and loses no frame", function()
  local frames, cuts = join({ grey(4, 0.8), grey(4, 0.8) }, { "fade", seconds = 0.4 })
  t.eq(levels(frames), "0.80 0.80 0.40 0.00 0.27 0.53 0.80 0.80")
  t.eq(table.concat(cuts, " "), "5")
  frames = join({ grey(2, 0), grey(2, 0) }, { "fade", seconds = 0.2, red = 1, green = 1, blue = 1 })
  t.eq(levels(frames), "0.00 1.00 0.50 0.00")
end)

t.test("match cut finds the place where picture and motion meet", function()
  -- The ball of the first shot goes right and back; the second shot's goes right, from where the first one is at frame 8.
  local a = clips.film(14, function(i) return { look = 1, ball = { i <= 9 and 20 + 5 * i or 110 - 5 * i, 48 } } end)
  local b = clips.film(12, function(i) return { look = 1, ball = { 40 + 5 * i, 48 } } end)
  local frames, cuts = join({ a, b }, { "match_cut", seconds = 0.8 })
  -- Over the joint the ball goes on as it did: about 5 pixels a frame.
  local at = cuts[1]
  local flow = melies.video.flow(frames[at - 1], frames[at]):slice(1, 44, 52)
  local most = flow:select(3, 1):amax()
  t.ok(most < 8, "the ball leaps by " .. most)
  t.ok(#frames < 26 and #frames > 10)
  local blended = join({ a, b }, { "match_cut", seconds = 0.8, blend = 2 })
  t.ok(math.abs(#blended - #frames) <= 2)
  clips.look("match_cut", { { unpack(frames, at - 3, at + 2) } }, { "match cut" })
end)

t.test("a transition for each joint, streams, wrong names", function()
  local shots = { grey(4, 0), grey(4, 1), T.full({ 3, 16, 16, 3 }, 51, "u8") }
  local count = 0
  shots[1] = function()
    count = count + 1
    return count <= 4 and T.full({ 16, 16, 3 }, 0) or nil
  end
  local frames, cuts = join(shots, { { "dissolve", seconds = 0.1 }, "cut" })
  t.eq(levels(frames), "0.00 0.00 0.00 0.50 1.00 1.00 1.00 0.20 0.20 0.20")
  t.eq(table.concat(cuts, " "), "4 8")
  local _, message = pass.join({ grey(2, 0), grey(2, 1) }, "disolve")
  t.ok(message:find("did you mean 'dissolve'", 1, true), message)
  _, message = pass.join({ grey(2, 0), grey(2, 1) }, { "fade", secons = 1 })
  t.ok(message:find("did you mean 'seconds'", 1, true), message)
end)

t.finish()
