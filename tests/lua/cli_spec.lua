local t = require "harness"

local build, root = os.getenv "MELIES_BUILD", os.getenv "MELIES_ROOT"
local program = build .. "/melies"
local scratch = t.folder()

local function content(path)
  local f = io.open(path, "rb")
  local text = f and f:read "*a" or ""
  if f then f:close() end
  return text
end

local function write(path, text)
  local f = assert(io.open(path, "wb"))
  f:write(text)
  f:close()
  return path
end

-- Runs a shell command with `melies` standing for the program, away from the user's own plugins and history. Returns
-- standard output, standard error and the exit code.
local function sh(command)
  local prefix = ("cd %s; unset MELIES_ROOT MELIES_LIB LUA_PATH; export HOME=%s XDG_CONFIG_HOME=%s/config "
    .. "XDG_STATE_HOME=%s/state; melies() { %s \"$@\"; }; "):format(scratch, scratch, scratch, scratch, program)
  os.execute(("bash -c %s >%s/out 2>%s/err </dev/null; echo $? >%s/rc"):format(
    "'" .. (prefix .. command):gsub("'", "'\\''") .. "'", scratch, scratch, scratch))
  return content(scratch .. "/out"), content(scratch .. "/err"), tonumber(content(scratch .. "/rc"))
end

local function has(text, part) t.ok(text:find(part, 1, true), ("'%s' in: %s"):format(part, text)) end

-- One line on standard error, nothing on standard output, this exit code.
local function refuses(command, code, ...)
  local out, err, rc = sh(command)
  t.eq(rc, code, command .. ": " .. err)
  t.eq(out, "", command)
  t.eq(select(2, err:gsub("\n", "")), 1, command .. ": lines in: " .. err)
  t.ok(err:find "^melies: ", err)
  for _, part in ipairs { ... } do has(err, part) end
end

-- ---- words ------------------------------------------------------------------------------------------

t.test("no command: usage on standard error, 2; help: on standard output, 0", function()
  local out, err, code = sh "melies"
  t.eq(code, 2)
  t.eq(out, "")
  has(err, "usage: melies")
  for _, words in ipairs { "help", "--help", "-h" } do
    out, err, code = sh("melies " .. words)
    t.eq(code, 0)
    t.eq(err, "")
    has(out, "run RECIPE")
  end
end)

t.test("unknown words suggest the nearest and exit with 2", function()
  refuses("melies lsit", 2, "unknown command 'lsit'", "did you mean 'list'?")
  refuses("melies film.lua", 2, "melies run film.lua")
  refuses("melies --thread 2 list", 2, "unknown option '--thread'", "did you mean '--threads'?")
  refuses("melies list --quite", 2, "did you mean '--quiet'?")
  refuses("melies list sampler5", 2, "did you mean 'samplers'?")
  refuses("melies repl now", 2, "unknown argument 'now'")
  refuses("melies help euller", 2, "nothing is known about 'euller'", "did you mean 'euler'?")
end)

t.test("values of global options are checked", function()
  refuses("melies --threads 0 version", 2, "--threads is '0'", "1..1024")
  refuses("melies --threads", 2, "--threads wants a value")
  refuses("melies version --memory lots", 2, "--memory is 'lots'", "8G")
  refuses("melies --compute bf61 version", 2, "--compute is 'bf61'", "did you mean 'bf16'?")
  refuses("melies --quiet=yes version", 2, "--quiet takes no value")
end)

t.test("sizes", function()
  local size = require("melies.budget").size
  t.eq(size "8G", 8 * 2 ^ 30)
  t.eq(size "1.5k", 1536)
  t.eq(size "500MB", 500 * 2 ^ 20)
  t.eq(size "2GiB", 2 ^ 31)
  t.eq(size "123", 123)
  t.eq(size "G", nil)
  t.eq(size "-1", nil)
end)

