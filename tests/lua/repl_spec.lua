local t = require "harness"
local ffi = require "ffi"
local complete = require "melies.complete"
local help = require "melies.help"
local repl = require "melies.repl"
local lib = require "melies.ffi.lib"
local term = require "melies.term"

repl.long_s = 1e9 -- a busy machine may be slow; the time is tested by .time

-- A session of its own globals, and what it wrote.
local function session()
  local env = setmetatable({}, { __index = _G })
  local said, failed = {}, {}
  local s = repl.session { env = repl.globals(env), write = function(x) said[#said + 1] = x end,
    fail = function(x) failed[#failed + 1] = x end }
  return s, said, failed
end

local function evaluates(line, want)
  local s, said, failed = session()
  t.eq(s:feed(line), "ok", table.concat(failed, "; "))
  t.eq(said[1], want, line)
end

t.test("expressions are printed", function()
  evaluates("1 + 1", "2")
  evaluates("1/3", "0.3333333")
  evaluates("'a\\nb'", '"a\\nb"')
  evaluates("nil", "nil")
  evaluates("1, 2, 'x'", '1  2  "x"')
  evaluates("x = 3", nil)
  evaluates("(function() end)()", nil)
  evaluates("2^60", "1.152922e+18")
  evaluates("0/0 ~= 0/0", "true")
  evaluates("-- a comment", nil)
  evaluates("", nil)
end)

t.test("tables are cut in width and depth", function()
  evaluates("{1, 2, a = 'b', [7] = {}}", '{ 1, 2, [7] = {}, a = "b" }')
  evaluates("{{{{}}}}", "{ { { {} } } }")
  evaluates("{{{{1}}}}", "{ { { { ... } } } }")
  local s, said = session()
  s:feed "t = {} t.t = t for i = 1, 100 do t[i] = i end"
  s:feed "t"
  t.ok(said[1]:find("... 84 more", 1, true), said[1])
  t.ok(said[1]:find("t = { ... }", 1, true), said[1])
  s:feed "setmetatable({}, {__tostring = function() return 'a film' end})"
  t.eq(said[2], "a film")
  s:feed "{kind = 'sampler', name = 'euler', run = print}"
  t.eq(said[3], "sampler euler")
  s:feed "('x'):rep(1000)"
  t.ok(#said[4] < 500 and said[4]:find("1000 bytes", 1, true), said[4])
  s:feed "setmetatable({}, {__tostring = function() error 'odd' end})"
  t.ok(said[5]:find("cannot be shown", 1, true), said[5])
end)

t.test("input goes on until it is complete", function()
  local s, said = session()
  t.eq(s:feed "for i = 1, 2 do", "more")
  t.eq(s:feed "  n = (n or 0) + i", "more")
  t.eq(s:feed "end", "ok")
  t.eq(s:feed "n", "ok")
  t.eq(said[1], "3")
  t.eq(s:feed "1 +", "more")
  t.eq(s:feed "2", "ok")
  t.eq(said[2], "3")
  t.eq(s:feed "[[long", "more")
  t.eq(s:feed "string]]", "ok")
  t.eq(said[3], '"long\\nstring"')
  t.eq(s:feed "f(", "more")
  s:finish()
  t.ok(s.failed)
end)

t.test("globals stay, a leading local too, and _ is the last value", function()
  local s, said = session()
  s:feed "local a, b = 4, 5"
  s:feed "a * b"
  s:feed "_ + 1"
  s:feed "local function f(x) return x * 2 end"
  s:feed "f(_)"
  t.eq(table.concat(said, " "), "20 21 42")
end)

t.test("errors are one line, and the session goes on", function()
  local s, said, failed = session()
  t.eq(s:feed "error('two\\nlines')", "failed")
  t.eq(failed[1], "two; lines")
  t.eq(s:feed "x = = 2", "failed")
  t.ok(failed[2]:find("unexpected symbol near '='", 1, true), failed[2])
  t.eq(s:feed "error({failure = 'no such file'})", "failed")
  t.eq(failed[3], "no such file")
  t.eq(s:feed "nothing.at.all", "failed")
  t.ok(s.failed)
  t.eq(s:feed "1", "ok")
  t.eq(said[1], "1")
end)

t.test("a cancel is told as such and then forgotten", function()
  local s, _, failed = session()
  s:feed "require('melies.ffi.lib').C.mel_cancel() error('whatever')"
  t.eq(failed[1], "interrupted")
  t.ok(not lib.C.mel_canceled())
  t.eq(s:feed "1", "ok")
end)

t.test("melies' modules are there by name", function()
  local s, said, failed = session()
  s:feed "type(tensor.zeros) == 'function', melies.tensor == tensor, type(show)"
  t.eq(said[1], 'true  true  "table"', failed[1])
  s:feed "no_such_thing_here"
  t.eq(said[2], "nil")
end)

t.test("tensors print facts, never data", function()
  local s, said, failed = session()
  s:feed "tensor.of({1, 2, 3, 4.5}, {2, 2})"
  t.eq(said[1], "f32 [2, 2] 16 B min 1 mean 2.625 max 4.5", failed[1])
  s:feed "tensor.of({1, 0/0, 3, 1/0}, {4})"
  t.eq(said[2], "f32 [4] 16 B min 1 mean 2 max 3 (1 nan, 1 inf)", failed[1])
  s:feed "{x = tensor.zeros({2, 3}, 'u8')}"
  t.eq(said[3], "{ x = u8 [2, 3] }", failed[1])
  s:feed "tensor.zeros{0, 3}"
  t.eq(said[4], "f32 [0, 3] 0 B empty", failed[1])
end)

t.test("dot commands", function()
  local s, said, failed = session()
  t.eq(s:feed ".help", "ok")
  t.ok(said[1]:find(".reload NAME", 1, true))
  t.eq(s:feed ".mem", "ok")
  t.ok(said[2]:find("^native %d"), said[2])
  t.eq(s:feed ".time 1 + 1", "ok")
  t.eq(said[3], "2")
  t.eq(s:feed ".tme 1", "failed")
  t.ok(failed[1]:find("did you mean 'time'", 1, true), failed[1])
  t.eq(s:feed ".quit", "quit")
  t.eq(s:feed ".reload no_such_plugin", "failed")
  t.ok(failed[2]:find("no plugin 'no_such_plugin'", 1, true), failed[2])
end)

t.test(".reload reads an edited plugin again", function()
  local dir = t.folder()
  local function write(text)
    local f = assert(io.open(dir .. "/mine.lua", "wb"))
    f:write("-- melies-api: 1\n-- My sampler.\nreturn { kind = 'sampler', name = 'mine', params = {}, ", text, " }\n")
    f:close()
  end
  write "run = function() return 1 end"
  local registry = require "melies.registry"
  registry.configure { plugin_paths = { dir } }
  local s, said, failed = session()
  s:feed "melies.registry.get('sampler', 'mine').run()"
  write "run = function() return 2 end"
  s:feed ".reload mine"
  s:feed "melies.registry.get('sampler', 'mine').run()"
  t.eq(said[1], "1", failed[1])
  t.eq(said[2], "sampler mine from " .. dir .. "/mine.lua")
  t.eq(said[3], "2")
  write "run = nonsense nonsense"
  t.eq(s:feed ".reload mine", "failed")
  t.ok(failed[#failed]:find("mine.lua", 1, true), failed[#failed])
  write "run = function() return 3 end"
  t.eq(s:feed ".reload mine", "ok", failed[#failed])
  s:feed ".help mine"
  t.ok(said[#said]:find("My sampler.", 1, true), said[#said])
  registry.configure { plugin_paths = {} }
end)

-- ---- help and completion ------------------------------------------------------------------------

t.test("doc comments are found for functions, methods and modules", function()
  local doc, signature = help.of_function(repl.format)
  t.ok(doc:find("cut in depth and width", 1, true), doc)
  t.eq(signature, "repl.format(value)")
  local tensor_text = help.about("reshape", {})
  t.ok(tensor_text and tensor_text:find("reshape", 1, true))
  t.ok(help.about("x:nonfinite", { x = require("melies.tensor").zeros { 1 } }))
  t.ok(help.about("progress", {}):find("Progress of long work", 1, true))
  t.eq(help.about("no such thing", {}), nil)
end)

local function candidates(text, env)
  local n, found = complete.at(text, env or repl.globals(setmetatable({}, { __index = _G })))
  return table.concat(found, " "), n
end

t.test("names, fields and methods are completed", function()
  local env = { films = { first = 1, final = 2 }, text = "x", _hidden = 1, x = require("melies.tensor").zeros { 2 } }
  t.eq(candidates("films", env), "films")
  t.ok((" " .. candidates("fil", env) .. " "):find(" films ", 1, true))
  t.eq(candidates("print(films.fi", env), "final first")
  t.eq(candidates("text:uppe", env), "upper")
  t.eq(candidates("_h", env), "_hidden")
  t.eq(candidates("x:reshap", env), "reshape")
  t.eq(candidates("x.sha", env), "shape shape_text")
  t.eq(candidates("whil", env), "while")
  t.eq(candidates("films().fi", env), "")
  t.eq(candidates("nothing.fi", env), "")
  t.eq(candidates("-- fil", env), "")
  t.ok((candidates("melies.tens"):find("tensor", 1, true)))
  t.ok((candidates("tensor.zer"):find("zeros", 1, true)))
end)

t.test("dot commands are completed", function()
  t.eq(candidates ".re", "reload")
  t.eq(candidates(".time films", { films = 1 }), "films")
  t.eq(candidates(".help films.fi", { films = { first = 1 } }), "first")
end)

t.test("plugin names in strings, parameters in tables", function()
  t.ok((candidates 'sampler = "eul'):find("euler", 1, true))
  t.ok((candidates 'registry.get("schedule", "karr'):find("karras", 1, true))
  t.eq((candidates 'registry.get("schedule", "eule'), "")
  t.ok((candidates ".reload dpmpp_2"):find("dpmpp_2m", 1, true))
  t.ok((candidates 'run("text_to_v'):find("text_to_video", 1, true))
  local found, n = candidates 'melies.run("text_to_video", { prompt = "x", steps'
  t.eq(found, "steps = ")
  t.eq(n, 5)
  t.eq((candidates 'melies.run("text_to_video", { prompt = '), (candidates ""))
  t.ok((candidates "progress.bar { lab"):find("label = ", 1, true))
  t.eq((candidates 'sampling.run("heun", f(x), x, s, { params = { s_ch'), "s_churn = ")
  t.ok((candidates "tensor.noise({2, 3}, { se"):find("seed = ", 1, true))
end)

t.test("a reader that has left ends the session", function()
  local program = os.getenv "MELIES_BUILD" .. "/melies"
  local p = io.popen(("bash -c 'yes 1 2>/dev/null | timeout 60 %s repl | head -2; echo ${PIPESTATUS[1]}' 2>&1"):format(program))
  local text = p:read "*a"
  p:close()
  t.eq(text, "1\n1\n0\n") -- 124: it went on until the time was up
end)

t.test("files in strings", function()
  local dir = t.folder()
  io.open(dir .. "/film one.mp4", "wb"):close()
  t.eq(candidates('open("' .. dir .. "/fi"), dir .. "/film one.mp4")
end)

t.test("history keeps entries of several lines", function()
  local path = t.folder() .. "/sub/history"
  local h, entries = repl.history(path)
  t.eq(#entries, 0)
  h:add "for i = 1, 2 do\n  print('a\\n')\nend"
  h:add "1"
  h:add "1"
  h:add " "
  h, entries = repl.history(path)
  t.eq(#entries, 2)
  t.eq(entries[1], "for i = 1, 2 do\n  print('a\\n')\nend")
  t.eq(h.last, "1")
  repl.history_lines = 10
  for i = 1, 40 do h:add(tostring(i)) end
  entries = select(2, repl.history(path))
  t.eq(#entries, 10)
  t.eq(entries[10], "40")
  repl.history_lines = 2000
end)

-- ---- the program under a terminal -----------------------------------------------------------------

local program = os.getenv "MELIES_BUILD" .. "/melies"

local function sleep(seconds) ffi.C.poll(nil, 0, seconds * 1000) end

local function content(path)
  local f = io.open(path, "rb")
  local text = f and f:read "*a" or ""
  if f then f:close() end
  return text
end

-- The program in a terminal of its own: type(text), expect(text) (waits), finish() -> exit code.
local function terminal(words)
  local dir = t.folder()
  local command = ("stty cols 80 rows 24; HOME=%s XDG_STATE_HOME=%s/state exec %s %s"):format(dir, dir, program, words)
  local input = io.popen(("TERM=xterm LC_ALL=C.UTF-8 timeout 90 script -qefc '%s' %s/log >/dev/null 2>&1; echo $? >%s/rc")
    :format(command, dir, dir), "w")
  input:setvbuf "no"
  local self, seen = { dir = dir }, 1
  function self.type(text) input:write(text) end
  function self.expect(text)
    local deadline = term.now() + 20
    repeat
      local first, last = content(dir .. "/log"):find(text, seen, true)
      if first then seen = last + 1 return end
      sleep(0.02)
    until term.now() > deadline
    error(("no '%s' on the terminal after: %s"):format(text, content(dir .. "/log"):sub(seen)), 2)
  end
  function self.finish()
    input:close()
    return tonumber(content(dir .. "/rc"))
  end
  return self
end

t.test("a terminal: prompt, results, second prompt, Ctrl-D", function()
  local p = terminal "repl"
  p.expect "melies> "
  p.type "6 * 7\n"
  p.expect "\n42"
  p.expect "melies> "
  p.type "for i = 1, 2 do\n"
  p.expect "......> "
  p.type "print('line ' .. i) end\n"
  p.expect "line 2"
  p.expect "melies> "
  p.type "\4"
  t.eq(p.finish(), 0)
  t.eq(content(p.dir .. "/state/melies/history"), "6 * 7\nfor i = 1, 2 do\\nprint('line ' .. i) end\n")
end)

t.test("a terminal: Tab completes, the arrow brings the last entry back", function()
  local p = terminal "repl"
  p.expect "melies> "
  p.type "string.for\t('%d!', 5)\n"
  p.expect "5!"
  p.expect "melies> "
  p.type "\27[A\n"
  p.expect "5!"
  p.type "string.re\t\t"
  p.expect "rep"
  p.expect "reverse"
  p.type "\3"
  p.expect "melies> "
  p.type "\4"
  t.eq(p.finish(), 0)
end)

t.test("a terminal: Ctrl-C stops a loop, leaves a half-typed line, keeps the session", function()
  local p = terminal "repl"
  p.expect "melies> "
  p.type "kept = 12345 print('at ' .. 'work') io.flush() while true do end\n"
  p.expect "at work"
  p.type "\3"
  p.expect "interrupted"
  p.expect "melies> "
  p.type "half\3"
  p.expect "^C"
  p.expect "melies> "
  p.type "kept + 1\n"
  p.expect "12346"
  p.type "\4"
  t.eq(p.finish(), 0)
end)

t.finish()
