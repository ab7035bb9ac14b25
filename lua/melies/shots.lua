-- The shots of a film, one by one: each is rendered into its own folder of the job, checked, and what fails is made again
-- with the remedy that the check names: from the chunk on in which it failed, or by a pass over the shot.
--
--   shots.in_memory() -> work                  for a job without a folder
--   shots.last_of(work, i) -> last | nil       a shot that is done: opening (its first frame), frames (its last ones), attempt
--                                              (the one that is kept), attempts (all: { try, words, failed, values, seconds }),
--                                              looked (attempts after which the whole film was looked at)
--   shots.set_last(work, i, last)
--   shots.length_of(shot) -> n                how many frames of a shot are shown
--   shots.frames_of(film, i, attempt, sub) -> next()      the frames of a shot that are shown
--   shots.render(film, i, sub)                 attempts until one passes or all are used
--   shots.again(film, i, last, words) -> last  what shot i is with another seed; nothing is set
--   shots.next_attempt(film, i, attempt, report, try) -> attempt, words       what the failed checks' remedies make of an attempt
-- film: job, model, work, shots, recall, steer, checks, tries, overlap, anchor, moves (of melies.latent_camera).
--
-- An attempt: try (its number), store (the attempt whose folder has its latents), seeds and anchors ({ from chunk, value }
-- lists, the last one that holds), steps, window, passes, used (remedies that were tried on the way), shares (noise with other
-- shots of the place, whatever the seed). Folders: shot-001, then shot-001.2 and so on, with the latents of the chunks;
-- 00-last.safetensors in the first one when the shot is done.
local check = require "melies.check"
local fs = require "melies.fs"
local json = require "melies.json"
local longform = require "melies.longform"
local pass = require "melies.pass"
local recipe = require "melies.recipe"
local T = require "melies.tensor"

local M = {}

local SEEDS = 1000003 -- between the attempts at a shot

local function copy(list)
  local out = {}
  for k, v in pairs(list) do out[k] = type(v) == "table" and copy(v) or v end
  return out
end

-- ---- folders -----------------------------------------------------------------------------------------

-- Frames of a shot that are shown.
function M.length_of(shot) return shot.length or shot.frames end

function M.folder_name(i, try) return try > 1 and ("shot-%03d.%d"):format(i, try) or ("shot-%03d"):format(i) end

-- A job without a folder keeps its parts in memory.
function M.in_memory()
  local stores = {}
  local work = { memory = true, stores = stores }
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
  return work
end

function M.last_of(work, i)
  if work.memory then
    local store = work.stores[M.folder_name(i, 1)]
    return store and store.last
  end
  local path = ("%s/%s/00-last.safetensors"):format(work.folder, M.folder_name(i, 1))
  if not fs.stat(path) then return nil end
  local f = require("melies.weights").open(path)
  local said = f and f:has "opening" and f.metadata.shot
  if not said then
    os.remove(path)
    return nil
  end
  local out = json.decode(said)
  out.opening, out.frames = f:get("opening"):clone(), f:get("frames"):clone()
  f:close()
  return out
end

function M.set_last(work, i, last)
  if work.memory then
    work.stores[M.folder_name(i, 1)].last = last
    return
  end
  local ok, message = require("melies.weights").save(("%s/%s/00-last.safetensors"):format(work.folder, M.folder_name(i, 1)),
    { opening = last.opening, frames = last.frames },
    { shot = json.encode { attempt = last.attempt, attempts = json.array(last.attempts), looked = last.looked } })
  if not ok then recipe.fail(message) end
end

-- The first `count` chunks of another attempt become those of this one.
local function take_chunks(work, i, from, to, count)
  if work.memory then
    local source = work.stores[M.folder_name(i, from)]
    for k = 1, count do to.store.done[k] = source.done[k] end
    return
  end
  local folder = ("%s/%s"):format(work.folder, M.folder_name(i, from))
  for _, name in ipairs(fs.list(folder) or {}) do
    local k = tonumber(name:match "^(%d%d+)%-.*%.latent%.safetensors$")
    if k and k >= 1 and k <= count and not fs.stat(to.folder .. "/" .. name) then
      local bytes, message = fs.read(folder .. "/" .. name)
      local ok = bytes
      if bytes then ok, message = fs.write(to.folder .. "/" .. name, bytes) end
      if not ok then recipe.fail(message) end
    end
  end
