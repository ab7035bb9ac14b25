-- What a film's page (melies.report) is made of, gathered while the film is written: pictures of its shots, the checks over
-- the frames before and after the passes, the attempts at the shots, the values that make it again.
--
--   film_report.new(film, { checks = text or nil }) -> page       film: as melies.film keeps it
--     page:joint(k, cut, first, last)      as pass.join calls it
--     page:before(next_frame, info, raw), page:after(next_frame, info) -> next_frame      frames on their way; raw[frame]: what
--         it was before the passes, where some are done already
--     page:write{ timing=, passes=, notes=, beside = path of the film or nil, folder = the job's or nil } -> paths
local check = require "melies.check"
local fs = require "melies.fs"
local recipe = require "melies.recipe"

local M = {}
local Page = {}
Page.__index = Page

local PLACES = { 0.05, 0.4, 0.75 } -- of a shot, at which its pictures are taken; transitions may shorten it
local WIDTH = 320                  -- of a picture, in pixels

function M.new(film, opts)
  local self = setmetatable({ film = film, checks = opts.checks, starts = { 1 }, pictures = {}, said_from = #film.job.notices + 1,
    lists = { before = { cuts = {}, joints = {}, ratio = 1 }, after = { cuts = {}, joints = {}, ratio = 1 } } }, Page)
  for i in ipairs(film.shots) do self.pictures[i] = {} end
  return self
end

-- The frames after the passes that stand for frame n before them: passes may give another rate.
local function later(n, ratio) return math.floor((n - 1) * ratio) + 1 end

function Page:joint(k, cut, first, last)
  self.starts[k + 1] = cut
  if self.film.shots[k + 1].overlap then return end
  for _, list in pairs(self.lists) do
    list.cuts[#list.cuts + 1] = later(cut, list.ratio)
    if last >= first then list.joints[#list.joints + 1] = { later(first, list.ratio), later(last + 1, list.ratio) - 1 } end
  end
end

-- next_frame with the checks looking on; the report is in self[name] at the end.
local function measured(self, name, next_frame, info, raw)
  local list = self.lists[name]
  list.ratio = info.fps / self.film.job.params.fps
  local measure, message = check.measure(self.checks, { width = info.width, height = info.height, fps = info.fps,
    cuts = list.cuts, joints = list.joints, prompt = self.film.board.prompt, model = self.film.model })
  if not measure then recipe.fail(message) end
  return function()
    local frame = next_frame()
    if frame then
      measure:push(raw and raw[frame] or frame)
      if raw then raw[frame] = nil end
    elseif measure then
      self[name .. "_report"] = measure:finish()
      measure = nil
    end
    return frame
  end
end

function Page:before(next_frame, info, raw) return measured(self, "before", next_frame, info, raw) end

function Page:after(next_frame, info)
  local source, shots = measured(self, "after", next_frame, info), self.film.shots
  local count, at, ratio = 0, 1, self.lists.after.ratio
  self.info = info
  return function()
    local frame = source()
    if not frame then return nil end
    count = count + 1
    while self.starts[at + 1] and count >= later(self.starts[at + 1], ratio) do at = at + 1 end
    local shot, taken = shots[at], self.pictures[at]
    local place = PLACES[#taken + 1]
    if place and count - later(self.starts[at], ratio) >= math.floor(place * require("melies.shots").length_of(shot) * ratio) then
      taken[#taken + 1] = require("melies.report").picture(frame, WIDTH)
    end
    self.frames = count
    return frame
  end
end

local function quoted(text)
  if text:find "^[%w_./:=+,-]+$" then return text end
  return "'" .. text:gsub("'", "'\\''") .. "'"
end

-- The command line that makes the film, and all values as text.
local function again(job)
  local words, params = { "melies run " .. job.recipe.name }, {}
  local given = {}
  for name, value in pairs(job.given) do
    if type(value) == "string" or type(value) == "number" or type(value) == "boolean" then given[#given + 1] = name end
  end
  table.sort(given)
  local declared = recipe.params(job.recipe)
  for _, name in ipairs(given) do
    local value, spec = job.given[name], declared[name]
    if name ~= "output" and name ~= "job" and name ~= "fresh" and name ~= "seed" and (not spec or spec.default ~= value) then
      local flag = "--" .. name:gsub("_", "-")
      words[#words + 1] = value == true and flag or value == false and "--no-" .. name:gsub("_", "-")
        or flag .. " " .. quoted(tostring(value))
    end
  end
  words[#words + 1] = ("--seed %.0f"):format(job.seed)
  if job.output then words[#words + 1] = "-o " .. quoted(job.output) end
  for name, value in pairs(job.params) do
    if type(value) == "table" then value = value.name or require("melies.json").encode(value) end
    params[name] = type(value) == "number" and ("%.14g"):format(value) or tostring(value)
  end
  return table.concat(words, " "), params
end

-- Peak memory of the process in bytes, nil where the system does not tell.
local function peak()
  local kilobytes = (fs.read "/proc/self/status" or ""):match "VmHWM:%s*(%d+)"
  return kilobytes and tonumber(kilobytes) * 1024
end

-- A report of the checks as plain data, with what the page wants besides.
local function plain(raw, cuts)
  if not raw then return nil end
  local out = { checks = {}, fps = raw.fps, cuts = cuts, passed = raw.passed, failed = raw.failed }
  local help = {}
  for _, entry in ipairs(require("melies.registry").list "check") do help[entry.name] = entry.help end
  for i, r in ipairs(raw.results) do
    out.checks[i] = { name = r.name, help = (r.help or help[r.name] or ""):match "^[^\n]*",
      value = r.value, threshold = r.threshold,
      better = r.better, pass = r.pass, note = r.note, where = r.where, series = r.series, slope = r.slope }
  end
  return out
end

function Page:write(opts)
  local film, job, shots = self.film, self.film.job, {}
  local p, fps = job.params, self.info.fps
  local ratio, seconds = self.lists.after.ratio, {}
  for i, shot in ipairs(film.shots) do
    local own, last = film.board.shots[i], require("melies.shots").last_of(film.work, i)
    local from = (later(self.starts[i], ratio) - 1) / fps
    local to = (self.starts[i + 1] and later(self.starts[i + 1], ratio) - 1 or self.frames) / fps
    shots[i] = { text = own.text or own.action, prompt = shot.text, dropped = shot.dropped, who = shot.who, where = shot.where,
      camera = shot.camera, light = shot.light, seed = last.attempts[last.attempt.try].seed, transition = shot.transition,
      from = from, to = to, pictures = self.pictures[i], attempts = last.attempts, kept = last.attempt.try }
    local sum = 0
    for _, attempt in ipairs(last.attempts) do sum = sum + attempt.seconds end
    seconds[i] = { ("shot %d"):format(i), sum }
  end
  local timing = { unpack(opts.timing) }
  for _, entry in ipairs(seconds) do timing[#timing + 1] = entry end
  local command, params = again(job)
  local names = {}
  for i, entry in ipairs(opts.passes) do names[i] = entry.name or entry[1] end
  local melies = require "melies"
  local html = require("melies.report").film { title = film.board.title, prompt = film.board.prompt, board = film.board,
    width = self.info.width, height = self.info.height, fps = fps, frames = self.frames, model = film.model.name,
    seed = job.seed, command = command, params = params, memory = opts.notes, said = job.notices, timing = timing,
    peak_bytes = peak(), before = #names > 0 and plain(self.before_report) or nil,
    after = plain(self.after_report, self.lists.after.cuts), passes = table.concat(names, ", "), shots = shots,
    versions = { melies = melies.version, ["matrix work"] = melies.compute(), model = film.model.name,
      ["rate of frames"] = ("%.4g a second"):format(p.fps), planner = p.planner, threads = tostring(melies.threads()) } }
  local paths = {}
  if opts.folder then paths[1] = opts.folder .. "/report.html" end
  if opts.beside then paths[#paths + 1] = opts.beside:gsub("%.[^./]*$", "") .. ".report.html" end
  for _, path in ipairs(paths) do job:check(fs.write(path, html)) end
  if opts.beside then job:notice("the page about it: %s", paths[#paths]) end
  return paths
end

return M
