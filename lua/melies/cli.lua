-- The command line: global options, commands, exit codes. Results go to standard output, all else to standard error.
-- Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
local log = require "melies.log"

local cli = {}

local OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
local EPIPE = 32

-- Raised to end a command: { code =, message = } (message nil: nothing to say).
local function stop(code, format, ...)
  error({ code = code, message = format and format:format(...) }, 0)
end

-- Text to standard output. A reader that has left (`melies list | head -1`) ends the command quietly.
local function out(text)
  local ok, message, number = io.stdout:write(text, "\n")
  if ok then return end
  if number == EPIPE then stop(OK) end
  stop(FAILED, "standard output: %s", message)
end
jit.off(out) -- a compiled write that fails is written again by the interpreter, and the failure is lost

local function lib() return require "melies.ffi.lib" end

local function budget() return require "melies.budget" end

local function suggest(name, list) return lib().suggest(name, list) end

-- ---- global options ---------------------------------------------------------------------------

-- name -> { argument name or nil, check and note (settings, value) }
local options = {
  ["plugin-path"] = { "DIR", function(s, v) s.plugin_paths[#s.plugin_paths + 1] = v end,
    "a folder with plugins, before all others (can be repeated)" },
  threads = { "N", function(s, v)
    local n = tonumber(v)
    if not n or n ~= math.floor(n) or n < 1 or n > 1024 then
      stop(USAGE, "--threads is '%s'; it should be a whole number, 1..1024", v)
    end
    s.threads = n
  end, "threads to work with (default: one a core)" },
  memory = { "SIZE", function(s, v)
    local n = budget().size(v)
    if not n or n < 1 then stop(USAGE, "--memory is '%s'; it should be a size such as 500M or 8G", v) end
    s.memory = n
  end, "memory to work within, such as 8G (default: what is free, less a reserve)" },
  compute = { "DTYPE", function(s, v)
    if v ~= "f32" and v ~= "bf16" and v ~= "s8" then
      stop(USAGE, "--compute is '%s'; it should be f32, bf16 or s8%s", v, suggest(v, { "f32", "bf16", "s8" }))
    end
    s.compute = v
  end, "f32, bf16 or s8: how matrices are multiplied (default: bf16 where the processor has it)" },
  profile = { "FILE", function(s, v) s.profile = v end,
    "print where the time of a run went, and write a trace for Chrome or Perfetto to FILE (.json)" },
  quiet = { nil, function(s) s.quiet = true end, "no progress and no news, only warnings and errors" },
  debug = { nil, function(s) s.debug = true end, "tracebacks with errors" },
}
local option_order = { "plugin-path", "threads", "memory", "compute", "profile", "quiet", "debug" }
local shorts = { ["-q"] = "--quiet" }

-- Takes the global option at words[i] into settings. The index after it, or nil where it is none.
local function take_option(settings, words, i)
  local word = shorts[words[i]] or words[i]
  local name, value = word:match "^%-%-([%w-]+)=(.*)$"
  name = name or word:match "^%-%-([%w-]+)$"
  local option = name and options[name]
  if not option then return nil end
  if not option[1] then
    if value then stop(USAGE, "--%s takes no value", name) end
    option[2](settings)
    return i + 1
  end
  if not value then
    i = i + 1
    value = words[i]
    if not value then stop(USAGE, "--%s wants a value (%s)", name, option[1]) end
  end
  option[2](settings, value)
  return i + 1
end

-- Takes the global options out of words. declared: names of the recipe's own parameters, which stand before ours.
local function take_options(settings, words, declared)
  local rest, i = {}, 1
  while i <= #words do
    local name = words[i]:match "^%-%-([%w-]+)"
    local own = declared and name and declared[(name:gsub("%-", "_"))]
    local after = not own and take_option(settings, words, i)
    if after then i = after else rest[#rest + 1] = words[i] i = i + 1 end
  end
  return rest
end

local function apply(settings)
  log.quiet, log.debug = settings.quiet or false, settings.debug or false
  if settings.threads then lib().call(lib().C.mel_set_threads, settings.threads) end
  if settings.memory then budget().set(settings.memory) end
  if settings.compute then require("melies").set_compute(settings.compute) end
  if #settings.plugin_paths > 0 then
    require("melies.registry").configure { plugin_paths = settings.plugin_paths }
  end
end

-- ---- commands -------------------------------------------------------------------------------------

-- Each: { usage, help line, run(words, settings) -> exit code, text of more help }.
local commands = {}
local command_order = { "run", "watch", "repl", "list", "info", "check", "sound", "plan", "memory", "convert", "cache", "help",
  "version", "golden", "bench", "fake-checkpoint", "data" }

local function no_more(words, n, command)
  if words[n + 1] then stop(USAGE, "%s: unknown argument '%s'", command, words[n + 1]) end
end

-- No options but the program's own, which were taken out before.
local function no_options(words, command)
  for _, word in ipairs(words) do
    if word:find "^%-." then
      local names = {}
      for i, name in ipairs(option_order) do names[i] = "--" .. name end
      stop(USAGE, "%s: unknown option '%s'%s", command, word, suggest(word, names))
    end
  end
end

local function usage_of(name)
  local lines = { "usage: melies " .. commands[name][1], commands[name][2] }
  if commands[name][4] then lines[#lines + 1] = "" lines[#lines + 1] = commands[name][4] end
  return table.concat(lines, "\n")
end

function cli.usage()
  local lines = { "melies: a scriptable text-to-video toolkit", "", "usage: melies [OPTION...] COMMAND ...", "", "commands:" }
  for _, name in ipairs(command_order) do
    lines[#lines + 1] = ("  %-29s %s"):format(commands[name][1], commands[name][2])
  end
  lines[#lines + 1] = ""
  lines[#lines + 1] = "options:"
  for _, name in ipairs(option_order) do
    local o = options[name]
    lines[#lines + 1] = ("  %-29s %s"):format("--" .. name .. (o[1] and " " .. o[1] or ""), o[3])
  end
  lines[#lines + 1] = ""
  lines[#lines + 1] = "melies run text_to_video --prompt \"a red ball rolls to the right\" -o film.mp4"
  lines[#lines + 1] = "melies run RECIPE --help shows a recipe's parameters; melies help TOPIC explains a plugin or function."
  return table.concat(lines, "\n")
end

-- A broken plugin of the wanted name or folder is told where it lies, not hidden behind "not found".
local function find_recipe(name)
  local recipe = require "melies.recipe"
  local plugin, message = recipe.find(name)
  if plugin then return plugin end
  local is_file = name:find("/", 1, true) or name:find "%.lua$"
  for _, problem in ipairs(require("melies.registry").problems()) do
    if not is_file and problem.path:match "([^/]+)%.lua$" == name then
      stop(FAILED, "%s:%d: %s", problem.path, problem.line or 0, problem.message)
    end
  end
  stop(is_file and FAILED or USAGE, "%s", message)
end

commands.run = { "run RECIPE [--NAME VALUE...]", "run a recipe: a name (melies list recipes) or a Lua file; --resume DIR",
  function(words, settings)
    if words[1] == "--help" or words[1] == "-h" then out(usage_of "run") return OK end
    local i = 1 -- options of the program that stand before the recipe's name
    while words[i] do
      local after = take_option(settings, words, i)
      if not after then break end
      i = after
    end
    local name, rest = words[i], {}
    local resume = name and (name:match "^%-%-resume=(.+)$" or name == "--resume" and words[i + 1])
    if resume and name == "--resume" then i = i + 1 end
    if resume then name = nil end
    if not resume and (not name or name:sub(1, 1) == "-") then
      stop(USAGE, "run: which recipe? melies list recipes shows them")
    end
    for k = i + 1, #words do rest[#rest + 1] = words[k] end
    -- --plugin-path after the name counts for finding it, all other options only when its parameters are known
    local before = #settings.plugin_paths
    for k, word in ipairs(rest) do
      local path = word:match "^%-%-plugin%-path=(.+)$" or (word == "--plugin-path" and rest[k + 1])
      if path then settings.plugin_paths[#settings.plugin_paths + 1] = path end
    end
    apply(settings)
    local recipe = require "melies.recipe"
    local saved
    if resume then
      local message
      saved, message = require("melies.durable").read(resume)
      if not saved then stop(FAILED, "%s", message) end
      local cwd = require("melies.fs").cwd()
      if saved.cwd ~= cwd then stop(FAILED, "%s: the job was begun in %s; resume it there", resume, saved.cwd) end
      name = saved.recipe
    end
    local plugin = find_recipe(name)
    if not plugin.script then -- a script's words are its own
      for k = #settings.plugin_paths, before + 1, -1 do settings.plugin_paths[k] = nil end
      rest = take_options(settings, rest, recipe.params(plugin))
      apply(settings)
    end

    local values, message, code
    local worker = saved and rest[1] == "--worker"
    if saved then
      if worker then table.remove(rest, 1) end
      no_more(rest, 0, "run --resume")
      saved.values.job = resume
      values, message, code = recipe.check(plugin, saved.values)
      if values and resume:gsub("/+$", "") == (values.output or "") .. ".job" and not worker then values.job = nil end
    else
      values, message, code = recipe.parse(plugin, rest)
    end
    if not values and code == OK then out(message) return OK end
    if not values then stop(code, "%s", message) end
    local result
    if settings.profile then require("melies.profile").start() end
    result, message, code = recipe.run(plugin, values, { progress = not settings.quiet, keep = false, worker = worker })
    if settings.profile then
      local profile = require "melies.profile"
      local spans = profile.stop()
      log.say("%s", profile.report(spans))
      local written, problem = profile.trace(spans, settings.profile)
      if not written then log.warn("%s", problem) end
    end
    if result == nil and (message or code) then
      if code == INTERRUPTED then stop(INTERRUPTED, "interrupted") end
      stop(code or FAILED, "%s", message)
    end
    if values.output then
      out(values.output)
    elseif require("melies.show").is_tensor(result) then
      local show = require "melies.show"
      if not pcall(show, result) then out(show.describe(result)) end -- not frames
      log.say("melies: not saved; -o FILE says where to")
    end
    return OK
  end, "melies run RECIPE --help shows the recipe's parameters with their ranges and defaults.\n"
    .. "An unfinished job stays in OUTPUT.job (or --job DIR): the same command again, or melies run --resume DIR, goes on." }

commands.watch = { "watch DIR [--once]", "what the running job in a folder has so far, as a contact sheet",
  function(words)
    local folder, once = words[1], words[2] == "--once"
    if not folder then stop(USAGE, "watch: which job's folder?") end
    no_more(words, once and 2 or 1, "watch")
    local ok, message = require("melies.watch").run(folder, { once = once, write = out })
    if not ok then stop(FAILED, "%s", message) end
    return OK
  end, "It ends when the job does, or by Ctrl-C; --once shows what there is and ends.", own_options = true }

commands.repl = { "repl", "a Lua prompt with everything loaded; lines from standard input where it is no terminal",
  function(words)
    no_more(words, 0, "repl")
    return require("melies.repl").run()
  end }

local function first_line(text) return (tostring(text or ""):match "^[^\n]*") end

commands.list = { "list [KIND]", "every plugin: samplers, recipes, passes, checks ..., and where it comes from",
  function(words)
    local registry = require "melies.registry"
    local kinds, kind = registry.kinds(), words[1]
    no_more(words, 1, "list")
    if kind then
      local names, found = {}, nil
      for _, k in ipairs(kinds) do
        names[#names + 1] = registry.folder(k)
        if kind == k or kind == registry.folder(k) then found = { k } end
      end
      if not found then
        stop(USAGE, "list: no kind '%s'%s (%s)", kind, suggest(kind, names), table.concat(names, ", "))
      end
      kinds = found
    end
    local term = require "melies.term"
    local width = term.isatty(1) and term.size(1) or math.huge -- a pipe gets the whole line
    for i, k in ipairs(kinds) do
      if #kinds > 1 then out((i > 1 and "\n" or "") .. registry.folder(k)) end
      for _, entry in ipairs(registry.list(k)) do
        out(term.cut(("  %-22s %-12s %s"):format(entry.name, entry.origin, first_line(entry.help)), width))
        for _, path in ipairs(entry.shadows or {}) do out(("  %-22s stands before %s"):format("", path)) end
      end
    end
    for _, problem in ipairs(registry.problems()) do
      local where = problem.line and problem.line > 0 and ("%s:%d"):format(problem.path, problem.line) or problem.path
      log.warn("skipped %s: %s", where, problem.message)
    end
    return OK
  end }

commands.info = { "info FILE...", "what a film, an image, a file or a folder of weights holds",
  function(words)
    if #words == 0 then stop(USAGE, "info: which file?") end
    local code = OK
    for i, path in ipairs(words) do
      local text, message = require("melies.info").of(path)
      if text then
        out((#words > 1 and (i > 1 and "\n" or "") .. path .. "\n" or "") .. text)
      else
        log.fail("%s", message)
        code = FAILED
      end
    end
    return code
  end }

local function delegate(name)
  return function(words, settings)
    local code, message = require("melies.plan.cli")[name](words, { write = out, quiet = settings.quiet })
    if message then stop(code, "%s", message) end
    return code
  end
end

commands.plan = { "plan PROMPT|FILE [-o story.lua]", "a storyboard from a prompt, to read and to edit", delegate "plan",
  [[A FILE of a prompt (.txt), or a storyboard to convert (.lua, .json, the text of HoloCine or Wan2GP).
-o FILE             where to (.lua, .json, else by --form); without it: standard output
--form NAME         lua, json, holocine, wan2gp
--explain           the rule that made each decision
--planner NAME      rules (default), llm (a language model that you run: --endpoint URL, --llm NAME)
--model NAME        whose frame grid the seconds fall on (default: starter)
--seed N            of what is chosen freely
--fill, --no-fill   choose camera and light where the words are silent
--pace NAME         calm, normal, fast          --style NAME   melies list styles          --title TEXT
--audio FILE        the shots in time with a sound; --fill-audio repeats them until it is over]], own_options = true }

commands.memory = { "memory list|show|forget [NAME]", "characters, places and looks that the project remembers",
  delegate "memory" }

commands.check = { "check FILE [CHECK...]", "measure a film: flicker, motion, drift, likeness, faults; exit code 1 on a fault",
  function(words)
    if #words == 0 then stop(USAGE, "check: which film?") end
    local check = require "melies.check"
    local list
    if #words > 1 then
      list = {}
      for i = 2, #words do
        local parsed, message = require("melies.pass").parse(words[i])
        if not parsed then stop(USAGE, "check: %s", message) end
        for _, entry in ipairs(parsed) do list[#list + 1] = entry end
      end
    end
    local report, message = check.file(words[1], list)
    if not report then stop(FAILED, "%s", message) end
    out(check.text(report))
    return report.passed and OK or FAILED
  end, "CHECK: a name (melies list checks) with its parameters, such as \"flicker: threshold=0.99\". Without one: all of them." }

-- "7d" -> seconds; nil where it is no length of time.
local function age(text)
  local number, unit = tostring(text):match "^(%d+%.?%d*)([smhd])$"
  return number and tonumber(number) * ({ s = 1, m = 60, h = 3600, d = 86400 })[unit] or nil
end

local cache_commands = {
  list = function(cache)
    local show, now, total = require "melies.show", os.time(), 0
    local entries, message = cache:list()
    if not entries then stop(FAILED, "%s", message) end
    for _, e in ipairs(entries) do
      total = total + e.size
      out(("%-10s %10s  %6.1f hours ago  %s"):format(e.kind, show.bytes_text(e.size), math.max(0, now - e.used) / 3600, e.key))
    end
    out(("%d entries, %s of %s in %s"):format(#entries, show.bytes_text(total), show.bytes_text(cache.limit), cache.folder))
    return OK
  end,
  clear = function(cache, older)
    local count, bytes = cache:clear { older = older }
    if not count then stop(FAILED, "%s", bytes) end
    out(("%d entries removed, %s"):format(count, require("melies.show").bytes_text(bytes)))
    return OK
  end,
  verify = function(cache)
    local good, bad = cache:verify()
    if not good then stop(FAILED, "%s", bad) end
    for _, e in ipairs(bad) do log.fail("%s; removed", e[2]) end
    out(("%d entries are whole, %d were damaged"):format(good, #bad))
    return #bad == 0 and OK or FAILED
  end,
}

commands.cache = { "cache list|clear|verify", "what is kept on disk: texts and latents that were computed before",
  function(words)
    local run = cache_commands[words[1]]
    if not run then
      stop(USAGE, "cache: %s (there are list, clear, verify)%s", words[1] and "unknown: '" .. words[1] .. "'" or "which one?",
        suggest(words[1] or "", { "list", "clear", "verify" }))
    end
    local older, i = 0, 2
    if words[1] == "clear" and words[2] and words[2]:find "^%-%-older" then
      local text = words[2]:match "^%-%-older=(.*)$"
      if not text then text, i = words[3], 3 end
      older = age(text)
      if not older then stop(USAGE, "cache clear: --older is '%s'; it should be a time such as 12h or 7d", tostring(text)) end
      i = i + 1
    end
    no_more(words, i - 1, "cache " .. words[1])
    local cache = require("melies.cache").default()
    if not cache then stop(FAILED, "there is no cache: MELIES_CACHE is off, or there is no home folder") end
    return run(cache, older)
  end, "clear --older 7d removes only what was not used for so long (s, m, h, d). MELIES_CACHE names the folder; off: none." }

commands.help = { "help [TOPIC]", "this, or about a command, a plugin, a function",
  function(words)
    local topic = words[1]
    no_more(words, 1, "help")
    if not topic then out(cli.usage()) return OK end
    local text = commands[topic] and usage_of(topic) or require("melies.help").about(topic, {})
    if text then out(text) return OK end
    local names = {}
    for i, name in ipairs(command_order) do names[i] = name end
    for _, entry in ipairs(require("melies.registry").list()) do names[#names + 1] = entry.name end
    stop(USAGE, "help: nothing is known about '%s'%s", topic, suggest(topic, names))
  end }

commands.version = { "version", "versions of melies and of what it stands on",
  function(words)
    no_more(words, 0, "version")
    out(require("melies.info").versions())
    return OK
  end }

-- A module that not every installation has.
local function optional(name)
  if not package.searchpath("melies." .. name, package.path) then
    stop(FAILED, "%s is not part of this installation", name)
  end
  return require("melies." .. name)
end

commands.golden = { "golden DIR [NAME]", "check this build against every reference fixture in a folder",
  function(words, settings)
    if not words[1] then stop(USAGE, "golden: which folder of fixtures?") end
    no_more(words, 2, "golden")
    local totals, message = optional("golden").run(words[1], { filter = words[2], compute = settings.compute,
      verbose = not settings.quiet, write = out })
    if not totals then stop(FAILED, "%s", message) end
    return totals.failed == 0 and OK or FAILED
  end, "NAME: only fixtures with that in their name. --compute runs them in one dtype, --quiet prints failures and totals." }

-- bench.main(words) returns an exit code, and a message where it failed.
commands.bench = { "bench [NAME...]", "measure speed and memory beside this machine's own limits",
  function(words)
    local code, message = optional("bench").main(words)
    if message then stop(code or FAILED, "%s", message) end
    return code or OK
  end }

-- main(words, say) of another file: an exit code, and a message where it failed. It reads its options itself.
local function elsewhere(module)
  return function(words)
    local code, message = require("melies." .. module).main(words, out)
    if message then stop(code, "%s", message) end
    return code
  end
end

commands.convert = { "convert FILE|FOLDER -o OUT", "a checkpoint as one safetensors or GGUF file", elsewhere "convert",
  "OUT ends with .safetensors or .gguf.\n"
    .. "  --dtype TYPE     f32, bf16, f16; in GGUF also q8_0, q4_0, q4_1, q5_0, q5_1, q2_k ... q6_k\n"
    .. "  --layout NAMES   wan (the default), comfyui, diffusers\n"
    .. "  --part PART      which of several: dit, dit_low, text_encoder, autoencoder, image_encoder\n"
    .. "  --quick          K-types without the search for the best scales\n"
    .. "  --ignore-extra   leave out tensors that are not of the model",
  own_options = true }

commands.sound = { "sound FILE", "tempo, beats, loudness and sections of a sound, or of a film's sound", elsewhere "sound.cli",
  "--json             all of it, with the curves\n"
    .. "--plot FILE.svg    loudness and energy over time, with sections and beats\n"
    .. "--from SECONDS     where to begin          --seconds N   how much of it counts", own_options = true }

commands["fake-checkpoint"] = { "fake-checkpoint NAME DIR", "a file with random values in a published model's layout",
  elsewhere "fake",
  "  --layout NAMES   wan (the default), comfyui, diffusers\n"
    .. "  --dtype TYPE     as melies convert; the default is bf16\n"
    .. "  --format gguf    GGUF (q8_0 where no type is given)\n"
    .. "  --scale tiny     a small model of the same kind, also NAME-tiny\n"
    .. "  --seed N         other values\n"
    .. "  --shard SIZE     largest file of a diffusers folder (5 GB)",
  own_options = true }

commands.data = { "data ingest|card", "films into captioned clips to train on, and their data card", elsewhere "data",
  "  melies data ingest DIR -o OUT [--size WxH] [--frames N] [--fps N] [--model NAME] ...\n"
    .. "  melies data card OUT\n\nAll options: docs/data.md, or melies data ingest --help.", own_options = true }

-- ---- main -----------------------------------------------------------------------------------------

local function run(words)
  local settings = { plugin_paths = {} }
  local i = 1
  while words[i] and words[i]:sub(1, 1) == "-" do
    if words[i] == "-h" or words[i] == "--help" then out(cli.usage()) return OK end
    if words[i] == "--version" or words[i] == "-V" then return commands.version[3] {} end
    local after = take_option(settings, words, i)
    if not after then
      local names = { "--help", "--version" }
      for _, name in ipairs(option_order) do names[#names + 1] = "--" .. name end
      stop(USAGE, "unknown option '%s'%s", words[i], suggest(words[i], names))
    end
    i = after
  end
  log.quiet, log.debug = settings.quiet or false, settings.debug or false
  local name = words[i]
  if not name then
    io.stderr:write(cli.usage(), "\n")
    return USAGE
  end
  local command = commands[name]
  if not command then
    local hint = suggest(name, command_order)
    if hint == "" and name:find "%.lua$" then hint = ("; melies run %s runs a recipe"):format(name) end
    stop(USAGE, "unknown command '%s'%s", name, hint ~= "" and hint or "; melies help shows them")
  end
  local rest = {}
  for k = i + 1, #words do rest[#rest + 1] = words[k] end
  if name ~= "run" then
    if rest[1] == "--help" or rest[1] == "-h" then out(usage_of(name)) return OK end
    rest = take_options(settings, rest)
    if not command.own_options and name ~= "bench" and name ~= "cache" then no_options(rest, name) end
    apply(settings)
  end
  return command[3](rest, settings)
end

local function canceled()
  local loaded = package.loaded["melies.ffi.lib"]
  return type(loaded) == "table" and loaded.C.mel_canceled()
end

-- Runs the words of the command line; returns the exit code. Says what went wrong, in one line.
function cli.main(words)
  local trace
  local ok, result = xpcall(run, function(e)
    if type(e) ~= "table" then trace = debug.traceback(tostring(e), 2) end
    return e
  end, words)
  if package.loaded["melies.progress"] then package.loaded["melies.progress"].reset() end
  if ok then return result end
  if type(result) == "table" and result.code then
    if result.message then log.fail("%s", log.one_line(result.message)) end
    return result.code
  end
  if canceled() or (type(result) == "table" and result.canceled) then
    log.fail("interrupted")
    return INTERRUPTED
  end
  log.fail("%s", log.debug and trace or log.one_line(result))
  return FAILED
end

return cli
