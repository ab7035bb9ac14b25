-- Films of several shots: each shot is rendered into its own folder of the job, checked, and rendered again with another
-- seed where a check fails; then all are joined, go through the passes and into one file, frame by frame.
--
--   film.run(job, board, opts) -> path or frames
-- board: a storyboard (melies.plan); opts: checks, passes (lists as text), tries, jobs (processes), overlap, anchor, and
-- what melies.steer takes: audio, reference, as.
--
-- Shots are shared between processes by their folders' locks: the program starts opts.jobs - 1 more of itself, each of which
-- takes the next shot that nobody has. In the job's folder: storyboard.json; shot-001 with the latents of its chunks and,
-- when the shot is done, 00-last.safetensors (its last frames; which attempt was kept); shot-001.2 is the second attempt.
-- What is finished is decoded once more for the film, so that no frames lie on the disk.
local ffi = require "ffi"
local fs = require "melies.fs"
local longform = require "melies.longform"
local pass = require "melies.pass"
local recipe = require "melies.recipe"
local T = require "melies.tensor"

local M = {}

local SEEDS = 1000003 -- between the attempts at a shot

-- ---- folders of shots ------------------------------------------------------------------------------------

-- A job without a folder keeps its parts in memory.
local function in_memory()
  local stores = {}
  local work = { memory = true }
  function work.sub(_, name)
    local store = stores[name] or { done = {} }
    stores[name] = store
    local count = 0
    return { bound = true, store = store, close = function() end, recorder = function(_, model) return model end,
      part = function()
        count = count + 1
        local i = count
        return { result = store.done[i], preview = function() end,
          finish = function(_, latent) store.done[i] = latent end }
      end }
  end
  function work.last(_, i) return stores[("shot-%03d"):format(i)] and stores[("shot-%03d"):format(i)].last end
  return work
end

local function folder_name(i, try) return try > 1 and ("shot-%03d.%d"):format(i, try) or ("shot-%03d"):format(i) end

-- { frames =, try =, failed =, said = } of a shot that is done, else nil.
local function last_of(work, i)
  if work.memory then return work:last(i) end
  local path = ("%s/%s/00-last.safetensors"):format(work.folder, folder_name(i, 1))
  if not fs.stat(path) then return nil end
  local f = require("melies.weights").open(path)
  if not f then
    os.remove(path)
    return nil
  end
  local out = { frames = f:get("frames"):clone(), try = tonumber(f.metadata.try) or 1, failed = f.metadata.failed or "",
    seed = f.metadata.seed }
  f:close()
  return out
end

local function set_last(work, sub, last)
  if work.memory then
    sub.store.last = last
    return
  end
  local ok, message = require("melies.weights").save(sub.folder .. "/00-last.safetensors", { frames = last.frames },
    { try = last.try, failed = last.failed, seed = ("%.0f"):format(last.seed) })
  if not ok then recipe.fail(message) end
end

-- ---- one shot ---------------------------------------------------------------------------------------------

-- next() over the frames of a shot that are shown, its parts in `sub`.
local function frames_of(job, model, shot, i, sub, opts, try)
  local before = job.work
  local next_frame
  local given, length = 0, shot.length or shot.frames
  return function()
    if given == length then return nil end
    given = given + 1
    before, job.work = job.work, sub
    if not next_frame then
      local p = job.params
      local negative = p.negative ~= "" and p.negative or shot.negative or ""
      job.followers = {}
      local texts = { text = job:encode(model, shot.text), negative = job:encode(model, negative, { negative = true }) }
      local known = shot.overlap and i > 1 and last_of(opts.work, i - 1)
      local first = i == 1 and opts.steer:first_frame() or nil -- is shown, and the film goes on from it
      next_frame = longform.frames(job, model, { texts = texts, frames = shot.frames - (first and 1 or 0),
        window = p.frames, overlap = opts.overlap, anchor = opts.anchor, known = first or known and known.frames, seed = shot.seed + (try - 1) * SEEDS,
        label = ("shot %d part "):format(i) })
      if first then
        job.work = before
        return first:select(1, 1)
      end
    end
    local frame = next_frame()
    job.work = before
    return frame
  end
end

