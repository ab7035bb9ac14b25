-- luajit tests/kill_resume.lua [N]: a short job is killed N times (200) at random moments, and goes on each time.
-- MELIES_ROOT, MELIES_BUILD, LUA_PATH and MELIES_LIB as for the tests in tests/lua.
local kills = require "kills"

local root = os.getenv "MELIES_ROOT" or "."
local pipe = io.popen "mktemp -d"
local folder = pipe:read "*l"
pipe:close()
local n = tonumber(arg[1]) or 200
local result = kills.run(n, { program = (os.getenv "MELIES_BUILD" or root .. "/build") .. "/melies", folder = folder,
  seed = tonumber(arg[2]) or 1 })
os.execute("rm -rf '" .. folder .. "'")
for _, line in ipairs(result.differs) do print(line) end
print(("%d kills: %d identical results, %d of them resumed from recorded work"):format(n, result.same, result.resumed))
os.exit(result.same == n and #result.differs == 0 and 0 or 1)
