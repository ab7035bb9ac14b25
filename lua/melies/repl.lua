-- The prompt: evaluates Lua line by line in the globals of the process, so that models stay loaded.
-- repl.session holds what does not need a terminal (evaluation, formatting, dot commands); repl.run adds the terminal.
-- Completion is in complete.lua.
--
-- What is typed runs in LuaJIT's interpreter, since compiled loops do not notice Ctrl-C; functions of files and the native
-- operations run at full speed. jit.on(f, true) compiles a function that was typed.
local show = require "melies.show"
local term = require "melies.term"
local log = require "melies.log"

local EPIPE = 32

local repl = {
  long_s = 0.5,       -- evaluations that take longer say how long
  history_lines = 2000,
}

-- ---- values in print --------------------------------------------------------------------------

local MAX_DEPTH, MAX_ITEMS, MAX_TEXT = 3, 16, 400

local function quoted(text)
  if #text > MAX_TEXT then return quoted(text:sub(1, MAX_TEXT)) .. (" ... (%d bytes)"):format(#text) end
  text = text:gsub('[%c"\\]', function(c)
    local known = { ["\n"] = "\\n", ["\t"] = "\\t", ["\r"] = "\\r", ['"'] = '\\"', ["\\"] = "\\\\" }
    return known[c] or ("\\%d"):format(c:byte())
  end)
  return '"' .. text .. '"'
end

local function key_text(key)
  if type(key) == "string" and key:find "^[%a_][%w_]*$" then return key end
  return "[" .. (type(key) == "string" and quoted(key) or tostring(key)) .. "]"
end

local function number_text(v)
  if v == math.floor(v) and math.abs(v) < 1e15 then return ("%d"):format(v) end
  return ("%.7g"):format(v)
end

local function brief_tensor(x) return ("%s [%s]"):format(x.dtype, table.concat(x.shape, ", ")) end

local format

