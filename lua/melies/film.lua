-- Films of several shots: each shot is rendered and checked (melies.shots); then all are joined, go through the passes and
-- into one file, frame by frame. What the project remembers is used, and added to (melies.recall).
--
--   film.run(job, board, opts) -> path or frames
-- board: a storyboard (melies.plan); opts: checks, passes (lists as text), tries, film_tries, jobs (processes), overlap, anchor,
-- casting, likeness, bank, report, report_checks, and what melies.steer takes: audio, reference, as.
--
-- Shots are shared between processes by their folders' locks: the program starts opts.jobs - 1 more of itself, each of which
-- takes the next shot that nobody has. In the job's folder: storyboard.json, memory.safetensors, and the shots' folders.
-- What is finished is decoded once more for the film, so that no frames lie on the disk.
local ffi = require "ffi"
local fs = require "melies.fs"
local longform = require "melies.longform"
local pass = require "melies.pass"
local plan = require "melies.plan"
local recall = require "melies.recall"
local recipe = require "melies.recipe"
local shots = require "melies.shots"
local T = require "melies.tensor"

local M = {}

-- ---- all shots --------------------------------------------------------------------------------------------

local function render_all(film)
  local work = film.work
  repeat
    local left, went_on = 0, false
    for i, shot in ipairs(film.shots) do
      if not shots.last_of(work, i) then
        left = left + 1
        if not shot.overlap or i == 1 or shots.last_of(work, i - 1) then
          local sub, message, busy = work:sub(shots.folder_name(i, 1))
          if not sub and not busy then recipe.fail(message) end
          if sub then
            if not shots.last_of(work, i) then shots.render(film, i, sub) end
            sub:close()
            went_on = true
          end
        end
      end
    end
    film.job:check_cancel()
    if left > 0 and not went_on then fs.sleep(0.1) end
  until left == 0
end

-- Processes that help with the shots; what they say goes to the job's folder.
local function helpers(job, opts)
  local list = {}
  if opts.jobs <= 1 or opts.work.memory then return list end
  local program = fs.program()
  if not program then
    job:notice("--jobs works in the melies program; one process renders")
    return list
  end
  local function quoted(text) return "'" .. text:gsub("'", "'\\''") .. "'" end
  local cores = tonumber(require("melies").threads())
  local memory = math.floor(require("melies.budget").limit() / opts.jobs / 2 ^ 20)
  require("melies.budget").set(memory * 2 ^ 20)
  for k = 2, opts.jobs do
    list[#list + 1] = io.popen(("exec %s -q --threads %d --memory %dM run --resume %s --worker >%s 2>&1"):format(quoted(program),
      math.max(1, math.floor(cores / opts.jobs)), memory, quoted(opts.work.folder),
      quoted(opts.work.folder .. "/worker-" .. k .. ".log")), "w")
  end
  require("melies").threads(math.max(1, math.floor(cores / opts.jobs)))
  return list, cores
end

local names = { none = "cut", overlap = "cut", ["match cut"] = "match_cut" }

-- The storyboard that the job keeps, or the one that is made now: as the memory and what steers the film want it.
local function board_of(job, board, model, steering, path, bank)
  if path and fs.stat(path) then return job:check(plan.read(path)) end
  if type(board) == "function" then board = board() end
  board = steering:board(board, model)
  local notes
  if bank ~= "off" then
    board = job:check(plan.check(board))
    notes = recall.apply(job, board)
  end
  if path then job:check(plan.write(path, board)) end
  return board, notes
end

