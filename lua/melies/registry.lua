-- Finds plugins: samplers, schedules, guides, recipes, passes, checks, transitions, planners and styles are
-- tables that Lua files return.
--
-- Search order, first hit wins: every --plugin-path, the project's folder (./melies), the user's configuration folder
-- ($MELIES_CONFIG, or melies/ in $XDG_CONFIG_HOME, or ~/.config/melies), the built-ins. Each of these has a folder for
-- each kind (samplers/, recipes/, passes/ ...); a plugin file may also lie directly in a --plugin-path folder, or be named
-- itself. Folders are read anew at every call, so a file that was dropped in a moment ago is found; a file that was
-- read once is read again only after registry.reload(). What cannot be used is kept in registry.problems() and
-- disturbs nothing else.
local ffi = require "ffi"

local registry = {}

registry.API = 1

local FOLDERS = { sampler = "samplers", schedule = "schedules", guide = "guides", recipe = "recipes",
  step_cache = "step_caches", pass = "passes", check = "checks", transition = "transitions",
  planner = "planners", style = "styles" }
local KINDS = { "sampler", "schedule", "guide", "step_cache", "recipe", "pass", "check", "transition", "planner", "style" }
-- The function that a plugin of the kind must bring; a style is words and numbers.
local ENTRY = { sampler = "run", schedule = "sigmas", guide = "combine", step_cache = "decide", recipe = "run", pass = "new",
  check = "new", transition = "run", planner = "plan" }
-- Types of parameters and what they are in Lua. A recipe's declaration may have more (recipe.lua).
local PARAM_TYPES = { number = "number", integer = "number", boolean = "boolean", string = "string", enum = "string",
  list = "table" }

local plugin_paths = {}
local loaded = {}   -- path -> entry of a file that was read and is good
local problems = {} -- path -> { path, line, message }, of the latest look at it

-- ---- folders ------------------------------------------------------------------------------------

ffi.cdef [[
typedef struct { uint64_t ino; int64_t off; unsigned short reclen; unsigned char type; char name[256]; } melies_dirent;
void *opendir(const char *);
melies_dirent *readdir(void *);
int closedir(void *);
]]

