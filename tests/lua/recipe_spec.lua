-- Parameters of recipes: declarations, command-line words, messages, --help.
local t = require "harness"
local recipe = require "melies.recipe"

local plugin = {
  kind = "recipe", name = "probe", help = "A recipe of the tests.",
  params = {
    prompt = { "text", required = true, help = "what happens" },
    steps = { "integer", default = 20, min = 1, max = 200, help = "sampling steps" },
    strength = { "number", default = 0.5, min = 0, max = 1 },
    loud = { "boolean", default = false },
    mode = { "enum", choices = { "fast", "slow", "careful" }, default = "fast" },
    size = { "size", default = "64x48", min = 8, max = 4096 },
    length = { "seconds" },
    names = { "list", of = "string" },
    sizes = { "list", of = "number" },
    clip = { "video" },
    fps = { "number", from_model = true },
    no_sound = { "boolean", default = true },
  },
  order = { "steps" },
  run = function(p) return p end,
}

local function parse(...) return recipe.parse(plugin, { ... }) end
local function refused(pattern, code, ...)
  local values, message, got = parse(...)
  t.eq(values, nil, "values")
  t.ok(message:find(pattern, 1, true), ("message '%s' should hold '%s'"):format(message, pattern))
  t.ok(not message:find("\n"), "one line")
  t.eq(got, code, "exit code")
end

