-- A storyboard in time with a sound: where its cuts fall, how long its shots are, and which words of motion and mood they get.
--
--   steer_cuts.cut(board, analysis, opts) -> board, lines for a person | nil, message
-- analysis: melies.sound.analyse. opts: grid (plan.grid), fill (the shots are repeated until the sound is over; else each
-- is shown once), words (default true), hold (lengths stay as planned,
-- but for the way to the beat), pace, model (whose room for words is asked).
--
-- The board that comes out is exact: its shots end on beats to the frame; the model makes the next longer number of frames
-- on its grid, and what is too much is cut off.
local lib = require "melies.ffi.lib"
local regex = require "melies.regex"
local sound = require "melies.sound"

local M = {}

local SHORTEST = 0.5 -- seconds a shot lasts at least

-- ---- words -----------------------------------------------------------------------------------------------

M.motion = { { below = 0.33, "slow gentle movement" }, { above = 0.67, "fast energetic movement" } } -- of energy
-- Tempo in BPM (0 where there is no beat), brightness in Hz (the centre of the power spectrum).
M.moods = {
  { tempo = { 0, 90 }, brightness = { 0, 500 }, "calm, dim mood" },
  { tempo = { 0, 90 }, brightness = { 1500, math.huge }, "dreamy, airy mood" },
  { tempo = { 125, math.huge }, brightness = { 0, 500 }, "tense, driving mood" },
  { tempo = { 125, math.huge }, brightness = { 1500, math.huge }, "lively, bright mood" },
}
local says_motion = regex.new([[\b(?:slow(?:ly)?|gent(?:le|ly)|calm(?:ly)?|still|fast|quick(?:ly)?|rapid(?:ly)?|energetic|]]
  .. [[speed(?:s|ing)?|rush(?:es|ing)?|race[sd]?|racing)\b]], "i")
local says_mood = regex.new([[\bmood\b]], "i")

local function within(range, value) return value >= range[1] and value < range[2] end

