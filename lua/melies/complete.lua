-- Completion at the prompt: names and fields of values, methods, dot commands, names of plugins and files inside
-- strings, and names of parameters inside the table of a call.
-- Looks at values, never calls the user's functions.
local complete = {}

local function sorted_unique(list)
  local seen, out = {}, {}
  for _, name in ipairs(list) do
    if not seen[name] then seen[name] = true out[#out + 1] = name end
  end
  table.sort(out)
  return out
end

local function starting_with(list, start)
  local out = {}
  for _, name in ipairs(list) do
    if name:sub(1, #start) == start then out[#out + 1] = name end
  end
  return sorted_unique(out)
end

-- ---- where the cursor is ------------------------------------------------------------------------

-- Reads text as Lua tokens as far as they matter here: the string that is open at its end (its content), and the
-- stack of open brackets with their positions.
local function scan(text)
  local at, open = 1, {}
  while at <= #text do
    local c = text:sub(at, at)
    if c == "-" and text:sub(at, at + 1) == "--" then
      local stop = text:find("\n", at, true)
      if not stop then return { comment = true, open = open } end
      at = stop + 1
    elseif c == '"' or c == "'" then
      local i = at + 1
      while true do
        local d = text:sub(i, i)
        if d == "" then return { string = text:sub(at + 1), string_at = at, open = open } end
        if d == "\\" then i = i + 1 elseif d == c then break end
        i = i + 1
      end
      at = i + 1
    else
      if c == "(" or c == "{" or c == "[" then open[#open + 1] = { char = c, at = at }
      elseif c == ")" or c == "}" or c == "]" then open[#open] = nil end
      at = at + 1
    end
  end
  return { open = open }
end

-- ---- names of plugins and files -----------------------------------------------------------------

local function plugin_names(kind)
  local ok, entries = pcall(function() return require("melies.registry").list(kind) end)
  local out = {}
  for _, entry in ipairs(ok and entries or {}) do out[#out + 1] = entry.name end
  return out
end

local function is_kind(name)
  local ok, kinds = pcall(function() return require("melies.registry").kinds() end)
  for _, kind in ipairs(ok and kinds or {}) do if kind == name then return true end end
  return false
end

local function file_names(start)
  local folder, name = start:match "^(.*/)([^/]*)$"
  folder, name = folder or "", name or start
  local p = io.popen("ls -1ap '" .. (folder == "" and "." or folder):gsub("'", "'\\''") .. "' 2>/dev/null")
  if not p then return {} end
  local out = {}
  for line in p:lines() do
    if line ~= "./" and line ~= "../" and (name:sub(1, 1) == "." or line:sub(1, 1) ~= ".") then
      out[#out + 1] = folder .. line
    end
  end
  p:close()
  return out
end

local function in_string(text, state)
  local before = text:sub(1, state.string_at - 1)
  local kind = before:match "([%a_]+)%s*=%s*$" or before:match "([%a_]+)%s*%(%s*$"
    or before:match "%(%s*[\"'](%a+)[\"']%s*,%s*$"
  local names = {}
  if kind == "run" then kind = "recipe" end
  if not state.string:find("/", 1, true) then names = plugin_names(kind and is_kind(kind) and kind or nil) end
  local found = starting_with(names, state.string)
  if #found == 0 then found = starting_with(file_names(state.string), state.string) end
  return #state.string, found
end

-- ---- parameters -----------------------------------------------------------------------------------

local function keys_of(t)
  local out = {}
  for key in pairs(t or {}) do if type(key) == "string" then out[#out + 1] = key end end
  return out
end

-- Names of options of the call whose table is open: a plugin named in an earlier argument has declared parameters; a
-- Lua function's doc comment and first line name its options as `name=`. open: the brackets, the table's last.
local function parameters(text, open, env)
  local head = text:sub(1, open[#open].at - 1)
  local callee, arguments = head:match "([%a_][%w_%.:]*)%s*$", "" -- f { ...
  if not callee then
    local at
    for i = #open - 1, 1, -1 do
      if open[i].char == "(" then at = open[i].at break end
    end
    if not at then return {} end
    callee, arguments = text:sub(1, at - 1):match "([%a_][%w_%.:]*)%s*$", head:sub(at + 1) -- f(x, { ... or { key = { ...
    if not callee then return {} end
  end
  local out = {}
  for name in arguments:gmatch "[\"']([^\"']+)[\"']" do
    local ok, entries = pcall(function() return require("melies.registry").list() end)
    for _, entry in ipairs(ok and entries or {}) do
      if entry.name == name then
        local params = entry.plugin and entry.plugin.params
        if entry.kind == "recipe" then
          local good, all = pcall(function() return (require("melies.recipe").params(entry.plugin)) end)
          if good then params = all end
        end
        for _, key in ipairs(keys_of(params)) do out[#out + 1] = key end
      end
    end
  end
  local help = require "melies.help"
  local fn = help.lookup(callee, env)
  local method = callee:match ":([%a_][%w_]*)$"
  if type(fn) ~= "function" and method then
    local ok, found = pcall(function() return require("melies.tensor").methods[method] end)
    fn = ok and found or nil
  end
  if type(fn) == "function" then
    local doc, signature = help.of_function(fn, callee)
    for key in ((doc or "") .. "\n" .. (signature or "")):gmatch "%f[%w_]([%a_][%w_]*)%s?=%f[^=]" do
      out[#out + 1] = key
    end
  end
  return out
end

-- ---- names ----------------------------------------------------------------------------------------

local tensor_fields = { "shape", "dtype", "ndim", "handle" }

-- Names of the fields of value, also those that its metatable gives.
local function fields(value, only_functions)
  local out, seen = {}, {}
  local function add(t)
    if type(t) ~= "table" or seen[t] then return end
    seen[t] = true
    for key, v in pairs(t) do
      if type(key) == "string" and key:find "^[%a_][%w_]*$" and (not only_functions or type(v) == "function") then
        out[#out + 1] = key
      end
    end
    local meta = getmetatable(t)
    if type(meta) == "table" then add(rawget(meta, "__index")) end
  end
  if type(value) == "string" then add(string) return out end
  if require("melies.show").is_tensor(value) then
    for _, name in ipairs(only_functions and {} or tensor_fields) do out[#out + 1] = name end
    local ok, T = pcall(require, "melies.tensor")
    if ok then add(T.methods) end
    return out
  end
  add(value)
  if value == package.loaded.melies then
    for _, name in ipairs(complete.modules()) do out[#out + 1] = name end
  end
  return out
end

-- Names of melies' modules: the files beside this one.
function complete.modules()
  local here = debug.getinfo(1, "S").source:match "^@(.*)/[^/]*$"
  local out = {}
  for _, path in ipairs(here and file_names(here .. "/") or {}) do
    local name = path:match "([%a_]+)%.lua$"
    if name and name ~= "init" and name ~= "cli" then out[#out + 1] = name end
  end
  return out
end

local keywords = { "and", "break", "do", "else", "elseif", "end", "false", "for", "function", "if", "in", "local", "nil",
  "not", "or", "repeat", "return", "then", "true", "until", "while" }

local function visible(names, start)
  if start:sub(1, 1) == "_" then return names end
  local out = {}
  for _, name in ipairs(names) do if name:sub(1, 1) ~= "_" then out[#out + 1] = name end end
  return out
end

local function names_at(text, env)
  local chain = text:match "[%a_][%w_%.:]*$" or ""
  if text:sub(1, #text - #chain):find "[%.:%]%)]$" then return 0, {} end -- a field of something that is not a name
  local base, mark, word = chain:match "^(.*)([%.:])([%w_]*)$"
  if not base then
    local names = fields(env)
    for _, name in ipairs(keywords) do names[#names + 1] = name end
    names[#names + 1] = "melies"
    for _, name in ipairs(complete.modules()) do names[#names + 1] = name end
    return #chain, starting_with(visible(names, chain), chain)
  end
  local value = require("melies.help").lookup(base, env)
  if value == nil then return 0, {} end
  return #word, starting_with(visible(fields(value, mark == ":"), word), word)
end

local function dot_command(text)
  local name, rest = text:match "^%s*%.(%a*)(.*)$"
  local commands = {}
  for _, c in ipairs(require("melies.repl").commands) do commands[#commands + 1] = c[1] end
  if rest == "" then return #name, starting_with(commands, name) end
  local word = rest:match "^%s+([%w_%.:+-]*)$"
  if name == "reload" and word then return #word, starting_with(plugin_names(), word) end
  return nil, word, name
end

-- text: the line up to the cursor; env: the globals. Returns how many bytes before the cursor are replaced, and the
-- list of candidates for them.
function complete.at(text, env)
  if text:find "^%s*%.%a*" then
    local n, found, name = dot_command(text)
    if n then return n, found end
    local rest = text:match "^%s*%.%a+%s+(.*)$"
    if not rest then return 0, {} end
    if name == "help" and not rest:find "[%.:]" then
      local count, names = names_at(rest, env)
      for _, plugin in ipairs(starting_with(plugin_names(), rest)) do names[#names + 1] = plugin end
      return count, sorted_unique(names)
    end
    text = rest
  end
  local state = scan(text)
  if state.comment then return 0, {} end
  if state.string then return in_string(text, state) end
  local innermost = state.open[#state.open]
  if innermost and innermost.char == "{" then
    local inside = text:sub(innermost.at + 1)
    local word = inside:match "^%s*([%a_]?[%w_]*)$" or inside:match ".*[,;]%s*([%a_]?[%w_]*)$"
    if word then
      local found = starting_with(parameters(text, state.open, env), word)
      if #found > 0 then
        for i, name in ipairs(found) do found[i] = name .. " = " end
        return #word, found
      end
    end
  end
  return names_at(text, env)
end

return complete
