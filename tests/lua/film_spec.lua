-- Films: a prompt or a storyboard becomes shots, each in its own folder, in one process or several, killed or not.
local t = require "harness"
local melies = require "melies"
local fs = require "melies.fs"

local root = os.getenv "MELIES_ROOT"
local program = (os.getenv "MELIES_BUILD" or root .. "/build") .. "/melies"
local folder = t.folder()
local prompt = "A big red ball rolls over the grass. Cut to a small blue star spinning in the night sky. "
  .. "Then a large yellow cube bounces in the desert."

local function sh(words, before)
  local pipe = io.popen(("cd '%s' && MELIES_JOB_INTERVAL=0 %s '%s' %s 2>&1; echo \"code $?\""):format(folder, before or "",
    program, words))
  local text = pipe:read "*a"
  pipe:close()
  return text
end
local words = "run film --prompt '" .. prompt .. "' --steps 6 -o "

t.test("a film from a prompt: its shots one after the other, what they show", function()
  local film = assert(melies.run("film", { prompt = prompt, steps = 8, seed = 1, passes = "" }))
  local d = melies.pipeline.load("starter").defaults
  t.eq(table.concat(film.shape, "x"), ("%dx%dx%dx3"):format(3 * d.frames, d.height, d.width))
  local function mean(i) return film:select(1, i):reshape(-1, 3):mean(1):list() end
  local grass, night, desert = mean(9), mean(26), mean(43)
  t.ok(grass[2] > 0.4 and grass[3] > night[3], "a meadow by day")
  t.ok(night[1] < 0.3 and night[2] < 0.3, "the night")
  t.ok(desert[1] > desert[3] + 0.1, "the desert")
end)

t.test("two processes, and kills in between, give the bytes of one unbroken run", function()
  local text = sh(words .. "whole.webp")
  t.ok(text:find "code 0", text)
  text = sh(words .. "pair.webp --jobs 2")
  t.ok(text:find "code 0", text)
  t.eq(fs.read(folder .. "/pair.webp"), fs.read(folder .. "/whole.webp"), "two processes")
  for _, seconds in ipairs { 0.3, 0.6, 0.9 } do
    sh("-q " .. words .. "broken.webp --jobs 2", ("timeout -s KILL %.1f"):format(seconds))
  end
  text = sh("run --resume broken.webp.job")
  if not text:find "code 0" then text = sh(words .. "broken.webp") end -- no shot was begun before the last kill
  t.ok(text:find "code 0", text)
  t.eq(fs.read(folder .. "/broken.webp"), fs.read(folder .. "/whole.webp"), "killed three times")
  t.eq(fs.stat(folder .. "/broken.webp.job"), nil)
end)

t.test("a storyboard: lengths, a shot that goes on from the one before, a transition", function()
  local path = folder .. "/story.json"
  fs.write(path, melies.json.encode { title = "probe", shots = {
    { text = "a big red ball rolls over the grass", seconds = 2.125, seed = 3 },
    { text = "a big red ball rolls over the grass", seconds = 2.125, transition = "overlap", seed = 4 },
    { text = "a large yellow cube bounces in the desert", seconds = 4, transition = "dissolve" } } })
  local film = assert(melies.run("film_from_storyboard", { storyboard = path, steps = 6, passes = "", checks = "" }))
  t.ok(film.shape[1] > 17 + 17 + 20, tostring(film.shape[1]))
  local function step(i) return (film:select(1, i + 1) - film:select(1, i)):abs():mean() end
  local most = 0
  for i = 1, 16 do most = math.max(most, step(i)) end
  t.ok(step(17) < 1.5 * most, "no cut where shots overlap")
  local _, message = melies.run("film_from_storyboard", { storyboard = folder .. "/no.lua" })
  t.ok(message:find("no.lua", 1, true), message)
  fs.write(path, melies.json.encode { shots = { { text = "a ball", who = { "Anna" } } }, characters = { Ann = "a girl" } })
  _, message = melies.run("film_from_storyboard", { storyboard = path, steps = 2 })
  t.ok(message:find("Anna", 1, true) and message:find("did you mean", 1, true), message)
end)

t.test("what works on a shot by itself comes before the transitions, and the page tells what was before it", function()
  local path = folder .. "/fade.json"
  fs.write(path, melies.json.encode { title = "fade", shots = {
    { text = "a big red ball rolls over the grass", seconds = 2.125, seed = 3 },
    { text = "a big red ball rolls over the grass", seconds = 2.125, transition = "overlap", seed = 4 },
    { text = "a blue star at night", seconds = 2.125, transition = "fade", seed = 5 } } })
  local function film(passes)
    local options = { storyboard = path, steps = 2, passes = passes, checks = "", report = true, report_checks = "flicker",
      output = folder .. "/fade.webp" }
    local frames = assert(melies.run("film_from_storyboard", options))
    local page = fs.read(folder .. "/fade.report.html")
    return frames, melies.json.decode((page:match '<script type="application/json" id="data">(.-)</script>'))
  end
  local plain, before = film ""
  local matched, after = film "deflicker; color_match: scope=shot, deviation=false"
  t.eq(matched.shape[1], plain.shape[1])
  t.ok((matched:slice(1, 10, 30) - plain:slice(1, 10, 30)):norm() > 0, "the passes change frames")
  t.eq(matched:select(1, 34):abs():mean(), 0, "the fade ends in black")
  t.near(after.before.flicker.value, before.after.flicker.value, 1e-9, "frames as they were without passes")
  t.ok(after.after.flicker.value ~= before.after.flicker.value)
end)

t.test("a shot that fails its checks is tried with another seed, and that is said", function()
  local said = {}
  local recipe = melies.recipe
  local plugin = assert(recipe.find "film")
  local values = assert(recipe.check(plugin, { prompt = "A red ball rolls over the grass.", steps = 3, tries = 3,
    checks = "dynamic_degree: threshold=1" }))
  assert(recipe.run(plugin, values, { notice = function(text) said[#said + 1] = text end }))
  local text = table.concat(said, "\n")
  t.ok(text:find("attempt 1 of 3: dynamic_degree failed; another seed", 1, true), text)
  t.ok(text:find("attempt 3 of 3: dynamic_degree failed; attempt %d is kept"), text)
  local _, message = melies.run("film", { prompt = "A red ball.", steps = 2, checks = "dynamic_degre" })
  t.ok(message:find("did you mean 'dynamic_degree'", 1, true), message)
end)

t.finish()
