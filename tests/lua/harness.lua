-- A spec is a Lua file: local t = require "harness"; t.test("what", function() ... end); t.finish()
local t = { passed = 0, failed = 0 }

local function say(level, format, ...) error(format:format(...), level + 1) end

function t.test(name, fn)
  local ok, message = xpcall(fn, debug.traceback)
  if ok then t.passed = t.passed + 1 print("ok   " .. name)
  else t.failed = t.failed + 1 print("FAIL " .. name .. "\n" .. tostring(message)) end
end
function t.ok(value, what) if not value then say(2, "not so: %s", what or tostring(value)) end return value end
function t.eq(got, want, what)
  if got ~= want then say(2, "%sgot %s, wanted %s", what and what .. ": " or "", tostring(got), tostring(want)) end
end
function t.near(got, want, tolerance, what)
  if not (math.abs(got - want) <= tolerance) then
    say(2, "%sgot %.9g, wanted %.9g within %g", what and what .. ": " or "", got, want, tolerance)
  end
end
-- Tensors of one shape: |got - want| <= atol + rtol*|want| everywhere.
function t.close(got, want, atol, rtol, what)
  local g, w = got:list(), want:list()
  if #g ~= #w then say(2, "%s: %d values, wanted %d", what or "close", #g, #w) end
  local worst, at = -1, 0
  for i = 1, #g do
    local e = math.abs(g[i] - w[i]) - (rtol or 0) * math.abs(w[i])
    if not (e <= worst) then worst, at = e, i end
    if e ~= e then break end
  end
  if not (worst <= (atol or 0)) then
    say(2, "%s: at %d got %.9g, wanted %.9g (over by %.3g)", what or "close", at, g[at], w[at], worst - (atol or 0))
  end
end
-- fn raises, and the message holds pattern (plain text).
function t.raises(fn, pattern)
  local ok, message = pcall(fn)
  if ok then say(2, "did not raise; wanted '%s'", pattern) end
  if not tostring(message):find(pattern, 1, true) then say(2, "raised '%s', wanted '%s'", tostring(message), pattern) end
  return message
end
-- A scratch folder, removed by finish().
local folders = {}
function t.folder()
  local p = io.popen("mktemp -d")
  local dir = p:read("*l")
  p:close()
  folders[#folders + 1] = dir
  return dir
end
function t.finish()
  for _, dir in ipairs(folders) do os.execute("rm -rf '" .. dir .. "'") end
  print(("%d passed, %d failed"):format(t.passed, t.failed))
  os.exit(t.failed == 0 and 0 or 1)
end
return t
