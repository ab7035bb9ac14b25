-- The training loop: steps of accumulated gradients, schedules, checkpoints that are written whole or not at all, and a
-- resume that goes on with the same bits. Docs: docs/training.md.
--
--   local run, message = train.new { params = { name = grad.param(..) }, loss = function(step) return variable end,
--     steps = 1000, lr = 1e-3, folder = "out/run" }
--   local ok, message = run:run()
local lib = require "melies.ffi.lib"
local tensor = require "melies.tensor"
local grad = require "melies.grad"
local optim = require "melies.optim"
local fs = require "melies.fs"
local json = require "melies.json"
local weights = require "melies.weights"
local C = lib.C

local train = {}
local Run = {}
Run.__index = Run

local FORMAT = 1
local PATTERN = "^step%-(%d+)%.safetensors$"

-- ---- schedules of the learning rate: factor(step, steps), step from 1 -------------------------------------------------

train.schedules = {
  constant = function() return 1 end,
  cosine = function(t, n, final) return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * math.min(1, t / n))) end,
  linear = function(t, n, final) return 1 + (final - 1) * math.min(1, t / n) end,
}
-- The rate of a step: a linear warm-up over the first `warmup` steps, then the schedule, which ends at lr * final.
function train.rate(o, step)
  local warmup = o.warmup or 0
  if step <= warmup then return o.lr * step / warmup end
  local fn = train.schedules[o.schedule or "constant"]
  return o.lr * fn(step - warmup - 1, math.max(1, o.steps - warmup), o.final or 0)
end

-- ---- randomness that a checkpoint can keep ---------------------------------------------------------------------------

local Step = {}
Step.__index = Step
local function draw(self)
  local run = self.run
  run.draws = run.draws + 1
  return { seed = run.o.seed, stream = run.draws }
end
-- step:noise(shape), step:uniform(shape): each call draws from a stream of its own.
function Step:noise(shape) return tensor.noise(shape, draw(self)) end
function Step:uniform(shape) return tensor.uniform(shape, draw(self)) end
-- step:random() -> a number in [0, 1); step:random(n) -> an integer from 1 to n.
function Step:random(n)
  local u = self:uniform({ 1 }):get(1)
  return n and 1 + math.floor(u * n) or u
end

-- ---- a run -----------------------------------------------------------------------------------------------------------

local known = { params = true, loss = true, steps = true, lr = true, schedule = true, warmup = true, final = true,
  betas = true, eps = true, weight_decay = true, decay = true, clip = true, ema = true, accumulate = true, seed = true,
  folder = true, every = true, keep = true, resume = true, config = true, may_differ = true, data = true, on_step = true,
  metadata = true, optimiser = true }

-- What two runs must share, as one flat table of texts.
local function flatten(out, prefix, value)
  if type(value) == "table" then
    for key, v in pairs(value) do flatten(out, prefix == "" and tostring(key) or prefix .. "." .. tostring(key), v) end
  else
    out[prefix] = type(value) == "number" and ("%.17g"):format(value) or tostring(value)
  end
  return out
end

local function configuration(run)
  local o, shapes = run.o, {}
  for _, name in ipairs(run.optimiser.names) do
    shapes[name] = ("[%s]"):format(table.concat(run.optimiser.params[name].shape, ", "))
  end
  return flatten({}, "", { config = o.config or {}, parameters = shapes, lr = o.lr, schedule = o.schedule or "constant",
    warmup = o.warmup or 0, final = o.final or 0, steps = o.steps, betas = run.optimiser.betas,
    eps = run.optimiser.eps, weight_decay = run.optimiser.weight_decay, clip = o.clip or "none", ema = o.ema or "none",
    accumulate = o.accumulate, seed = o.seed, compute = tonumber(C.mel_compute()) == 1 and "bf16" or "f32" })
end

local MANY = 8 -- differences told