end

-- ---- frames --------------------------------------------------------------------------------------------

-- The value of a list of { from chunk, value } at a chunk.
local function at_chunk(list, chunk)
  local value
  for _, entry in ipairs(list) do
    if entry[1] <= chunk then value = entry[2] end
  end
  return value
end

local function chunk_options(film, i, attempt)
  local shot = film.shots[i]
  local known = shot.overlap and i > 1
  local first = i == 1 and film.steer and film.steer:first_frame() or film.recall:first(i)
  return { frames = shot.frames - (first and 1 or 0), window = attempt.window or film.job.params.frames, overlap = film.overlap,
    known = first or known and M.last_of(film.work, i - 1).frames }, first
end

-- What is done to the estimates of a shot while it is sampled.
local function around(film, i)
  local list = { film.recall:around(i) }
  for _, move in ipairs(film.moves or {}) do
    local own = copy(move)
    own.frames = 1 + math.ceil((film.shots[i].frames - 1) / film.model.stride[1])
    list[#list + 1] = require("melies.latent_camera").around(own)
  end
  return #list > 0 and function(denoise, shape, first)
    for _, fn in ipairs(list) do denoise = fn(denoise, shape, first) end
    return denoise
  end or nil
end

function M.frames_of(film, i, attempt, sub)
  local job, model, shot = film.job, film.model, film.shots[i]
  local before, next_frame, first = job.work, nil, nil
  local given, length = 0, M.length_of(shot)
  local function frame_of_chunks()
    if given == length then
      next_frame, first = nil, nil -- the last chunk goes, whoever still holds this function
      return nil
    end
    given = given + 1
    local steps = job.params.steps
    before, job.work = job.work, sub
    job.params.steps = attempt.steps or steps
    if not next_frame then
      local p = job.params
      local negative = p.negative ~= "" and p.negative or shot.negative or ""
      job.followers = {}
      local text = film.recall:rows(i, job:encode(model, shot.text))
      local options
      options, first = chunk_options(film, i, attempt)
      options.texts = { text = text, negative = job:encode(model, negative, { negative = true }) }
      options.seed = function(chunk) return at_chunk(attempt.seeds, chunk) end
      local common = film.recall:noise(i)
      options.common = function(chunk) -- another seed is tried because of what this noise gave
        return (attempt.shares or at_chunk(attempt.seeds, chunk) == shot.seed) and common or nil
      end
      options.anchor = function(chunk) return at_chunk(attempt.anchors, chunk) end
      options.look = film.recall:look()
      options.around = around(film, i)
      options.label = ("shot %d part "):format(i)
      next_frame = longform.frames(job, model, options)
      if first then
        job.work, job.params.steps = before, steps
        return first:select(1, 1)
      end
    end
    local frame = next_frame()
    job.work, job.params.steps = before, steps
    return frame
  end
  if #attempt.passes == 0 then return frame_of_chunks end
  local p = job.params
  local after, message = pass.over(frame_of_chunks, attempt.passes, { width = p.width, height = p.height, fps = p.fps,
    frames = length, cuts = false })
  if not after then recipe.fail(message) end
  return after
end

-- ---- attempts --------------------------------------------------------------------------------------------

function M.first_attempt(film, i)
  return { try = 1, store = 1, seeds = { { 1, film.shots[i].seed } }, anchors = { { 1, film.anchor } }, passes = {}, used = {} }
end

-- The earliest chunk in which a failed check found something; 1 where it does not say.
local function failing_chunk(film, i, attempt, report)
  local frame = math.huge
  for _, result in ipairs(report.results) do
    if result.pass == false then
      local earliest
      for _, place in ipairs(result.where) do earliest = math.min(earliest or math.huge, place.frame) end
      frame = math.min(frame, earliest or 1)
    end
  end
  if frame == math.huge then return 1 end
  local options, first = chunk_options(film, i, attempt)
  return longform.chunk_of(film.model, math.max(1, frame - (first and 1 or 0)), film.job.params, options)
end

function M.next_attempt(film, i, attempt, report, try)
  local remedy = check.remedy(report, attempt.used)
  local out = copy(attempt)
  out.try = try
  for _, entry in ipairs(remedy.passes) do out.passes[#out.passes + 1] = entry end
  for _, name in ipairs(remedy.names) do out.used[name] = true end
  if not remedy.again then return out, remedy.words end
  local p, words = film.job.params, remedy.words
  local from = remedy.window and 1 or failing_chunk(film, i, attempt, report)
  if remedy.steps then out.steps = math.ceil((attempt.steps or p.steps) * remedy.steps) end
  if remedy.anchor then
    out.anchors[#out.anchors + 1] = { from, math.min(1, at_chunk(attempt.anchors, from) + remedy.anchor) }
  end
  if remedy.window then
    local stride = film.model.stride[1]
    local window = (attempt.window or p.frames) * remedy.window
    out.window = 1 + stride * math.max(film.overlap + 1, math.floor((window - 1) / stride + 0.5))
  end
  if remedy.seed then out.seeds[#out.seeds + 1] = { from, film.shots[i].seed + (try - 1) * SEEDS } end
  out.store, out.from = try, from
  if from > 1 then words = words .. (" from part %d on"):format(from) end
  return out, words
end

-- Frames of an attempt through the checks: { report (nil without checks), opening, frames (the last ones), attempt }, and what
-- is told of it.
local function measured(film, i, attempt, sub, words)
  local began = require("melies").seconds()
  local size = 1 + (film.overlap - 1) * film.model.stride[1]
  local source = M.frames_of(film, i, attempt, sub)
  local tail, opening = {}, nil
  local function tapped()
    local frame = source()
    if frame then
      opening = opening or frame:clone()
      tail[#tail + 1] = frame:clone()
      if #tail > size then table.remove(tail, 1) end
    end
    return frame
  end
  local report
  if #film.checks > 0 then
    report = film.job:check(check.run(tapped, film.checks, { fps = film.job.params.fps, cuts = false,
      prompt = film.shots[i].text, model = film.model }))
  else
    for _ in tapped do end
  end
  local values = {}
  for _, result in ipairs(report and report.results or {}) do values[result.name] = result.value end
  return { report = report, opening = opening, frames = T.stack(tail, 1), attempt = attempt },
    { try = attempt.try, words = words, failed = json.array(report and report.failed or {}), values = values,
      seconds = require("melies").seconds() - began, seed = at_chunk(attempt.seeds, math.huge) }
end

-- The folder of an attempt, at its first part; `first` is that of the first one, which is held.
local function open(film, i, attempt, first)
  if attempt.store > 1 or film.work.memory then
    return film.job:check(film.work:sub(M.folder_name(i, attempt.store)))
  end
  first.count = 0
  return first
end

-- Attempts until one passes the checks, or all are used; the one that fails the least is kept.
function M.render(film, i, first)
  local job = film.job
  local best, attempts, attempt, words = nil, {}, M.first_attempt(film, i), nil
  for try = 1, film.tries do
    local sub = open(film, i, attempt, first)
    if attempt.store == try and try > 1 then take_chunks(film.work, i, best.attempt.store, sub, attempt.from - 1) end
    local one, told = measured(film, i, attempt, sub, words)
    if sub ~= first then sub:close() end
    attempts[try] = told
    local failed = told.failed
    one.badness = one.report and check.badness(one.report) or 0
    if not best or one.badness < best.badness then best = one end
    if #failed == 0 then
      if try > 1 then job:notice("shot %d, attempt %d of %d passes", i, try, film.tries) end
      break
    end
    local next_words = ("attempt %d is kept"):format(best.attempt.try)
    if try < film.tries then
      attempt, words = M.next_attempt(film, i, best.attempt, best.report, try + 1)
      next_words = words .. " is tried"
    end
    job:notice("shot %d, attempt %d of %d: %s failed; %s", i, try, film.tries, table.concat(failed, ", "), next_words)
  end
  M.set_last(film.work, i, { opening = best.opening, frames = best.frames, attempt = best.attempt, attempts = attempts })
end

function M.again(film, i, last, words)
  local attempt, attempts = copy(last.attempt), { unpack(last.attempts) }
  attempt.try = #attempts + 1
  attempt.store, attempt.from, attempt.shares = attempt.try, 1, true
  attempt.seeds = { { 1, film.shots[i].seed + (attempt.try - 1) * SEEDS } }
  local sub = open(film, i, attempt)
  local one
  one, attempts[attempt.try] = measured(film, i, attempt, sub, words)
  sub:close()
  one.attempts = attempts
  return one
end

return M
