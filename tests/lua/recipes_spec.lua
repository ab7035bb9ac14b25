-- Every shipped recipe on the starter model: length, size and metadata of what it writes; and bad input through the
-- program: one line, the right exit code, nothing under the final name.
local t = require "harness"
local melies = require "melies"

local root = os.getenv "MELIES_ROOT"
local program = (os.getenv "MELIES_BUILD" or root .. "/build") .. "/melies"
local folder = t.folder()
local model = assert(melies.pipeline.load "starter")
local d = model.defaults

local function exists(path)
  local f = io.open(path, "rb")
  if f then f:close() end
  return f ~= nil
end

-- What lies in the scratch folder that should not: temporary files.
local function leftovers(where)
  local p = io.popen("ls -A '" .. (where or folder) .. "' | grep -E 'partial|melies-|\\.tmp' ")
  local text = p:read("*a")
  p:close()
  return text
end

-- The film's frames; checks length, size and metadata.
local function film_of(path, frames, width, height, recipe)
  local film = assert(melies.media.load(path))
  t.eq(table.concat(film.shape, "x"), ("%dx%dx%dx3"):format(frames, height, width), path)
  local reader = assert(melies.media.reader(path))
  local meta = reader.metadata or reader:info().metadata
  t.eq(meta.melies_recipe, recipe, "melies_recipe") t.eq(meta.melies_model, "starter", "melies_model")
  t.ok(meta.melies_seed and meta.melies_version, "seed and version")
  local params = melies.json.decode(meta.melies_params)
  t.ok(type(params) == "table" and params.steps, "parameters")
  reader:close()
  return film, params
end

local function pixels(x) return x.dtype == "u8" and x:to("f32") / 255 or x:to("f32") end

-- Mean colour of the upper and the lower half of the frames.
local function halves(film)
  local x = pixels(film)
  local h = x.shape[2]
  local function mean(part) return part:reshape(-1, 3):mean(1):list() end
  return mean(x:slice(2, 1, h / 2)), mean(x:slice(2, h / 2 + 1))
end

local source = folder .. "/source.mp4"

t.test("text_to_video: the model's defaults, the same from the same seed", function()
  local prompt = "a big red ball rolls to the right over the grass, cartoon style"
  local frames = assert(melies.run("text_to_video", { prompt = prompt, output = source, seed = 3 }))
  t.eq(table.concat(frames.shape, "x"), ("%dx%dx%dx3"):format(d.frames, d.height, d.width))
  local _, params = film_of(source, d.frames, d.width, d.height, "text_to_video")
  t.eq(params.prompt, prompt) t.eq(params.steps, d.steps) t.eq(params.sampler, d.sampler)
  local again = assert(melies.run("text_to_video", { prompt = prompt, seed = 3 }))
  t.close(again, frames, 0, 0, "the same seed")
  local other = assert(melies.run("text_to_video", { prompt = prompt, seed = 4 }))
  t.ok((other - frames):abs():mean() > 1e-3, "another seed")
end)

t.test("text_to_video: the prompt shows", function()
  local function film(prompt) return assert(melies.run("text_to_video", { prompt = prompt, seed = 1, steps = 12 })) end
  local sky, grass = halves(film "a big red ball rolls to the right over the grass, cartoon style")
  t.ok(sky[3] > sky[1], "a blue sky") t.ok(grass[2] > grass[1] and grass[2] > grass[3] + 0.1, "green grass")
  local night = halves(film "a small blue star spins in the night sky, realistic")
  t.ok(night[1] < 0.25 and night[2] < 0.25, "a dark night")
  local _, sand = halves(film "a large yellow cube bounces in the desert, 3d render")
  t.ok(sand[1] > sand[3] + 0.15, "yellow sand")
  local room = halves(film "a green triangle rises in a white room, cartoon")
  t.ok(math.min(room[1], room[2], room[3]) > 0.7, "a white room")
end)

t.test("text_to_video: another size, length, sampler, schedule, guide and format", function()
  for _, case in ipairs {
    { "size.webm", 5, 96, 64, { size = "96x64", frames = 5 } },
    { "seconds.gif", 9, 64, 64, { seconds = 1, fps = 9 } },
    { "sampler.webp", 5, 64, 64, { frames = 5, sampler = "dpmpp_2m", schedule = "simple" } },
    { "guide.mp4", 5, 64, 64, { frames = 5, guide = "cfg_rescale", guidance = 3, sampler = "heun" } },
    { "unguided.mp4", 5, 64, 64, { frames = 5, guidance = 1, shift = 5 } },
  } do
    local given = { prompt = "a white ball", steps = 3, output = folder .. "/" .. case[1] }
    for key, value in pairs(case[5]) do given[key] = value end
    local frames = assert(melies.run("text_to_video", given))
    t.eq(table.concat(frames.shape, "x"), ("%dx%dx%dx3"):format(case[2], case[4], case[3]), case[1])
    t.eq(frames:nonfinite(), 0)
    -- FFmpeg 5 writes animated WebP and does not read it.
    if not case[1]:find("%.webp$") then t.eq(assert(melies.media.load(given.output)).shape[1], case[2], case[1])
    else t.ok(exists(given.output), case[1]) end
  end
end)

