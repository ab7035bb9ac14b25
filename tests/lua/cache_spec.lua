-- The cache on disk: keys, whole entries only, damage, limits, several processes, folders that cannot be written.
local t = require "harness"
local melies = require "melies"
local cache, fs, log, T = melies.cache, melies.fs, melies.log, melies.tensor

local warned = {}
log.warn = function(format, ...) warned[#warned + 1] = format:format(...) end
local function last_warning()
  local text = warned[#warned]
  return text or ""
end

local function fresh(limit) return cache.at(t.folder() .. "/deep/cache", { limit = limit }) end

local function write(path, text)
  local f = assert(io.open(path, "wb"))
  f:write(text)
  f:close()
end

t.test("SHA-256 of values: what differs gives another hash, what is equal the same", function()
  local values = {
    "", "a", "ab", 1, "1", true, "true", { "a", "b" }, { "ab" }, { "a", { "b" } }, { { "a" }, "b" }, { x = 1 }, { x = 2 },
    { y = 1 }, { 1 }, {}, T.of { 1, 2 }, T.of { 2, 1 }, T.of({ 1, 2 }, { 2, 1 }), T.of({ 1, 2 }, nil, "s32"), 1.5, -1.5,
  }
  local seen = {}
  for i, value in ipairs(values) do
    local hash = cache.hash(value)
    t.ok(#hash == 64 and hash:find "^%x+$", hash)
    t.ok(not seen[hash], ("values %s and %d have one hash"):format(tostring(seen[hash]), i))
    seen[hash] = i
  end
  t.eq(cache.hash { a = 1, b = { 2, "x" } }, cache.hash { b = { 2, "x" }, a = 1 })
  t.eq(cache.hash(T.of { 1, 2, 3, 4 }:slice(1, 2, 3)), cache.hash(T.of { 2, 3 }), "a view counts by its values")
  t.raises(function() cache.hash(print) end, "function")
end)

t.test("what is put comes back, with bits and metadata; other keys do not", function()
  local c = fresh()
  local key = c:key("text", { ids = { 5, 6, 1 }, weights = "abc" })
  t.ok(key ~= c:key("text", { ids = { 5, 61 }, weights = "abc" }))
  t.ok(key ~= c:key("video", { ids = { 5, 6, 1 }, weights = "abc" }))
  t.eq(c:get("text", key), nil)
  local x = T.noise({ 3, 5 }, { seed = 4 })
  t.ok(c:put("text", key, { x = x, n = T.of({ 7 }, nil, "i64") }, { prompt = "a ball" }))
  local got, metadata = c:get("text", key)
  t.close(got.x, x, 0, 0)
  t.eq(got.n:item(), 7) t.eq(metadata.prompt, "a ball")
  t.eq(c:get("video", key), nil)
  t.eq(#c:list(), 1) t.eq(c:list()[1].kind, "text")
  t.eq(#warned, 0)
end)

t.test("damaged entries are told once, removed, and never used", function()
  local c = fresh()
  local key = c:key("text", "damage")
  local function path() return c:path("text", key) end
  local damages = {
    function(text) return text:sub(1, #text - 1) .. string.char((text:byte(-1) + 1) % 256) end, -- one bit of a value
    function(text) return text:sub(1, #text - 5) end,                                          -- cut short
    function() return "" end,
    function() return "not a file of weights at all, but long enough for a header" end,
  }
  for i, damage in ipairs(damages) do
    t.ok(c:put("text", key, { x = T.of { 1, 2, 3 } }))
    write(path(), damage(fs.read(path())))
    local before = #warned
    t.eq(c:get("text", key), nil, "damage " .. i)
    t.eq(#warned, before + 1) t.ok(last_warning():find("damaged", 1, true), last_warning())
    t.eq(fs.stat(path()), nil, "removed")
    t.eq(c:get("text", key), nil) t.eq(#warned, before + 1)
  end
end)

t.test("verify finds what is damaged or under a wrong name; clear removes by age", function()
  local c = fresh()
  for i = 1, 4 do t.ok(c:put("text", c:key("text", i), { x = T.of { i } })) end
  local good, bad = c:verify()
  t.eq(good, 4) t.eq(#bad, 0)
  local entries = c:list()
  write(entries[1].path, "broken")
  os.rename(entries[2].path, c:path("video", entries[2].key))
  good, bad = c:verify()
  t.eq(good, 2) t.eq(#bad, 2)
  t.eq(#c:list(), 2)
  fs.touch(c:list()[1].path, os.time() - 100000)
  local count, bytes = c:clear { older = 86400 }
  t.eq(count, 1) t.ok(bytes > 0)
  write(c.folder .. "/text-00ff.safetensors.part-1-1", "unfinished")
  fs.touch(c.folder .. "/text-00ff.safetensors.part-1-1", os.time() - 4000)
  t.eq(c:clear(), 1) t.eq(#c:list(), 0)
  t.eq(#fs.list(c.folder), 0, "unfinished files of dead processes go too")
  t.eq(#cache.at("/nowhere/at/all"):list(), 0)
end)

t.test("the limit holds by removing what was used longest ago", function()
  local c = fresh(40000)
  for i = 1, 8 do
    t.ok(c:put("text", c:key("text", i), { x = T.full({ 1000 }, i) }))
    fs.touch(c:path("text", c:key("text", i)), os.time() - 1000 + i)
  end
  t.ok(c:get("text", c:key("text", 1)), "used now")
  for i = 9, 12 do t.ok(c:put("text", c:key("text", i), { x = T.full({ 1000 }, i) })) end
  local total = 0
  for _, e in ipairs(c:list()) do total = total + e.size end
  t.ok(total <= 40000, total)
  t.ok(c:get("text", c:key("text", 1)), "kept: it was used") t.ok(c:get("text", c:key("text", 12)), "kept: the last one")
  t.eq(c:get("text", c:key("text", 2)), nil, "the oldest went")
  t.eq(c:put("text", "big", { x = T.zeros { 20000 } }), false) -- larger than the whole limit
end)

t.test("a folder that cannot be written is told once; reading goes on", function()
  local file = t.folder() .. "/file"
  write(file, "x")
  for _, folder in ipairs { file, file .. "/below", "/proc/melies" } do
    local c, before = cache.at(folder), #warned
    t.eq(c:put("text", c:key("text", 1), { x = T.of { 1 } }), false)
    t.eq(c:put("text", c:key("text", 2), { x = T.of { 1 } }), false)
    t.eq(#warned, before + 1, folder) t.ok(last_warning():find("going on without", 1, true), last_warning())
    t.eq(c:get("text", c:key("text", 1)), nil)
  end
end)

t.test("one lock, several holders: only one has it", function()
  local path = t.folder() .. "/lock"
  local release = t.ok(fs.lock(path))
  t.eq(fs.lock(path), nil)
  release()
  t.ok(fs.lock(path))()
end)

t.test("several processes write and read one folder at once", function()
  local folder = t.folder()
  local script = folder .. "/work.lua"
  write(script, [[
    local melies = require "melies"
    local T, c = melies.tensor, melies.cache.at(arg[1], { limit = 60000 })
    melies.log.warn = function(format, ...) print("warning: " .. format:format(...)) end
    for round = 1, 40 do
      local n = (round * tonumber(arg[2])) % 11
      local key = c:key("text", n)
      local got = c:get("text", key)
      if got and got.x:amax() ~= n then print "wrong" end
      if not got and not c:put("text", key, { x = T.full({ 2000 }, n) }) then print "not kept" end
    end
    print "done"
  ]])
  local luajit = arg[-1] or "luajit"
  local pipes = {}
  for i = 1, 3 do pipes[i] = io.popen(("%s %s %s/shared %d 2>&1"):format(luajit, script, folder, i)) end
  for i = 1, 3 do
    t.eq(pipes[i]:read "*a", "done\n")
    pipes[i]:close()
  end
  local c = cache.at(folder .. "/shared")
  local good, bad = c:verify()
  t.ok(good > 0) t.eq(#bad, 0)
end)

t.test("files are known by content, large ones by samples of it", function()
  local folder = t.folder()
  local a, b = folder .. "/a", folder .. "/b"
  write(a, ("x"):rep(3000000)) write(b, ("x"):rep(3000000))
  t.eq(cache.identity(a), cache.identity(b))
  local before = cache.identity(a)
  write(a, ("x"):rep(2999999) .. "y")
  t.ok(cache.identity(a) ~= before, "the last byte counts")
  t.ok(cache.identity { a, b } ~= cache.identity { b, a })
  local got, message = cache.identity(folder .. "/none")
  t.eq(got, nil) t.ok(message:find("none", 1, true))
  -- Sparse files over the 64 MB up to which every byte counts.
  for _, path in ipairs { a, b } do
    local f = assert(io.open(path, "wb"))
    f:seek("set", 80 * 2 ^ 20)
    f:write "end"
    f:close()
    fs.touch(path, 1000000)
  end
  t.eq(cache.identity(a), cache.identity(b))
  before = cache.identity(a)
  fs.touch(a, 1000001)
  t.ok(cache.identity(a) ~= before, "the time of change counts")
end)

t.test("melies cache list, verify, clear", function()
  local folder = t.folder()
  local c = cache.at(folder .. "/c")
  for i = 1, 3 do c:put("text", c:key("text", i), { x = T.of { i } }) end
  local program = os.getenv "MELIES_BUILD" .. "/melies"
  local function run(words)
    local p = io.popen(("MELIES_CACHE='%s/c' '%s' cache %s 2>&1; echo $?"):format(folder, program, words))
    local text = p:read "*a"
    p:close()
    return text
  end
  t.ok(run "list":find("3 entries, ", 1, true)) t.ok(run "list":find "\n0\n$")
  write(c:list()[1].path, "broken")
  local text = run "verify"
  t.ok(text:find("2 entries are whole, 1 were damaged", 1, true) and text:find "\n1\n$", text)
  t.ok(run "clear --older 7d":find("0 entries removed", 1, true))
  t.ok(run "clear":find("2 entries removed", 1, true))
  t.ok(run "list":find("0 entries", 1, true))
  t.ok(run "clear --older soon":find "\n2\n$") t.ok(run "cleer":find("did you mean 'clear'", 1, true)) t.ok(run "":find "\n2\n$")
end)

t.finish()
