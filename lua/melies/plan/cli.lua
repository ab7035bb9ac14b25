-- melies plan and melies memory. Each returns an exit code, and a message where it failed.
local M = {}

local OK, FAILED, USAGE = 0, 1, 2

local valued = { ["-o"] = "output", ["--output"] = "output", ["--form"] = "form", ["--planner"] = "planner",
  ["--model"] = "model",
  ["--seed"] = "seed", ["--pace"] = "pace", ["--style"] = "style", ["--title"] = "title", ["--endpoint"] = "endpoint",
  ["--llm"] = "llm", ["--audio"] = "audio" }
local flags = { ["--explain"] = { "explain", true }, ["--fill"] = { "fill", true }, ["--no-fill"] = { "fill", false },
  ["--fill-audio"] = { "fill_audio", true } }

-- Options and the one other word, or nil and a message.
local function options_of(words)
  local out, i = {}, 1
  while words[i] do
    local word, value = words[i], nil
    local name = word:match("^(%-%-[%w-]+)=")
    if name then word, value = name, words[i]:sub(#name + 2) end
    if flags[word] and not value then out[flags[word][1]] = flags[word][2]
    elseif valued[word] then
      if not value then
        i = i + 1
        value = words[i]
        if not value then return nil, ("plan: %s wants a value"):format(word) end
      end
      out[valued[word]] = value
    elseif word:find("^%-%-?%a") then
      local known = {}
      for key in pairs(valued) do known[#known + 1] = key end
      for key in pairs(flags) do known[#known + 1] = key end
      return nil, ("plan: unknown option '%s'%s"):format(word, require("melies.ffi.lib").suggest(word, known))
    elseif out.what then return nil, ("plan: unknown argument '%s'; a prompt of several words wants quotes"):format(word)
    else out.what = word end
    i = i + 1
  end
  return out
end

local function one_of(name, value, list)
  for _, known in ipairs(list) do if known == value then return end end
  return ("plan: --%s is '%s', must be one of %s%s"):format(name, value, table.concat(list, ", "),
    require("melies.ffi.lib").suggest(value, list))
end

-- A board from a file or a prompt: board, notes (nil where nothing was planned), or nil and a message.
local function board_of(o)
  local plan = require "melies.plan"
  local make = { planner = o.planner, model = o.model, seed = o.seed, fill = o.fill, pace = o.pace, style = o.style,
    title = o.title,
    params = (o.endpoint or o.llm) and { endpoint = o.endpoint, model = o.llm } or nil }
  if o.what == "-" then return plan.make(io.stdin:read("*a") or "", make) end
  local stat = #o.what < 1000 and not o.what:find("\n") and require("melies.fs").stat(o.what)
  if not stat then
    if o.what:find("%.%a+$") and not o.what:find("%s") then return nil, o.what .. ": there is no such file" end
    return plan.make(o.what, make)
  end
  local text, message = require("melies.fs").read(o.what)
  if not text then return nil, message end
  local form = require("melies.plan.forms").guess(o.what, text)
  if form and form ~= "wan2gp" then return plan.parse(text, form, o.what) end
  return plan.make(text, make)
end

function M.plan(words, io_)
  local plan, log = require "melies.plan", require "melies.log"
  local o, message = options_of(words)
  if not o then return USAGE, message end
  if not o.what then return USAGE, "plan: a prompt, or a file with one, is wanted" end
  if o.seed then
    local n = tonumber(o.seed)
    if not n or n % 1 ~= 0 or n < 0 then return USAGE, ("plan: --seed is '%s', must be a whole number"):format(o.seed) end
    o.seed = n
  end
  local wrong = o.form and one_of("form", o.form, plan.forms) or o.pace and one_of("pace", o.pace, { "calm", "normal", "fast" })
  if wrong then return USAGE, wrong end
  local board, notes = board_of(o)
  if not board then return FAILED, notes end
  if type(notes) == "table" and notes.decisions then
    for _, text in ipairs(notes.notices) do log.say("melies: %s", text) end
    if o.explain then io.stderr:write(plan.explain(notes), "\n") end
    if not io_.quiet and notes.planner ~= "rules" then
      io.stderr:write(plan.added(board) or "nothing was added", "\n")
    elseif not io_.quiet then
      for i = 1, #board.shots do
        local diff = plan.diff(board, i)
        if diff then io.stderr:write(("shot %d  %s\n"):format(i, (diff:gsub("%s+", " ")))) end
      end
    end
  end
  if o.audio then
    local analysis, lines
    analysis, message = require("melies.sound").analyse(o.audio)
    if not analysis then return FAILED, message end
    local grid = plan.grid(o.model)
    board, lines = require("melies.steer_cuts").cut(board, analysis, { grid = grid, fill = o.fill_audio, pace = o.pace })
    if not board then return FAILED, lines end
    for _, line in ipairs(lines) do log.say("%s", line) end
  elseif o.fill_audio then return USAGE, "plan: --fill-audio wants --audio FILE" end
  if o.output then
    local ok
    ok, message = plan.write(o.output, board, o.form)
    if not ok then return FAILED, message end
    io_.write(o.output)
  else io_.write((plan.text(board, o.form or "lua"):gsub("\n$", ""))) end
  return OK
end

function M.memory(words, io_)
  local bank = require("melies.memory_bank")
  local what, name = words[1], words[2]
  if what == "list" and not name then
    local entries, message = bank.list()
    if not entries then return FAILED, message end
    for _, e in ipairs(entries) do
      io_.write(("%-20s %-10s %s"):format(e.name, e.kind, (e.description or ""):match("^[^\n]*")))
    end
    if #entries == 0 and not io_.quiet then io.stderr:write("nothing is remembered in ", bank.folder(), "\n") end
    return OK
  elseif (what == "show" or what == "forget") and name and not words[3] then
    local got, message
    if what == "show" then got, message = bank.describe(name)
    else
      got, message = bank.forget(name)
      got = got and "forgotten: " .. name
    end
    if not got then return FAILED, message end
    io_.write(got)
    return OK
  end
  if what == "show" or what == "forget" then
    return USAGE, name and ("memory %s: unknown argument '%s'"):format(what, words[3]) or ("memory %s: which name?"):format(what)
  end
  return USAGE, ("memory: %s (there are list, show, forget)%s"):format(what and "unknown: '" .. what .. "'" or "which one?",
    require("melies.ffi.lib").suggest(what or "", { "list", "show", "forget" }))
end

return M
