-- Checks: what can be measured about a whole film, and what to do where it fails. A check is a plugin of kind "check":
--   params (its thresholds among them); new(params, info) -> object
-- with push(self, here) for every frame in order and finish(self) -> result, a table of
--   value       the measure, a number (nil: there was nothing to measure)
--   pass        true or false; nil: not judged
--   threshold, better   what it was held against; "high" or "low": which side is good
--   where       the worst places: { frame =, time =, shot =, value =, what = }
--   series      a table of frames and values, to be drawn over time
--   remedy      what may help: { seed = true }, { pass = entry of a list of passes }, { steps = factor }, { anchor = how much
--               more the colours of a shot's beginning hold }, { window = factor of a chunk's length }
--   note        a few words
-- `here` is shared by all checks, so that flow is made once: index (from 1), time (seconds), shot, cut (a shot begins here),
-- raw (the frame as given), nonfinite (values of raw that are not numbers), frame (f32, long side at most `size`), previous
-- (the same of the frame before, nil at the first), flow() and back() (from the frame before to this one, and back), sure()
-- (where they agree, [h, w]), luma(), features(region). info is { width, height, fps, cuts, prompt, score, model }.
local lib = require "melies.ffi.lib"
local log = require "melies.log"
local media = require "melies.media"
local pass = require "melies.pass"
local registry = require "melies.registry"
local video = require "melies.video"

local check = {}

-- ---- what a frame knows ---------------------------------------------------------------------------

local Here = {}
Here.__index = Here

local function made_once(name, make)
  Here[name] = function(self)
    if self["own_" .. name] == nil then self["own_" .. name] = make(self) end
    return self["own_" .. name]
  end
end
made_once("flow", function(self) return video.flow(self.previous.frame, self.frame, { finest = 2 }) end)
made_once("back", function(self) return video.flow(self.frame, self.previous.frame, { finest = 2 }) end)
made_once("sure", function(self) return video.consistent(self:flow(), self:back()) end)
made_once("luma", function(self) return video.luma(self.frame) end)

function Here:features(region)
  self.looks = self.looks or {}
  self.looks[region or "all"] = self.looks[region or "all"] or video.features(self.frame, region)
  return self.looks[region or "all"]
end

-- ---- series: a value for each of some frames ------------------------------------------------------------

local Series = {}
Series.__index = Series

-- check.series(): add(here, value, what); mean(), least(), most(); worst("low" | "high", limit, count): the places past the
-- limit, the worst first.
function check.series()
  return setmetatable({ frames = {}, values = {}, times = {}, shots = {}, said = {} }, Series)
end

function Series:add(here, value, what)
  local n = #self.frames + 1
  self.frames[n], self.values[n] = here.index, value
  self.times[n], self.shots[n], self.said[n] = here.time, here.shot, what
end

function Series:mean()
  if #self.values == 0 then return nil end
  local sum = 0
  for _, value in ipairs(self.values) do sum = sum + value end
  return sum / #self.values
end

local function extreme(self, fn)
  local best = self.values[1]
  for i = 2, #self.values do best = fn(best, self.values[i]) end
  return best
end
function Series:least() return extreme(self, math.min) end
function Series:most() return extreme(self, math.max) end

