-- Styles: found as plugins, words around the prompt, numbers under what was given, realism controls.
local t = require "harness"
local melies = require "melies"
local style = melies.style
local root = os.getenv "MELIES_ROOT" or "."
local program = (os.getenv "MELIES_BUILD" or root .. "/build") .. "/melies"

t.test("every shipped style is whole and says what it is", function()
  local entries = style.list()
  t.ok(#entries >= 10)
  for _, entry in ipairs(entries) do
    t.eq(style.check(entry.plugin), nil)
    t.ok(entry.help and #entry.help > 5, entry.name)
    t.ok(entry.plugin.negative, entry.name)
    for _, pass in ipairs(entry.plugin.passes or {}) do assert(melies.pass.resolve("pass", pass)) end
    local words = style.prompt(entry.name, "a red ball rolls")
    t.ok(words:find("a red ball rolls", 1, true) and #words > 25, words)
    t.eq(style.prompt(entry.name, words:match(".*")):sub(1, 5), words:sub(1, 5))
  end
  for _, name in ipairs { "realistic", "cartoon", "pencil", "pixel_art", "film_noir", "documentary" } do
    assert(style.get(name))
  end
end)

t.test("words stand before, after and around; nothing twice", function()
  t.eq(style.prompt("pencil", "a dog runs."), "pencil drawing of a dog runs, graphite on paper, cross-hatching, sketch lines")
  local own = { kind = "style", name = "own", before = "old photo", after = "faded", negative = "new", guidance = 4,
    sampler = "heun", lora = { { name = "grain", strength = 0.6 } }, passes = { "grain" }, realism = { light = "hard" } }
  t.eq(style.prompt(own, "a dog, faded"), "old photo, a dog, faded, hard directional light, crisp shadows")
  local got = style.apply(own, { prompt = "a dog", negative = "cat", guidance = 7, sampler = "euler", steps = 9 },
    { guidance = true })
  t.eq(got.guidance, 7)
  t.eq(got.sampler, "heun")
  t.eq(got.steps, 9)
  t.eq(got.negative, "cat, new, flat lighting")
  t.ok(got.prompt:find("<lora:grain:0.6>", 1, true))
  t.eq(melies.prompt.parse(got.prompt).loras[1].strength, 0.6)
  t.eq(got.passes[1], "grain")
end)

t.test("a style of the user's own is found; one with mistakes is told", function()
  local folder = t.folder()
  melies.fs.make(folder .. "/styles")
  local function write(name, text)
    local f = assert(io.open(folder .. "/styles/" .. name, "w"))
    f:write("-- melies-api: 1\n-- Mine.\nreturn { kind = \"style\", " .. text .. " }\n")
    f:close()
  end
  write("mine.lua", 'name = "mine", after = "my way"')
  write("bad.lua", 'name = "bad", afer = "x"')
  write("worse.lua", 'name = "worse", realism = { light = "sft" }')
  melies.registry.configure { plugin_paths = { folder } }
  t.eq(style.prompt("mine", "a ball"), "a ball, my way")
  local text = ""
  for _, problem in ipairs(melies.registry.problems()) do text = text .. problem.message .. "\n" end
  t.ok(text:find("unknown field 'afer', did you mean 'after'?", 1, true), text)
  t.ok(text:find("light is 'sft', must be none or one of", 1, true), text)
  melies.registry.configure {}
  t.eq(select(2, style.get("realstic")), "no style 'realstic', did you mean 'realistic'?")
  t.raises(function() style.prompt("realstic", "x") end, "did you mean 'realistic'?")
end)

t.test("realism: light, texture, movement and perspective", function()
  local words, negative = style.realism { light = "soft", texture = "fine", movement = "slow", perspective = "long" }
  t.ok(words:find("^soft diffuse light.*fine surface.*slow steady.*135 mm"))
  t.ok(negative:find("harsh shadows", 1, true))
  t.eq((style.realism { light = "none" }), "")
  t.raises(function() style.realism { ligt = "soft" } end, "unknown control 'ligt', did you mean 'light'?")
  t.raises(function() style.realism { movement = "natral" } end, "did you mean 'natural'?")
end)

t.test("a storyboard with a style: its words reach every shot, its negative too", function()
  local plan = melies.plan
  local board = assert(plan.make("a red ball rolls on the grass, then it bounces", { style = "cartoon" }))
  for _, shot in ipairs(assert(plan.shots(board))) do
    t.ok(shot.text:find("cartoon style", 1, true), shot.text)
    t.ok(shot.negative:find("photorealistic", 1, true))
  end
  t.ok(plan.diff(board, 1):find("{+cartoon style", 1, true))
  local none, message = plan.make("a ball", { style = "cartoo" })
  t.eq(none, nil)
  t.eq(message, "no style 'cartoo', did you mean 'cartoon'?")
  board.style = "gone"
  none, message = plan.shots(board)
  t.eq(none, nil)
  t.ok(message:find("no style 'gone'", 1, true))
end)

t.test("a model that reads few words gets the first of them, and it is told", function()
  local model = assert(melies.pipeline.load("starter"))
  local words = "a red ball rolls over the grass"
  local text, cut = style.fitting("cartoon", words, model)
  t.eq(text, words .. ", cartoon style, bold outlines")
  t.eq(cut, true)
  t.eq(select(2, style.fitting("cartoon", words, { })), false)
  t.eq((style.fitting("pencil", ("very "):rep(60) .. "big", model)), ("very "):rep(60) .. "big")
  local board = assert(melies.plan.make(words, { style = "cartoon", fill = true }))
  local shot = assert(melies.plan.shots(board, { model = model }))[1]
  t.ok(model:tokens(shot.text), shot.text)
  t.ok(shot.text:find(words, 1, true))
  t.eq(shot.dropped[1], "style")
  t.eq(#assert(melies.plan.shots(board))[1].dropped, 0)
end)

t.test("a recipe takes a style, and what was given stands before it", function()
  local notes = {}
  local own = { kind = "style", name = "own", after = "cartoon style", steps = 3, guidance = 9 }
  local function run(values)
    for key, value in pairs { frames = 5, width = 32, height = 32, seed = 4 } do values[key] = value end
    local frames, message = melies.recipe.call("text_to_video", values, { notice = function(text) notes[#notes + 1] = text end })
    t.ok(frames, message)
    return frames
  end
  local styled = run { prompt = "a red ball", style = own, guidance = 2 }
  t.eq(notes[1], "style own: a red ball, {+cartoon style+}")
  t.close(styled, run { prompt = "a red ball, cartoon style", steps = 3, guidance = 2 }, 0)
  local none, message = melies.recipe.call("text_to_video", { prompt = "a ball", style = "cartoo" })
  t.eq(none, nil)
  t.ok(message:find("did you mean 'cartoon'?", 1, true), message)
end)

t.test("melies list styles", function()
  local pipe = io.popen(("'%s' list styles"):format(program))
  local text = pipe:read("*a")
  pipe:close()
  t.ok(text:find("film_noir", 1, true) and text:find("Black and white, hard light, night.", 1, true), text)
end)

t.finish()