t.test("version, and options before and after the command", function()
  local out, err, code = sh "melies --threads 1 version --compute f32"
  t.eq(code, 0, err)
  for _, name in ipairs { "melies ", "LuaJIT ", "FFmpeg ", "processor " } do has(out, name) end
  t.ok(out:find "threads%s+1\n", out)
  t.ok(out:find "compute%s+f32\n", out)
  t.eq((sh "melies --version --threads 1"):match "^melies%s+%d", out:match "^melies%s+%d")
end)

-- ---- plugins ------------------------------------------------------------------------------------------

t.test("list shows every kind with its origin; one kind alone", function()
  local out, err, code = sh "melies list"
  t.eq(code, 0, err)
  t.eq(err, "")
  for _, part in ipairs { "samplers\n", "schedules\n", "guides\n", "recipes\n", "euler ", "built-in" } do has(out, part) end
  out = sh "melies list schedules"
  has(out, "karras")
  t.ok(not out:find("dpmpp_2m", 1, true))
end)

t.test("a plugin path works at once, shadows, and broken files are told with their line", function()
  sh "mkdir -p plugins/samplers"
  write(scratch .. "/plugins/samplers/euler.lua",
    "-- melies-api: 1\n-- My own Euler.\nreturn { kind = 'sampler', name = 'euler', run = function() end }\n")
  write(scratch .. "/plugins/samplers/broken.lua", "-- melies-api: 1\nreturn {\n  kind = = 'sampler',\n}\n")
  local out, err, code = sh "melies --plugin-path plugins list samplers"
  t.eq(code, 0)
  has(out, "My own Euler.")
  has(out, "stands before ")
  has(err, "plugins/samplers/broken.lua:3")
  t.eq(select(2, err:gsub("\n", "")), 1, err)
  out = sh "melies help euler --plugin-path=plugins"
  has(out, "My own Euler.")
  sh "mkdir -p config/melies && cp -r plugins/samplers config/melies/"
  out, err = sh "melies list samplers"
  has(out, "user")
  has(err, "config/melies/samplers/broken.lua:3")
  sh "rm -rf config"
end)

t.test("help explains commands, plugins, functions and recipes", function()
  has((sh "melies help run"), "usage: melies run")
  has((sh "melies run --help"), "usage: melies run")
  has((sh "melies help dpmpp_2m"), "sampler dpmpp_2m")
  has((sh "melies help tensor.concat"), "concat")
  has((sh "melies help text_to_video"), "--prompt")
end)

-- ---- output that nobody takes ---------------------------------------------------------------------------

t.test("a closed pipe ends quietly", function()
  local out, err, code = sh "set -o pipefail; melies list | head -1"
  t.eq(out, "samplers\n")
  t.eq(err, "")
  t.eq(code, 0)
  for _, command in ipairs { "help", "list", "version" } do
    out, err = sh("{ sleep 0.1; melies " .. command .. "; echo $? >pipe_rc; } | true; sleep 0.4")
    t.eq(err, "", command)
    t.eq(out, "")
    t.eq(content(scratch .. "/pipe_rc"), "0\n", command)
  end
end)

t.test("a full disk is a failure", function()
  local _, err, code = sh "melies list >/dev/full"
  t.eq(code, 1)
  has(err, "No space left on device")
end)

-- ---- recipes ----------------------------------------------------------------------------------------------

local function recipe(name, body)
  return write(scratch .. "/" .. name .. ".lua", ([[
-- melies-api: 1
return {
  kind = "recipe", name = "%s", help = "a test",
  params = { count = { "integer", default = 3, min = 1, max = 9, help = "how many" } },
  run = function(p, job)
    %s
  end,
}
]]):format(name, body))
end

