-- Random words through the parameters of a recipe: whatever they are, parse gives values, or nil, a message and an exit
-- code. Two uses: require it for `run(plugin, rounds, seed)`, or
--   luajit tests/fuzz/fuzz_recipe.lua ROUNDS SEED    (with LUA_PATH and MELIES_LIB as ctest sets them)
local recipe = require "melies.recipe"

local M = {}

local random = math.random

local function any(list) return list[random(#list)] end

local function bytes(n)
  local out = {}
  for i = 1, n do out[i] = string.char(random(0, 255)) end
  return table.concat(out)
end

local values = { "", "0", "1", "-1", "7", "2.5", "1e3", "1e-3", "1e309", "-1e309", "nan", "inf", "0x10", "007", " 5 ",
  "9007199254740993", "18446744073709551616", "yes", "no", "on", "off", "maybe", "true", "64x48", "0x0", "8x99999",
  "1x", "x1", "640*480", "1:30", "1:", ":1", "99:99.9", "2.5s", "s", "a,b,c", ",", ",,,", "1,two", "a, ,b", "/", "/tmp",
  "/nowhere/film.mp4", "/dev/null", "euler", "eulr", "flow", "cfg", "starter", "--", "-", "-o", "-h x", "--prompt",
  "a ball\nrolls", "\r\n", "\0", "\27[31m", "\255\254", "ein Ball \195\164", "%s%d%n", "%", "(", "[", "^$" }

local function value()
  local kind = random(12)
  if kind == 1 then return bytes(random(0, 40)) end
  if kind == 2 then return any({ "a", "9", ",", "\n", "-", "\0" }):rep(random(1, 3000)) end
  if kind == 3 then return tostring((random() - 0.5) * 10 ^ random(-20, 40)) end
  if kind == 4 then return any(values) .. any(values) end
  return any(values)
end

-- A name as declared, misspelled, with dashes, of a plugin's own parameter, or noise.
local function name(names)
  local kind, known = random(10), any(names)
  if kind == 1 then return bytes(random(0, 20)) end
  if kind == 2 then return known .. any { "x", "-", "_", ".", ".eta", ".=", " ", "\n", "\0" } end
  if kind == 3 then return known:sub(1, random(#known)) end
  if kind == 4 then return "no-" .. known end
  if kind == 5 then return any { "sampler.eta", "sampler.", "schedule.sigma_max", "guide.scale", ".", "..", "sampler.a.b" } end
  return known
end

local function word_list(all, names)
  local words = {}
  for _ = 1, random(0, 7) do
    local kind = random(6)
    if kind == 1 then
      words[#words + 1] = value()
    elseif kind == 2 then
      words[#words + 1] = "--" .. name(names) .. "=" .. value()
    elseif kind == 3 then
      words[#words + 1] = any { "-o", "-h", "-x", "-", "--", "--help", "-oo" }
    else
      words[#words + 1] = "--" .. name(names)
      if random(5) > 1 then words[#words + 1] = value() end
    end
  end
  -- Half of them are complete, so that later checks are reached.
  local complete = random(2) == 1
  for _, parameter in ipairs(names) do
    if complete and all[parameter].required then
      local kind = all[parameter][1]
      local file = kind == "image" or kind == "video" or kind == "file"
      words[#words + 1] = "--" .. parameter .. "=" .. (file and "/dev/null" or value())
    end
  end
  return words
end

-- What the words looked like, for a report.
local function shown(words)
  local out = {}
  for i, word in ipairs(words) do out[i] = ("%q"):format(word:sub(1, 100)) end
  return table.concat(out, " ")
end

-- How many of the rounds gave values. Raises at the first that breaks the rules.
function M.run(plugin, rounds, seed)
  local all, names = recipe.params(plugin)
  local accepted = 0
  math.randomseed(seed or 1)
  for _ = 1, rounds do
    local words = word_list(all, names)
    local ok, got, message, code = pcall(recipe.parse, plugin, words)
    local wrong
    if not ok then wrong = "raised " .. tostring(got)
    elseif type(got) == "table" then accepted = accepted + 1
    elseif got ~= nil then wrong = "gave a " .. type(got)
    elseif type(message) ~= "string" or message == "" then wrong = "gave no message"
    elseif code ~= recipe.OK and message:find("%c") then wrong = ("the message has control characters: %q"):format(message)
    elseif code ~= recipe.OK and #message > 1000 then wrong = ("the message has %d bytes"):format(#message)
    elseif code ~= recipe.OK and code ~= recipe.USAGE and code ~= recipe.FAILED then wrong = "exit code " .. tostring(code)
    end
    if wrong then error(("%s: %s: %s"):format(plugin.name, shown(words), wrong), 0) end
  end
  return accepted
end

-- The recipes of a source tree, loaded.
function M.recipes(root)
  local list = {}
  local pipe = io.popen(("ls '%s'/recipes/*.lua"):format(root))
  for path in pipe:lines() do list[#list + 1] = assert(recipe.load_file(path)) end
  pipe:close()
  return list
end

if arg and arg[0] and arg[0]:find("fuzz_recipe%.lua$") then
  local rounds, seed = tonumber(arg[1]) or 10000, tonumber(arg[2]) or os.time()
  for _, plugin in ipairs(M.recipes(os.getenv("MELIES_ROOT") or ".")) do
    print(("fuzz %s: %d word lists from seed %d, %d accepted"):format(plugin.name, rounds, seed,
      M.run(plugin, rounds, seed)))
  end
end

return M