local function differences(old, new, may_differ)
  local allowed, names, out = {}, {}, {}
  for _, name in ipairs(may_differ or {}) do allowed[name] = true end
  for name in pairs(old) do names[name] = true end
  for name in pairs(new) do names[name] = true end
  for name in pairs(names) do
    if old[name] ~= new[name] and not allowed[name] and not allowed[name:match("^[^.]+")] then
      out[#out + 1] = ("%s was %s, is %s"):format(name, old[name] or "not there", new[name] or "not there")
    end
  end
  table.sort(out)
  if #out > MANY then
    out[MANY] = ("and %d more"):format(#out - MANY + 1)
    for i = #out, MANY + 1, -1 do out[i] = nil end
  end
  return out
end

-- train.new{...} -> run, or nil and a message (no folder can be made, the checkpoint there is of another configuration).
--   params        { name = grad.param(tensor) }
--   loss          function(step) -> variable, table of numbers for the record or nil; called `accumulate` times a step.
--                 step: index, micro, lr, and noise, uniform, random
--   steps         how many; lr = 1e-3; schedule "constant", "cosine" or "linear"; warmup = 0 steps; final = 0: what part
--                 of lr the schedule ends at
--   optimiser     optim.adamw, or muon.new (melies.muon)
--   betas, eps, weight_decay, decay, ema: as optim.adamw; clip: the largest norm of the gradients
--   accumulate    gradients of so many calls of loss are averaged (1); seed (0)
--   folder        of the checkpoints; every = 100 steps; keep = 2 of them; resume = true
--   config        any table of settings that a resumed run must share; may_differ: names of those that need not
--   data          { state = function() -> table, restore = function(table) }: where the data stands
--   on_step       function(record): step, loss, lr, norm, seconds, saved, warning, and the numbers of loss
--   metadata      texts that stand in every checkpoint
function train.new(o)
  lib.check_options("train.new", o, known)
  if type(o.loss) ~= "function" then error("train.new: loss is a function that returns a variable", 2) end
  if type(o.steps) ~= "number" or o.steps < 1 or o.steps % 1 ~= 0 then error("train.new: steps is a count", 2) end
  if o.schedule and not train.schedules[o.schedule] then
    error(("train.new: unknown schedule '%s'%s"):format(tostring(o.schedule), lib.suggest(o.schedule, train.schedules)), 2)
  end
  local copy = {}
  for key, value in pairs(o) do copy[key] = value end
  o = copy
  o.lr, o.seed, o.accumulate, o.every, o.keep = o.lr or 1e-3, o.seed or 0, o.accumulate or 1, o.every or 100, o.keep or 2
  local optimiser = (o.optimiser or optim.adamw)(o.params, { lr = o.lr, betas = o.betas, eps = o.eps,
    weight_decay = o.weight_decay, decay = o.decay, ema = o.ema })
  local run = setmetatable({ o = o, step = 0, draws = 0, notes = {}, optimiser = optimiser }, Run)
  run.config = configuration(run)
  if o.folder then
    local ok, message = fs.make(o.folder)
    if not ok then return nil, "train: " .. message end
    if o.resume ~= false then
      ok, message = run:resume()
      if not ok then return nil, message end
    end
  end
  return run
end

-- ---- checkpoints -----------------------------------------------------------------------------------------------------

-- Newest first: { { step =, path = }, ... }.
function train.checkpoints(folder)
  local names, message = fs.list(folder)
  if not names then return nil, message end
  local out = {}
  for _, name in ipairs(names) do
    local step = name:match(PATTERN)
    if step then out[#out + 1] = { step = tonumber(step), path = folder .. "/" .. name } end
  end
  table.sort(out, function(a, b) return a.step > b.step end)
  return out
end

-- Writes the state now: its path, or nil and a message; checkpoints that are there stay then.
function Run:save()
  local o = self.o
  if not o.folder then return nil, "train: this run has no folder" end
  local state = { format = FORMAT, step = self.step, draws = self.draws, optimiser = self.optimiser.step_count,
    config = self.config, data = o.data and o.data.state() or nil, loss = self.loss }
  local metadata = { ["melies.training"] = json.encode(state) }
  for key, value in pairs(o.metadata or {}) do metadata[key] = value end
  local path = ("%s/step-%08d.safetensors"):format(o.folder, self.step)
  local ok, message = weights.save(path, self.optimiser:tensors(), metadata)
  if not ok then return nil, ("train: the checkpoint of step %d was not written: %s"):format(self.step, message) end
  self.saved = self.step
  for i, old in ipairs(train.checkpoints(o.folder) or {}) do
    if i > o.keep and old.step < self.step then os.remove(old.path) end
  end
  return path
end

-- A checkpoint's state and file, or nil and a message.
local function open(path)
  local file, message = weights.open(path)
  if not file then return nil, message end
  local text = file.metadata and file.metadata["melies.training"]
  if not text then return nil, path .. ": not a training checkpoint" end
  local ok, state = pcall(json.decode, text, path)
  if not ok or type(state) ~= "table" then return nil, path .. ": its training state cannot be read" end
  if state.format ~= FORMAT then
    return nil, ("%s: training format %s, this program reads %d"):format(path, tostring(state.format), FORMAT)
  end
  return state, file
end
train.open = open

-- train.average(paths, path) -> true, or nil and a message: the mean of the checkpoints of runs that began from one, all
-- of one step, with the first one's state. path may be one of them.
function train.average(paths, path)
  local files, first = {}, nil
  for i, name in ipairs(paths) do
    local state, file = open(name)
    if not state then return nil, "train: " .. file end
    first = first or state
    if state.step ~= first.step then
      return nil, ("train: %s is of step %d, %s of step %d"):format(name, state.step, paths[1], first.step)
    end
    files[i] = file
  end
  local out = {}
  for _, name in ipairs(files[1]:names()) do
    local sum = files[1]:get(name) * (1 / #files)
    for i = 2, #files do
      if not files[i]:has(name) then return nil, ("train: %s has no '%s'"):format(paths[i], name) end
      sum:add_(files[i]:get(name), 1 / #files)
    end
    out[name] = sum
  end
  return weights.save(path, out, files[1].metadata)
end

-- Goes on from the newest checkpoint of a folder (the run's own by default) that can be read; what was skipped stands in
-- run.notes.
function Run:resume(folder)
  local o = self.o
  folder = folder or o.folder
  local list, message = train.checkpoints(folder)
  if not list then return nil, "train: " .. message end
  for _, name in ipairs(folder == o.folder and fs.list(folder) or {}) do -- what a killed run left half written
    if name:find("^step%-%d+%.safetensors%.part%-") then os.remove(folder .. "/" .. name) end
  end
  for _, entry in ipairs(list) do
    local state, file = open(entry.path)
    if state then
      local wrong = differences(state.config or {}, self.config, o.may_differ)
      if #wrong > 0 then
        return nil, ("train: %s was made by another configuration: %s"):format(entry.path, table.concat(wrong, "; "))
      end
      self.optimiser:restore(function(name) return file:get(name) end)
      self.optimiser.step_count = state.optimiser
      self.step, self.draws, self.saved, self.loss = state.step, state.draws, state.step, state.loss
      if o.data and state.data then o.data.restore(state.data) end
      if file.close then file:close() end
      return true
    end
    self.notes[#self.notes + 1] = ("skipped %s: %s"):format(entry.path, file)
  end
  if #list > 0 then return nil, ("train: no checkpoint in %s can be read: %s"):format(folder, self.notes[1]) end
  return true
end

-- Where things stood before a step that failed.
function Run:go_back(mark)
  self.draws = mark.draws
  if mark.data then self.o.data.restore(mark.data) end
  self.optimiser:zero_grad()
end

-- Keeps the last good state on disk where it is not there yet; what to tell of it.
function Run:keep_last()
  if not self.o.folder then return "" end
  if self.saved == self.step then return (" (the state of step %d is kept)"):format(self.step) end
  local path, message = self:save()
  return path and (" (the state of step %d is kept in %s)"):format(self.step, path) or "; " .. message
end

-- ---- steps -----------------------------------------------------------------------------------------------------------

local function one_step(self, record)
  local o, index, total = self.o, self.step + 1, 0
  for micro = 1, o.accumulate do
    local loss, numbers = o.loss(setmetatable({ run = self, index = index, micro = micro, lr = record.lr }, Step))
    if not grad.is(loss) then error("train: loss must return a variable", 0) end
    local value = loss:item()
    if value ~= value or value == math.huge or value == -math.huge then
      return nil, ("the loss is %s"):format(value ~= value and "NaN" or tostring(value))
    end
    total = total + value
    for key, number in pairs(numbers or {}) do record[key] = (record[key] or 0) + number / o.accumulate end
    grad.backward(loss)
  end
  record.loss = total / o.accumulate
  local norm, message = self.optimiser:step { lr = record.lr, clip = o.clip, scale = 1 / o.accumulate }
  if not norm then return nil, message end
  record.norm = norm
  return true
end

-- run:stop(reason): run:run() ends after this step, with true and the reason.
function Run:stop(reason) self.stopped = reason or "stopped" end

-- What on_step raises ends the run with nothing lost; nil and a message for a cancel.
local function tell(self, record)
  local ok, why = pcall(self.o.on_step, record)
  if ok then return true end
  local kept = self:keep_last()
  if why ~= lib.canceled then error(why, 0) end
  C.mel_cancel_clear()
  return nil, "canceled" .. kept
end

-- run:run(last) -> true, or nil and a message: to step `last` (all of them by default). A loss or gradient that is not
-- finite and a cancel end it; the state then is that of the last good step, on disk too. true and a reason: run:stop.
function Run:run(last)
  local o = self.o
  last = math.min(last or o.steps, o.steps)
  while self.step < last and not self.stopped do
    local mark = { draws = self.draws, data = o.data and o.data.state() or nil }
    local start = C.mel_seconds()
    local record = { step = self.step + 1, lr = train.rate(o, self.step + 1) }
    local ok, done, message = pcall(one_step, self, record)
    if not ok or not done then
      self:go_back(mark)
      if not ok and done ~= lib.canceled then error(done, 0) end
      if not ok then
        C.mel_cancel_clear()
        return nil, "canceled" .. self:keep_last()
      end
      return nil, ("train: step %d: %s%s"):format(self.step + 1, message, self:keep_last())
    end
    self.step, self.loss, record.seconds = self.step + 1, record.loss, C.mel_seconds() - start
    if o.folder and (self.step % o.every == 0 or self.step == o.steps) then
      record.saved, record.warning = self:save()
      self.problem = record.warning
    end
    if o.on_step then
      ok, message = tell(self, record)
      if not ok then return nil, message end
    end
  end
  if self.stopped and o.folder and self.saved ~= self.step then
    local _
    _, self.problem = self:save()
  end
  if self.problem then return nil, self.problem end
  return true, self.stopped
end

-- { name = tensor }: the weights, or their moving average where there is one and `average` is true.
function Run:weights(average)
  local out = {}
  for _, name in ipairs(self.optimiser.names) do
    out[name] = average and self.optimiser.ema and self.optimiser.ema[name] or self.optimiser.params[name].value
  end
  return out
end

return train