t.test("defaults and types", function()
  local p = parse("--prompt", "a ball")
  t.eq(p.prompt, "a ball") t.eq(p.steps, 20) t.eq(p.loud, false) t.eq(p.size.width, 64) t.eq(p.size.height, 48)
  t.eq(p.seed, 0) t.eq(p.fps, nil) t.eq(p.output, nil)
  p = parse("--prompt=a=b", "--steps", "7", "--loud", "--mode", "slow", "--size", "640x480", "-o", "x.mp4",
    "--length", "1:30", "--names", "a, b,c", "--sizes", "1,2.5", "--strength", "1e-3", "--seed", "7")
  t.eq(p.prompt, "a=b") t.eq(p.steps, 7) t.eq(p.loud, true) t.eq(p.mode, "slow") t.eq(p.size.width, 640)
  t.eq(p.output, "x.mp4") t.eq(p.length, 90) t.eq(#p.names, 3) t.eq(p.names[2], "b") t.eq(p.sizes[2], 2.5)
  t.eq(p.strength, 0.001) t.eq(p.seed, 7)
end)

t.test("booleans: alone, with a value, negated, and a name that begins with no", function()
  t.eq(parse("--prompt", "x", "--loud", "no").loud, false)
  t.eq(parse("--prompt", "x", "--loud=yes").loud, true)
  t.eq(parse("--loud", "--prompt", "x").loud, true)
  t.eq(parse("--prompt", "x", "--no-loud").loud, false)
  t.eq(parse("--prompt", "x", "--no-sound", "off").no_sound, false)
  t.eq(parse("--prompt", "x", "--no-no-sound").no_sound, false)
end)

t.test("a value may begin with a dash", function()
  t.eq(parse("--prompt", "--steps").prompt, "--steps")
  t.eq(parse("--prompt", "-o").prompt, "-o")
end)

t.test("refusals name parameter, value and range", function()
  refused("prompt is needed", 2)
  refused("unknown parameter '--step', did you mean 'steps'?", 2, "--prompt", "x", "--step", "3")
  refused("steps is 500, outside 1..200", 2, "--prompt", "x", "--steps", "500")
  refused("steps is '2.5'; it should be a whole number", 2, "--prompt", "x", "--steps", "2.5")
  refused("steps is 'nan'", 2, "--prompt", "x", "--steps", "nan")
  refused("strength is 'inf'", 2, "--prompt", "x", "--strength", "inf")
  refused("strength is -1, outside 0..1", 2, "--prompt", "x", "--strength", "-1")
  refused("mode is 'slwo'; it should be one of fast, slow, careful, did you mean 'slow'?", 2, "--prompt", "x",
    "--mode", "slwo")
  refused("size is '12'; it should be WIDTHxHEIGHT", 2, "--prompt", "x", "--size", "12")
  refused("size is 4x9999, outside 8..4096", 2, "--prompt", "x", "--size", "4x9999")
  refused("length is 'soon'; it should be seconds", 2, "--prompt", "x", "--length", "soon")
  refused("sizes is '1,two'; it should be a list of numbers; entry 2, 'two'", 2, "--prompt", "x", "--sizes", "1,two")
  refused("steps wants a value", 2, "--prompt", "x", "--steps")
  refused("steps is given twice", 2, "--prompt", "x", "--steps", "1", "--steps=2")
  refused("'ball' is not a parameter", 2, "--prompt", "a", "ball")
  refused("loud is 'maybe'", 2, "--prompt", "x", "--loud=maybe")
  refused("clip: /nowhere/film.mp4", 1, "--prompt", "x", "--clip", "/nowhere/film.mp4")
  refused("clip: ", 1, "--prompt", "x", "--clip", os.getenv "MELIES_ROOT" or ".")
end)

t.test("the same checks for a Lua table", function()
  local p = t.ok(recipe.check(plugin, { prompt = "x", steps = 3, size = { width = 8, height = 8 }, names = { "a" } }))
  t.eq(p.steps, 3) t.eq(p.size.width, 8)
  local none, message, code = recipe.check(plugin, { prompt = "x", step = 3 })
  t.eq(none, nil) t.eq(code, 2)
  t.ok(message:find("unknown parameter 'step', did you mean 'steps'?", 1, true), message)
  none, message = recipe.check(plugin, { prompt = {} })
  t.eq(none, nil) t.ok(message:find("prompt is 'a table'", 1, true), message)
  none, message = recipe.check(plugin, { "x" })
  t.eq(none, nil) t.ok(message:find("unknown parameter '1'", 1, true), message)
end)

t.test("--help shows every parameter with range and default", function()
  local none, text, code = parse("--prompt", "x", "--help")
  t.eq(none, nil) t.eq(code, 0)
  for name in pairs(plugin.params) do t.ok(text:find("--" .. name, 1, true), name) end
  for _, part in ipairs { "1..200; default: 20", "required", "fast|slow|careful", "default: 64x48", "--loud | --no-loud",
    "default: the model's", "-o, --output FILE", "melies run probe --prompt TEXT" } do
    t.ok(text:find(part, 1, true), part .. " in\n" .. text)
  end
  t.ok(text:find("--prompt TEXT ", 1, true) < text:find("--steps N", 1, true), "required ones first")
  t.ok(text:find("--steps N", 1, true) < text:find("--clip", 1, true), "then the recipe's order")
end)

t.test("a wrong declaration is told", function()
  local bad = { kind = "recipe", name = "bad", params = { x = { "intger" } }, run = function() end }
  t.raises(function() recipe.check(bad, { x = 1 }) end, "parameter x has the unknown type 'intger', did you mean 'integer'?")
end)

t.test("the runner: result, expected failure, error, cancel", function()
  local lib = require "melies.ffi.lib"
  local function make(run) return { kind = "recipe", name = "probe", params = {}, run = run } end
  t.eq(recipe.run(make(function(p) return p.seed + 1 end), { seed = 4 }), 5)
  t.eq(recipe.run(make(function(_, job) return job.seed end), { seed = 4 }, { seed = 9 }), 9)
  local function ended(run, pattern, code)
    local got, message, status = recipe.run(make(run), {})
    t.eq(got, nil) t.eq(status, code, "exit code")
    t.ok(message:find(pattern, 1, true), message)
    t.ok(not message:find("traceback"), "no trace")
  end
  ended(function(_, job) job:check(nil, "no such thing") end, "no such thing", 1)
  ended(function() return nil, "the model is missing" end, "the model is missing", 1)
  ended(function() local x = nil return x.y end, "recipe_spec.lua", 1)
  ended(function(_, job) lib.C.mel_cancel() job:check_cancel() end, "canceled", 130)
  t.eq(lib.C.mel_canceled(), false, "the flag is cleared")
  ended(function() lib.C.mel_cancel() error("an operation was canceled") end, "canceled", 130)
  t.eq(recipe.run(make(function() end), {}), true)
end)

t.test("a cancel inside a recipe that a recipe runs ends both", function()
  local lib = require "melies.ffi.lib"
  local inner = { kind = "recipe", name = "inner", params = {}, run = function(_, job)
    lib.C.mel_cancel()
    job:check_cancel()
  end }
  local outer = { kind = "recipe", name = "outer", params = {}, run = function()
    local got, message = recipe.call(inner, {})
    if not got then error(message) end
    return true
  end }
  local got, _, code = recipe.call(outer, {})
  t.eq(got, nil) t.eq(code, 130) t.eq(lib.C.mel_canceled(), false)
end)

t.test("stages reach the progress factory", function()
  local seen = {}
  recipe.run({ kind = "recipe", name = "probe", params = {}, run = function(_, job)
    local a = job:progress("one", 2)
    a:step(1) a:step(2)
    job:progress("two", 1)
    return true
  end }, {}, { progress = function(o)
    seen[#seen + 1] = o.label .. o.total
    return { step = function(_, i) seen[#seen + 1] = i end, finish = function() seen[#seen + 1] = "end" end }
  end })
  t.eq(table.concat(seen, " "), "one2 1 2 end two1 end")
end)

t.test("an output that cannot be written is told before the work", function()
  local worked = false
  local probe = { kind = "recipe", name = "probe", params = {}, run = function() worked = true return true end }
  for _, path in ipairs { "/nowhere/film.mp4", "/proc/film.mp4", "/tmp/" } do
    local got, message, code = recipe.run(probe, {}, { output = path })
    t.eq(got, nil) t.eq(code, 1) t.ok(message:find(path, 1, true), message)
  end
  t.eq(worked, false)
end)

t.test("recipes in files: what is wrong is told with the file", function()
  local folder = t.folder()
  local function file(name, text)
    local path = folder .. "/" .. name
    local f = assert(io.open(path, "w"))
    f:write(text)
    f:close()
    return path
  end
  local good = file("good.lua", '-- melies-api: 1\nreturn { kind = "recipe", params = {}, run = function() return 42 end }')
  t.eq(t.ok(recipe.find(good)).name, "good")
  t.eq(recipe.call(good, {}), 42)
  for _, case in ipairs {
    { "syntax.lua", "-- melies-api: 1\nreturn {", "syntax.lua:2" },
    { "raises.lua", "-- melies-api: 1\nerror 'no'", "raises.lua" },
    { "other.lua", "-- melies-api: 1\nreturn 3", "other.lua" },
    { "type.lua", '-- melies-api: 1\n return { kind = "recipe", params = { a = { "inetger" } }, run = function() end }',
      "inetger" },
  } do
    local got, message = recipe.find(file(case[1], case[2]))
    t.eq(got, nil) t.ok(message:find(case[3], 1, true), message)
  end
  local plain = t.ok(recipe.find(file("script.lua", "local a, b = ... return a .. b .. arg[1] .. #arg")))
  t.eq(recipe.run(plain, t.ok(recipe.parse(plain, { "--x", "y" }))), "--xy--x2")
  local unmarked = file("unmarked.lua",
    'return { kind = "recipe", params = {}, run = function() end }')
  local none, why = recipe.run(recipe.find(unmarked), { words = {} })
  t.eq(none, nil) t.ok(why:find("first line must be", 1, true), why)
  local got, message, code = recipe.call(folder .. "/none.lua", {})
  t.eq(got, nil) t.eq(code, 2) t.ok(message:find("none.lua", 1, true), message)
end)

t.test("any words: a value or one clear line, never an error", function()
  local seed = 1
  local function random(n)
    seed = (seed * 16807) % 2147483647
    return seed % n + 1
  end
  local pieces = { "--", "-", "prompt", "steps", "=", "500", "-1", "no", "loud", "size", "x", "0", "sampler", ".", "\0",
    "\255\254", "1e308", "mode", ",", ":", "%s", "clip", "/", "help2", " ", "names", "seed", "9007199254740993", "length" }
  for _ = 1, 20000 do
    local argv = {}
    for i = 1, random(6) do
      local word = {}
      for j = 1, random(4) do word[j] = pieces[random(#pieces)] end
      argv[i] = table.concat(word)
    end
    local ok, values, message, code = pcall(recipe.parse, plugin, argv)
    t.ok(ok, tostring(values) .. " for " .. table.concat(argv, "|"))
    if not values then t.ok(type(message) == "string" and (code == 2 or code == 1), "message and code") end
  end
end)

t.finish()
