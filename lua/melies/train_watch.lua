-- What looks on while a network is trained: a log of every step, a plot of the loss, the time left, samples, a held-out
-- loss with the best weights kept, and an early stop. For any run of melies.train.
--
--   local watch = assert(train_watch.new { folder = "out/run", steps = 1000 })
--   local run = assert(train.new { folder = "out/run", steps = 1000, ..., on_step = watch.on_step })
--   assert(watch:follow(run))           the log of steps that a resumed run makes again is cut off
--   local ok, message = run:run()       true and a reason where it stopped early
--   watch:finish()
--
-- train_watch.new{...} -> watch, or nil and a message. All but folder and steps may be left out:
--   folder         log.jsonl, loss.svg, samples/, best.safetensors go there
--   steps          how many steps the run has, for the time left
--   title          of the plot ("Loss"); plot_s = 10: seconds between two drawings; it is drawn at the end too
--   bar            a progress bar (job:progress(label, steps)); by default one of its own, false: none
--   heldout        function(step) -> number: the loss on what is not trained on, with the same noise every time; called
--                  every heldout_every = 100 steps, and after the last
--   patience       stop where the held-out loss was not lower for so many looks one after the other; least = 0: by how
--                  much it must be lower, as a part of it
--   best           function() -> { name = tensor } to keep in best.safetensors where the held-out loss is the lowest yet
--                  (false: nothing; by default run:weights(true)); best_metadata: texts that stand in it
--   sample         function(step) -> image [H, W, 3] or clip [T, H, W, 3] (drawn as a contact sheet), called every
--                  sample_every = 500 steps, and after the last: samples/step-NNNNNNNN.png (ending = ".png")
--   on_record      function(record): called after all this
--
-- log.jsonl has an object a line: step, loss, lr, norm, seconds (of the step), heldout where it was looked at, sample
-- (the file), and the numbers that the loss gave. Everything else is read from it: a run that is resumed stops where it
-- would have stopped. A log or plot that cannot be written (a full disk) is told of once, and the training goes on.
--
--   train_watch.read(path) -> list of records | nil, message
--   train_watch.svg({ records, ... }, { title =, names = { "run" }, marks = }) -> svg text
local fs = require "melies.fs"
local json = require "melies.json"
local lib = require "melies.ffi.lib"
local log = require "melies.log"
local tensor = require "melies.tensor"
local C = lib.C

local M = {}
local Watch = {}
Watch.__index = Watch

-- ---- the log ---------------------------------------------------------------------------------------------------------

