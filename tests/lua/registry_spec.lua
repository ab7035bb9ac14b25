-- Finding plugins: order, shadowing, what is skipped and why.
local t = require "harness"
local melies = require "melies"
local registry = require "melies.registry"
local ffi = require "ffi"

ffi.cdef [[
int setenv(const char *, const char *, int);
int chdir(const char *);
]]

local function mkdir(path) os.execute("mkdir -p '" .. path .. "'") end
local function write(path, text)
  mkdir(path:match("^(.*)/"))
  local f = assert(io.open(path, "wb"))
  f:write(text)
  f:close()
  return path
end
local function sampler(name, extra)
  return ([[
-- melies-api: 1
-- Says %s.
return { kind = "sampler", name = "%s", params = {}, run = function(_, x) return x end, %s }
]]):format(name, name, extra or "")
end

local project, config, extra = t.folder(), t.folder(), t.folder()
ffi.C.chdir(project)
ffi.C.setenv("MELIES_CONFIG", config, 1)
registry.configure {}

local function find(list, name)
  for _, entry in ipairs(list) do
    if entry.name == name then return entry end
  end
end
local function problem_of(path)
  for _, what in ipairs(registry.problems()) do
    if what.path == path then return what end
  end
end

t.test("built-ins come through the same door, without a problem", function()
  for kind, names in pairs {
    sampler = { "euler", "euler_ancestral", "heun", "dpm_2", "lms", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2s_ancestral", "ddim",
      "lcm", "uni_pc", "flow_dpmpp" },
    schedule = { "karras", "exponential", "polyexponential", "vp", "simple", "sgm_uniform", "beta", "flow" },
    guide = { "cfg", "cfg_rescale", "cfg_zero_star", "apg" },
  } do
    local list = registry.list(kind)
    for _, name in ipairs(names) do
      local entry = find(list, name)
      t.ok(entry, kind .. " " .. name)
      t.eq(entry.origin, "built-in")
      t.eq(entry.kind, kind)
      t.ok(entry.help and #entry.help > 20, name .. " has a doc comment")
      t.eq(entry.plugin.name, entry.path:match("([^/]+)%.lua$"), "name and file")
    end
    for i = 2, #list do t.ok(list[i - 1].name < list[i].name, "sorted") end
  end
  t.eq(#registry.problems(), 0)
  for _, kind in ipairs { "sampler", "schedule", "guide" } do
    for _, entry in ipairs(registry.list(kind)) do
      local first = entry.help:match("^[^\n]*")
      t.ok(#first <= 80 and first:find("%.$"), entry.path .. ": its comment starts with one short sentence")
    end
  end
  t.eq(table.concat(registry.kinds(), " "), "sampler schedule guide step_cache recipe pass check transition planner style")
end)

t.test("a file dropped into the user's folder is there at once, and gone when it is removed", function()
  t.eq(registry.get("sampler", "mine"), nil)
  local path = write(config .. "/samplers/mine.lua", sampler "mine")
  local plugin = registry.get("sampler", "mine")
  t.eq(plugin.name, "mine")
  local entry = registry.find("sampler", "mine")
  t.eq(entry.origin, "user")
  t.eq(entry.path, path)
  t.eq(entry.help, "Says mine.")
  os.remove(path)
  t.eq(registry.get("sampler", "mine"), nil)
end)

t.test("plugin path, project, user, built-in: the first wins and the rest is reported", function()
  local user = write(config .. "/samplers/euler.lua", sampler "euler")
  local own = write(project .. "/melies/samplers/euler.lua", sampler "euler")
  local given = write(extra .. "/anything.lua", sampler "euler")
  t.eq(registry.find("sampler", "euler").origin, "project")
  registry.configure { plugin_paths = { extra .. "/" } }
  local entry = registry.find("sampler", "euler")
  t.eq(entry.origin, "plugin-path")
  t.eq(entry.path, given)
  t.eq(entry.shadows[1], "melies/samplers/euler.lua")
  t.eq(entry.shadows[2], user)
  t.ok(entry.shadows[3]:find("lua/melies/samplers/euler.lua", 1, true), "the built-in last")
  os.remove(given)
  os.remove(own)
  t.eq(registry.find("sampler", "euler").origin, "user")
  os.remove(user)
  t.eq(registry.find("sampler", "euler").origin, "built-in")
  t.eq(#registry.find("sampler", "euler").shadows, 0)
  registry.configure {}
end)

t.test("a plugin path may be a folder of kinds, a folder of files, or a file", function()
  write(extra .. "/samplers/a.lua", sampler "from_kinds")
  write(extra .. "/flat.lua", sampler "from_flat")
  local single = write(t.folder() .. "/single.lua", sampler "from_file")
  registry.configure { plugin_paths = { extra, single, "/no/such/folder" } }
  for _, name in ipairs { "from_kinds", "from_flat", "from_file" } do t.ok(registry.get("sampler", name), name) end
  local what = problem_of("/no/such/folder")
  t.ok(what and what.message:find("no such folder", 1, true))
  registry.configure {}
  os.execute("rm -rf '" .. extra .. "'/*")
end)

t.test("what is broken is reported by file and line and disturbs nothing else", function()
  local cases = {
    { "syntax", "-- melies-api: 1\nreturn {\n  kind = = 3\n}", 3, "unexpected symbol" },
    { "noapi", "return {}", 1, "melies-api: 1" },
    { "oldapi", "-- melies-api: 2\nreturn {}", 1, "melies-api 2; this melies has 1" },
    { "nothing", "-- melies-api: 1\nlocal x = 1\n", 1, "returns nothing" },
    { "nokind", "-- melies-api: 1\n\nreturn { name = \"nokind\" }", 3, "'kind' is missing" },
    { "badkind", "-- melies-api: 1\nreturn {\n  kind = \"smapler\" }", 3, "is not one of" },
    { "elsewhere", "-- melies-api: 1\nreturn {\n  name = \"elsewhere\",\n  kind = \"guide\" }", 4, "lies in samplers/" },
    { "noname", "-- melies-api: 1\nreturn { kind = \"sampler\" }", 2, "'name' is missing" },
    { "norun", "-- melies-api: 1\nreturn { kind = \"sampler\", name = \"norun\" }", 2, "'run' is missing" },
    { "badrun", "-- melies-api: 1\nreturn { kind = \"sampler\", name = \"badrun\",\n  run = 7 }", 3, "must be a function" },
    { "raises", "-- melies-api: 1\nlocal function f() error(\"no luck\") end\n\nf()\n", 2, "no luck" },
    { "index", "-- melies-api: 1\nlocal x = nil\nreturn x.y", 3, "attempt to index" },
    { "global", "-- melies-api: 1\n\nleak = 1\nreturn {}", 3, "may not set the global 'leak'" },
    { "global2", "-- melies-api: 1\n_G.leak = 1\nreturn {}", 2, "may not set the global 'leak'" },
    { "param1", "-- melies-api: 1\nreturn { kind = \"sampler\", name = \"param1\", run = print,\n  params = 3 }", 3,
      "must be a table" },
    { "param2", "-- melies-api: 1\nreturn { kind = \"sampler\", name = \"param2\", run = print,\n"
      .. " params = { eta = { \"float\" } } }", 3, "unknown type 'float'" },
    { "param3", "-- melies-api: 1\nreturn { kind = \"sampler\", name = \"param3\", run = print, params = {\n eta = { \"number\", "
      .. "default = 3, max = 1 } } }", 3, "default that is not allowed" },
    { "param4", "-- melies-api: 1\nreturn { kind = \"sampler\", name = \"param4\", run = print, params =\n"
      .. " { space = { \"number\" } } }", 3, "reserved" },
  }
  write(config .. "/samplers/good.lua", sampler "good")
  for _, case in ipairs(cases) do write(("%s/samplers/%s.lua"):format(config, case[1]), case[2]) end
  t.ok(registry.get("sampler", "good"), "the good one is there")
  t.ok(registry.get("sampler", "euler"), "the built-ins are there")
  t.eq(#registry.problems(), #cases)
  for _, case in ipairs(cases) do
    local what = problem_of(("%s/samplers/%s.lua"):format(config, case[1]))
    t.ok(what, case[1])
    t.ok(what.message:find(case[4], 1, true), case[1] .. ": " .. what.message)
    t.eq(what.line, case[3], case[1] .. " line: " .. what.message)
  end
  t.eq(rawget(_G, "leak"), nil)
  local plugin, message = registry.get("sampler", "syntax")
  t.eq(plugin, nil)
  t.ok(message:find("syntax.lua:3:", 1, true), message)
  -- mended, it counts at once
  write(config .. "/samplers/syntax.lua", sampler "syntax")
  t.ok(registry.get("sampler", "syntax"))
  os.execute("rm -rf '" .. config .. "'/*")
  t.eq(#registry.problems(), 0)
end)

t.test("two files of one folder that claim a name: the first by file name wins", function()
  write(config .. "/samplers/a.lua", sampler "twin")
  local second = write(config .. "/samplers/b.lua", sampler "twin")
  t.ok(registry.find("sampler", "twin").path:find("a.lua", 1, true))
  t.ok(problem_of(second).message:find("'twin' is taken by", 1, true))
  os.execute("rm -rf '" .. config .. "'/*")
end)

t.test("unknown names and kinds", function()
  local plugin, message = registry.get("sampler", "eular")
  t.eq(plugin, nil)
  t.eq(message, "no sampler 'eular', did you mean 'euler'?")
  t.raises(function() registry.get("smapler", "euler") end, "no plugins of kind 'smapler'")
  t.raises(function() registry.list("samplers") end, "no plugins of kind 'samplers'")
  t.eq(#registry.list() > 30, true)
end)

t.test("an edited file counts after reload", function()
  local path = write(config .. "/samplers/edit.lua", sampler("edit", "version = 1"))
  t.eq(registry.get("sampler", "edit").version, 1)
  write(path, sampler("edit", "version = 2"))
  t.eq(registry.get("sampler", "edit").version, 1)
  t.eq(registry.reload("sampler", "edit").version, 2)
  write(path, "-- melies-api: 1\nreturn {")
  local plugin, message = registry.reload("sampler", "edit")
  t.eq(plugin, nil)
  t.ok(message:find("edit.lua:2: ", 1, true), message)
  os.execute("rm -rf '" .. config .. "'/*")
  registry.reload()
end)

t.test("parameters: defaults, types, ranges, the nearest name", function()
  local plugin = { kind = "sampler", name = "p", params = {
    eta = { "number", default = 1, min = 0, max = 2 }, order = { "integer", default = 3 }, on = { "boolean", default = false },
    how = { "enum", choices = { "up", "down" }, default = "up" }, list = { "list", of = "number" }, text = { "string" } } }
  local p = registry.resolve_params(plugin, { eta = 0.5 })
  t.eq(p.eta, 0.5)
  t.eq(p.order, 3)
  t.eq(p.on, false)
  t.eq(p.text, nil)
  for _, case in ipairs {
    { { etaa = 1 }, "no parameter 'etaa', did you mean 'eta'?" }, { { eta = 3 }, "eta is 3, must be 0 to 2" },
    { { eta = "1" }, "eta is '1', must be a number" }, { { eta = 0 / 0 }, "not a number" },
    { { order = 1.5 }, "order is 1.5, must be an integer" }, { { on = 1 }, "must be a boolean" },
    { { how = "left" }, "must be one of up, down" }, { { list = { 1, "x" } }, "has x at 2" },
  } do
    local none, message = registry.resolve_params(plugin, case[1])
    t.eq(none, nil)
    t.ok(message:find(case[2], 1, true), message)
  end
end)

t.test("a plugin from outside runs", function()
  write(config .. "/samplers/half.lua", [[
-- melies-api: 1
-- Goes half of the way to the estimate.
local melies = require "melies"
return {
  kind = "sampler", name = "half", params = { part = { "number", default = 0.5 } },
  run = function(denoise, x, sigmas, params, step)
    for i = 1, #sigmas - 1 do
      x = melies.tensor.lincomb { 1 - params.part, x, params.part, denoise(x, sigmas[i]) }
      step(i, x)
    end
    return x
  end,
}
]])
  local x = melies.sampling.run("half", function(x) return x:clone():fill_(0) end, melies.tensor.full({ 2 }, 8), { 1, 0.5, 0 })
  t.eq(x:get(1), 2)
  os.execute("rm -rf '" .. config .. "'/*")
end)

t.test("the plugins of docs/writing-a-sampler.md work as they are written there", function()
  local f = assert(io.open(os.getenv("MELIES_ROOT") .. "/docs/writing-a-sampler.md"))
  local page = f:read("*a")
  f:close()
  local count = 0
  for block in page:gmatch("```lua\n(.-)```") do
    local kind, name = block:match('kind = "(%w+)"'), block:match('name = "(%w+)"')
    if block:find("^%-%- melies%-api") then
      count = count + 1
      write(("%s/%ss/%s.lua"):format(config, kind, name), block)
      local plugin, message = registry.get(kind, name)
      t.ok(plugin, message)
    else
      assert(loadstring(block, "@writing-a-sampler.md"))()
    end
  end
  t.eq(count, 3)
  local T = melies.tensor
  local function denoise(x, s) return T.lincomb { (1 - s) / ((1 - s) ^ 2 + s * s), x } end
  local x = melies.sampling.run("midpoint", denoise, T.of { 1 }, melies.schedule.bent(40, {}), { params = { place = 0.4 } })
  t.near(x:get(1), 1, 0.02)
  os.execute("rm -rf '" .. config .. "'/*")
end)

t.test("finding everything takes little time", function()
  registry.reload()
  local start = os.clock()
  registry.list("sampler")
  registry.list("schedule")
  registry.list("guide")
  local first = os.clock() - start
  start = os.clock()
  for _ = 1, 20 do registry.get("sampler", "euler") end
  local each = (os.clock() - start) / 20
  print(("     first %.1f ms, then %.2f ms a look"):format(first * 1e3, each * 1e3))
  t.ok(first < 0.2 and each < 0.02, "far below the start-up budget")
end)

ffi.C.chdir("/")
t.finish()