function Series:worst(side, limit, count)
  local list = {}
  for n, value in ipairs(self.values) do
    if (side == "low" and value < limit) or (side == "high" and value > limit) then
      list[#list + 1] = { frame = self.frames[n], time = self.times[n], shot = self.shots[n], value = value, what = self.said[n] }
    end
  end
  table.sort(list, function(a, b)
    if a.value == b.value then return a.frame < b.frame end
    if side == "low" then return a.value < b.value end
    return a.value > b.value
  end)
  for i = #list, (count or 5) + 1, -1 do list[i] = nil end
  return list
end

-- ---- remedies ----------------------------------------------------------------------------------------

local kinds = { steps = 1.5, anchor = 0.25, window = 0.5 }

-- "remedy" of an entry of a list of checks, in place of the check's own: seed, steps, anchor, window, or a pass.
local function remedy_of(text)
  if text == "seed" then return { seed = true } end
  if kinds[text] then return { [text] = kinds[text] } end
  local list, message = pass.parse(tostring(text))
  if not list then return nil, message end
  local plugin, why = pass.resolve("pass", list[1] or "")
  if not plugin then return nil, ("remedy is '%s', no seed, steps, anchor, window or pass: %s"):format(tostring(text), why) end
  return { pass = list[1] }
end

-- ---- running ------------------------------------------------------------------------------------------

local run_options = { fps = true, cuts = true, joints = true, size = true, prompt = true, score = true,
  model = true, progress = true }

local function entries_of(list)
  if list == nil then
    local all = {}
    for _, entry in ipairs(registry.list "check") do all[#all + 1] = entry.name end
    return all
  end
  if type(list) == "string" then return pass.parse(list) end
  return list
end

local Measure = {}
Measure.__index = Measure

-- check.measure(checks, {width=, height=, fps = 24, and what check.run takes}): the checks as an object with push(frame) and
-- finish() -> report. cuts and joints may grow ahead of the frames. nil and a message.
function check.measure(checks, options)
  local list, message = entries_of(checks)
  if not list then return nil, message end
  local info = { width = options.width, height = options.height, fps = options.fps or 24, cuts = options.cuts,
    prompt = options.prompt, score = options.score, model = options.model }
  local running = {}
  for i, entry in ipairs(list) do
    local remedy, why
    if type(entry) == "table" and entry.remedy ~= nil then
      remedy, why = remedy_of(entry.remedy)
      if not remedy then return nil, ("check %s: %s"):format(tostring(entry[1] or entry.name), why) end
      local copy = {}
      for key, value in pairs(entry) do if key ~= "remedy" then copy[key] = value end end
      entry = copy
    end
    local plugin, values = pass.resolve("check", entry)
    if not plugin then return nil, values end
    running[i] = { plugin = plugin, values = values, object = plugin.new(values, info), remedy = remedy }
  end
  local known = type(options.cuts) == "table" and pass.known_cuts(options.cuts)
  return setmetatable({ running = running, info = info, known = known, size = options.size or 256,
    detect = options.cuts == nil and video.cut_detector() or nil, joints = options.joints or {}, joint = 1,
    shots = { { first = 1 } }, index = 0 }, Measure)
end

function Measure:push(frame)
  self.index = self.index + 1
  local index, cut = self.index, false
  if self.detect then cut = self.detect(frame)
  elseif self.known then cut = index > 1 and self.known(index) end
  if cut then
    self.shots[#self.shots].last = index - 1
    self.shots[#self.shots + 1] = { first = index }
  end
  -- A transition is no shot: nobody judges its frames, and a new one begins after it.
  local joint = self.joints[self.joint]
  if joint and index > joint[2] then
    self.joint = self.joint + 1
    joint = self.joints[self.joint]
  end
  if joint and index >= joint[1] then
    self.previous, self.after_joint = nil, true
    return
  end
  cut = cut or self.after_joint or false
  self.after_joint = nil
  local whole = frame
  local broken = frame.dtype ~= "u8" and frame:nonfinite() or 0
  if broken > 0 then whole = media.to_u8(frame) end -- not a number: black, so that the other checks go on
  local here = setmetatable({ nonfinite = broken, index = index, time = (index - 1) / self.info.fps, raw = frame, cut = cut,
    shot = #self.shots, frame = video.reduce(whole, self.size):contiguous(), previous = self.previous }, Here)
  for _, each in ipairs(self.running) do each.object:push(here) end
  if self.previous then self.previous.previous, self.previous.raw = nil, nil end
  self.previous = here
end

function Measure:finish()
  local info, shots = self.info, self.shots
  shots[#shots].last = self.index
  local report = { frames = self.index, fps = info.fps, width = info.width, height = info.height, shots = shots, results = {},
    by = {}, failed = {}, passed = true }
  for i, each in ipairs(self.running) do
    local result = each.object:finish(shots)
    result.name, result.params, result.help = each.plugin.name, each.values, each.plugin.help
    result.remedy = each.remedy or result.remedy
    result.where = result.where or {}
    report.results[i], report.by[result.name] = result, result
    if result.pass == false then
      report.passed = false
      report.failed[#report.failed + 1] = result.name
    end
  end
  return report
end

-- check.run(source, checks, {fps = 24, cuts=, size = 256, prompt=, score=, model=, progress=}): a report on a film: frames,
-- fps, shots = { { first =, last = } }, results (a list of the checks' results with their name, help and values of
-- parameters), by (the same by name), passed (no check failed), failed (their names). source: as pass.stream takes it.
-- checks: names or { name, values... }, or a text as pass.parse takes it; without it all there are. cuts: the frames that
-- begin a shot, where they are known; false: none; else they are looked for. joints: { first, last } frames of transitions,
-- which are not judged. An entry's `remedy` (seed, steps, anchor, window,
-- or a pass) stands in place of the check's own. nil and a message.
function check.run(source, checks, options)
  options = options or {}
  lib.check_options("check.run", options, run_options)
  local next_frame = pass.stream(source)
  local frame = next_frame()
  if not frame then return nil, "there are no frames" end
  local given = { width = frame.shape[2], height = frame.shape[1] }
  for key, value in pairs(options) do given[key] = value end
  local measure, message = check.measure(checks, given)
  if not measure then return nil, message end
  while frame do
    measure:push(frame)
    if options.progress then options.progress(measure.index) end
    frame = next_frame()
  end
  return measure:finish()
end

-- check.file(path, checks, options): check.run on a film's file, frame by frame, at its own rate. nil and a message.
function check.file(path, checks, options)
  local reader, message = media.reader(path)
  if not reader then return nil, message end
  local given = { fps = reader:info().fps > 0 and reader:info().fps or 24 }
  for key, value in pairs(options or {}) do given[key] = value end
  local ok, report, why = pcall(check.run, reader, checks, given)
  reader:close()
  if not ok then
    if type(report) == "string" and report:find(path, 1, true) then return nil, report end
    error(report, 0)
  end
  if not report then return nil, why end
  return report
end

-- The numbers of the shots in which something failed, sorted.
function check.failing_shots(report)
  local seen, list = {}, {}
  for _, result in ipairs(report.results) do
    if result.pass == false then
      for _, place in ipairs(result.where) do
        if place.shot and not seen[place.shot] then
          seen[place.shot] = true
          list[#list + 1] = place.shot
        end
      end
    end
  end
  table.sort(list)
  return list
end

-- ---- telling ------------------------------------------------------------------------------------------

local function number_text(value)
  if value == nil then return "-" end
  if value % 1 == 0 and math.abs(value) < 1e6 then return ("%d"):format(value) end
  return math.abs(value) < 0.01 and ("%.2e"):format(value) or ("%.4g"):format(value)
end

-- check.text(report): a line for each check, with the worst places of those that failed.
function check.text(report)
  local lines = { ("%d frames, %.1f s at %.4g/s, %d shot%s"):format(report.frames, report.frames / report.fps, report.fps,
    #report.shots, #report.shots == 1 and "" or "s") }
  for _, r in ipairs(report.results) do
    local verdict = r.pass == nil and "  -   " or r.pass and "  ok  " or " FAIL "
    local held = r.threshold and (" (%s %s)"):format(r.better == "high" and "at least" or "at most", number_text(r.threshold))
      or ""
    lines[#lines + 1] = ("%s %-18s %s%s%s"):format(verdict, r.name, number_text(r.value), held,
      r.note and "; " .. r.note or "")
    if r.pass == false then
      for i = 1, math.min(3, #r.where) do
        local w = r.where[i]
        lines[#lines + 1] = ("         frame %d (%.2f s, shot %d): %s%s"):format(w.frame, w.time, w.shot,
          w.what and w.what .. " " or "", number_text(w.value))
      end
    end
  end
  return table.concat(lines, "\n")
end

-- ---- the gate -------------------------------------------------------------------------------------------

-- check.badness(report): how far it is from passing: the number of failed checks, and by how much.
function check.badness(report)
  local sum = 0
  for _, r in ipairs(report.results) do
    if r.pass == false then
      local d, share = r.value and r.threshold and math.abs(r.value - r.threshold), 1
      if d then share = d / (d + (r.threshold ~= 0 and math.abs(r.threshold) or 1)) end
      sum = sum + 1 + share / 2
    end
  end
  return sum
end

-- check.remedy(report, used): what the failed checks name as their remedies, each once: those in the set `used` were tried
-- already, and another seed takes their place. { passes = list, steps=, anchor=, window=, seed = true where one is wanted,
-- again = whether something is to be rendered, names = what is to be added to `used`, words = text for a person }.
function check.remedy(report, used)
  local out, words = { passes = {}, names = {} }, {}
  local function take(name, text)
    if used[name] then return false end
    for _, other in ipairs(out.names) do
      if other == name then return true end
    end
    out.names[#out.names + 1], words[#words + 1] = name, text
    return true
  end
  for _, r in ipairs(report.results) do
    if r.pass == false then
      local remedy, done = r.remedy or { seed = true }, false
      if remedy.pass then
        local entry = type(remedy.pass) == "table" and remedy.pass or { remedy.pass }
        local copy = { name = entry[1] or entry.name }
        for key, value in pairs(entry) do if key ~= 1 then copy[key] = value end end
        local before = #out.names
        done = take("pass " .. copy.name, copy.name)
        if #out.names > before then out.passes[#out.passes + 1] = copy end
      end
      if remedy.steps and not done then
        done = take("steps", ("%.3g times the steps"):format(remedy.steps))
        out.steps = done and remedy.steps or out.steps
      end
      if remedy.anchor and not done then
        done = take("anchor", "a stronger anchor")
        out.anchor = done and remedy.anchor or out.anchor
      end
      if remedy.window and not done then
        done = take("window", "shorter parts")
        out.window = done and remedy.window or out.window
      end
      if not done then out.seed = true end
    end
  end
  if out.seed then words[#words + 1] = "another seed" end
  out.again = out.seed or out.steps ~= nil or out.anchor ~= nil or out.window ~= nil
  out.words = table.concat(words, ", ")
  return out
end

local gate_options = { can = true, tries = true, seed = true, say = true, fps = true, cuts = true, size = true, prompt = true,
  score = true, model = true }

-- check.gate(render, checks, {tries = 3, seed = 0, say = function(line), and what check.run takes}): frames that pass, or
-- the best there were. render(seed, attempt) -> a clip or list of frames (nil and a message: the gate returns them). Where a
-- check fails, what it names is tried: passes over the same frames where all that failed name one, else another rendering
-- with the next seed; at most `tries` attempts in all. A renderer that knows other remedies says so (can = { "steps",
-- "anchor", "window" }) and is given what check.remedy says as its third value; the seed then stays, unless it is asked
-- for. Returns the frames and { passed =, tries =, kept = the attempt,
-- seed = its seed, passes = those that were applied, report =, attempts = { { seed, passes, report, badness } },
-- said = { lines } }; every line also goes to `say` (the log, unless it is given).
function check.gate(render, checks, options)
  options = options or {}
  lib.check_options("check.gate", options, gate_options)
  local tries, seed = options.tries or 3, options.seed or 0
  if type(tries) ~= "number" or tries < 1 then error("check.gate: tries is at least 1", 2) end
  local measure = {}
  for key, value in pairs(options) do
    if run_options[key] then measure[key] = value end
  end
  local outcome = { attempts = {}, said = {}, tries = 0 }
  local function say(format, ...)
    local line = format:format(...)
    outcome.said[#outcome.said + 1] = line
    if options.say then options.say(line) elseif options.say == nil then log.say("melies: %s", line) end
  end
  local best, best_frames
  local last, last_frames, applied, used = nil, nil, {}, { steps = true, anchor = true, window = true }
  for _, name in ipairs(options.can or {}) do used[name] = nil end
  for attempt = 1, tries do
    local frames, message
    local remedy = last and check.remedy(last.report, used)
    for _, name in ipairs(remedy and remedy.names or {}) do used[name] = true end
    if remedy and not remedy.again then
      frames, message = pass.apply(last_frames, remedy.passes, { fps = options.fps or 24, cuts = options.cuts })
      for _, entry in ipairs(remedy.passes) do applied[entry.name] = true end
    else
      if remedy and remedy.seed then seed = seed + 1 end
      for name in pairs(applied) do used["pass " .. name] = nil end
      applied = {}
      frames, message = render(seed, attempt, remedy)
    end
    if not frames then return nil, message end
    local report
    report, message = check.run(frames, checks, measure)
    if not report then return nil, message end
    local passes = {}
    for name in pairs(applied) do passes[#passes + 1] = name end
    table.sort(passes)
    last, last_frames = { seed = seed, passes = passes, report = report, badness = check.badness(report) }, frames
    outcome.attempts[attempt], outcome.tries = last, attempt
    local how = #passes > 0 and ("seed %d after %s"):format(seed, table.concat(passes, ", ")) or ("seed %d"):format(seed)
    if report.passed then say("attempt %d of %d (%s) passes every check", attempt, tries, how)
    else say("attempt %d of %d (%s) fails: %s", attempt, tries, how, table.concat(report.failed, ", ")) end
    if not best or last.badness < best.badness then
      best, best_frames = last, frames
      outcome.kept = attempt
    end
    if report.passed then break end
  end
  if not best.report.passed then say("no attempt passes; attempt %d is kept, it fails the least", outcome.kept) end
  outcome.passed, outcome.report = best.report.passed, best.report
  outcome.seed, outcome.passes = best.seed, best.passes
  return best_frames, outcome
end

local repair_options = { seeds = true, film = true }
for key in pairs(gate_options) do repair_options[key] = true end

-- check.repair(shots, render, checks, {seeds = { per shot }, film = checks of the whole, tries = 3, say=, fps=, ...}): a film
-- of whose shots only those that fail are made again. shots: clips or lists of frames; render(shot, seed, attempt) makes one
-- anew. Every shot goes through the gate by itself, what is there being its first attempt. Then the checks named in `film`
-- (such as "shot_likeness") look at the whole, and the shots they point at are tried with further seeds; a new one stays
-- where the whole gets better. Returns the shots, and { passed =, shots = the gate's outcomes (made_again = how often),
-- film = the report of the whole, said = { lines } }. nil and a message where a rendering fails.
function check.repair(shots, render, checks, options)
  options = options or {}
  lib.check_options("check.repair", options, repair_options)
  local result, outcome = {}, { shots = {}, said = {}, passed = true }
  local tries = options.tries or 3
  local function say(line)
    outcome.said[#outcome.said + 1] = line
    if options.say then options.say(line) elseif options.say == nil then log.say("melies: %s", line) end
  end
  local measure = {}
  for key, value in pairs(options) do
    if run_options[key] then measure[key] = value end
  end
  for i, shot in ipairs(shots) do
    local given = { tries = tries, seed = options.seeds and options.seeds[i] or 0, cuts = false }
    for key, value in pairs(measure) do given[key] = given[key] == nil and value or given[key] end
    given.say = function(line) say(("shot %d: %s"):format(i, line)) end
    local again = 0
    local frames, one = check.gate(function(seed, attempt)
      if attempt == 1 then return shot end
      again = again + 1
      return render(i, seed, attempt)
    end, checks, given)
    if not frames then return nil, one end
    one.made_again = again
    result[i], outcome.shots[i] = frames, one
    outcome.passed = outcome.passed and one.passed
  end
  if not options.film then return result, outcome end

  local function look(list)
    local at, starts = 0, {}
    for i, shot in ipairs(list) do
      if i > 1 then starts[#starts + 1] = at + 1 end
      for _ in pass.stream(shot) do at = at + 1 end
    end
    measure.cuts = starts
    return check.run(pass.join(list, "cut", { fps = options.fps or 24 }), options.film, measure)
  end
  local report, message = look(result)
  if not report then return nil, message end
  for attempt = 2, tries do
    if report.passed then break end
    local failing = check.failing_shots(report)
    say(("the whole fails: %s (shots %s)"):format(table.concat(report.failed, ", "), table.concat(failing, ", ")))
    for _, i in ipairs(failing) do
      local one = outcome.shots[i]
      one.latest = (one.latest or one.attempts[#one.attempts].seed) + 1
      local frames
      frames, message = render(i, one.latest, attempt)
      if not frames then return nil, message end
      one.made_again = one.made_again + 1
      local other = { unpack(result) }
      other[i] = frames
      local after = look(other)
      local better = after and check.badness(after) < check.badness(report)
      say(("shot %d with seed %d: the whole gets %s"):format(i, one.latest, better and "better" or "no better; dropped"))
      if better then result, report, one.seed = other, after, one.latest end
      if report.passed then break end
    end
  end
  outcome.film = report
  outcome.passed = outcome.passed and report.passed
  return result, outcome
end

return check
