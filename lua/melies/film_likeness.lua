-- A film as a whole: shots that look like none before them (the check shot_likeness, which looks at the first frames of shots)
-- are rendered again with further seeds, and each is kept where the film's likeness gets better.
--
--   film_likeness.repair(film, tries)      film: as melies.shots has it, all shots done; tries: attempts at a shot in all
--
-- What was tried is kept with the shots, so that a job that goes on later decides the same.
local check = require "melies.check"
local lib = require "melies.ffi.lib"
local shots = require "melies.shots"
local T = require "melies.tensor"

local M = {}

-- The check's result on the first frames of the shots.
local function likeness(film, openings)
  local cuts = {}
  for k = 2, #openings do cuts[k - 1] = k end
  local options = { fps = film.job.params.fps, cuts = cuts }
  return film.job:check(check.run(T.stack(openings, 1), { "shot_likeness" }, options)).results[1]
end

-- Another attempt at shot i, if it needs one. now: the check's result; it and the openings follow what is kept.
local function attempt(film, i, try, openings, now)
  local last, own = shots.last_of(film.work, i), now.series.values[i - 1] -- the first shot has none
  last.looked = try
  if own < now.threshold then
    local other = shots.again(film, i, last, ("like no shot before (%.2f), another seed"):format(own))
    openings[i] = other.opening
    local after = likeness(film, openings)
    local better = after.value > now.value and #other.attempts[#other.attempts].failed <= #last.attempts[last.attempt.try].failed
    film.job:notice("shot %d is like no shot before (%.2f): with another seed the film's likeness is %.3f, was %.3f%s", i, own,
      after.value, now.value, better and "" or "; the shot stays")
    last.attempts = other.attempts
    if better then
      last.attempt, last.frames, last.opening, now = other.attempt, other.frames, other.opening, after
    end
    openings[i] = last.opening
  end
  shots.set_last(film.work, i, last)
  lib.tidy()
  return now
end

function M.repair(film, tries)
  if tries < 2 or #film.shots < 2 then return end
  local openings = {}
  for i in ipairs(film.shots) do openings[i] = shots.last_of(film.work, i).opening end
  local now = likeness(film, openings)
  for try = 2, tries do
    for i = 2, #film.shots do
      local joined = film.shots[i].overlap or film.shots[i + 1] and film.shots[i + 1].overlap
      if not joined and (shots.last_of(film.work, i).looked or 1) < try then now = attempt(film, i, try, openings, now) end
      film.job:check_cancel()
    end
  end
end

return M
