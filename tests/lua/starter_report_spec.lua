-- What a model of the starter's world learnt: the figures against values by hand, the probe on clips that the world draws,
-- clips under another's prompt, and the recipes at small size.
local t = require "harness"
local melies = require "melies"

local root = os.getenv "MELIES_ROOT" or "."
local starter = root .. "/recipes/starter"
local world = dofile(starter .. "/world/init.lua")
local probe = dofile(starter .. "/report/probe.lua")
local examples = dofile(starter .. "/report/examples.lua")
local score = dofile(starter .. "/report/score.lua")
local words = world.words

local function reading(values)
  local out = {}
  for name, value in pairs(values) do out[name] = { value = value, p = 1 } end
  return out
end

t.test("intervals against values by hand", function()
  for _, case in ipairs { { 0, 10, 0, 0.277533 }, { 5, 10, 0.236593, 0.763407 }, { 9, 10, 0.595850, 0.982124 },
    { 10, 10, 0.722467, 1 }, { 285, 300, 0.919153, 0.969468 } } do
    local low, high = score.wilson(case[1], case[2])
    t.near(low, case[3], 1e-5, case[1] .. " of " .. case[2])
    t.near(high, case[4], 1e-5, case[1] .. " of " .. case[2])
  end
  local low, high = score.wilson(0, 0)
  t.eq(low, 0) t.eq(high, 1)
end)

t.test("figures: only what a prompt says counts", function()
  local clips = {
    { says = { colour = "red", place = "sea" }, read = reading { colour = "red", place = "sea", light = "night" } },
    { says = { colour = "red", light = "day" }, read = reading { colour = "pink", place = "sea", light = "day" } },
    { says = { colour = "blue", light = "day" }, read = reading { colour = "blue", place = "moon", light = "night" } },
    { says = { colour = "red" }, read = reading { colour = "pink" } },
  }
  local f = score.figures(clips)
  t.eq(f.colour.n, 4) t.eq(f.colour.right, 2) t.eq(f.colour.share, 0.5)
  t.eq(f.colour.confusion.red.pink, 2) t.eq(f.colour.confusion.red.red, 1) t.eq(f.colour.confusion.blue.blue, 1)
  t.eq(f.place.n, 1) t.eq(f.place.right, 1)
  t.eq(f.light.n, 2) t.eq(f.light.right, 1) t.eq(f.light.confusion.day.night, 1)
  t.eq(f.motion, nil)
  t.eq(f.all.n, 4) t.eq(f.all.right, 2, "light is none of the five")
  t.eq(f.everything.right, 1)
  t.eq(table.concat(score.wrong(clips[2].says, clips[2].read), ","), "colour")
end)

local net = assert(probe.load(starter .. "/probe.safetensors", words))

-- Rendered examples and what the probe reads of them.
local drawn = {}
for i = 1, 32 do
  local frames, _, attributes = examples.example(world, probe, 4242, i, { spoil = false })
  drawn[i] = { frames = frames, says = {}, attributes = attributes }
  for _, name in ipairs(probe.attributes) do drawn[i].says[name] = attributes[name] end
