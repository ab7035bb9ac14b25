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

-- The check's result on the first frames of the shots; opening: another one for shot i.
local function likeness(film, i, opening)
  local list, cuts = {}, {}
  for k in ipairs(film.shots) do
    list[k] = k == i and opening or shots.last_of(film.work, k).opening
    if k > 1 then cuts[k - 1] = k end
  end
  return film.job:check(check.run(T.stack(list, 1), { "shot_likeness" }, { fps = film.job.params.fps, cuts = cuts })).results[1]
end

-- Another attempt at shot i, if it needs one.
local function attempt(film, i, try)
  local last, now = shots.last_of(film.work, i), likeness(film)
  last.looked = try
  local own = now.series.values[i - 1] -- the first shot has none
  if own < now.threshold then
    local other = shots.again(film, i, last, ("like no shot before (%.2f), another seed"):format(own))
    local after = likeness(film, i, other.opening)
    local better = after.value > now.value and #other.attempts[#other.attempts].failed <= #last.attempts[last.attempt.try].failed
    film.job:notice("shot %d is like no shot before (%.2f): with another seed the film's likeness is %.3f, was %.3f%s", i, own,
      after.value, now.value, better and "" or "; the shot stays")
    last.attempts = other.attempts
    if better then last.attempt, last.frames, last.opening = other.attempt, other.frames, other.opening end
  end
  shots.set_last(film.work, i, last)
  lib.tidy()
end

function M.repair(film, tries)
  for try = 2, tries do
    for i = 2, #film.shots do
      local joined = film.shots[i].overlap or film.shots[i + 1] and film.shots[i + 1].overlap
      if not joined and (shots.last_of(film.work, i).looked or 1) < try then attempt(film, i, try) end
      film.job:check_cancel()
    end
  end
end

return M
