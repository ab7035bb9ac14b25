-- melies sound FILE: what a sound file is like. main(words, write) returns an exit code, and a message where it failed.
local M = {}

local OK, FAILED, USAGE = 0, 1, 2
local known = { "--json", "--plot", "--from", "--seconds" }

local function options_of(words)
  local o, i = {}, 1
  while words[i] do
    local word, value = words[i]:match "^(%-%-[%w-]+)=(.*)$"
    word = word or words[i]
    if word == "--json" and not value then o.json = true
    elseif word == "--plot" or word == "--from" or word == "--seconds" then
      if not value then
        i = i + 1
        value = words[i]
        if not value then return nil, ("sound: %s wants a value"):format(word) end
      end
      if word ~= "--plot" then
        local n = tonumber(value)
        if not n or n < 0 or n ~= n or n == math.huge then
          return nil, ("sound: %s is '%s', must be seconds"):format(word, value)
        end
        value = n
      end
      o[word:sub(3)] = value
    elseif word:find "^%-%-?%a" then
      return nil, ("sound: unknown option '%s'%s"):format(word, require("melies.ffi.lib").suggest(word, known))
    elseif o.file then return nil, ("sound: unknown argument '%s'"):format(word)
    else o.file = words[i] end
    i = i + 1
  end
  if not o.file then return nil, "sound: which file?" end
  return o
end

function M.main(words, write)
  local o, message = options_of(words)
  if not o then return USAGE, message end
  local sound = require "melies.sound"
  local analysis
  analysis, message = sound.analyse(o.file, { from = o.from, seconds = o.seconds })
  if not analysis then return FAILED, message end
  if o.plot then
    local ok
    ok, message = require("melies.fs").write(o.plot, sound.plot(analysis))
    if not ok then return FAILED, message end
  end
  if o.json then write(require("melies.json").encode(sound.data(analysis))) else write(sound.text(analysis)) end
  return OK
end

return M