-- Renders until a try passes the checks, or all are used; the one with the fewest failures is kept.
local function render(job, model, shot, i, first, opts)
  local best
  for try = 1, opts.tries do
    local sub = try == 1 and first or job:check(opts.work:sub(folder_name(i, try)))
    local tail, size = {}, 1 + (opts.overlap - 1) * model.stride[1]
    local source = frames_of(job, model, shot, i, sub, opts, try)
    local function tapped()
      local frame = source()
      if frame then
        tail[#tail + 1] = frame:clone()
        if #tail > size then table.remove(tail, 1) end
      end
      return frame
    end
    local failed = {}
    if #opts.checks > 0 then
      local report = job:check(require("melies.check").run(tapped, opts.checks, { fps = job.params.fps, cuts = false,
        prompt = shot.text }))
      failed = report.failed
    else
      for _ in tapped do end
    end
    if not best or #failed < best.count then
      best = { count = #failed, try = try, failed = table.concat(failed, ", "), frames = T.stack(tail, 1),
        seed = shot.seed + (try - 1) * SEEDS }
    end
    if try > 1 and sub ~= first then sub:close() end
    if #failed == 0 then break end
    job:notice("shot %d, attempt %d of %d: %s failed%s", i, try, opts.tries, table.concat(failed, ", "),
      try < opts.tries and "; another seed is tried" or "; attempt " .. best.try .. " is kept")
  end
  set_last(opts.work, first, best)
end

-- ---- all shots --------------------------------------------------------------------------------------------

local function render_all(job, model, shots, opts)
  repeat
    local left, went_on = 0, false
    for i, shot in ipairs(shots) do
      if not last_of(opts.work, i) then
        left = left + 1
        if not shot.overlap or i == 1 or last_of(opts.work, i - 1) then
          local sub, message, busy = opts.work:sub(folder_name(i, 1))
          if not sub and not busy then recipe.fail(message) end
          if sub then
            if not last_of(opts.work, i) then render(job, model, shot, i, sub, opts) end
            sub:close()
            went_on = true
          end
        end
      end
    end
    job:check_cancel()
    if left > 0 and not went_on then fs.sleep(0.1) end
  until left == 0
end

-- Processes that help with the shots; what they say goes to the job's folder.
local function helpers(job, opts)
  local list = {}
  if opts.jobs <= 1 or opts.work.memory or opts.worker then return list end
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

function M.run(job, board, opts)
  local plan = require "melies.plan"
  local model = job:load()
  local p = job:defaults(model)
  local work = job.work or in_memory()
  local options = { work = work, overlap = opts.overlap or 1, anchor = opts.anchor or 0.5, tries = opts.tries or 1,
    jobs = opts.jobs or 1, worker = job.opts.worker, checks = job:check(pass.parse(opts.checks or "")),
    steer = require("melies.steer").new(job, opts) }
  local passes = options.steer:passes(job:check(pass.parse(opts.passes or "")))
  local path = not work.memory and work.folder .. "/storyboard.json"
  if path and fs.stat(path) then board = job:check(plan.read(path))
  else
    if type(board) == "function" then board = board() end
    board = options.steer:board(board, model)
    if path then job:check(plan.write(path, board)) end
  end
  local shots = job:check(plan.shots(board, { model = model, fps = p.fps }))
  local total = 0
  for _, shot in ipairs(shots) do
    if shot.transition == "overlap" then shot.overlap = shot.overlap or 1 end
    if shot.overlap == 0 then shot.overlap = nil end
    total = total + (shot.length or shot.frames)
  end
  if options.worker then
    render_all(job, model, shots, options)
    return true
  end
  job:notice("%d shots, %s", #shots, plan.duration(total / p.fps))
  local processes, cores = helpers(job, options)
  render_all(job, model, shots, options)
  for _, process in ipairs(processes) do process:close() end
  if cores then require("melies").threads(cores) end

  local sources, transitions, cuts, at, plain = {}, {}, {}, 0, true
  for i, shot in ipairs(shots) do
    local last = last_of(work, i)
    local sub = job:check(work:sub(folder_name(i, last.try)))
    sources[i] = frames_of(job, model, shot, i, sub, options, last.try)
    if i > 1 then
      transitions[i - 1] = names[shot.transition] or shot.transition
      plain = plain and transitions[i - 1] == "cut"
      if not shot.overlap then cuts[#cuts + 1] = at + 1 end
    end
    at = at + (shot.length or shot.frames)
  end
  local info = { width = p.width, height = p.height, fps = p.fps }
  local next_frame, message = pass.join(sources, transitions, { fps = p.fps })
  if not next_frame then recipe.fail(message) end
  local after = info
  if #passes > 0 then
    info.cuts = plain and cuts or nil
    next_frame, after = pass.over(next_frame, passes, info)
    if not next_frame then recipe.fail(after) end
  end
  return longform.write(job, next_frame, { fps = after.fps })
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
    passes = { "string", default = "deflicker", help = "what the joined film goes through: melies list passes" },
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
