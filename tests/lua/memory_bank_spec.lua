-- The memory of a project: what is kept of characters, places and looks, and what later shots get of it.
local t = require "harness"
local melies = require "melies"
local bank, plan, T = melies.memory_bank, melies.plan, melies.tensor
local root = os.getenv "MELIES_ROOT" or "."
local program = (os.getenv "MELIES_BUILD" or root .. "/build") .. "/melies"

-- A red square of 16 pixels that moves over green, 9 frames of 64x64.
local function clip()
  local frames = T.zeros({ 9, 64, 64, 3 }, "f32")
  frames:select(4, 2):fill_(0.5)
  for i = 1, 9 do
    local left = 1 + (i - 1) * 6 - (i > 8 and 4 or 0)
    local box = frames:select(1, i):slice(1, 25, 40):slice(2, left, left + 15)
    box:select(3, 1):fill_(1)
    box:select(3, 2):fill_(0)
  end
  return frames
end

t.test("a character is cut out of its shot, with palette and size", function()
  local options = { folder = t.folder() .. "/memory" }
  local entry = assert(bank.remember { name = "red ball", kind = "character", description = "a red ball", frames = clip(),
    folder = options.folder })
  t.near(entry.size.width, 0.25, 0.13)
  t.near(entry.size.height, 0.25, 0.07)
  local image = assert(entry:image())
  t.ok(image.shape[1] <= 20 and image.shape[2] <= 24, "the picture is the box")
  t.ok(entry.palette[1][1] > 200 and entry.palette[1][2] < 60, "red comes first")
  local again = assert(bank.get("Red Ball", options))
  t.eq(again.description, "a red ball")
  t.eq(melies.json.encode(again.palette), melies.json.encode(entry.palette))
  for _ = 1, 20 do assert(bank.remember { name = "red ball", frames = clip(), folder = options.folder }) end
  again = assert(bank.get("red ball", options))
  t.eq(#again.references, 16)
  t.eq(again.references[1], "reference-1.png")
  t.eq(again.references[16], "reference-21.png")
  t.eq(#assert(melies.fs.list(again.path)), 17)
end)

t.test("the palette of a place is that of its whole frame", function()
  local frame = T.zeros({ 32, 32, 3 }, "f32")
  frame:slice(2, 1, 24):select(3, 3):fill_(1)
  frame:slice(2, 25, 32):fill_(1)
  local palette = bank.palette(frame)
  t.near(palette[1][4], 0.75, 0.05)
  t.ok(palette[1][3] > 240 and palette[1][1] < 15)
  local white
  for _, c in ipairs(palette) do white = white or (c[1] > 240 and c[2] > 240 and c[3] > 240 and c) end
  t.near(white[4], 0.25, 0.06)
  t.eq(#bank.palette(T.full({ 8, 8, 3 }, 0.5)), 1)
end)

t.test("what a model makes of an entry is kept, and made again where the words change", function()
  local folder = t.folder()
  local model = assert(melies.pipeline.load("starter"))
  local entry = assert(bank.remember { name = "ball", description = "a red ball", frames = clip(),
    model = model, folder = folder })
  local shape = entry:latent(model, 1).shape
  t.eq(table.concat(shape, ","), "48,1,8,8")
  local rows = entry:embedding(model)
  t.close(rows, model:encode("a red ball"), 0)
  entry = assert(bank.remember { name = "ball", description = "a blue ball", folder = folder })
  t.close(entry:embedding(model), model:encode("a blue ball"), 0)
  -- the picture comes back from its latent
  local frame = model:decode(entry:latent(model, 1))
  t.eq(frame.shape[2], 64)
  t.ok(frame:select(4, 1):mean() > 0.5, "red")
end)

t.test("shots fill the memory; another job's storyboard uses it, in any order", function()
  local options = { folder = t.folder() }
  local board = assert(plan.make("A big red ball rolls on the grass, cartoon style. It bounces."))
  local names = assert(bank.fill(board, 2, clip(), options))
  t.eq(table.concat(names, ","), "ball,grass,look of A big red ball rolls")
  local later = assert(plan.make("In the desert the ball falls. Then it rolls on the grass."))
  later.characters.ball = { description = "the ball" }
  local notes = bank.apply(later, options)
  t.eq(later.characters.ball.description, "a big red ball")
  t.ok(later.characters.ball.image:find("ball/reference-1.png", 1, true))
  t.eq(notes[1].before, "the ball")
  t.ok(plan.prompt(later, 2):find("a big red ball rolls on", 1, true), plan.prompt(later, 2))
  t.ok(plan.check(later))
  assert(bank.remember { name = "blue cube", description = "a worn blue cube", folder = options.folder })
  local third = assert(plan.make("A big blue cube spins. A green triangle falls."))
  t.eq(#bank.apply(third, options), 1)
  t.eq(third.characters.cube.description, "a worn blue cube")
  t.eq(#bank.apply(assert(plan.make("A red cube spins.")), options), 0)
  assert(bank.forget("blue cube", options))
  local kinds = {}
  for i, entry in ipairs(bank.list(options)) do kinds[i] = entry.kind end
  t.eq(table.concat(kinds, ","), "character,look,place")
end)

t.test("what cannot be is refused, and nothing is lost", function()
  local options = { folder = t.folder() }
  local function refused(got, message, text)
    t.eq(got, nil)
    t.ok(message:find(text, 1, true), message)
  end
  for _, name in ipairs { "../x", "", "a/b", ".lock", ("x"):rep(200), "a\nb" } do
    local got, message = bank.remember { name = name, folder = options.folder }
    refused(got, message, "is no name")
  end
  local got, message = bank.remember { name = "x", image = options.folder .. "/none.png", folder = options.folder }
  refused(got, message, "none.png")
  t.raises(function() bank.remember { name = "x", knd = "place" } end, "did you mean 'kind'?")
  t.raises(function() bank.remember { name = "x", kind = "plac" } end, "did you mean 'place'?")
  t.raises(function() bank.remember { name = "x", box = { 0, 0, 2, 1 } } end, "box[3] is 2")
  assert(bank.remember { name = "barn", kind = "place", folder = options.folder })
  got, message = bank.remember { name = "barn", kind = "character", folder = options.folder }
  refused(got, message, "'barn' is a place already")
  got, message = bank.get("bran", options)
  refused(got, message, "did you mean 'barn'?")
  -- a damaged entry is told, and stands in nobody's way
  melies.fs.make(options.folder .. "/bad")
  local f = assert(io.open(options.folder .. "/bad/entry.json", "w"))
  f:write('{"name":"bad","kind":"place"}')
  f:close()
  got, message = bank.get("bad", options)
  refused(got, message, "must be a")
  t.eq(#bank.list(options), 2)
  t.ok(bank.forget("bad", options))
  t.ok(bank.forget("barn", options))
  t.eq(#bank.list(options), 0)
  got, message = bank.forget("barn", options)
  refused(got, message, "nothing is remembered as 'barn'")
  t.eq(#bank.list { folder = options.folder .. "/none" }, 0)
end)

t.test("two processes remember at once, and lose nothing", function()
  local folder = t.folder()
  local f = assert(io.open(folder .. "/add.lua", "w"))
  f:write [[
local melies = require "melies"
for _ = 1, 6 do
  assert(melies.memory_bank.remember { name = "field", kind = "place", frames = melies.tensor.full({ 8, 8, 3 }, 0.5),
    folder = arg[1] })
end
]]
  f:close()
  local one = ("luajit '%s/add.lua' '%s/memory'"):format(folder, folder)
  t.eq(os.execute(("%s & %s && wait"):format(one, one)), 0)
  t.eq(#assert(bank.get("field", { folder = folder .. "/memory" })).references, 12)
end)

t.test("melies memory list, show, forget", function()
  local folder = t.folder()
  assert(bank.remember { name = "red ball", description = "a red ball", frames = clip(), folder = folder .. "/melies/memory" })
  local function run(words)
    local pipe = io.popen(("cd '%s' && '%s' memory %s 2>&1; echo \"=$?\""):format(folder, program, words))
    local text = pipe:read("*a")
    pipe:close()
    return text
  end
  t.ok(run("list"):find("red ball +character +a red ball"))
  local text = run("show 'red ball'")
  t.ok(text:find("reference-1.png", 1, true) and text:find("#", 1, true), text)
  t.ok(run("forget 'red ball'"):find("=0"))
  t.ok(run("list"):find("nothing is remembered", 1, true))
  t.ok(run("forget 'red ball'"):find("=1"))
  t.ok(run("forgt x"):find("did you mean 'forget'?", 1, true))
  t.ok(run("show"):find("=2"))
end)

t.finish()