t.test("run: a recipe file, its parameters, its help", function()
  recipe("counts", [[print("count is " .. p.count) return true]])
  local out, err, code = sh "melies run counts.lua --count 5"
  t.eq(code, 0, err)
  t.eq(out, "count is 5\n")
  out = sh "melies --quiet run ./counts.lua"
  t.eq(out, "count is 3\n")
  out, err = sh "mkdir -p counts.lua.d && melies --quiet run --plugin-path counts.lua.d counts.lua --threads=1 --count=4"
  t.eq(out, "count is 4\n", err)
  write(scratch .. "/script.lua", "print(table.concat({ ... }, ' '), #arg)\n")
  t.eq((sh "melies run script.lua --threads x"), "--threads x\t2\n")
  out, err, code = sh "melies run counts.lua --help"
  t.eq(code, 0, err)
  for _, part in ipairs { "--count", "how many", "1..9", "default: 3" } do has(out, part) end
  has((sh "melies run text_to_video --help"), "--sampler")
end)

t.test("run: wrong usage is 2, failure is 1, each in one line", function()
  refuses("melies run", 2, "which recipe")
  refuses("melies run text_to_vdeo", 2, "did you mean 'text_to_video'?")
  refuses("melies run nowhere.lua", 1, "nowhere.lua")
  refuses("melies run counts.lua --cuont 2", 2, "did you mean 'count'?")
  refuses("melies run counts.lua --count 12", 2, "count is 12, outside 1..9")
  refuses("melies run counts.lua --count two", 2, "count is 'two'")
  recipe("fails", [[error("the lamp went out")]])
  refuses("melies run fails.lua", 1, "fails.lua:6", "the lamp went out")
  write(scratch .. "/wrong.lua", "-- melies-api: 1\nreturn {\n  kind = 'recipe' name\n}\n")
  refuses("melies run wrong.lua", 1, "wrong.lua:3")
  local _, err, code = sh "melies --debug run fails.lua"
  t.eq(code, 1)
  has(err, "the lamp went out")
end)