-- Records of a log; a last line that was cut off is left out.
function M.read(path)
  local text, message = fs.read(path)
  if not text then return nil, message end
  local list = {}
  for line in text:gmatch "[^\n]+" do
    local ok, record = pcall(json.decode, line)
    if ok and type(record) == "table" and type(record.step) == "number" then list[#list + 1] = record end
  end
  return list
end

-- ---- the plot --------------------------------------------------------------------------------------------------------

local POINTS = 400 -- of a curve; more are put together

-- Points { step, value }: means of stretches where there are many.
local function curve(records, field)
  local all = {}
  for _, r in ipairs(records) do
    if type(r[field]) == "number" then all[#all + 1] = { r.step, r[field] } end
  end
  local per = math.ceil(#all / POINTS)
  if per <= 1 then return all end
  local out = {}
  for first = 1, #all, per do
    local last, x, y = math.min(first + per - 1, #all), 0, 0
    for i = first, last do x, y = x + all[i][1], y + all[i][2] end
    out[#out + 1] = { x / (last - first + 1), y / (last - first + 1) }
  end
  return out
end

-- Each point the mean of those around it, a twentieth of the curve on each side at most.
local function smooth(points)
  local out, sums = {}, { [0] = 0 }
  for i, p in ipairs(points) do sums[i] = sums[i - 1] + p[2] end
  for i, p in ipairs(points) do
    local reach = math.min(math.floor(#points / 20), i - 1, #points - i)
    out[i] = { p[1], (sums[i + reach] - sums[i - reach - 1]) / (2 * reach + 1) }
  end
  return out
end

local svg_known = { title = true, names = true, marks = true }
function M.svg(runs, o)
  o = o or {}
  lib.check_options("train_watch.svg", o, svg_known)
  local series, low, high = {}, math.huge, 0
  for i, records in ipairs(runs) do
    local name = o.names and o.names[i] and o.names[i] .. ": " or ""
    local points, heldout = curve(records, "loss"), curve(records, "heldout")
    for _, p in ipairs(points) do low, high = math.min(low, p[2]), math.max(high, p[2]) end
    series[#series + 1] = { name = name .. "loss", points = smooth(points), kind = "line" }
    if #heldout > 0 then series[#series + 1] = { name = name .. "held-out loss", points = heldout, kind = "line" } end
  end
  return require("melies.plot").svg { title = o.title or "Loss", x = { label = "step" },
    y = { label = "loss", log = low > 0 and high > 8 * low or nil }, series = series, marks = o.marks }
end

-- ---- a watch ---------------------------------------------------------------------------------------------------------

local known = { folder = true, steps = true, title = true, plot_s = true, bar = true, heldout = true,
  heldout_every = true, patience = true, least = true, best = true, best_metadata = true, sample = true,
  sample_every = true, ending = true, on_record = true }

function M.new(o)
  lib.check_options("train_watch.new", o, known)
  if type(o.folder) ~= "string" or type(o.steps) ~= "number" then
    error("train_watch.new: folder and steps are wanted", 2)
  end
  local ok, message = fs.make(o.folder)
  if not ok then return nil, message end
  local self = setmetatable({ o = o, folder = o.folder, path = o.folder .. "/log.jsonl", records = {}, waited = 0,
    drawn = -math.huge, told = {} }, Watch)
  self.on_step = function(record) return self:step(record) end
  return self
end

-- Told once for each kind of trouble, until it works again.
local function tell(self, what, ok, message)
  if not ok and not self.told[what] then log.warn("%s", tostring(message)) end
  self.told[what] = not ok
  return ok
end

local function drop_log(self)
  if self.file then self.file:close() end
  self.file = nil
end

local function append(self, record)
  local message
  if not self.file then
    self.file, message = io.open(self.path, "ab")
    if not self.file then return nil, message end
  end
  local ok, why = self.file:write(json.encode(record), "\n")
  if ok then ok, why = self.file:flush() end
  if not ok then
    drop_log(self)
    return nil, self.path .. ": " .. tostring(why)
  end
  return true
end

-- The held-out loss of a record counts: is it the best one yet?
local function consider(self, record)
  local value = record.heldout
  if not value then return false end
  if value == value and (not self.best or value < self.best * (1 - (self.o.least or 0))) then
    self.best, self.best_step, self.waited = value, record.step, 0
    return true
  end
  self.waited = self.waited + 1
  return false
end

local function patience_is_over(self)
  local patience = self.o.patience
  if not patience or self.waited < patience then return nil end
  return ("the held-out loss was lowest at step %s (%.4g), and not lower in the %d looks since"):format(
    tostring(self.best_step), self.best or 0 / 0, self.waited)
end

-- The run that is watched. nil and a message where the log of a resumed run cannot be written.
function Watch:follow(run)
  self.run = run
  local old = fs.stat(self.path) and M.read(self.path) or {}
  self.records = {}
  self.best, self.best_step, self.waited = nil, nil, 0
  local lines = {}
  for _, record in ipairs(old) do
    if record.step <= run.step then
      self.records[#self.records + 1] = record
      lines[#lines + 1] = json.encode(record)
      consider(self, record)
    end
  end
  if #old > 0 then
    drop_log(self)
    local ok, message = fs.write(self.path, #lines > 0 and table.concat(lines, "\n") .. "\n" or "")
    if not ok then return nil, message end
  end
  local over = patience_is_over(self)
  if over then run:stop(over) end
  return true
end

-- Draws loss.svg from the log.
function Watch:plot()
  self.drawn = C.mel_seconds()
  if #self.records < 2 then return true end
  local marks = self.best_step and { { x = self.best_step, label = "best" } } or nil
  return tell(self, "plot", fs.write(self.folder .. "/loss.svg", M.svg({ self.records }, { title = self.o.title,
    marks = marks })))
end

local function keep_best(self, step)
  local o = self.o
  if o.best == false then return true end
  local metadata = { ["melies.step"] = tostring(step), ["melies.heldout"] = ("%.9g"):format(self.best) }
  for key, value in pairs(o.best_metadata or {}) do metadata[key] = value end
  local weights = o.best and o.best() or self.run:weights(true)
  return require("melies.weights").save(self.folder .. "/best.safetensors", weights, metadata)
end

-- An image or a clip as a file.
local function save_sample(self, step, shown)
  local ok, message = fs.make(self.folder .. "/samples")
  if not ok then return nil, message end
  if not tensor.is(shown) then error("train_watch: sample must return a tensor of frames", 0) end
  local media = require "melies.media"
  if shown.ndim == 4 then shown = media.contact_sheet(shown) end
  local name = ("samples/step-%08d%s"):format(step, self.o.ending or ".png")
  ok, message = media.save(self.folder .. "/" .. name, shown)
  return ok and name, message
end

-- After each step: what train.new wants as on_step.
function Watch:step(record)
  local o, step = self.o, record.step
  local last = step == o.steps
  local better = false
  if o.heldout and (last or step % (o.heldout_every or 100) == 0) then
    record.heldout = o.heldout(step)
    better = consider(self, record)
  end
  if better and self.run then tell(self, "best", keep_best(self, step)) end
  if o.sample and (last or step % (o.sample_every or 500) == 0) then
    local name, message = save_sample(self, step, o.sample(step))
    if tell(self, "sample", name, message) then record.sample = name end
  end
  if record.warning then log.warn("%s", record.warning) end
  local kept = {}
  for key, value in pairs(record) do
    if (type(value) == "number" and value - value == 0) or key == "sample" then kept[key] = value end
  end
  self.records[#self.records + 1] = kept
  tell(self, "log", append(self, kept))
  if self.bar == nil and o.bar ~= nil then self.bar = o.bar end
  if self.bar == nil then
    self.bar = require("melies.progress").bar { label = o.title and o.title:lower() or "training", total = o.steps }
    self.bar:step(step - 1)
  end
  if self.bar then
    self.bar:step(step, ("loss %.4g%s"):format(record.loss, self.best and (", held out %.4g"):format(self.best) or ""))
  end
  if C.mel_seconds() - self.drawn >= (o.plot_s or 10) then self:plot() end
  local over = patience_is_over(self)
  if over and self.run then self.run:stop(over) end
  if o.on_record then o.on_record(record) end
end

-- Draws the plot, ends the bar and the log.
function Watch:finish()
  local ok = self:plot()
  if self.bar and not self.o.bar then self.bar:finish() end
  drop_log(self)
  return ok
end

return M