end
local function read_all()
  for first = 1, #drawn, 8 do
    local some = {}
    for i = first, first + 7 do some[#some + 1] = drawn[i].frames end
    for i, read in ipairs(net:read_all(some)) do drawn[first + i - 1].read = read end
  end
end

t.test("the probe reads what the world draws", function()
  read_all()
  local f = score.figures(drawn)
  for name, least in pairs { place = 29, light = 29, style = 29, motion = 28, camera = 28, colour = 27, subject = 25 } do
    t.ok(f[name].right >= least, ("%s: %d of 32"):format(name, f[name].right))
  end
end)

t.test("one clip alone, in bytes, in another size and length, is read", function()
  local right = 0
  for i = 1, 3 do
    local a = drawn[i].attributes
    local frames = world.render(a, { seed = 4242, index = i, width = 128, height = 128, frames = 33 })
    local read = net:read(frames)
    for _, name in ipairs { "subject", "colour", "place", "style", "motion" } do
      if read[name].value == a[name] then right = right + 1 end
      local sum = 0
      for _, p in pairs(read[name].all) do sum = sum + p end
      t.near(sum, 1, 1e-4)
    end
  end
  t.ok(right >= 12, right .. " of 15")
  t.raises(function() net:read(melies.tensor.zeros { 1, 32, 32, 3 }) end, "two frames or more")
end)

t.test("clips under another's prompt are seen as wrong", function()
  local swapped, differ = {}, 0
  for i, clip in ipairs(drawn) do
    local other = drawn[i % #drawn + 1]
    swapped[i] = { says = other.says, read = clip.read }
    if other.attributes.subject ~= clip.attributes.subject then differ = differ + 1 end
  end
  local f = score.figures(swapped)
  t.eq(f.all.right, 0)
  t.ok(f.subject.right <= #drawn - differ + 2, "subject: " .. f.subject.right)
end)

t.test("a probe for other words is refused", function()
  local path = t.folder() .. "/other.safetensors"
  local other = setmetatable({ colours = { "red", "teal" } }, { __index = words })
  local params = {}
  for name, v in pairs(probe.init(other)) do params[name] = v.value end
  assert(probe.save(path, params, other))
  local loaded, message = probe.load(path, words)
  t.eq(loaded, nil) t.ok(message:find("other words", 1, true), message)
  loaded, message = probe.load(path .. "x", words)
  t.eq(loaded, nil) t.ok(message:find("other.safetensorsx", 1, true), message)
end)

t.test("the report at small size, gone on with, and other settings refused", function()
  local folder = t.folder() .. "/report"
  local function report(o)
    local values = { output = folder, count = 4, steps = 2, ceiling = 2 }
    for name, value in pairs(o or {}) do values[name] = value end
    local printed = print
    print = function() end -- luacheck: ignore
    local result, message, code = melies.run("starter_report", values, { progress = false })
    print = printed -- luacheck: ignore
    return result, message, code
  end
  local result = assert(report())
  t.eq(#result.clips, 4) t.eq(result.figures.subject.n, 4) t.eq(result.steps, 2)
  t.eq(#result.ceilings, 2) t.eq(result.ceilings[1].figures.all.n, 2)
  local stored = assert(melies.json.read(folder .. "/report.json"))
  t.eq(stored.clips[3].prompt, result.clips[3].prompt)
  t.eq(stored.figures.all.n, 4)
  for _, name in ipairs { "report.md", "report.html", "sheet-01.jpg", "clips/0004.png" } do
    t.ok(melies.fs.stat(folder .. "/" .. name), name)
  end
  local page = assert(melies.fs.read(folder .. "/report.html"))
  t.ok(page:find(result.clips[1].prompt, 1, true) and page:find("clips/0001.png", 1, true), "the page")
  os.remove(folder .. "/clips/0002.png")
  melies.fs.touch(folder .. "/clips/0001.png", 1000)
  local before = melies.json.encode(result.figures)
  result = assert(report())
  t.eq(melies.json.encode(result.figures), before, "the same clip again, the same figures")
  t.eq(melies.fs.stat(folder .. "/clips/0001.png").mtime, 1000, "made again")
  local none, message = report { steps = 3 }
  t.eq(none, nil) t.ok(message:find("steps was 2, is 3", 1, true), message)
  none, message = report { prompts = starter .. "/README.md", output = folder .. "2" }
  t.eq(none, nil) t.ok(message:find("no prompts", 1, true), message)
end)

t.test("the probe is trained by train_probe, and a run goes on", function()
  local folder = t.folder()
  local values = { file = folder .. "/p.safetensors", folder = folder .. "/run", moves_steps = 2, moves_batch = 2,
    looks_steps = 2, looks_batch = 2, every = 1, checks = 2 }
  local printed = print
  print = function() end -- luacheck: ignore
  local result = assert(melies.run("train_probe", values, { progress = false }))
  t.ok(result.accuracy.subject >= 0 and assert(probe.load(values.file, words)))
  local log = assert(melies.json.read(folder .. "/p.json"))
  t.eq(log.looks.steps, 2) t.ok(#log.moves.curve == 2 and log.accuracy.place)
  local first = melies.fs.read(values.file)
  os.remove(folder .. "/run/looks/step-00000002.safetensors") -- as if it had been killed
  assert(melies.run("train_probe", values, { progress = false }))
  t.ok(melies.fs.read(values.file) == first, "the same probe")
  values.looks_batch = 3
  local none, message = melies.run("train_probe", values, { progress = false })
  print = printed -- luacheck: ignore
  t.eq(none, nil) t.ok(message:find("config.batch was 2, is 3", 1, true), message)
end)

t.finish()
