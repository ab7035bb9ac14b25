-- Pages about films: what they say, read back by a browser, and how they look (MELIES_LOOK=folder keeps the pictures).
local t = require "harness"
local melies = require "melies"
local clips = require "clips"
local fs = require "melies.fs"
local report, T = melies.report, melies.tensor

local root = os.getenv "MELIES_ROOT"
local program = (os.getenv "MELIES_BUILD" or root .. "/build") .. "/melies"
local folder = t.folder()

local function sh(command)
  local pipe = io.popen(command .. " 2>&1; echo \"code $?\"")
  local text = pipe:read "*a"
  pipe:close()
  return text
end

local browser
for _, name in ipairs { "chromium", "chromium-browser", "google-chrome" } do
  browser = browser or sh("command -v " .. name):match "^(/%S+)"
end

-- Words of a page as a browser shows them, and a picture of it.
local function read(path, picture)
  local base = ("HOME='%s' timeout 120 '%s' --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars "
    .. "--virtual-time-budget=2000 "):format(folder, browser)
  local dom = sh(base .. ("--dump-dom 'file://%s' 2>/dev/null"):format(path))
  local body = dom:match "<main.*</main>" or ""
  body = body:gsub("<style.-</style>", " "):gsub("<[^>]+>", " "):gsub("%s+", " ")
  sh(base .. ("--window-size=1120,2600 --screenshot='%s' 'file://%s'"):format(picture, path))
  return body, dom
end

local page

t.test("a film's page: storyboard, what was added, checks, repairs, how to make it again", function()
  fs.write(folder .. "/story.json", melies.json.encode { title = "Ball & <star>", seed = 3, prompt = "A ball, then a star.",
    characters = { ball = "a big red ball" }, places = { meadow = "the meadow" },
    shots = { { text = "the ball rolls", who = { "ball" }, where = "meadow", seconds = 1 },
      { text = "a blue star spins", seconds = 1, transition = "dissolve" } } })
  local said = sh(("cd '%s' && '%s' --threads 1 run film_from_storyboard --storyboard story.json --steps 3 --tries 2 --seed 7 "
    .. "--checks 'dynamic_degree: threshold=1' --report --report-checks 'flicker; black_frames; dynamic_degree' "
    .. "-o film.webp"):format(folder, program))
  t.ok(said:find "code 0", said)
  page = assert(fs.read(folder .. "/film.report.html"))
  t.ok(not page:find("<script>", 1, true) and not page:find("https?://%w+%.%w+%.?%w*/[%w_-]+%.[cj]s"), "needs no scripts")
  for _, text in ipairs { "Ball &amp; &lt;star&gt;", "<ins>a big red</ins>", "<ins>on the meadow</ins>",
    'alt="Shot 1, beginning: a big red ball rolls on the meadow"', "data:image/jpeg;base64,", "<svg", "--seed 7",
    "film_from_storyboard --checks", "shot 1, attempt 2", "another seed", "prefers-color-scheme:dark", 'lang="en"',
    "Peak memory", "dissolve" } do
    t.ok(page:lower():find(text:lower(), 1, true), text)
  end
  t.ok(select(2, page:gsub("data:image/jpeg", "")) == 6, "three pictures of each shot")
  local data = melies.json.decode((page:match '<script type="application/json" id="data">(.-)</script>'))
  t.eq(data.frames, require("melies.media").info(folder .. "/film.webp").frames)
  t.ok(data.after.flicker.value and data.before.flicker.value)
end)

t.test("a page of any video", function()
  local film = clips.flickering(clips.rolling(12, 1), 0.1)
  local data = assert(melies.consistency.report(film, { fps = 12, cuts = { 7 }, checks = "flicker: follow=true; black_frames" }))
  data.title, data.prompt = "A <clip>", "a ball rolls"
  local html = report.video(data)
  for _, text in ipairs { "A &lt;clip&gt;", "a ball rolls", "<svg", "black_frames", "fails", "Where shots begin" } do
    t.ok(html:find(text, 1, true), text)
  end
  fs.write(folder .. "/video.html", html)
  t.ok(report.picture(T.full({ 40, 60, 3 }, 0.5), 32):find "^data:image/jpeg;base64,/9j/")
end)

t.test("a browser reads it", function()
  if not browser then
    print "     SKIPPED: there is no chromium here (./dev test installs it)"
    return
  end
  local look = os.getenv "MELIES_LOOK" or folder
  local text, dom = read(folder .. "/film.report.html", look .. "/film.png")
  for _, words in ipairs { "Storyboard", "Shot 1", "What was repaired", "Make it again", "a big red", "dynamic degree" } do
    t.ok(text:find(words, 1, true), words .. ": " .. text:sub(1, 400))
  end
  t.ok(dom:find "<h1>Ball &amp; &lt;star&gt;</h1>", "the title")
  local picture = assert(melies.media.image(look .. "/film.png"))
  t.eq(picture.shape[2], 1120)
  t.ok(picture:slice(1, 1, 1200):to("f32"):std() > 20, "something is to be seen")
  text = read(folder .. "/video.html", look .. "/video.png")
  t.ok(text:find("flicker", 1, true) and text:find("fails", 1, true), text)
end)

t.finish()
