-- melies-api: 1
-- Two minutes in twelve shots: time, peak memory beside that of ten seconds, the checks of shots made each by itself, of those
-- that share noise, and after the passes; repairs.
--   melies run tests/bench/film/run.lua [--model NAME] [--steps N] [--jobs N] [--folder DIR] ...
-- prints Markdown for docs/films.md; the films and their pages stay in the folder.
local ffi = require "ffi"
local melies = require "melies"

ffi.cdef [[
typedef struct { long sec, usec; } mel_bench_time;
typedef struct { mel_bench_time user, system; long maxrss, rest[13]; } mel_bench_usage;
int mel_bench_getrusage(int, mel_bench_usage *) __asm__("getrusage");
]]

local function cpu()
  local u = ffi.new "mel_bench_usage"
  ffi.C.mel_bench_getrusage(-1, u) -- of children
  return tonumber(u.user.sec + u.system.sec) + tonumber(u.user.usec + u.system.usec) / 1e6
end

local function quoted(text) return "'" .. tostring(text):gsub("'", "'\\''") .. "'" end

-- Runs a film; { wall =, cpu =, data = the numbers of its page, said = what it said }.
local function film(p, job, name, here, ending, options)
  local base = p.folder .. "/" .. name .. ending
  local words = { quoted(melies.fs.program()), "run film_from_storyboard --bank off --report --fresh --storyboard",
    quoted(here .. "/" .. name .. ".lua"), "-o", quoted(base .. ".mp4"), options }
  for _, option in ipairs { "model", "steps", "jobs", "passes", "checks", "tries", "seed" } do
    if p[option] ~= nil then words[#words + 1] = "--" .. option .. " " .. quoted(p[option]) end
  end
  local began, used = melies.seconds(), cpu()
  local pipe = io.popen(table.concat(words, " ") .. " 2>&1; echo code $?")
  local said = pipe:read "*a"
  pipe:close()
  if not said:find "code 0" then melies.recipe.fail(said) end
  local page = job:check(melies.fs.read(base .. ".report.html"))
  return { wall = melies.seconds() - began, cpu = cpu() - used, said = said,
    data = melies.json.decode((page:match '<script type="application/json" id="data">(.-)</script>')) }
end

local function megabytes(one) return one.data.peak_bytes / 1e6 end

local function tell(ten, twelve, alone, folder)
  print "| | time | of it shots | processor time | peak memory |\n|---|---|---|---|---|"
  for _, row in ipairs { { "one shot, 10 s", ten }, { "12 shots, two minutes", twelve } } do
    local one = row[2]
    print(("| %s | %.1f s | %.1f s | %.1f s | %.0f MB |"):format(row[1], one.wall, one.data.timing[1][2], one.cpu,
      megabytes(one)))
  end
  print(("\nTwo minutes take %+.1f%% memory against ten seconds.\n"):format(100 * (megabytes(twelve) / megabytes(ten) - 1)))

  local order, help = { "flicker", "motion_smoothness", "warp_error", "color_drift", "subject_steadiness", "place_steadiness",
    "shot_likeness", "dynamic_degree", "black_frames", "frozen_frames", "broken_frames" }, { high = "high is good", low = "low" }
  print("| | before passes | after | |\n|---|---|---|---|")
  local worse = {}
  for _, name in ipairs(order) do
    local b, a, c = twelve.data.before[name], twelve.data.after[name], alone.data.before[name]
    if a and a.value then
      local function told(value) return value and ("%.4g"):format(value) or "" end
      local function row(what, lone, old, new, better, noise)
        local change = not old and "" or math.abs(new - old) < math.max(5e-4 * math.abs(old), 5e-7, noise or 0) and "same"
          or (new > old) == (better == "high") and "better" or "worse"
        if change == "worse" then worse[#worse + 1] = what end
        print(("| %s (%s) | %s | %s | %s | %s |"):format(what, help[better], told(lone), told(old), told(new), change))
      end
      local share = name == "dynamic_degree" and b and b.value -- of frames: within its standard error it is the same
      row((name:gsub("_", " ")), c and c.value, b and b.value, a.value, a.better,
        share and math.sqrt(share * (1 - share) / twelve.data.frames))
      if a.slope then row("its slope a second", c and c.slope, b and b.slope, a.slope, "low") end
    end
  end
  print("\nWorse: " .. (#worse > 0 and table.concat(worse, ", ") or "none") .. ".\n\nRepairs:\n")
  local repairs = 0
  for line in twelve.said:gmatch "melies: (shot %d+[^\n]*)" do
    repairs = repairs + 1
    print("- " .. line)
  end
  if repairs == 0 then print("- none: every shot passed at the first attempt") end
  print("\nFilms and pages: " .. folder)
end

return {
  kind = "recipe", name = "film_bench", help = "The figures of docs/films.md.",
  params = {
    model = { "model", help = "the model (default: starter)" },
    steps = { "integer", min = 1, max = 1000, help = "steps (default: the model's)" },
    jobs = { "integer", min = 1, max = 64, help = "processes" },
    passes = { "string", help = "what the films go through" },
    checks = { "string", help = "what every shot must pass" },
    tries = { "integer", min = 1, max = 100, help = "attempts at a shot" },
    film_tries = { "integer", default = 2, min = 1, max = 100, help = "attempts at a shot that is like none before it" },
    seed = { "integer", min = 0, help = "the films' seed" },
    folder = { "string", help = "where the films stay (default: a new one)" },
  },
  order = { "model", "steps", "folder" },
  run = function(p, job)
    local here = job.recipe.path and job.recipe.path:match "^(.*)/[^/]*$" or "tests/bench/film"
    if not p.folder then
      p.folder = os.tmpname()
      os.remove(p.folder)
    end
    job:check(melies.fs.make(p.folder))
    local ten = film(p, job, "ten", here, "")
    local alone = film(p, job, "twelve", here, "-alone", "--likeness 0")
    tell(ten, film(p, job, "twelve", here, "", "--film_tries " .. p.film_tries), alone, p.folder)
    return true
  end,
}
