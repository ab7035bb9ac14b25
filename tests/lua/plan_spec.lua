-- Plans: the schema and its messages, the written forms, the rule planner against forty prompts divided by hand.
local t = require "harness"
local plan = require "melies.plan"
local forms = require "melies.plan.forms"
local melies = require "melies"
local root = os.getenv "MELIES_ROOT" or "."
local program = (os.getenv "MELIES_BUILD" or root .. "/build") .. "/melies"

local function same(a, b, where)
  where = where or "board"
  t.eq(type(a), type(b), where)
  if type(a) ~= "table" then return t.eq(a, b, where) end
  for key, value in pairs(a) do same(value, b[key], where .. "." .. tostring(key)) end
  for key in pairs(b) do t.ok(a[key] ~= nil, ("%s.%s is new"):format(where, tostring(key))) end
end

local function example()
  return { title = "Two balls", pace = "calm", look = "cartoon style", seed = 3, ending = "fade",
    characters = { ball = "a big red ball", ["blue ball"] = { description = "a blue ball", image = "blue.png" } },
    places = { field = "the grass field", ["end"] = "the \"end\"\nof all" },
    shots = {
      { text = "The ball rolls", who = { "ball" }, where = "field", seconds = 17 / 8, transition = "none", camera = "wide shot" },
      { text = "it meets another", action = "the ball meets the blue ball", who = { "ball", "blue ball" }, where = "end",
        light = "dusk light", seconds = 0.1, transition = "cut", overlap = 9, seed = 12 },
    } }
end