t.test("image_to_video: the film begins with the image", function()
  local path = folder .. "/continued.mp4"
  local frames = assert(melies.run("image_to_video",
    { image = source, prompt = "a big red ball bounces over the grass", steps = 6, output = path }))
  film_of(path, d.frames, d.width, d.height, "image_to_video")
  local image = pixels(assert(melies.media.load(source, { width = d.width, height = d.height, frames = 1 })))
  local through = model:decode(model:encode_video(image))
  t.close(frames:slice(1, 1, 1):contiguous(), through, 1e-3, 0, "first frame")
  t.ok((frames:slice(1, 1, 1) - image):abs():mean() < 0.06, "near the image itself")
end)

t.test("video_to_video: little noise keeps the film, much of it remakes it", function()
  local input = pixels(assert(melies.media.load(source)))
  local path = folder .. "/again.mp4"
  local function made(strength)
    local frames = assert(melies.run("video_to_video", { video = source, strength = strength, steps = 10,
      prompt = "a small blue star spins in the night sky, realistic", output = path }))
    film_of(path, d.frames, d.width, d.height, "video_to_video")
    return (frames - input):abs():mean()
  end
  local near, far = made(0.1), made(1)
  t.ok(near < 0.08, ("strength 0.1 is off by %g"):format(near))
  t.ok(far > 0.15, ("strength 1 is off by %g"):format(far))
end)

t.test("video_to_video: a short input gives a short film", function()
  local short = folder .. "/short.mp4"
  assert(melies.run("text_to_video", { prompt = "a ball", frames = 5, steps = 2, output = short }))
  local frames = assert(melies.run("video_to_video", { video = short, prompt = "a ball", steps = 2 }))
  t.eq(frames.shape[1], 5)
end)

t.test("video_to_video: another frame rate keeps the speed of the motion", function()
  local fast, frames = folder .. "/fast.mp4", pixels(assert(melies.media.load(source)))
  local doubled = {}
  for i = 1, frames.shape[1] do doubled[2 * i - 1], doubled[2 * i] = frames:slice(1, i, i), frames:slice(1, i, i) end
  assert(melies.media.save(fast, doubled, { fps = 2 * d.fps }))
  local film = assert(melies.run("video_to_video", { video = fast, prompt = "a ball", steps = 4, strength = 0.05 }))
  t.eq(film.shape[1], d.frames)
  t.ok((film - frames):abs():mean() < 0.08, "frame by frame the film it was made of")
end)

t.test("two_shots: both are there, and they are linked", function()
  local path = folder .. "/shots.mp4"
  local given = { prompt = "a small star at night", second = "a green cube in the desert", steps = 6, output = path }
  local film = assert(melies.run("two_shots", given))
  local n = d.frames
  film_of(path, 2 * n - 1, d.width, d.height, "two_shots")
  t.eq(film.shape[1], 2 * n - 1)
  given.link = false
  t.eq(assert(melies.run("two_shots", given)).shape[1], 2 * n)
end)