-- Names in a folder, sorted; nil where it cannot be opened.
local function list_folder(path)
  local handle = ffi.C.opendir(path)
  if handle == nil then return nil end
  local names = {}
  while true do
    local item = ffi.C.readdir(handle)
    if item == nil then break end
    names[#names + 1] = ffi.string(item.name)
  end
  ffi.C.closedir(handle)
  table.sort(names)
  return names
end

local function exists(path)
  local f = io.open(path, "rb")
  if f then f:close() end
  return f ~= nil
end

-- The folder that holds the built-ins' Lua (…/lua), and the one above it, which holds recipes/: the source's root or
-- share/melies of an installed tree.
local function builtin_folders()
  local file = package.searchpath("melies.registry", package.path)
  if file then
    local lua = file:match("^(.*)/melies/registry%.lua$") or "."
    local above = lua:match("^(.*)/[^/]+$") or (lua == "lua" and "." or lua .. "/..")
    return lua, above
  end
  local root = os.getenv("MELIES_ROOT") or "."
  return root .. "/lua", root
end

local function config_folder()
  local own = os.getenv("MELIES_CONFIG")
  if own and own ~= "" then return own end
  local xdg = os.getenv("XDG_CONFIG_HOME")
  if xdg and xdg ~= "" then return xdg .. "/melies" end
  local home = os.getenv("HOME")
  return home and home ~= "" and home .. "/.config/melies" or nil
end

-- ---- problems -----------------------------------------------------------------------------------

local function problem(path, line, message)
  problems[path] = { path = path, line = line, message = message }
  return nil
end

-- The line of the first match of a pattern, else that of "return", else 1.
local function line_of(text, pattern)
  local function find(p)
    local number = 0
    for line in (text .. "\n"):gmatch("(.-)\n") do
      number = number + 1
      if line:find(p) then return number end
    end
  end
  return find(pattern) or find("^return") or 1
end

-- ---- one file -----------------------------------------------------------------------------------

-- The comment that opens the file, without the api line; nil where there is none.
local function leading_comment(text)
  local lines, number = {}, 0
  for line in (text .. "\n"):gmatch("(.-)\r?\n") do
    number = number + 1
    local comment = line:match("^%-%-%s?(.*)$")
    if not comment then break end
    if number > 1 then lines[#lines + 1] = comment end
  end
  local help = table.concat(lines, "\n"):gsub("%s+$", "")
  return help ~= "" and help or nil
end

-- Globals can be read; writing one is refused, since loading a plugin must change nothing.
local function guarded_environment()
  local env = setmetatable({}, {
    __index = _G,
    __newindex = function(_, key) error(("a plugin may not set the global '%s'; make it local"):format(tostring(key)), 2) end,
  })
  rawset(env, "_G", env)
  return env
end

-- One message for what is wrong with params, and the key it is about; nil where all is well.
local function check_params(kind, params)
  if params == nil then return nil end
  if type(params) ~= "table" then return "params is a " .. type(params) .. ", must be a table", "params" end
  for name, spec in pairs(params) do
    local function wrong(format, ...) return ("params.%s "):format(tostring(name)) .. format:format(...), tostring(name) end
    if type(name) ~= "string" then return "params has the key " .. tostring(name) .. ", must be names", "params" end
    if name == "space" and kind == "sampler" then return wrong("is a reserved name") end
    if type(spec) ~= "table" or type(spec[1]) ~= "string" then
      return wrong("must be a table that starts with a type, as { \"number\", default = 1 }")
    end
    if kind ~= "recipe" then
      local want = PARAM_TYPES[spec[1]]
      if not want then
        return wrong("has the unknown type '%s' (number, integer, boolean, string, enum, list)", spec[1])
      end
      if spec[1] == "enum" and (type(spec.choices) ~= "table" or #spec.choices == 0) then
        return wrong("is an enum without choices = { … }")
      end
      if spec[1] == "list" and spec.of ~= "number" then return wrong("is a list, which needs of = \"number\"") end
      if spec.default ~= nil then
        local _, message = registry.check_value(spec, spec.default)
        if message then return wrong("has a default that is not allowed: %s", message) end
      end
    end
  end
end

-- One message for what is wrong with a loaded table, and the key to look for; nil where all is well.
local function check_plugin(plugin, folder_kind)
  if type(plugin) ~= "table" then
    return ("the file returns %s, must return a table { kind = …, name = …, … }"):format(
      plugin == nil and "nothing" or "a " .. type(plugin)), "return"
  end
  local kind, name = plugin.kind, plugin.name
  if kind == nil then return "the field 'kind' is missing", "return" end
  if not FOLDERS[kind] then
    return ("kind = '%s' is not one of %s"):format(tostring(kind), table.concat(KINDS, ", ")), "kind"
  end
  if folder_kind and kind ~= folder_kind then
    return ("kind = '%s', but the file lies in %s/"):format(kind, FOLDERS[folder_kind]), "kind"
  end
  if name == nil then return "the field 'name' is missing", "return" end
  if type(name) ~= "string" or not name:find("^[%w_][%w_%.%+%-]*$") then
    return ("name = '%s' is not a name (letters, digits, _ . + -)"):format(tostring(name)), "name"
  end
  local entry = ENTRY[kind]
  if kind == "style" then
    local wrong, key = require("melies.style").check(plugin)
    if wrong then return wrong, key end
  elseif plugin[entry] == nil then
    return ("the field '%s' is missing: a %s needs that function"):format(entry, kind), "return"
  end
  for _, field in ipairs { "evals", entry } do
    if plugin[field] ~= nil and type(plugin[field]) ~= "function" then
      return ("%s is a %s, must be a function"):format(field, type(plugin[field])), field
    end
  end
  return check_params(kind, plugin.params)
end

-- Reads and checks one file: an entry, or nil with the problem noted.
local function load_file(path, folder_kind, origin)
  local file, reason = io.open(path, "rb")
  if not file then return problem(path, 0, "cannot be opened: " .. (tostring(reason):gsub("^.*: ", ""))) end
  local text = file:read("*a")
  file:close()
  if not text then return problem(path, 0, "cannot be read") end

  local api = text:match("^%-%-%s*melies%-api:%s*([%w%.]+)")
  if not api then return problem(path, 1, "the first line must be '-- melies-api: 1'; not loaded") end
  if tonumber(api) ~= registry.API then
    return problem(path, 1, ("written for melies-api %s; this melies has %d"):format(api, registry.API))
  end
  local chunk, message = loadstring(text, "@" .. path)
  if not chunk then
    return problem(path, tonumber(message:match(":(%d+): ")) or 1, (message:gsub("^.-:%d+: ", "")))
  end
  setfenv(chunk, guarded_environment())
  local line
  local ok, plugin = xpcall(chunk, function(err)
    for level = 2, 30 do
      local info = debug.getinfo(level, "Sl")
      if not info then break end
      if info.source == "@" .. path and info.currentline > 0 then line = info.currentline break end
    end
    return err
  end)
  if not ok then return problem(path, line or 1, (tostring(plugin):gsub("^[^\n]-:%d+: ", ""))) end

  local wrong, key = check_plugin(plugin, folder_kind)
  if wrong then
    local pattern = key == "return" and "^return" or "%f[%w_]" .. key:gsub("%p", "%%%0") .. "%s*=%f[^=]"
    return problem(path, line_of(text, pattern), wrong)
  end
  plugin.params = plugin.params or {}
  return { name = plugin.name, kind = plugin.kind, path = path, origin = origin, plugin = plugin,
    help = type(plugin.help) == "string" and plugin.help or leading_comment(text) }
end

-- ---- looking for a kind -------------------------------------------------------------------------

local function add_files(files, folder, kind, origin)
  local names = list_folder(folder)
  for _, name in ipairs(names or {}) do
    if name:find("%.lua$") and not name:find("^%.") then
      files[#files + 1] = { path = folder .. "/" .. name, kind = kind, origin = origin, base = folder }
    end
  end
  return names ~= nil
end

-- Every file that may hold a plugin of the kind, in search order.
local function candidates(kind)
  local files, folder = {}, FOLDERS[kind]
  for _, path in ipairs(plugin_paths) do
    if add_files(files, path, nil, "plugin-path") then
      add_files(files, path .. "/" .. folder, kind, "plugin-path")
      problems[path] = nil
    elseif exists(path) then
      files[#files + 1] = { path = path, origin = "plugin-path", base = path }
    else
      problem(path, 0, "--plugin-path: no such folder or file")
    end
  end
  add_files(files, "melies/" .. folder, kind, "project")
  local config = config_folder()
  if config then add_files(files, config .. "/" .. folder, kind, "user") end
  local lua, above = builtin_folders()
  add_files(files, kind == "recipe" and above .. "/" .. folder or lua .. "/melies/" .. folder, kind, "built-in")
  return files
end

-- All good plugins of a kind: an array sorted by name, and a map by name.
local function scan(kind)
  local by_name, array, seen = {}, {}, {}
  for _, file in ipairs(candidates(kind)) do
    local path = file.path
    local entry = not seen[path] and loaded[path]
    if not entry and not seen[path] then
      problems[path] = nil
      entry = load_file(path, file.kind, file.origin)
      loaded[path] = entry
    end
    seen[path] = true
    if entry and entry.kind == kind then
      local first = by_name[entry.name]
      if not first then
        entry.shadows, entry.base = {}, file.base
        by_name[entry.name] = entry
        array[#array + 1] = entry
      elseif first.base == file.base then
        problem(path, 1, ("the name '%s' is taken by %s"):format(entry.name, first.path))
      else
        first.shadows[#first.shadows + 1] = path
      end
    end
  end
  for path, what in pairs(problems) do -- forget what was wrong with files that are gone
    if what.line > 0 and not exists(path) then problems[path] = nil end
  end
  table.sort(array, function(a, b) return a.name < b.name end)
  return array, by_name
end

local function check_kind(kind, level)
  if FOLDERS[kind] then return end
  error(("no plugins of kind '%s' (%s)"):format(tostring(kind), table.concat(KINDS, ", ")), level + 1)
end

-- ---- what others call ---------------------------------------------------------------------------

-- options.plugin_paths: folders (or files) that come before all others.
function registry.configure(options)
  plugin_paths = {}
  for i, path in ipairs(options.plugin_paths or {}) do
    plugin_paths[i] = #path > 1 and path:gsub("/+$", "") or path
  end
  loaded, problems = {}, {}
end

function registry.kinds()
  local copy = {}
  for i, kind in ipairs(KINDS) do copy[i] = kind end
  return copy
end

-- The folder of a kind's plugins, which is also its plural.
function registry.folder(kind)
  check_kind(kind, 2)
  return FOLDERS[kind]
end

-- Entries { name, kind, path, origin, help, shadows = { paths }, plugin }, sorted by name; of every kind without one.
function registry.list(kind)
  if kind then
    check_kind(kind, 2)
    return (scan(kind))
  end
  local all = {}
  for _, each in ipairs(KINDS) do
    for _, entry in ipairs((scan(each))) do all[#all + 1] = entry end
  end
  return all
end

-- The entry of a name; nil and a message with the nearest name, or with what is wrong with a file of that name.
function registry.find(kind, name)
  check_kind(kind, 2)
  local array, by_name = scan(kind)
  if by_name[name] then return by_name[name] end
  for path, what in pairs(problems) do
    if path:match("([^/]+)%.lua$") == name then
      return nil, ("the %s '%s' cannot be used: %s:%d: %s"):format(kind, name, path, what.line, what.message)
    end
  end
  local names = {}
  for i, entry in ipairs(array) do names[i] = entry.name end
  return nil, ("no %s '%s'%s"):format(kind, tostring(name), require("melies.ffi.lib").suggest(tostring(name), names))
end

-- The plugin's table; nil and a message as find.
function registry.get(kind, name)
  check_kind(kind, 2)
  local entry, message = registry.find(kind, name)
  if not entry then return nil, message end
  return entry.plugin
end

-- What was skipped and why: { path, line, message }, sorted by path. line 0: about the path itself.
function registry.problems()
  for _, kind in ipairs(KINDS) do scan(kind) end
  local array = {}
  for _, what in pairs(problems) do array[#array + 1] = what end
  table.sort(array, function(a, b) return a.path < b.path end)
  return array
end

-- Forgets what was read, so that edited files count. With a kind and a name: that plugin as get gives it; else true.
function registry.reload(kind, name)
  if kind then check_kind(kind, 2) end
  loaded, problems = {}, {}
  if kind and name then return registry.get(kind, name) end
  return true
end

-- ---- parameters ---------------------------------------------------------------------------------

local function number_text(x) return ("%.14g"):format(x) end

-- The value as a spec { type, min =, max =, choices = } wants it, or nil and what is wrong with it.
function registry.check_value(spec, value)
  local kind = spec[1]
  local want = PARAM_TYPES[kind]
  if type(value) ~= want then
    return nil, ("is %s, must be %s"):format(type(value) == "string" and "'" .. value .. "'" or tostring(value),
      kind == "list" and "a list of numbers" or kind == "integer" and "an integer" or "a " .. want)
  end
  if kind == "integer" and value % 1 ~= 0 then return nil, ("is %s, must be an integer"):format(number_text(value)) end
  if kind == "enum" then
    for _, choice in ipairs(spec.choices) do
      if choice == value then return value end
    end
    return nil, ("is '%s', must be one of %s"):format(value, table.concat(spec.choices, ", "))
  end
  if kind == "list" then
    for i, x in ipairs(value) do
      if type(x) ~= "number" then return nil, ("has %s at %d, must hold numbers"):format(tostring(x), i) end
    end
  end
  if want == "number" then
    if value ~= value then return nil, "is not a number (NaN)" end
    if (spec.min and value < spec.min) or (spec.max and value > spec.max) then
      return nil, ("is %s, must be %s"):format(number_text(value),
        spec.min and spec.max and ("%s to %s"):format(number_text(spec.min), number_text(spec.max))
        or spec.min and "at least " .. number_text(spec.min) or "at most " .. number_text(spec.max))
    end
  end
  return value
end

-- The plugin's declared parameters with values given over defaults; nil and a message for an unknown name (with the
-- nearest), a value of the wrong type or out of range, a required one that is missing.
function registry.resolve_params(plugin, values)
  local result = {}
  local specs = plugin.params or {}
  local label = ("%s %s"):format(plugin.kind or "plugin", plugin.name or "?")
  for name, value in pairs(values or {}) do
    local spec = specs[name]
    if not spec then
      local names = {}
      for known in pairs(specs) do names[#names + 1] = known end
      table.sort(names)
      return nil, ("%s has no parameter '%s'%s"):format(label, tostring(name),
        require("melies.ffi.lib").suggest(tostring(name), names))
    end
    local checked, message = registry.check_value(spec, value)
    if message then return nil, ("%s: %s %s"):format(label, name, message) end
    result[name] = checked
  end
  for name, spec in pairs(specs) do
    if result[name] == nil then
      if spec.required then return nil, ("%s needs the parameter '%s'"):format(label, name) end
      result[name] = spec.default
    end
  end
  return result
end

return registry