t.test("forty prompts: at least 90% of the decisions as a person would make them", function()
  local score = dofile(root .. "/tests/plan/score.lua")
  local function count(file, least)
    local right, all, list = 0, 0, dofile(root .. "/tests/plan/" .. file)
    for i, e in ipairs(list) do
      local board, message = plan.make(e[1])
      t.ok(board, message)
      local r, a, wrong = score({ unpack(e, 2) }, board)
      right, all = right + r, all + a
      for _, text in ipairs(wrong) do print(("     %s %d: %s"):format(file, i, text)) end
    end
    print(("     %s: %d prompts, %d of %d decisions (%.1f%%)"):format(file, #list, right, all, 100 * right / all))
    t.ok(right >= least * all, ("%s: %d of %d decisions"):format(file, right, all))
    return #list
  end
  t.eq(count("prompts.lua", 0.98), 40)
  count("held_out.lua", 0.95)
  count("held_out_2.lua", 0.85)
  local star = assert(plan.make("A big red ball rolls on the grass. Cut to a blue star, it spins."))
  t.eq(table.concat(star.shots[2].who, ","), "star", "it is the star")
end)

t.test("what is wrong with a storyboard is said, with the nearest name", function()
  local function refused(change, text)
    local board = example()
    change(board)
    local got, message = plan.check(board, "story.lua")
    t.eq(got, nil)
    if not message:find(text, 1, true) then error(("got '%s', wanted '%s'"):format(message, text), 2) end
  end
  refused(function(b) b.shots[2].camra = "x" end, "story.lua: shots[2]: unknown key 'camra', did you mean 'camera'?")
  refused(function(b) b.caracters = {} end, "story.lua: unknown key 'caracters', did you mean 'characters'?")
  refused(function(b) b.shots[1].who = { "bll" } end,
    "shots[1].who: 'bll' is no character, did you mean 'ball'? (there are ball, blue ball)")
  refused(function(b) b.shots[1].where = "feild" end, "shots[1].where: 'feild' is no place, did you mean 'field'?")
  refused(function(b) b.shots[2].seconds = 7200 end,
    "they last 2.001 hours together, and 1 hours is the limit; the longest is shots[2] with 2 hours")
  refused(function(b) b.shots[2].seconds = 0 / 0 end, "shots[2].seconds: is nan, must be a number")
  refused(function(b) b.shots[2].seconds = -1 end, "shots[2].seconds: is -1, must be 0.001 to 86400")
  refused(function(b) b.shots[2].seed = 1.5 end, "shots[2].seed: is 1.5, must be a whole number")
  refused(function(b) b.shots[2].transition = "disolve" end,
    "must be one of none, overlap, cut, dissolve, fade, match cut, did you mean 'dissolve'?")
  refused(function(b) b.shots[2].who = "ball" end, "shots[2].who: is 'ball', must be a list of names")
  refused(function(b) b.shots = {} end, "there is none")
  refused(function(b) b.shots = nil end, "there are no shots")
  refused(function(b) b.shots[3] = { who = {} } end, "shots[3]: has no text")
  refused(function(b) b.characters.ball = 7 end, "characters.ball: is 7, must be a text")
  refused(function(b) b.characters.ball = { image = "a.png" } end, "characters.ball: has no description")
  refused(function(b) b.shots[1].x, b.shots[1].y = 1, 2 end, "(and 1 more)")
  local long = example()
  long.shots[2].seconds, long.max_seconds = 7200, 8000
  t.ok(plan.check(long))
  t.eq(select(2, plan.check(7, "x.lua")), "x.lua: it is 7, must be a table with shots")
end)

t.test("a storyboard is written and read back the same, as Lua and as JSON", function()
  local board = assert(plan.check(example()))
  for _, form in ipairs { "lua", "json" } do
    local text = plan.text(board, form)
    same(assert(plan.parse(text, form)), board)
    t.eq(plan.text(assert(plan.parse(text)), form), text, "and the form is known by its look")
  end
  local folder = t.folder()
  for _, name in ipairs { "a.lua", "a.json" } do
    assert(plan.write(folder .. "/" .. name, board))
    same(assert(plan.read(folder .. "/" .. name)), board)
  end
  t.eq(plan.write(folder .. "/no/such/a.lua", board), nil)
  t.eq(plan.read(folder .. "/none.lua"), nil)
end)

t.test("a Lua storyboard is data: nothing is in reach, and it ends", function()
  local function refused(text, what)
    local board, message = plan.parse(text, "lua", "evil.lua")
    t.eq(board, nil)
    t.ok(message:find(what, 1, true), message)
    t.eq(("x"):rep(2), "xx", "strings have their methods again")
  end
  refused("return os.execute('true')", "evil.lua:1:")
  refused("return { title = ('x'):rep(1e9), shots = {} }", "evil.lua:1:")
  refused("while true do end", "does not come to an end")
  refused("return { shots = { { text = 'a' } }", "evil.lua:1:")
  refused("\27LJ", "compiled code is not read")
  refused("", "it returns nothing")
  t.ok(plan.parse("local s = 17 / 8\nreturn { shots = { { text = 'a', seconds = s } } }", "lua"))
end)

t.test("damaged storyboards are refused with a message, in every form", function()
  local board = assert(plan.check(example()))
  math.randomseed(7)
  for _, form in ipairs(plan.forms) do
    local text = plan.text(board, form)
    for _ = 1, 300 do
      local at = math.random(#text)
      local cut = math.random(3) == 1 and text:sub(1, at)
        or text:sub(1, at - 1) .. string.char(math.random(0, 255)) .. text:sub(at + 1)
      local got, message = plan.parse(cut, form, "cut")
      t.ok(got or (type(message) == "string" and #message > 3), tostring(message))
      if got then t.ok(#got.shots > 0) end
    end
  end
end)

t.test("HoloCine's form, in and out", function()
  local text = "[global caption] A quiet film. [character1] a tall man in a grey suit. [character2]"
    .. "a woman with red hair. This scene "
    .. "contains 2 shots. [per shot caption] Medium shot of [character1] reading. [shot cut] [character2] greets [character1]\n"
  local board = assert(plan.parse(text))
  t.eq(board.look, "A quiet film")
  t.eq(board.characters.character2.description, "a woman with red hair")
  t.eq(table.concat(board.shots[2].who, ","), "character2,character1")
  t.eq(plan.prompt(board, 2), "a woman with red hair greets a tall man in a grey suit, A quiet film")
  local again = assert(plan.parse(plan.text(board, "holocine")))
  board.shots[1].text = board.shots[1].text:gsub("%.$", "") -- the sign at the end is not kept
  same(again, board)
  t.eq(plan.text(again, "holocine"), plan.text(board, "holocine"))
  local _, message = plan.parse((text:gsub("2 shots", "3 shots")))
  t.ok(message:find("it says 3 shots, and 2 captions are there", 1, true), message)
  t.eq(plan.parse("[global caption] x", "holocine"), nil)
end)

t.test("Wan2GP's forms, in and out", function()
  local text = "[/duration=5s,/overlap=9] a dog runs\n[/duration=2.5s,/new_shot] a cat sleeps\n[/duration=3s] it wakes\n"
  local board = assert(plan.parse(text))
  t.eq(#board.shots, 3)
  t.eq(board.shots[1].seconds, 5)
  t.eq(board.shots[1].overlap, 9)
  t.eq(board.shots[2].transition, "cut")
  t.eq(board.shots[3].transition, "overlap")
  t.eq(plan.text(board, "wan2gp"), text)
  board = assert(plan.parse("a red ball (at 2 seconds: it jumps) (at 5 seconds: it stops)"))
  t.eq(#board.shots, 3)
  t.eq(board.shots[1].seconds, 2)
  t.eq(board.shots[2].text, "it jumps")
  t.eq(board.shots[2].seconds, 3)
  local _, message = plan.parse("[/duratio=5s] a dog runs")
  t.ok(message:find("did you mean 'duration'?", 1, true), message)
  _, message = plan.parse("[/duration=long] a dog runs")
  t.ok(message:find("[/duration=long]: a number is wanted", 1, true), message)
end)

t.test("every planned board survives every form that can hold it", function()
  for _, e in ipairs(dofile(root .. "/tests/plan/prompts.lua")) do
    local board = assert(plan.make(e[1], { fill = true, seed = 5 }))
    for _, form in ipairs { "lua", "json" } do same(assert(forms.read(forms.write(board, form), form)), board) end
    for _, form in ipairs { "holocine", "wan2gp" } do
      local back = assert(plan.parse(plan.text(board, form), form))
      t.eq(#back.shots, #board.shots)
      if form == "wan2gp" then
        for i, shot in ipairs(back.shots) do t.eq(shot.text, plan.prompt(board, i)) end
      end
    end
  end
end)

t.test("canonical descriptions go into every shot that shows them, and what was added is shown", function()
  local board = assert(plan.make("Anna, a girl in a yellow raincoat, runs through a wet forest. She jumps over a puddle.",
    { fill = false }))
  t.eq(plan.prompt(board, 2), "Anna, a girl in a yellow raincoat, jumps over a puddle in a wet forest")
  t.eq(plan.diff(board, 1), nil)
  t.eq(plan.diff(board, 2), "[-She-] {+Anna, a girl in a yellow raincoat,+} jumps over a puddle {+in a wet forest+}")
  board = assert(plan.make("A woman walks in a park. She wears a red hat. She sits down."))
  t.eq(board.characters.woman.description, "a woman, wearing a red hat")
  t.eq(#board.shots, 2)
  t.eq(plan.prompt(board, 2), "A woman, wearing a red hat, sits down in a park")
end)

t.test("camera and light are chosen by the seed, and never over the words", function()
  local prompt = "A dog runs on a beach at dusk, tracking shot. It jumps. Cut to a quiet kitchen, where a cat sleeps."
  local a = assert(plan.make(prompt, { fill = true, seed = 1 }))
  same(assert(plan.make(prompt, { fill = true, seed = 1 })), a)
  t.eq(a.shots[1].camera, "tracking shot")
  t.eq(a.shots[1].light, "dusk light")
  t.eq(a.shots[2].light, "dusk light", "the light of the place")
  local differs = false
  for seed = 2, 6 do
    local b = assert(plan.make(prompt, { fill = true, seed = seed }))
    differs = differs or b.shots[2].camera ~= a.shots[2].camera or b.shots[3].light ~= a.shots[3].light
    t.eq(b.shots[1].camera, "tracking shot")
  end
  t.ok(differs, "another seed chooses otherwise")
  local bare, notes = assert(plan.make(prompt))
  t.eq(bare.shots[2].camera, nil)
  t.ok(notes.notices[1]:find("reads 32 tokens", 1, true))
end)

t.test("seconds come from the words and fall on the model's frames", function()
  local board = assert(plan.make("A ball rolls for 3 seconds. It stops (half a minute). It spins."))
  for _, shot in ipairs(board.shots) do t.eq((shot.seconds * 8 - 1) % 4, 0) end
  t.near(board.shots[1].seconds, 3, 0.25)
  t.near(board.shots[2].seconds, 30, 0.25)
  t.eq(board.shots[3].seconds, 17 / 8)
  t.eq(board.shots[1].action, "A ball rolls.")
  local shots = assert(plan.shots(board))
  t.eq(shots[3].frames, 17)
  t.eq(shots[2].seed, 1)
  t.eq(shots[2].text, "A ball stops")
  local slow = assert(plan.make("A ball rolls.", { pace = "calm" }))
  t.ok(slow.shots[1].seconds > 17 / 8)
end)

t.test("odd prompts are planned or refused, never an error", function()
  for _, text in ipairs { "x", "...", "\255\254 a ball", "it it it", "Cut to", "cut to cut to cut to", "- \n- \n-", "[shot cut]",
    "the the the", ("a ball rolls. "):rep(300), ("very "):rep(2000) .. "big ball", "then then, then", "INT. ROOM - DAY",
    "(at 1 seconds: x", "[/x=1] y", "A ball, a ball and a ball. Another ball.", "'s", "1.", "Scene 1", "fade to black", "\0",
    "はい、赤いボール", "Anna and Ben and Carl" } do
    local board, message = plan.make(text, { fill = true })
    t.ok(board or type(message) == "string", text)
    if board then
      for i = 1, #board.shots do t.ok(plan.prompt(board, i)) plan.diff(board, i) end
      t.ok(plan.text(board, "lua"))
    end
  end
  t.eq(plan.make(" \n "), nil)
  t.raises(function() plan.make("a", { plannr = "x" }) end, "did you mean 'planner'?")
  t.eq(select(2, plan.make("a ball", { planner = "rulez" })), "no planner 'rulez', did you mean 'rules'?")
end)

t.test("the program: plan, explain, convert, refuse", function()
  local folder = t.folder()
  local function run(words)
    local pipe = io.popen(("cd '%s' && '%s' %s 2>err.txt; echo \"=$?\""):format(folder, program, words))
    local text = pipe:read("*a")
    pipe:close()
    local f = assert(io.open(folder .. "/err.txt"))
    local err = f:read("*a")
    f:close()
    return tonumber(text:match("=(%d+)%s*$")), err, (text:gsub("=%d+%s*$", ""))
  end
  local code, err, out = run("plan 'a red ball rolls on the grass, then it jumps' --explain -o story.lua")
  t.eq(code, 0, err)
  t.eq(out, "story.lua\n")
  t.ok(err:find("'then'", 1, true) and err:find("the same place", 1, true), err)
  t.ok(err:find("[-it-] {+a red ball+} jumps {+on the grass+}", 1, true), err)
  code, err, out = run("plan story.lua --form json")
  t.eq(code, 0, err)
  t.ok(out:find('"a red ball"', 1, true))
  local f = assert(io.open(folder .. "/bad.lua", "w"))
  f:write("return { shots = { { text = 'a', wo = {} } } }")
  f:close()
  code, err = run("plan bad.lua")
  t.eq(code, 1)
  t.ok(err:find("bad.lua: shots[1]: unknown key 'wo', did you mean 'who'?", 1, true), err)
  code, err = run("plan 'a ball' --explian")
  t.eq(code, 2)
  t.ok(err:find("did you mean '--explain'?", 1, true), err)
  code, err = run("plan nothing.lua")
  t.eq(code, 1)
  t.ok(err:find("no such file", 1, true), err)
  t.eq((run("plan")), 2)
  t.eq((run("plan 'a ball' --form x")), 2)
  t.eq((run("plan 'a ball' --seed x")), 2)
end)

-- ---- the language model ------------------------------------------------------------------------------

local good = [[{"title": "A ball", "look": "", "pace": "calm",
  "characters": [{"name": "ball", "description": "a big red ball"}], "places": [{"name": "field", "description": "a wide field"}],
  "shots": [{"text": "the ball rolls", "who": ["ball"], "where": "field", "camera": null, "seconds": 3, "transition": "cut"},
    {"text": "the ball jumps", "who": ["ball"], "where": "field", "seconds": 2, "transition": "overlap"}]}]]

-- A proxy of the user's is not asked for an address of this machine.
require("ffi").cdef "int setenv(const char *, const char *, int);"
require("ffi").C.setenv("no_proxy", "127.0.0.1", 1)

local function chat(content)
  return melies.json.encode { choices = melies.json.array { { message = { role = "assistant", content = content } } } }
end

-- A server that gives these answers ({ status, body }) in turn: its address, and a function that reads what it was asked.
local function serve(answers)
  local folder = t.folder()
  local command = ("'%s/http_fixture' '%s/port' '%s/log'"):format(os.getenv "MELIES_BUILD" or root .. "/build", folder, folder)
  for i, answer in ipairs(answers) do
    local f = assert(io.open(folder .. "/" .. i, "wb"))
    f:write(answer[2])
    f:close()
    command = command .. (" %d '%s/%d'"):format(answer[1], folder, i)
  end
  os.execute(command .. " >/dev/null 2>&1 &")
  local port
  for _ = 1, 500 do
    local f = io.open(folder .. "/port")
    port = f and f:read("*n")
    if f then f:close() end
    if port then break end
    os.execute("sleep 0.02")
  end
  t.ok(port, "the server listens")
  return "http://127.0.0.1:" .. port, function() return assert(melies.fs.read(folder .. "/log")) end
end

local function ask(url, more)
  local options = { planner = "llm", params = { endpoint = url, timeout = 5 } }
  for key, value in pairs(more or {}) do options[key] = value end
  return plan.make("a red ball rolls, then it jumps", options)
end

t.test("a language model's answer is checked, and asked in OpenAI's form", function()
  local url, asked = serve { { 200, chat(good) } }
  local board, notes = ask(url)
  t.ok(board, notes)
  t.eq(notes.planner, "llm")
  t.eq(#board.shots, 2)
  t.eq(board.shots[1].transition, "none")
  t.eq((board.shots[1].seconds * 8 - 1) % 4, 0, "on the frame grid")
  t.eq(plan.prompt(board, 2), "a big red ball jumps on a wide field")
  t.ok(plan.added(board):find("{+big+}", 1, true), plan.added(board))
  local request = asked()
  t.ok(request:find("POST /v1/chat/completions HTTP/1.1", 1, true))
  local body = assert(melies.json.decode(request:match("\r\n\r\n(.*)\n%-%-%-%-\n$")))
  t.eq(body.messages[2].content, "a red ball rolls, then it jumps")
  t.eq(body.response_format.json_schema.schema.properties.shots.type, "array")
end)

t.test("a wrong answer is sent back once with what is wrong; a server without schemas is asked without", function()
  local url, asked = serve { { 400, "no response_format" }, { 200, chat((good:gsub('"where": "field"', '"were": "field"'))) },
    { 200, chat("<think>so</think>\n```json\n" .. good .. "\n```") } }
  local board, notes = ask(url)
  t.ok(board, notes)
  t.eq(notes.planner, "llm")
  t.ok(asked():find("unknown key 'were', did you mean 'where'?", 1, true))
end)

t.test("what fails falls back to the rules, with a notice", function()
  local wrong = good:gsub('%["ball"%]', '["bll"]')
  for i, case in ipairs {
    { { { 200, chat("I cannot do that") }, { 200, chat("no") } }, "answer: line 1" },
    { { { 200, chat(wrong) }, { 200, chat(wrong) } }, "'bll' is no character" },
    { { { 500, "out of order" } }, "answers 500: out of order" },
    { { { 200, "not json" } }, "line 1, column" },
    { { { 200, "{}" } }, "no choices[1].message.content" },
    { { { 200, ("x"):rep(1000) .. "\0" } }, "line 1, column" },
  } do
    local url = serve(case[1])
    local board, notes = ask(url)
    t.ok(board, notes)
    t.eq(notes.planner, "rules")
    t.eq(#board.shots, 2)
    local text = table.concat(notes.notices, "\n")
    t.ok(text:find("the rules plan instead", 1, true) and text:find(case[2], 1, true), i .. ": " .. text)
  end
  local board, notes = ask("http://127.0.0.1:1")
  t.eq(#board.shots, 2)
  t.ok(table.concat(notes.notices):find("127.0.0.1", 1, true))
  board, notes = ask("file:///etc/passwd")
  t.eq(#board.shots, 2)
  t.ok(table.concat(notes.notices):find("no http:// or https://", 1, true))
  t.eq(select(2, ask("http://x", { params = { endpont = "x" } })),
    "planner llm has no parameter 'endpont', did you mean 'endpoint'?")
end)

t.test("melies plan --planner llm shows what was added", function()
  local url = serve { { 200, chat(good) } }
  local pipe = io.popen(("no_proxy=127.0.0.1 '%s' plan 'a red ball rolls, then it jumps' --planner llm "
    .. "--endpoint %s 2>&1 >/dev/null"):format(program, url))
  local text = pipe:read("*a")
  pipe:close()
  t.ok(text:find("{+big+}", 1, true), text)
end)

t.finish()