-- What is added to a shot: never over what its text says. nil: nothing.
local function words_of(text, energy, tempo, brightness)
  local out = {}
  for _, m in ipairs(says_motion:find(text) and {} or M.motion) do
    if (m.below and energy < m.below) or (m.above and energy > m.above) then out[#out + 1] = m[1] end
  end
  for _, m in ipairs(says_mood:find(text) and {} or M.moods) do
    if within(m.tempo, tempo or 0) and within(m.brightness, brightness) then out[#out + 1] = m[1] end
  end
  return #out > 0 and table.concat(out, ", ") or nil
end

-- ---- times ------------------------------------------------------------------------------------------------

-- Seconds of a shot at an energy of 0 and of 1, where shots fill the sound.
local PACES = { calm = { 10, 5 }, normal = { 6, 2 }, fast = { 3, 1 } }

local function nearest_beat(beats, at, low, high)
  local best
  for _, t in ipairs(beats) do
    if t >= low and t <= high and (not best or math.abs(t - at) < math.abs(best - at)) then best = t end
  end
  return best
end

-- Times of the ends of shots that fill the sound: a number of beats that is a power of two, near the seconds that the
-- energy asks for; a section always begins with a cut.
local function fill(analysis, pace)
  local ends, t, stop = {}, 0, analysis.duration
  local beats, period = analysis.beats, analysis.tempo and 60 / analysis.tempo
  while stop - t > SHORTEST do
    local energy = sound.mean(analysis.energy, t, math.min(stop, t + 2))
    local seconds = pace[1] * (pace[2] / pace[1]) ^ energy
    local border, at
    for i = 2, #analysis.sections do
      local from = analysis.sections[i].from
      if from > t + SHORTEST and not border then border = from end
    end
    if border and border < t + 1.5 * seconds then at = border
    elseif period then
      local count = 2 ^ math.max(0, math.floor(math.log(seconds / period) / math.log(2) + 0.5))
      at = t + count * period
      -- over a pause, or before the first beat, the pace alone counts
      at = nearest_beat(beats, at, t + SHORTEST, at + 0.75 * period) or t + seconds
    else at = t + seconds end
    if stop - at < SHORTEST then at = stop end
    ends[#ends + 1], t = at, at
  end
  if #ends == 0 then ends[1] = stop end
  return ends
end

-- Times of the ends of the board's own shots: a little longer where little goes on (up to 1.25), a little shorter where
-- much does (down to 0.75), then at the nearest beat.
local function fit(board, analysis, grid, hold)
  local ends, t = {}, 0
  local period = analysis.tempo and 60 / analysis.tempo
  for i, shot in ipairs(board.shots) do
    local seconds = shot.seconds or grid.window
    if not hold and t < analysis.duration then
      seconds = seconds * (1.25 - 0.5 * sound.mean(analysis.energy, t, math.min(analysis.duration, t + seconds)))
    end
    local at = t + math.max(SHORTEST, seconds)
    if period then at = nearest_beat(analysis.beats, at, t + SHORTEST, at + period) or at end
    if i == #board.shots and math.abs(analysis.duration - at) < seconds / 2 then at = analysis.duration end
    ends[i], t = at, at
  end
  return ends
end

-- ---- the board --------------------------------------------------------------------------------------------

-- Which shot of the board is shown when shots are repeated: in their order, and a section that comes again begins with
-- the shot that it began with.
local function order_of(ends, analysis, count)
  local out, next_shot, began, current, t = {}, 1, {}, nil, 0
  for i, at in ipairs(ends) do
    for k, s in ipairs(analysis.sections) do
      if t >= s.from - 1e-6 and t < s.to - 1e-6 and k ~= current then
        current = k
        if began[s.label] then next_shot = began[s.label] else began[s.label] = next_shot end
      end
    end
    out[i] = next_shot
    next_shot = next_shot % count + 1
    t = at
  end
  return out
end

local function milliseconds(t) return math.floor(t * 1000 + 0.5) / 1000 end
local function is_beat(analysis, t) return nearest_beat(analysis.beats, t, t - 1e-3, t + 1e-3) ~= nil end

local OPTIONS = { grid = true, fill = true, words = true, hold = true, pace = true, model = true }

function M.cut(board, analysis, opts)
  lib.check_options("steer_cuts.cut", opts, OPTIONS)
  local plan = require "melies.plan"
  local before, message = plan.check(board)
  if not before then return nil, message end
  local out, lines = assert(plan.check(board)), {}
  local words = opts.words ~= false
  local ends = opts.fill and fill(analysis, PACES[opts.pace or before.pace or "normal"])
    or fit(before, analysis, opts.grid, opts.hold)
  local order = opts.fill and order_of(ends, analysis, #before.shots)
  if analysis.tempo then
    lines[1] = ("%s: %.1f BPM, %d beats in %s"):format(analysis.path, analysis.tempo, #analysis.beats,
      sound.clock(analysis.duration))
  else
    lines[1] = ("%s: %s; cuts fall where the pace says"):format(analysis.path, analysis.no_beat)
  end
  out.shots, out.exact = {}, true
  local t, joined, rounds = 0, {}, {}
  for i, at in ipairs(ends) do
    at = milliseconds(at)
    local number = order and order[i] or i
    local shot = {}
    for key, value in pairs(before.shots[number]) do shot[key] = value end
    rounds[number] = (rounds[number] or 0) + 1
    if shot.seed and rounds[number] > 1 then shot.seed = shot.seed + 1000 * (rounds[number] - 1) end
    local join = shot.transition
    if order or (join ~= "overlap" and join ~= "none" and join ~= nil) then
      if not order and join ~= "cut" then joined[#joined + 1] = ("%d (%s)"):format(i, join) end
      shot.transition, shot.overlap = i == 1 and "none" or "cut", nil
    end
    local was = shot.seconds or opts.grid.window
    shot.seconds = milliseconds(at - t)
    local heard = t < analysis.duration
    local energy = heard and sound.mean(analysis.energy, t, math.min(analysis.duration, at)) or 0
    if words and heard then
      local brightness = sound.mean(analysis.brightness, t, math.min(analysis.duration, at))
      local more = words_of((shot.action or "") .. " " .. (shot.text or ""), energy, analysis.tempo, brightness)
      if more then shot.mood = shot.mood and shot.mood ~= more and shot.mood .. ", " .. more or more end
    end
    out.shots[i] = shot
    lines[#lines + 1] = ("shot %d%s: to %.2f s%s, %.2f s in place of %.2f, energy %.2f%s"):format(i,
      order and number ~= i and (" (%d of the plan)"):format(number) or "", at, is_beat(analysis, at) and " on a beat" or "",
      at - t, was, energy, shot.mood and ", {+" .. shot.mood .. "+}" or "")
    t = at
  end
  if #joined > 0 then
    lines[#lines + 1] = "a cut falls on a beat, in place of the transition before shot " .. table.concat(joined, ", ")
  end
  if t > analysis.duration + 0.05 then
    lines[#lines + 1] = ("the sound ends at %s, the film at %s: silence after it"):format(sound.clock(analysis.duration),
      sound.clock(t))
  end
  if t > plan.MAX_SECONDS then out.max_seconds = math.max(out.max_seconds or 0, math.ceil(t)) end
  local left_out = {}
  for i, shot in ipairs(out.shots) do
    local dropped = shot.mood and opts.model and select(2, plan.fitting(out, i, opts.model)) or {}
    for _, what in ipairs(dropped) do
      if what == "mood" then left_out[#left_out + 1] = i end
    end
  end
  if #left_out > 0 then
    lines[#lines + 1] = ("the model has no room for these words in %d of %d shots"):format(#left_out, #out.shots)
  end
  out, message = plan.check(out)
  if not out then return nil, message end
  return out, lines
end

return M
