-- Doc comments: the block of `--` lines above a definition, read from the source where it stands. Serves
-- `.help name` of the REPL and `melies help topic`.
local help = {}

local function lines_of(path)
  local f = io.open(path, "rb")
  if not f then return nil end
  local lines = {}
  for line in f:lines() do lines[#lines + 1] = (line:gsub("\r$", "")) end
  f:close()
  return lines
end

local function comment(line) return line:match "^%s*%-%-+%s?(.*)$" end

local function joined(block)
  while block[1] == "" do table.remove(block, 1) end
  while block[#block] == "" do block[#block] = nil end
  return #block > 0 and table.concat(block, "\n") or nil
end

-- The comment that ends on the line above line `at`; a rule ("-- ---- views ----") is not part of it.
local function above(lines, at)
  local block = {}
  for i = at - 1, 1, -1 do
    local text = comment(lines[i])
    if not text or text:find "^%-%-%-" then break end
    table.insert(block, 1, text)
  end
  return joined(block)
end

-- The comment that a file begins with, without the API line.
local function head(lines)
  local block = {}
  for _, line in ipairs(lines) do
    local text = comment(line)
    if not text then break end
    if not text:find "^melies%-api" then block[#block + 1] = text end
  end
  return joined(block)
end

-- The opening comment of the Lua file at path; nil where there is none.
function help.of_file(path)
  local lines = lines_of(path)
  return lines and head(lines)
end

-- The comment that begins with a call of name ("-- tensor.noise(shape, { ... }): ..."), for functions that other functions
-- make; else the one above an assignment to it.
local function about_name(lines, name)
  local call = "^%s*%-%-%s*[%w_%.:]*%f[%w_]" .. name .. "%s*[%({]"
  for i, line in ipairs(lines) do
    if line:find(call) then
      local last = i
      while lines[last + 1] and comment(lines[last + 1]) do last = last + 1 end
      local block = {}
      for k = i, last do block[#block + 1] = comment(lines[k]) end
      return joined(block)
    end
  end
  for i, line in ipairs(lines) do
    if line:find("[%.:]" .. name .. "%s*=%f[^=]") then
      local doc = above(lines, i)
      if doc then return doc end
    end
  end
end

-- The doc comment of a Lua function and the text of its first line; nil where its source is not a file. name: what it is
-- called, for functions that have no comment of their own.
function help.of_function(fn, name)
  local where = debug.getinfo(fn, "S")
  if where.what == "C" or where.source:sub(1, 1) ~= "@" then return nil end
  local lines = lines_of(where.source:sub(2))
  if not lines then return nil end
  local signature = (lines[where.linedefined] or ""):gsub("^%s*local%s+", ""):gsub("^%s+", "")
  signature = signature:match "^function%s+(.-%b())" or signature:match "^(.-)%s*=%s*function%s*%b()" and
    signature:gsub("%s*=%s*function%s*", ""):match "^.-%b()" or signature
  local doc = above(lines, where.linedefined)
  local last = name and name:match "[%w_]+$"
  if last and not doc then
    doc = about_name(lines, last)
    if not signature:find(last, 1, true) then signature = name end
  end
  return doc, signature, where.source:sub(2), where.linedefined
end

-- The file that a module is made of, through package.path.
function help.module_file(name)
  return package.searchpath and package.searchpath(name, package.path) or nil
end

-- The value of a dotted name ("melies.tensor.concat", "x.resize", "x:resize") in env, else nil.
function help.lookup(name, env)
  local value = env
  for part in name:gmatch "[^.:]+" do
    local ok, inner = pcall(function() return value[part] end)
    if not ok or inner == nil then return nil end
    value = inner
  end
  return value
end

local function plugin_text(entry)
  local plugin = entry.plugin
  if not plugin then
    local ok, found = pcall(function() return (require("melies.registry").get(entry.kind, entry.name)) end)
    plugin = ok and found or {}
  end
  local out = { ("%s %s%s"):format(entry.kind, entry.name, entry.path and "  (" .. entry.path .. ")" or "") }
  if plugin.help then out[#out + 1] = plugin.help end
  local doc = entry.path and help.of_file(entry.path)
  if doc and doc ~= plugin.help then out[#out + 1] = "" out[#out + 1] = doc end
  if entry.kind == "recipe" then
    local ok, text = pcall(function() return require("melies.recipe").help(plugin) end)
    if ok then return text .. (doc and "\n\n" .. doc or "") end
  end
  local names = {}
  for name in pairs(plugin.params or {}) do names[#names + 1] = name end
  table.sort(names)
  if #names > 0 then out[#out + 1] = "" out[#out + 1] = "parameters:" end
  for _, name in ipairs(names) do
    local spec = plugin.params[name]
    local facts = { tostring(type(spec) == "table" and spec[1] or type(spec)) }
    if type(spec) == "table" then
      if spec.default ~= nil then facts[#facts + 1] = "default " .. tostring(spec.default) end
      if spec.min then facts[#facts + 1] = "from " .. tostring(spec.min) end
      if spec.max then facts[#facts + 1] = "to " .. tostring(spec.max) end
    end
    out[#out + 1] = ("  %-14s %s%s"):format(name, table.concat(facts, ", "),
      type(spec) == "table" and spec.help and "  " .. spec.help or "")
  end
  return table.concat(out, "\n")
end

-- Entries of the plugins called name, of every kind.
local function plugins_named(name)
  local ok, entries = pcall(function() return require("melies.registry").list() end)
  local found = {}
  for _, entry in ipairs(ok and entries or {}) do
    if entry.name == name and not entry.shadowed_by then found[#found + 1] = entry end
  end
  return found
end

-- What is known about name: a plugin, a function, a method of tensors, a module. env: where names are looked up
-- (the REPL's globals). Text, or nil.
function help.about(name, env)
  local out = {}
  for _, entry in ipairs(plugins_named(name)) do out[#out + 1] = plugin_text(entry) end
  local value
  for _, try in ipairs {
    function() return help.lookup(name, env) end,
    function() return help.lookup((name:gsub("^melies[.:]?", "")), require "melies") end,
    function() return require("melies.tensor").methods[name:match "[%w_]+$"] end,
  } do
    local ok, found = pcall(try)
    if ok and found ~= nil then value = found break end
  end
  if type(value) == "function" then
    local doc, signature, path, line = help.of_function(value, name)
    if path then
      out[#out + 1] = ("%s\n%s\n(%s:%d)"):format(signature, doc or "(no comment)", path, line)
    elseif not doc then
      out[#out + 1] = name .. ": a built-in function of LuaJIT"
    end
  elseif type(value) == "table" then
    local module = name:gsub("^melies%.", "")
    local path = help.module_file("melies." .. module)
    local doc = path and help.of_file(path)
    if doc then out[#out + 1] = doc end
    local names = {}
    for key, v in pairs(value) do if type(key) == "string" and type(v) == "function" then names[#names + 1] = key end end
    table.sort(names)
    if #names > 0 then out[#out + 1] = "functions: " .. table.concat(names, ", ") end
  end
  return #out > 0 and table.concat(out, "\n\n") or nil
end

return help
