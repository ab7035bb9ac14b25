-- Who may know whom: kernels <- core <- lua <- recipes <- examples, and one folder for each foreign library. Every
-- public function is described; every plugin file names the interface it is written for.
local t = require "harness"

local root = os.getenv("MELIES_ROOT") or "."

local function lines_of(path)
  local list = {}
  for line in io.lines(root .. "/" .. path) do list[#list + 1] = line end
  return list
end

-- Files under a folder whose names match, as paths from the root.
local function files(folder, pattern)
  local list = {}
  local pipe = io.popen(("cd '%s' && find %s -type f | sort"):format(root, folder))
  for path in pipe:lines() do
    if path:find(pattern) then list[#list + 1] = path end
  end
  pipe:close()
  return list
end

local function set(names)
  local s = {}
  for name in names:gmatch("%S+") do s[name] = true end
  return s
end

-- The folder a public header belongs to.
local home = {
  base = "base",
  profile = "base",
  tensor = "tensor",
  ops = "ops",
  sample = "sample",
  weights = "weights",
  hash = "media",
  json = "text",
  regex = "text",
  text = "text",
  media = "media", audio = "media", http = "net",
  filter = "media",
  train = "train",
  video = "video",
}
-- What the files of a folder may include of ours. kernels see nothing but each other.
local sees = {
  kernels = set "kernels",
  base = set "base",
  tensor = set "base tensor kernels",
  ops = set "base tensor ops kernels",
  sample = set "base tensor sample kernels",
  text = set "base text",
  net = set "base net",
  weights = set "base tensor weights text",
  media = set "base tensor media",
  video = set "base tensor video kernels",
  train = set "base tensor ops train kernels",
  host = set "base tensor ops sample weights text media video host",
}
-- What an include begins with, and the folders that may have it.
local foreign = {
  { "^oneapi/", "^core/ops/dnnl[%w_]*%.[ch]$" },
  { "^dnnl", "^core/ops/dnnl[%w_]*%.[ch]$" },
  { "^libav", "^core/media/" },
  { "^libsw", "^core/media/" },
  { "^turbojpeg", "^core/media/" },
  { "^jpeglib", "^core/media/" },
  { "^pcre2", "^core/text/" },
  { "^curl", "^core/net/" },
  { "^jansson", "^core/text/", "^core/weights/" },
  { "^lua", "^core/host/" },
  { "^lauxlib", "^core/host/" },
  { "^histedit", "^core/host/" },
  { "^editline", "^core/host/" },
}

-- "melies/ops.h", "ops/ops.h", "kernels/rows.h", "rows.h" -> ops, ops, kernels, the file's own folder; nil: a foreign one.
local function owner_of(include, angled, own)
  local public = include:match("^melies/([%w_]+)%.h$")
  if public then return home[public] or "an unknown public header" end
  if angled then return nil end
  if include == "melies_abi.h" then return own end
  return include:match("^([%w_]+)/") or own
end

local function includes_of(path)
  local list = {}
  for number, line in ipairs(lines_of(path)) do
    local open, name = line:match('^%s*#%s*include%s*([<"])([^>"]+)')
    if name then list[#list + 1] = { name = name, angled = open == "<", at = path .. ":" .. number } end
  end
  return list
end

local function expect_none(wrong)
  if #wrong > 0 then error("\n  " .. table.concat(wrong, "\n  "), 2) end
end

local c_files = files("core kernels", "%.[ch]$")
for _, path in ipairs(files("kernels", "%.inc$")) do c_files[#c_files + 1] = path end

t.test("#include points from core to kernels and down inside core", function()
  local wrong = {}
  for _, path in ipairs(c_files) do
    local own = path:match("^kernels/") and "kernels" or path:match("^core/([%w_]+)/")
    if own == "include" then own = home[path:match("([%w_]+)%.h$")] end
    if not sees[own] then wrong[#wrong + 1] = path .. ": a folder that this test does not know" end
    for _, include in ipairs(includes_of(path)) do
      local owner = owner_of(include.name, include.angled, own)
      if owner and sees[own] and not sees[own][owner] then
        wrong[#wrong + 1] = ("%s: %s includes %s"):format(include.at, own, include.name)
      end
    end
  end
  t.ok(#c_files > 50, "files were found")
  expect_none(wrong)
end)

t.test("a foreign library is known in one place", function()
  local wrong = {}
  for _, path in ipairs(c_files) do
    for _, include in ipairs(includes_of(path)) do
      for _, rule in ipairs(foreign) do
        if include.name:find(rule[1]) and not path:find(rule[2]) and not (rule[3] and path:find(rule[3])) then
          wrong[#wrong + 1] = include.at .. " includes " .. include.name
        end
      end
    end
  end
  expect_none(wrong)
end)

t.test("require points from examples and recipes to melies, never back", function()
  local wrong = {}
  local function scan(folder, allowed)
    for _, path in ipairs(files(folder, "%.lua$")) do
      for number, line in ipairs(lines_of(path)) do
        local code = line:gsub("%-%-.*", "")
        for name in code:gmatch("require%s*%(?%s*[\"']([^\"']+)[\"']") do
          if not allowed(name) then wrong[#wrong + 1] = ("%s:%d requires %s"):format(path, number, name) end
        end
      end
    end
  end
  scan("lua", function(name)
    return name == "melies" or name == "ffi" or name == "bit" or name:find("^melies%.") or name:find("^jit")
  end)
  scan("recipes examples", function(name) return name == "melies" end)
  expect_none(wrong)
end)

t.test("every public function is described", function()
  local wrong, count = {}, 0
  for _, path in ipairs(files("core/include", "%.h$")) do
    local list = lines_of(path)
    for number, line in ipairs(list) do
      local name = line:match("^MEL_API.-(mel_[%w_]+)%(")
      if line:find("^MEL_API") and not name then name = "?" end
      if name then
        count = count + 1
        -- Up through its group; one empty line may stand between the group and what describes it.
        local described, gaps = line:find("//", 1, true) ~= nil, 0
        for above = number - 1, 1, -1 do
          if described or gaps > 1 then break end
          described = list[above]:find("^//") ~= nil
          if list[above] == "" then gaps = gaps + 1 end
        end
        if not described then wrong[#wrong + 1] = ("%s:%d: %s"):format(path, number, name) end
      end
    end
  end
  t.ok(count > 60, "declarations were found")
  expect_none(wrong)
end)

t.test("a plugin file names its interface first", function()
  local wrong = {}
  local folders = "lua/melies/planners lua/melies/styles lua/melies/samplers lua/melies/schedules lua/melies/guides "
    .. "lua/melies/models lua/melies/passes "
    .. "lua/melies/checks lua/melies/transitions recipes"
  for _, path in ipairs(files(folders, "%.lua$")) do
    local first = lines_of(path)[1] or ""
    if not first:find("^%-%- melies%-api: 1%s*$") then wrong[#wrong + 1] = path .. ": " .. first end
  end
  expect_none(wrong)
end)

t.finish()