-- next() over a shot's frames that hands nine of them, evenly, to done(clip) at the end.
local function remembering(next_frame, count, done)
  local every, at, kept = math.max(1, math.floor(count / 9)), 0, {}
  return function()
    local frame = next_frame()
    if frame then
      if at % every == 0 then kept[#kept + 1] = frame:clone() end
      at = at + 1
    elseif kept then
      done(T.stack(kept, 1))
      kept = nil
    end
    return frame
  end
end

-- The passes that come before the transitions, since they work on every shot by itself, and the rest: lists as pass.chain
-- takes them. Their order stays.
local function divided(passes)
  local own, rest = {}, {}
  for _, entry in ipairs(passes) do
    local plugin, values = pass.resolve("pass", entry)
    if not plugin then recipe.fail(values) end
    local list = #rest == 0 and plugin.of_shots and plugin.of_shots(values) and own or rest
    list[#list + 1] = entry
  end
  return own, rest
end

-- The shots' frames after such passes; shots that go on from the one before are one take for them. raw[frame] becomes what
-- the frame was, where it is another: an entry that is its own key would never go.
local function corrected(film, sources, passes, raw)
  local list, p, out = film.shots, film.job.params, {}
  local take
  for i, shot in ipairs(list) do
    local length = shots.length_of(shot)
    if not take or not shot.overlap then
      local at, last, frames, waiting = i, i, length, {}
      while list[last + 1] and list[last + 1].overlap do
        last = last + 1
        frames = frames + shots.length_of(list[last])
      end
      local function source()
        while at <= last do
          local frame = sources[at]()
          if frame then
            waiting[#waiting + 1] = frame
            return frame
          end
          at = at + 1
        end
      end
      local after, message = pass.over(source, passes, { width = p.width, height = p.height, fps = p.fps, frames = frames,
        cuts = false })
      if not after then recipe.fail(message) end
      take = function()
        local frame = after()
        local was = frame and table.remove(waiting, 1)
        if frame and not rawequal(frame, was) then raw[frame] = was end
        return frame
      end
    end
    local own, left = take, length
    out[i] = function()
      if left == 0 then return nil end
      left = left - 1
      return own()
    end
  end
  return out
end

-- All shots one after the other: next(). passes and raw as corrected() takes them; on_joint(k, cut, first, last) as pass.join
-- calls it.
local function joined(film, bank, passes, raw, on_joint)
  local sources, transitions = {}, {}
  for i, shot in ipairs(film.shots) do
    local last = shots.last_of(film.work, i)
    local sub = film.job:check(film.work:sub(shots.folder_name(i, last.attempt.store)))
    sources[i] = shots.frames_of(film, i, last.attempt, sub)
    local tries = last.attempts
    if bank == "on" and #tries[last.attempt.try].failed == 0 then
      local source = ("%s/%s/%d"):format(require("melies.cache").hash { film.board.prompt or film.board.title or "",
        film.job.seed }, shot.text, shot.seed)
      sources[i] = remembering(sources[i], shots.length_of(shot), function(clip)
        recall.fill(film.job, film.board, i, clip, source)
      end)
    end
    if i > 1 then transitions[i - 1] = names[shot.transition] or shot.transition end
  end
  if #passes > 0 then sources = corrected(film, sources, passes, raw) end
  local next_frame, message = pass.join(sources, transitions, { fps = film.job.params.fps, joint = on_joint })
  if not next_frame then recipe.fail(message) end
  return next_frame
end

function M.run(job, board, opts)
  local began = require("melies").seconds()
  local model = job:load()
  local p = job:defaults(model)
  local work = job.work or shots.in_memory()
  local steering = require("melies.steer").new(job, opts)
  local film = { job = job, model = model, work = work, overlap = opts.overlap or 1, anchor = opts.anchor or 0.5,
    tries = opts.tries or 1, checks = job:check(pass.parse(opts.checks or "")), steer = steering }
  local moves, passes = require("melies.latent_camera").take(job:check(pass.parse(opts.passes or "")))
  film.moves = job:check(moves, passes)
  passes = steering:passes(passes)
  local bank = opts.bank or "read"
  local notes
  film.board, notes = board_of(job, board, model, steering, not work.memory and work.folder .. "/storyboard.json", bank)
  film.shots = job:check(plan.shots(film.board, { model = model, fps = p.fps }))
  local total = 0
  for _, shot in ipairs(film.shots) do
    if shot.transition == "overlap" then shot.overlap = shot.overlap or 1 end
    if shot.overlap == 0 then shot.overlap = nil end
    total = total + shots.length_of(shot)
  end
  film.recall = recall.of(job, model, film.board, { shots = film.shots, work = work, notes = notes,
    likeness = opts.likeness or 0.5, casting = opts.casting or 0 })
  if job.opts.worker then
    render_all(film)
    return true
  end
  job:notice("%d shots, %s", #film.shots, plan.duration(total / p.fps))
  local processes, cores = helpers(job, { jobs = opts.jobs or 1, work = work })
  render_all(film)
  for _, process in ipairs(processes) do process:close() end
  if cores then require("melies").threads(cores) end
  require("melies.film_likeness").repair(film, opts.film_tries or 1)

  local began_joining = require("melies").seconds()
  local page = (opts.report or job.kept) and require("melies.film_report").new(film, { checks = opts.report_checks })
  local cuts, raw = {}, setmetatable({}, { __mode = "k" })
  local own, rest = divided(passes)
  local next_frame = joined(film, bank, own, raw, function(k, cut, first, last)
    if not film.shots[k + 1].overlap then cuts[#cuts + 1] = cut end
    if page then page:joint(k, cut, first, last) end
  end)
  local after = { width = p.width, height = p.height, fps = p.fps, cuts = cuts }
  if page then next_frame = page:before(next_frame, after, raw) end
  if #rest > 0 then
    next_frame, after = pass.over(next_frame, rest, after)
    if not next_frame then recipe.fail(after) end
  end
  if page then next_frame = page:after(next_frame, after) end
  local result = longform.write(job, next_frame, { fps = after.fps })
  if page then
    page:write({ timing = { { "shots", began_joining - began }, { "decoding, passes, writing, checks",
      require("melies").seconds() - began_joining } }, passes = passes, notes = notes,
      beside = opts.report and job.saved, folder = job.kept and work.folder })
  end
  return result
end

-- A recipe's storyboard from its prompt: p has prompt, planner, pace and style; the planner's notices are the job's.
function M.plan(p, job)
  local board, notes = require("melies.plan").make(p.prompt, { model = p.model, seed = job.seed, planner = p.planner,
    pace = p.pace, style = p.style })
  job:check(board, notes)
  for _, notice in ipairs(notes.notices) do job:notice("%s", notice) end
  return board
end

-- The parameters of films, for recipes.
function M.params(own)
  local params = recipe.generation {
    frames = { "integer", from_model = true, min = 1, max = 100000, help = "frames that the model makes at once" },
    seconds = false, latents = false, save_latents = false, reuse = false,
    overlap = { "integer", default = 1, min = 1, max = 100, help = "latent frames that chunks share" },
    anchor = { "number", default = 0.5, min = 0, max = 1, help = "how much the colours of a shot's beginning hold; 0: none" },
    checks = { "string", default = "black_frames; broken_frames", help = "what every shot must pass: melies list checks" },
    tries = { "integer", default = 2, min = 1, max = 100, help = "attempts at a shot that fails its checks" },
    film_tries = { "integer", default = 1, min = 1, max = 100,
      help = "attempts at a shot that looks like none before it (shot_likeness): further seeds" },
    passes = { "string", default = "deflicker; color_match: scope=shot, strength=0.25, deviation=false",
      help = "what the joined film goes through: melies list passes" },
    casting = { "number", default = 0, min = 0, max = 1, help = "how much remembered characters are drawn to their pictures" },
    likeness = { "number", default = 0.5, min = 0, max = 1,
      help = "how much of its noise a shot shares with the first of its place, and leans on the place's picture" },
    bank = { "enum", choices = { "read", "on", "off" }, default = "read",
      help = "the project's memory: read: it is used; on: finished shots are remembered too" },
    report = { "boolean", default = false, help = "a page about the film beside it: prompts, checks, repairs" },
    report_checks = { "string", help = "what the page shows (default: all that melies list checks has)" },
    jobs = { "integer", default = 1, min = 1, max = 64, help = "processes that render shots side by side" },
  }
  for name, spec in pairs(require("melies.steer").params) do params[name] = spec end
  for name, spec in pairs(own) do params[name] = spec or nil end
  return params
end

if ffi.os == "Linux" then
  ffi.cdef [[int mel_film_prctl(int, unsigned long, ...) __asm__("prctl");]]
  -- A process that helps ends with the one that started it.
  function M.end_with_parent() ffi.C.mel_film_prctl(1, 15) end
else
  function M.end_with_parent() end
end

return M
