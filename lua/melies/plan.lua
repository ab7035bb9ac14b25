-- Plans: a prompt becomes a storyboard that a person reads and edits, and a storyboard becomes shots to render.
--
--   plan.make(prompt, { planner=, model=, seed=, fill=, pace=, style=, grid=, ... }) -> board, notes | nil, message
--   plan.read(path[, form]) -> board | nil, message, problems     plan.write(path, board[, form]) -> true | nil, message
--   plan.parse(text, form, name), plan.text(board, form)           the same for texts; forms: plan.forms
--   plan.check(board[, name]) -> a checked copy | nil, message, problems
--   plan.added(board) -> the whole prompt beside the shots' prompts, with marks | nil
--   plan.prompt(board, i) -> what the model is told of shot i      plan.diff(board, i) -> what that adds to the words | nil
--   plan.shots(prompt or board, options) -> { { text=, negative=, frames=, seconds=, seed=, overlap=, transition=,
--                                             who=, where=, camera=, light= }, ... } | nil, message
--   plan.fitting(board, i, model) -> the prompt with what the model has room for, and what was left out
--   plan.grid(model) -> { fps=, step=, window=, seconds(s), frames(s) }   model: an object, a name, or nil (starter)
--
-- The keys of a board are in plan/schema.lua; docs/planning.md has all.
local lib = require "melies.ffi.lib"
local compose = require "melies.plan.compose"
local forms = require "melies.plan.forms"
local schema = require "melies.plan.schema"

local M = { forms = forms.names, check = schema.check, prompt = compose.prompt, fitting = compose.fitting, diff = compose.diff,
  changes = compose.changes, duration = schema.duration, MAX_SECONDS = schema.MAX_SECONDS }

-- ---- the model's frame grid ----------------------------------------------------------------------------

-- Lengths that the model makes: 1 + step k frames. From config.json alone: no weights are read.
function M.grid(model)
  local fps, step, frames, text_len
  if type(model) == "table" and model.stride then
    fps, step, frames, text_len = model.defaults.fps, model.stride[1], model.defaults.frames, model.text_len
  else
    local folder, message = require("melies.pipeline").find(model or "starter")
    if not folder then return nil, message end
    local config
    config, message = require("melies.json").read(folder .. "/config.json")
    if type(config) ~= "table" then return nil, message or folder .. "/config.json: it should hold an object" end
    local sample, coder, dit = config.sample or {}, config.autoencoder or {}, config.dit or {}
    fps, frames, text_len = sample.fps or 16, sample.frames or 17, dit.text_len
    step = (coder.stride or type(coder.block) == "table" and coder.block or {})[1] or 4
  end
  local grid = { fps = fps, step = step, window = frames / fps, text_len = text_len }
  function grid.frames(seconds)
    return 1 + step * math.max(1, math.floor((seconds * fps - 1) / step + 0.5))
  end
  function grid.seconds(seconds) return grid.frames(seconds) / fps end
  return grid
end

-- ---- making ------------------------------------------------------------------------------------------

local MAKE = { planner = true, model = true, seed = true, fill = true, pace = true, style = true, grid = true, title = true,
  params = true }
local SHORT_TEXT = 64 -- tokens: a model that reads so few is told no camera or light of our own