local function table_text(t, depth, seen, indent)
  if seen[t] then return "{ ... }" end
  if next(t) == nil then return "{}" end
  if depth >= MAX_DEPTH then return "{ ... }" end
  seen[t] = true
  local parts, count, shown = {}, 0, 0
  local n = #t
  local keys = {}
  for key in pairs(t) do
    count = count + 1
    if not (type(key) == "number" and key >= 1 and key <= n and key == math.floor(key)) then keys[#keys + 1] = key end
  end
  for i = 1, math.min(n, MAX_ITEMS) do
    parts[#parts + 1] = format(t[i], depth + 1, seen, indent .. "  ")
    shown = shown + 1
  end
  table.sort(keys, function(a, b)
    if type(a) == type(b) and (type(a) == "string" or type(a) == "number") then return a < b end
    return tostring(a) < tostring(b)
  end)
  for i = 1, math.min(#keys, MAX_ITEMS) do
    parts[#parts + 1] = key_text(keys[i]) .. " = " .. format(t[keys[i]], depth + 1, seen, indent .. "  ")
    shown = shown + 1
  end
  if shown < count then parts[#parts + 1] = ("... %d more"):format(count - shown) end
  seen[t] = nil
  local line = "{ " .. table.concat(parts, ", ") .. " }"
  if #line + #indent <= 100 and not line:find "\n" then return line end
  return "{\n" .. indent .. "  " .. table.concat(parts, ",\n" .. indent .. "  ") .. "\n" .. indent .. "}"
end

format = function(value, depth, seen, indent)
  local kind = type(value)
  if kind == "string" then return quoted(value) end
  if kind == "number" then return number_text(value) end
  if kind == "function" then
    local where = debug.getinfo(value, "S")
    if where.what == "C" then return "function (built in)" end
    return ("function (%s:%d)"):format(where.short_src, where.linedefined)
  end
  if show.is_tensor(value) then return depth == 0 and show.describe(value) or brief_tensor(value) end
  if kind ~= "table" then return tostring(value) end
  local meta = getmetatable(value)
  if type(meta) == "table" and rawget(meta, "__tostring") then return tostring(value) end
  local plugin_kind, name = rawget(value, "kind"), rawget(value, "name")
  if type(plugin_kind) == "string" and type(name) == "string" then return ("%s %s"):format(plugin_kind, name) end
  return table_text(value, depth, seen, indent)
end

-- value as the prompt prints it: a tensor's facts, a table cut in depth and width, a string in quotes.
function repl.format(value)
  local ok, text = pcall(format, value, 0, {}, "")
  return ok and text or ("%s (cannot be shown: %s)"):format(type(value), tostring(text))
end

-- ---- a session ----------------------------------------------------------------------------------

local Session = {}
Session.__index = Session


local function canceled()
  local ok, lib = pcall(require, "melies.ffi.lib")
  return ok and lib.C.mel_canceled()
end

local function clear_interrupt()
  local ok, host = pcall(require, "melies.host")
  if ok then host.clear_interrupt() else require("melies.ffi.lib").C.mel_cancel_clear() end
end

-- options.env: the globals (default _G); options.write(text): results; options.fail(text): errors, one line each.
function repl.session(options)
  options = options or {}
  return setmetatable({
    env = options.env or _G,
    write = options.write or function(text) io.stdout:write(text, "\n") end,
    fail = options.fail or function(text) log.fail("%s", text) end,
    pending = nil, -- lines of a chunk that is not complete
    failed = false,
  }, Session)
end

-- A function for text as an expression or else as statements; nil, message and true where more lines would complete it.
-- A `local` that begins it is dropped: the name would end with the line.
function repl.compile(text, env)
  local chunk, as_expression = loadstring("return " .. text, "=prompt")
  local message
  if not chunk then
    local bare = text:gsub("^%s*local%s+", "", 1)
    if bare ~= text and bare:find "^[%a_][%w_, ]*$" then bare = text end -- `local x` alone declares nothing
    chunk, message = loadstring(bare, "=prompt")
  end
  if not chunk then return nil, message, (message .. as_expression):find("near '<eof>'", 1, true) ~= nil end
  setfenv(chunk, env)
  jit.off(chunk, true)
  return chunk
end

local function collect(ok, ...) return ok, select("#", ...), { ... } end

-- Runs fn protected: true and its results, or false after the error was told. Says how long it took if that was long.
function Session:protect(fn, always_time)
  local began = term.now()
  local ok, n, results = collect(xpcall(fn, function(e)
    return log.debug and debug.traceback(log.one_line(e), 2) or e
  end))
  local took = term.now() - began
  require("melies.progress").reset()
  if canceled() or (not ok and type(results[1]) == "table" and rawget(results[1], "canceled")) then
    clear_interrupt()
    self.failed, self.interrupted = true, true
    self.fail("interrupted")
    return false
  end
  if not ok then
    self.failed = true
    self.fail(log.debug and tostring(results[1]) or log.one_line(results[1]))
    return false
  end
  if always_time or took >= repl.long_s then self:time_line(took) end
  return true, n, results
end

function Session:time_line(seconds)
  local text = seconds < 1 and ("%.3g ms"):format(seconds * 1000) or ("%.3g s"):format(seconds)
  io.stderr:write("(", text, ")\n")
end

function Session:print_results(n, results)
  if n == 0 then return end
  rawset(self.env, "_", results[1])
  local texts = {}
  for i = 1, n do texts[i] = repl.format(results[i]) end
  self.write(table.concat(texts, "  "))
end

-- One line of input. "ok", "failed", "more" (the chunk goes on) or "quit".
function Session:feed(line)
  if not self.pending then
    if not line:find "%S" or line:find "^%s*%-%-[^%[]" then return "ok" end
    local name, rest = line:match "^%s*%.(%a+)%s*(.-)%s*$"
    if name then return self:command(name, rest) end
  end
  local text = self.pending and self.pending .. "\n" .. line or line
  local chunk, message, more = repl.compile(text, self.env)
  if not chunk and more then self.pending = text return "more" end
  self.pending = nil
  if not chunk then
    self.failed = true
    self.fail(message)
    return "failed"
  end
  local ok, n, results = self:protect(chunk)
  if not ok then return "failed" end
  self:print_results(n, results)
  return "ok"
end

-- Input has ended: a chunk that was begun is an error.
function Session:finish()
  if not self.pending then return end
  local _, message = repl.compile(self.pending, self.env)
  self.pending, self.failed = nil, true
  self.fail(message)
end

-- ---- dot commands ---------------------------------------------------------------------------------

local commands = {}

repl.commands = {
  { "help", "[NAME]", "the doc comment of a plugin, function, method or module" },
  { "reload", "NAME", "read an edited plugin again" },
  { "time", "EXPRESSION", "evaluate and say how long it took" },
  { "mem", "", "memory: native, its peak, pooled, and Lua's" },
  { "quit", "", "leave (so does Ctrl-D)" },
}

function commands.help(session, name)
  if name ~= "" then
    local text = require("melies.help").about(name, session.env)
    if not text then error(("nothing is known about '%s'"):format(name), 0) end
    session.write(text)
    return
  end
  local lines = { "Type Lua; expressions are printed, and _ is the last one. Tab completes, Ctrl-C stops what runs." }
  for _, c in ipairs(repl.commands) do
    lines[#lines + 1] = ("  %-18s %s"):format("." .. c[1] .. (c[2] ~= "" and " " .. c[2] or ""), c[3])
  end
  lines[#lines + 1] = "  show(x)            draw an image, a clip or a matrix in the terminal"
  session.write(table.concat(lines, "\n"))
end

function commands.reload(session, name)
  local registry = require "melies.registry"
  if name == "" then
    registry.reload()
    session.write("all plugins will be read again")
    return
  end
  local found, message
  for _, kind in ipairs(registry.kinds()) do
    local entry, why = registry.find(kind, name)
    if entry then
      local plugin
      plugin, message = registry.reload(kind, name)
      if not plugin then error(message, 0) end
      entry = registry.find(kind, name)
      session.write(("%s %s from %s"):format(kind, name, entry.path))
      found = true
    elseif why and why:find("cannot be used", 1, true) then
      registry.reload()
      entry, message = registry.find(kind, name)
      if entry then
        session.write(("%s %s from %s"):format(kind, name, entry.path))
        found = true
      end
    end
  end
  if found then return end
  if message then error(message, 0) end
  local names = {}
  for _, entry in ipairs(registry.list()) do names[#names + 1] = entry.name end
  error(("no plugin '%s'%s"):format(name, require("melies.ffi.lib").suggest(name, names)), 0)
end

function commands.mem(session)
  local C = require("melies.ffi.lib").C
  local function text(n) return show.bytes_text(tonumber(n)) end
  local limit = tonumber(C.mel_mem_limit())
  session.write(("native %s, peak %s, pooled %s, limit %s; Lua %s"):format(text(C.mel_mem_live()),
    text(C.mel_mem_peak()), text(C.mel_mem_pooled()), limit > 0 and text(limit) or "none",
    text(math.floor(collectgarbage "count" * 1024))))
end

function Session:command(name, rest)
  if name == "quit" or name == "exit" then return "quit" end
  if name == "time" and rest ~= "" then
    local chunk, message = repl.compile(rest, self.env)
    if not chunk then self.failed = true self.fail(message) return "failed" end
    local ok, n, results = self:protect(chunk, true)
    if not ok then return "failed" end
    self:print_results(n, results)
    return "ok"
  end
  local run = commands[name]
  if name == "time" then
    run = function() error(".time wants an expression", 0) end
  elseif not run then
    local names = {}
    for i, c in ipairs(repl.commands) do names[i] = c[1] end
    run = function()
      error(("no command .%s%s; .help shows them"):format(name, require("melies.ffi.lib").suggest(name, names)), 0)
    end
  end
  return self:protect(function() run(self, rest) end) and "ok" or "failed"
end

-- ---- the globals ----------------------------------------------------------------------------------

-- Adds melies, show and (on first use) melies' modules by their bare names to env.
function repl.globals(env)
  rawset(env, "show", show)
  local before = getmetatable(env)
  setmetatable(env, { __index = function(_, name)
    if name == "melies" then
      rawset(env, "melies", require "melies")
      return rawget(env, "melies")
    end
    if type(name) == "string" and name:find "^%l[%l_]*$" then
      local ok, module = pcall(function() return require("melies")[name] end)
      if ok and module ~= nil then return module end
    end
    local index = before and before.__index
    if type(index) == "function" then return index(env, name) end
    return index and index[name]
  end })
  return env
end

-- ---- history --------------------------------------------------------------------------------------
-- A text file, the oldest entry first, one a line; line ends within an entry are written as \n, backslashes as \\.

local History = {}
History.__index = History

local function folder_of_history()
  local state = os.getenv "XDG_STATE_HOME"
  if state and state ~= "" then return state .. "/melies" end
  local home = os.getenv "HOME"
  return home and home ~= "" and home .. "/.local/state/melies" or nil
end

local function escape(text) return (text:gsub("\\", "\\\\"):gsub("\n", "\\n")) end
local function unescape(text) return (text:gsub("\\(.)", function(c) return c == "n" and "\n" or c end)) end

-- Entries of the history file, and the object that adds to it. Without a place to write it is kept in memory only.
function repl.history(path)
  local folder = folder_of_history()
  path = path or (folder and folder .. "/history")
  local self, entries = setmetatable({ path = path }, History), {}
  local f = path and io.open(path, "rb")
  if f then
    for line in f:lines() do entries[#entries + 1] = unescape(line) end
    f:close()
  end
  local extra = #entries - repl.history_lines
  if extra > repl.history_lines / 2 then -- shorten it now and then, whole and under another name first
    local kept = {}
    for i = extra + 1, #entries do kept[#kept + 1] = entries[i] end
    entries = kept
    local out = io.open(path .. ".new", "wb")
    if out then
      for _, entry in ipairs(entries) do out:write(escape(entry), "\n") end
      if out:close() then os.rename(path .. ".new", path) end
    end
  end
  self.last = entries[#entries]
  return self, entries
end

function History:add(text)
  if not self.path or not text:find "%S" or text == self.last then return end
  self.last = text
  local f = io.open(self.path, "ab")
  if not f then
    local folder = self.path:match "^(.*)/"
    os.execute("mkdir -p -m 700 '" .. folder:gsub("'", "'\\''") .. "' 2>/dev/null")
    f = io.open(self.path, "ab")
  end
  if not f then self.path = nil return end -- no place for it: carry on without
  f:write(escape(text), "\n")
  f:close()
end

-- ---- the loop -------------------------------------------------------------------------------------

local function run_terminal(session, host)
  local history, entries = repl.history()
  for _, entry in ipairs(entries) do host.add_history(entry) end
  host.set_completer(function(text) return require("melies.complete").at(text, session.env) end)
  if not log.quiet then
    io.stderr:write("melies: Lua prompt; .help explains, Ctrl-D leaves\n")
  end
  while true do
    local line, why = host.read_line(session.pending and "......> " or "melies> ")
    if why == "eof" then
      if not session.pending then return 0 end
      session.pending = nil
    elseif why == "interrupt" then
      session.pending = nil
    else
      local before = session.pending
      local state = session:feed(line)
      if state ~= "more" then
        local text = before and before .. "\n" .. line or line
        host.add_history(text)
        history:add(text)
      end
      if state == "quit" then return 0 end
      io.stdout:flush()
    end
  end
end

local function run_lines(session)
  local broken
  session.write = function(text)
    local ok, message, number = io.stdout:write(text, "\n")
    if not ok then broken = { message = message, closed = number == EPIPE } end
  end
  jit.off(session.write) -- a compiled write that fails is written again by the interpreter, and the failure is lost
  for line in io.stdin:lines() do
    local state = session:feed((line:gsub("\r$", "")))
    if session.interrupted then return 130 end
    if broken then
      if not broken.closed then session.fail("standard output: " .. broken.message) end
      return broken.closed and not session.failed and 0 or 1
    end
    if state == "quit" then break end
  end
  session:finish()
  return session.failed and 1 or 0
end

-- The REPL on standard input and output; returns the exit code. Not a terminal: lines from standard input, exit code 1
-- if any of them failed.
function repl.run()
  local session = repl.session { env = repl.globals(_G) }
  local ok, host = pcall(require, "melies.host")
  if ok and term.isatty(0) and term.isatty(1) then
    session.fail = function(text) io.stderr:write(text, "\n") end
    return run_terminal(session, host)
  end
  return run_lines(session)
end

return repl
