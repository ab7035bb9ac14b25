-- Messages for people: all to stderr, one line each, and out of the way of a progress line.
local log = {
  quiet = false, -- --quiet: only warnings and errors
  debug = false, -- --debug: tracebacks
}

-- A progress line that is on the screen registers here how to take it away and bring it back.
log.guard = { hide = function() end, show = function() end }

local function write(text)
  log.guard.hide()
  io.stderr:write(text, "\n")
  log.guard.show()
end

-- log.say(format, ...): news that --quiet silences.
function log.say(format, ...)
  if not log.quiet then write(format:format(...)) end
end

-- log.warn(format, ...): something a person should know although the work goes on.
function log.warn(format, ...) write("melies: warning: " .. format:format(...)) end

-- log.fail(format, ...): why it ends.
function log.fail(format, ...) write("melies: " .. format:format(...)) end

-- One line for an error value, whatever it is: its lines joined, or the first one where that would be long. A place in
-- melies' own files is left out of a refusal (it says nothing to the user), and kept in a fault.
function log.one_line(e)
  if type(e) == "table" then e = rawget(e, "failure") or rawget(e, "message") or rawget(e, "text") or tostring(e) end
  local text = tostring(e)
  if not (text:find("attempt to ", 1, true) or text:find("bad argument", 1, true)) then
    text = text:gsub("[^%s:]*/lua/melies/[%w_/]+%.lua:%d+: ", "")
  end
  local line = text:gsub("%s*\n%s*", "; ")
  return #line <= 300 and line or text:match "^[^\n]*"
end

return log