-- notes: decisions { shot=, field=, value=, rule=, words= } in their order, and notices (texts for a person).
function M.make(prompt, options)
  if type(prompt) ~= "string" then error("plan.make: a prompt is wanted, not a " .. type(prompt), 2) end
  options = options or {}
  lib.check_options("plan.make", options, MAKE, 2)
  if #prompt > 1000000 then return nil, ("the prompt has %d bytes; a plan is made of 1000000 at most"):format(#prompt) end
  if not prompt:find("%w") and not prompt:find("[\128-\255]") then return nil, "the prompt has no words" end
  local grid, message = options.grid, nil
  if not grid then
    grid, message = M.grid(options.model)
  end
  if not grid then return nil, message end
  local fill = options.fill
  local notes = { decisions = {}, notices = {} }
  if fill == nil then
    fill = not (grid.text_len and grid.text_len < SHORT_TEXT)
    if not fill then
      notes.notices[1] = ("the model reads %d tokens: camera and light are left as the words have them"):format(grid.text_len)
    end
  end
  local function note(shot, field, value, rule, words)
    notes.decisions[#notes.decisions + 1] = { shot = shot, field = field, value = value, rule = rule, words = words }
  end
  local registry = require "melies.registry"
  local settings = { seed = options.seed or 0, fill = fill, pace = options.pace, grid = grid, notices = notes.notices }
  local name = options.planner or "rules"
  local plugin
  plugin, message = registry.get("planner", name)
  if not plugin then return nil, message end
  settings.params, message = registry.resolve_params(plugin, options.params)
  if not settings.params then return nil, message end
  local board
  board, message = plugin.plan(prompt, settings, note)
  if board then board, message = schema.check(board, "planner " .. name) end
  if not board and name ~= "rules" and not require("melies.ffi.lib").C.mel_canceled() then
    notes.notices[#notes.notices + 1] = ("the planner '%s' failed, the rules plan instead: %s"):format(name, message)
    notes.decisions = {}
    plugin = assert(registry.get("planner", "rules"))
    board, message = plugin.plan(prompt, settings, note)
    if board then board, message = schema.check(board, "planner rules") end
    name = "rules"
  end
  if not board then return nil, message end
  notes.planner = name
  board.prompt, board.seed = prompt, board.seed or settings.seed
  board.title = options.title or board.title
  if options.style then
    local style
    style, message = require("melies.style").get(options.style)
    if not style then return nil, message end
    board.style = options.style
  end
  for _, shot in ipairs(board.shots) do
    shot.seconds = grid.seconds(shot.seconds or grid.window)
  end
  return board, notes
end

-- The whole prompt beside the prompts of all shots: "{+added+} [-taken out-]". For planners whose shots have words of
-- their own.
function M.added(board)
  local prompts = {}
  for i = 1, #board.shots do prompts[i] = compose.prompt(board, i) .. "." end
  return compose.marked(board.prompt or "", table.concat(prompts, " "))
end

-- ---- files -------------------------------------------------------------------------------------------

local function check_form(form)
  for _, name in ipairs(forms.names) do if form == name then return end end
  error(("no form '%s'%s (%s)"):format(tostring(form), lib.suggest(tostring(form), forms.names),
    table.concat(forms.names, ", ")), 3)
end

function M.parse(text, form, name)
  form = form or forms.guess(nil, text)
  if not form then return nil, (name or "storyboard") .. ": it is none of " .. table.concat(forms.names, ", ") end
  check_form(form)
  return forms.read(text, form, name)
end

function M.text(board, form)
  form = form or "lua"
  check_form(form)
  local checked, message = schema.check(board)
  if not checked then error("plan.text: " .. message, 2) end
  return forms.write(checked, form)
end

function M.read(path, form)
  if form then check_form(form) end
  local text, message = require("melies.fs").read(path)
  if not text then return nil, message end
  form = form or forms.guess(path, text)
  if not form then
    return nil, ("%s: it is no storyboard (a Lua table, JSON, or the text of HoloCine or Wan2GP)"):format(path)
  end
  return forms.read(text, form, path:match("[^/]+$"))
end

-- Whole or not at all. The form is that of the ending: .lua, .json; else the Lua table.
function M.write(path, board, form)
  local text = M.text(board, form or forms.guess(path) or "lua")
  local temporary = path .. ".part"
  local f, message = io.open(temporary, "wb")
  if not f then return nil, message end
  local ok, why = f:write(text)
  local closed, why_closed = f:close()
  if ok and closed then ok, why = os.rename(temporary, path) else ok, why = nil, path .. ": " .. tostring(why or why_closed) end
  if not ok then
    os.remove(temporary)
    return nil, why
  end
  return true
end

-- ---- shots to render -----------------------------------------------------------------------------------

-- A board, or a prompt that is planned with make's options. With a model object as options.model, what it has no room for
-- stays out of text: dropped names it (style: its further phrases, mood, camera, light, look). Of the shots of an exact
-- board, `length` of their `frames` are shown, at options.fps (the model's) a second.
function M.shots(what, options)
  options = options or {}
  local board, message
  if type(what) == "string" then board, message = M.make(what, options)
  else board, message = schema.check(what) end
  if not board then return nil, message end
  local grid = options.grid
  if not grid then
    grid, message = M.grid(options.model)
    if not grid then return nil, message end
  end
  local out = {}
  local style
  if board.style then
    style, message = require("melies.style").get(board.style)
    if not style then return nil, message end
  end
  local fps = options.fps or grid.fps
  local ends = 0 -- seconds
  for i, shot in ipairs(board.shots) do
    local seconds = shot.seconds or grid.window
    local frames, length = grid.frames(seconds), nil
    if board.exact then
      -- Ends are rounded, not lengths, so that no error adds up.
      length = math.max(1, math.floor((ends + seconds) * fps + 0.5) - math.floor(ends * fps + 0.5))
      frames = 1 + grid.step * math.max(1, math.ceil((length - 1) / grid.step))
      ends = ends + seconds
    end
    local text, dropped = compose.fitting(board, i, options.model)
    out[i] = { text = text, dropped = dropped, frames = frames, length = length, seconds = (length or frames) / fps,
      negative = style and require("melies.style").negative(style) or "",
      seed = shot.seed or (board.seed or 0) + i - 1, overlap = shot.overlap,
      transition = shot.transition or (i == 1 and "none" or "cut"),
      who = shot.who, where = shot.where, camera = shot.camera, light = shot.light, style = style }
  end
  return out
end

-- ---- for people -----------------------------------------------------------------------------------------

-- The decisions of make, one a line, by shots.
function M.explain(notes)
  local lines, sorted = {}, {}
  for i, d in ipairs(notes.decisions) do sorted[i] = { d.shot * 1e7 + i, d } end
  table.sort(sorted, function(a, b) return a[1] < b[1] end)
  for _, pair in ipairs(sorted) do
    local d = pair[2]
    local value = #d.value > 60 and d.value:sub(1, 57) .. "..." or d.value
    lines[#lines + 1] = ("%s %-10s %-32s %s"):format(d.shot > 0 and ("shot %-3d"):format(d.shot) or "all     ", d.field,
      value:gsub("%s+", " "), d.rule)
  end
  return table.concat(lines, "\n")
end

return M