t.test("Ctrl-C stops a recipe: 130, one line", function()
  -- starts it in the background (set -m: with SIGINT at its default) and waits until it is at work
  local function start(name, more)
    return ("set -m; rm -f begun; %s run %s.lua %s & p=$!; "
      .. "for i in $(seq 200); do [ -e begun ] && break; sleep 0.1; done; "):format(program, name, more or "")
  end
  local began = [[io.open("begun", "w"):close() ]]
  recipe("waits", began .. [[local n = 0 while true do n = n + #tostring(n) end]])
  local out, err, code = sh(start "waits" .. "kill -INT $p; wait $p")
  t.eq(code, 130, err)
  t.eq(out, "")
  t.ok(err:find "^melies: interrupted\n", err) -- then what the shell says of its job
  -- a compiled loop that calls nothing: the second press ends it
  recipe("spins", began .. [[while true do end]])
  out, err, code = sh(start "spins" .. "sleep 0.3; kill -INT $p; sleep 0.5; kill -INT $p; wait $p")
  t.eq(code, 130, err)
  t.eq(out, "")
  -- one of the sampler's steps looks at the flag; nothing is left of the film
  recipe("film_of_steps", began .. [[
    local T = require("melies.tensor")
    local a = T.noise({ 600, 600 })
    for _ = 1, 100000 do a = a:matmul(a):clamp(-1, 1) job:check_cancel() end
    job:save(a)
  ]])
  out, err, code = sh(start("film_of_steps", "-o steps.mp4")
    .. "sleep 0.2; kill -INT $p; wait $p; c=$?; ls -A | grep steps.mp4; exit $c")
  t.eq(code, 130, err)
  t.eq(out, "")
  for signal, status in pairs { TERM = 143, HUP = 129 } do -- the same good order, and the status that a shell expects
    out, err, code = sh(start("film_of_steps", "-o steps.mp4")
      .. ("sleep 0.2; kill -%s $p; wait $p; c=$?; ls -A | grep steps.mp4; exit $c"):format(signal))
    t.eq(code, status, err)
    t.eq(out, "")
  end
end)

-- ---- info ---------------------------------------------------------------------------------------------------

t.test("info: weights, and files that are none", function()
  local out, err, code = sh("melies info " .. root .. "/tests/models/starter/dit.safetensors")
  t.eq(code, 0, err)
  for _, part in ipairs { "tensors", "dtypes", "bytes", "largest" } do has(out, part) end
  refuses("melies info", 2, "which file")
  refuses("melies info nowhere.mp4", 1, "nowhere.mp4")
  write(scratch .. "/poem.txt", "a poem, not a film\n")
  refuses("melies info poem.txt", 1, "poem.txt")
  write(scratch .. "/empty.mp4", "")
  refuses("melies info empty.mp4", 1, "empty.mp4")
  write(scratch .. "/short.safetensors", "1234")
  refuses("melies info short.safetensors", 1, "short.safetensors")
end)

t.test("info: a film's recipe, parameters, seed and model", function()
  recipe("film", [[
    local T = require("melies.tensor")
    job:save(T.full({ 5, 32, 48, 3 }, 0.5), { fps = 12 })
    return true]])
  local out, err, code = sh "melies run film.lua --seed 7 -o film.mp4"
  t.eq(code, 0, err)
  t.eq(out, "film.mp4\n")
  out, err, code = sh "melies info film.mp4"
  t.eq(code, 0, err)
  t.ok(out:find "recipe%s+film\n", out)
  t.ok(out:find "seed%s+7\n", out)
  t.ok(out:find "count%s+3\n", out)
  t.ok(out:find "size%s+48x32\n", out)
  t.ok(out:find "12 frames a second", out)
end)

-- ---- the prompt through a pipe -----------------------------------------------------------------------------

t.test("repl: lines from a pipe; exit code 1 where one failed", function()
  local out, err, code = sh "printf 'x = 2\\nx + 1\\nfor i = 1, 2 do\\n  print(i)\\nend\\n' | melies repl"
  t.eq(out, "3\n1\n2\n")
  t.eq(err, "")
  t.eq(code, 0)
  out, err, code = sh "printf 'nothing.here\\n7\\n' | melies repl"
  t.eq(out, "7\n")
  t.eq(err, "melies: prompt:1: attempt to index global 'nothing' (a nil value)\n")
  t.eq(code, 1)
  out, err, code = sh "printf 'f(\\n' | melies repl"
  t.eq(out, "")
  t.eq(code, 1)
  has(err, "near '<eof>'")
  out, err, code = sh "printf '1\\n.quit\\n2\\n' | melies repl"
  t.eq(out .. err .. code, "1\n0")
  out, err, code = sh "printf 'tensor.of({1, 2}, {2})' | melies repl"
  t.eq(out, "f32 [2] 8 B min 1 mean 1.5 max 2\n", err)
  t.eq(code, 0)
end)

-- ---- where its files are -------------------------------------------------------------------------------------

t.test("MELIES_ROOT says where the Lua files are; a wrong one is told", function()
  refuses("MELIES_ROOT=/nowhere melies version", 1, "MELIES_ROOT is /nowhere")
  local _, err, code = sh("MELIES_ROOT=" .. root .. " melies version")
  t.eq(code, 0, err)
end)

t.test("an installed tree works where it was moved to", function()
  local _, err, code = sh(("cmake --install %s --prefix %s/first >/dev/null && mv first second"):format(build, scratch))
  t.eq(code, 0, err)
  local out
  out, err, code = sh "second/bin/melies version"
  t.eq(code, 0, err)
  has(out, "melies")
  out, err, code = sh "echo 'require(\"melies.host\").root' | second/bin/melies repl"
  t.eq(code, 0, err)
  t.eq(out, ('"%s/second/share/melies"\n'):format(scratch))
  out, err, code = sh "second/bin/melies list recipes"
  t.eq(code, 0, err)
  has(out, "text_to_video")
  t.eq(err, "")
end)

t.finish()