t.test("sampler_comparison: a sheet with a row for each", function()
  local path = folder .. "/sheet.png"
  local sheet = assert(melies.run("sampler_comparison", { prompt = "a ball", samplers = "euler,heun,dpmpp_2m", steps = 3,
    columns = 4, output = path }))
  local image = assert(melies.media.load(path))
  local shape = sheet.shape
  t.eq(image.shape[2], shape[#shape - 2]) t.eq(image.shape[3], shape[#shape - 1])
  t.ok(shape[#shape - 2] >= 3 * d.height and shape[#shape - 1] >= 4 * d.width, "three rows, four columns")
  local all = assert(melies.run("sampler_comparison", { prompt = "a ball", steps = 2, frames = 5, columns = 2 }))
  t.ok(all.shape[#all.shape - 2] >= #melies.registry.list("sampler") * d.height, "all samplers")
end)

-- ---- the program -----------------------------------------------------------------------------------

-- Exit code, standard output, standard error.
local function melies_says(arguments, prefix)
  local command = ("cd '%s' && %s '%s' %s >out.txt 2>err.txt </dev/null; echo $? >code.txt"):format(folder, prefix or "",
    program, arguments)
  os.execute(command)
  local function text(name)
    local f = assert(io.open(folder .. "/" .. name))
    local all = f:read("*a")
    f:close()
    return all
  end
  return tonumber(text "code.txt"), text "out.txt", text "err.txt"
end

t.test("the program: a film, its information, --help of every recipe", function()
  local code, out, err = melies_says('run text_to_video --prompt "a red ball" --steps 2 --frames 5 --seed 11 -o cli.mp4')
  t.eq(code, 0, err) t.ok(out:find("cli.mp4", 1, true), out)
  film_of(folder .. "/cli.mp4", 5, d.width, d.height, "text_to_video")
  code, out, err = melies_says "info cli.mp4"
  t.eq(code, 0, err)
  for _, part in ipairs { "text_to_video", "a red ball", "starter", "11" } do
    t.ok(out:find(part, 1, true), part .. " in " .. out)
  end
  code, out, err = melies_says(("run '%s/recipes/text_to_video.lua' --prompt ball --steps 1 --frames 1 -o one.png")
    :format(root))
  t.eq(code, 0, err .. out)
  t.eq(assert(melies.media.load(folder .. "/one.png")).shape[1], 1)
  for _, entry in ipairs(melies.registry.list "recipe") do
    code, out, err = melies_says("run " .. entry.name .. " --help")
    t.eq(code, 0, err)
    for name in pairs(entry.plugin.params) do t.ok(out:find("--" .. name, 1, true), entry.name .. ": " .. name) end
  end
end)

t.test("bad input: one line, the right exit code, no file", function()
  local long = ("a big red ball and "):rep(30)
  local base = 'run text_to_video --steps 2 --frames 5 --prompt ball '
  for _, case in ipairs {
    { base .. "--guidnace 3 -o no.mp4", 2, "did you mean 'guidance'" },
    { base .. "--fps 0 -o no.mp4", 2, "fps is 0, outside 0.1..240" },
    { base .. "--sampler eulr -o no.mp4", 2, "'euler'" },
    { base .. "--sampler.eta 1 -o no.mp4", 2, "euler" },
    { base .. "--schedule custom -o no.mp4", 2, "melies: schedule custom needs the parameter 'sigmas'" },
    { base .. "--width 65 -o no.mp4", 1, "the nearest is 64x64" },
    { base .. "--model /nowhere -o no.mp4", 1, "/nowhere" },
    { base .. "--model nothing-here -o no.mp4", 1, "nothing-here" },
    { base .. "-o /nowhere/no.mp4", 1, "/nowhere/no.mp4" },
    { base .. "-o no.xyz", 1, "no.xyz" },
    { base .. "--codec h265 -o no.mp4", 1, "h265" },
    { base .. "--codec vp9 -o no.mp4", 1, "vp9" },
    { 'run text_to_video -o no.mp4', 2, "prompt is needed" },
    { ('run text_to_video --steps 2 --prompt "%s" -o no.mp4'):format(long), 1, "tokens; starter takes" },
    { 'run image_to_video --prompt ball --image nowhere.png -o no.mp4', 1, "nowhere.png" },
    { 'run image_to_video --prompt ball --image code.txt -o no.mp4', 1, "code.txt" },
    { 'run text_to_vdeo --prompt ball -o no.mp4', 2, "text_to_video" },
    { 'run nowhere.lua', 1, "nowhere.lua" },
  } do
    local code, _, err = melies_says("--quiet " .. case[1])
    t.eq(code, case[2], case[1] .. "\n" .. err)
    t.ok(err:find(case[3], 1, true), ("'%s' in '%s'"):format(case[3], err))
    t.eq(select(2, err:gsub("\n", "")), 1, "lines of " .. err)
    t.ok(not exists(folder .. "/no.mp4") and not exists(folder .. "/no.xyz"), case[1] .. ": no file")
    t.eq(leftovers(), "", case[1])
  end
end)

t.test("a full disk: said, and nothing left under the name", function()
  -- A limit on the size of files stands for it.
  local code, _, err = melies_says('--quiet run text_to_video --steps 2 --prompt ball -o full.mp4',
    "trap '' XFSZ; ulimit -f 1;")
  t.eq(code, 1, err) t.ok(err:find("full.mp4", 1, true), err)
  t.ok(not exists(folder .. "/full.mp4")) t.eq(leftovers(), "")
end)

t.test("Ctrl-C: 130, and no file", function()
  local code, _, err = melies_says('run text_to_video --steps 1000 --prompt ball -o stopped.mp4',
    "timeout --preserve-status -s INT 3")
  t.eq(code, 130, err)
  t.ok(not exists(folder .. "/stopped.mp4")) t.eq(leftovers(), "")
end)

t.finish()
