-- How much --likeness brings shots of one place together: films of twelve short shots (those of twelve.lua) by the starter's
-- variant for few steps, the check shot_likeness for some values of it, and the means over all films.
--   luajit tests/bench/film/likeness.lua [films = 6] [values = 0,0.5,1]
-- with the environment that ctest sets (LUA_PATH, MELIES_LIB).
local melies = require "melies"

local films, FRAMES = tonumber(arg[1] or 6), 17
local here = arg[0]:match "^(.*)/[^/]*$" or "."
local board, values, sums = dofile(here .. "/twelve.lua"), {}, {}
for value in (arg[2] or "0,0.5,1"):gmatch "[^,]+" do values[#values + 1] = assert(tonumber(value), "a number") end
local cuts = {}
for i, shot in ipairs(board.shots) do
  shot.seconds = FRAMES / 8
  shot.transition = i == 1 and "none" or "cut"
  if i > 1 then cuts[#cuts + 1] = 1 + (i - 1) * FRAMES end
end

local name = os.tmpname()
local path = name .. ".json"
print("| film | " .. table.concat(values, " | ") .. " |\n|---|" .. ("---|"):rep(#values))
for film = 1, films do
  board.seed = 1000 * film
  assert(melies.fs.write(path, melies.json.encode(board)))
  local line = {}
  for k, likeness in ipairs(values) do
    local frames = assert(melies.run("film_from_storyboard", { storyboard = path, model = "starter", few_steps = true,
      passes = "", checks = "", likeness = likeness, bank = "off" }, { progress = false, notice = function() end }))
    local report = assert(melies.check.run(frames, "shot_likeness", { fps = 8, cuts = cuts }))
    local value = report.results[1].value
    sums[k], line[k] = (sums[k] or 0) + value, ("%.3f"):format(value)
  end
  print(("| %d | %s |"):format(film, table.concat(line, " | ")))
end
os.remove(path)
os.remove(name)
for k in ipairs(sums) do sums[k] = ("%.3f"):format(sums[k] / films) end
print("| mean | " .. table.concat(sums, " | ") .. " |")
