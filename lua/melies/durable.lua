-- Jobs that can't be lost: a folder that holds what a job is, and what of it is done. After kill -9 at any moment the
-- same job goes on from its folder, and gives the bits of a run that was not interrupted.
--
--   durable.open(folder, job, opts)  -> work | nil, message     job: { recipe=, values= }; opts: fresh=, bound= (lock only)
--   durable.read(folder)             -> { recipe=, values=, folder=, state= } | nil, message
--   work:bind(fields)                -> true | nil, message      what the bits depend on besides the values
--   work:part(label)                 -> part; part.result: the latent, where it is finished
--   work:recorder(model)             -> model whose predictions are kept, and replayed, for the part that is under way
--   part:preview(latent), part:finish(latent)
--   work:sub(name)                   -> work of a shot, in a folder inside | nil, message (another process has it)
--   work:finish(keep), work:close()
--   durable.watch(folder)            -> { { name=, latent=, at=, step=, steps=, done= }, ... }: the newest looks at parts
--
-- What is recorded is each prediction of the model: a resumed run goes through the same arithmetic from the start, with
-- the recorded predictions in place of the model's. So every sampler and guide goes on, whatever it remembers. A prediction
-- is taken only where the model's input is the same to the bit. Predictions of a finished part are removed.
--
-- Files: job.json (written first; a folder without it was not begun), bound.json, lock (flock; the process's number),
-- PART.latent.safetensors, PART.model-NNNN.safetensors, PART.preview.safetensors. Each appears whole, after fsync.
local fs = require "melies.fs"
local json = require "melies.json"
local lib = require "melies.ffi.lib"

local M = {}
local Work, Part = {}, {}
Work.__index, Part.__index = Work, Part

local FORMAT = 1
-- Seconds between writings of predictions, and of previews: what a kill may cost.
M.interval = tonumber(os.getenv "MELIES_JOB_INTERVAL") or 0.5

-- Values that do not change what is sampled.
local free = { output = true, quality = true, bitrate = true, codec = true, save_latents = true, job = true, fresh = true,
  reuse = true, jobs = true, worker = true, report = true, report_checks = true }

-- ---- what a folder says ------------------------------------------------------------------------------

local function plain(value)
  if type(value) ~= "table" then return value end
  if value.kind then return value.name end
  local out = {}
  for k, v in pairs(value) do out[k] = plain(v) end
  return out
end

local function read_json(path)
  local text, message = fs.read(path)
  if not text then return nil, message end
  local ok, value = pcall(json.decode, text)
  if not ok or type(value) ~= "table" then return nil, ("%s: damaged (%s)"):format(path, tostring(value)) end
  return value
end

function M.read(folder)
  folder = #folder > 1 and folder:gsub("/+$", "") or folder
  local there, message = fs.stat(folder)
  if not there then return nil, message end
  if not fs.stat(folder .. "/job.json") then
    return nil, ("%s: no job was begun there (there is no job.json)"):format(folder)
  end
  local saved
  saved, message = read_json(folder .. "/job.json")
  if not saved then return nil, message end
  if saved.format ~= FORMAT or type(saved.recipe) ~= "string" or type(saved.values) ~= "table" then
    return nil, ("%s/job.json: it is no job of this version"):format(folder)
  end
  return saved
end

-- The first thing that differs between two tables of values, as text; nil where nothing does.
local function difference(before, now)
  local names, seen = {}, {}
  for _, all in ipairs { before, now } do
    for name in pairs(all) do
      if not seen[name] and not free[name] then names[#names + 1], seen[name] = name, true end
    end
  end
  table.sort(names)
  for _, name in ipairs(names) do
    local a, b = before[name], now[name]
    local as, bs = a == nil and "not given" or json.encode { a }, b == nil and "not given" or json.encode { b }
    if as ~= bs then
      local function short(text) return #text > 60 and text:sub(1, 60) .. "..." or text end
      return ("%s is %s there and %s now"):format(name, short((as:gsub("^%[(.*)%]$", "%1"))),
        short((bs:gsub("^%[(.*)%]$", "%1"))))
    end
  end
end

-- ---- folders ------------------------------------------------------------------------------------------

-- Every file of a job folder, and nothing that a user put there.
local function ours(name)
  return name == "job.json" or name == "bound.json" or name == "storyboard.json" or name == "report.html" or
    name:find "^worker%-%d+%.log$" or name == "lock" or name:find "^%d%d.*%.safetensors" or name:find "^memory%.safetensors"
    or name:find "^[%w_.-]+%.json%.new$"
end

local function remove_files(folder, keep)
  for _, name in ipairs(fs.list(folder) or {}) do
    local path = folder .. "/" .. name
    local s = fs.stat(path)
    if s and s.folder and name:find "^shot%-[%d.]+$" then
      remove_files(path)
      os.remove(path)
    elseif s and not s.folder and ours(name) and name ~= keep then
      os.remove(path)
    end
  end
end

local function acquire(folder)
  local path = folder .. "/lock"
  for _ = 1, 3 do
    local release, message = fs.lock(path)
    if not release then
      if not message:find "locked by another" then return nil, message end
      local pid = (fs.read(path) or ""):match "%d+"
      return nil, ("%s: %s works on this job"):format(folder, pid and "process " .. pid or "another process"), true
    end
    if fs.stat(path) then -- not one that its holder removed just now
      local f = io.open(path, "wb")
      if f then
        f:write(("%d\n"):format(fs.pid()))
        f:close()
      end
      return release
    end
    release()
    fs.make(folder)
  end
  return nil, folder .. ": the lock vanishes"
end

-- Unfinished files of a process that died.
local function sweep(folder)
  for _, name in ipairs(fs.list(folder) or {}) do
    if ours(name) and (name:find "%.new$" or name:find "%.safetensors." ) then os.remove(folder .. "/" .. name) end
  end
end

-- Whether anything of the job is done.
local function has_work(folder)
  for _, name in ipairs(fs.list(folder) or {}) do
    if name:find "^%d%d%-.*%.safetensors$" or name:find "^shot%-[%d.]+$" then return true end
  end
  return false
end

function M.open(folder, job, opts)
  opts = opts or {}
  folder = #folder > 1 and folder:gsub("/+$", "") or folder
  local there = fs.stat(folder)
  if there and there.folder and not fs.stat(folder .. "/job.json") then
    for _, name in ipairs(fs.list(folder) or {}) do
      if not ours(name) then
        return nil, ("%s: it is no job folder (there is no job.json, but %s); give another with --job"):format(folder, name)
      end
    end
  end
  local made, message = fs.make(folder)
  if not made then return nil, message end
  local release, busy
  release, message, busy = acquire(folder)
  if not release then return nil, message, busy end
  local work = setmetatable({ folder = folder, release = release, count = 0, begun = not there }, Work)
  if opts.fresh or not has_work(folder) then remove_files(folder, "lock") end
  sweep(folder)
  local want = { format = FORMAT, recipe = job.recipe, values = plain(job.values), version = lib.version, cwd = fs.cwd() }
  for name in pairs(free) do if name ~= "output" then want.values[name] = nil end end
  if not fs.stat(folder .. "/job.json") then
    made, message = fs.write(folder .. "/job.json", json.encode(want) .. "\n")
    if not made then work:close() return nil, message end
    work.begun = true
    return work
  end
  local saved
  saved, message = M.read(folder)
  if saved then
    local differs
    if saved.recipe ~= want.recipe then differs = ("the recipe is %s there and %s now"):format(saved.recipe, want.recipe)
    elseif saved.version ~= want.version then
      differs = ("it was begun by melies %s, this is %s"):format(tostring(saved.version), want.version)
    else differs = difference(saved.values, json.decode(json.encode(want.values))) end
    if differs then
      saved, message = nil, ("%s holds another job: %s; --fresh begins anew, --job gives another folder"):format(folder, differs)
    end
  end
  if not saved then work:close() return nil, message end
  return work
end

function Work:close()
  if self.release then self.release() end
  self.release, self.now = nil, nil
end

-- The job ended early: its folder stays for the next time, unless nothing is done yet.
function Work:abandon()
  if not has_work(self.folder) then remove_files(self.folder) os.remove(self.folder) end
  self:close()
end

-- The job is done: its folder goes, or stays (keep) with the finished parts.
function Work:finish(keep)
  if not keep then
    remove_files(self.folder)
    os.remove(self.folder)
  end
  self:close()
end

-- ---- what the bits depend on ----------------------------------------------------------------------------

function Work:bind(fields)
  local path = self.folder .. "/bound.json"
  local now = json.decode(json.encode(fields))
  if not fs.stat(path) then return fs.write(path, json.encode(now) .. "\n") end
  local before, message = read_json(path)
  if not before then return nil, message end
  local differs = difference(before, now)
  if differs then
    return nil, ("%s: the job was begun with something else: %s; --fresh begins anew"):format(self.folder, differs)
  end
  return true
end

-- ---- parts --------------------------------------------------------------------------------------------

local function load_tensors(path)
  local f, message = require("melies.weights").open(path)
  if not f then return nil, message end
  local out, metadata = {}, f.metadata
  for _, name in ipairs(f:names()) do out[name] = f:get(name):clone() end
  f:close()
  return out, metadata
end

local function save_tensors(path, tensors, metadata)
  local ok, message = require("melies.weights").save(path, tensors, metadata)
  if not ok then error({ failure = message }, 0) end
end

-- The job's next part, in the order of the recipe.
function Work:part(label)
  self.count = self.count + 1
  local name = ("%02d-%s"):format(self.count, (label or "sampling"):gsub("[^%w]+", "-"):sub(1, 40))
  local part = setmetatable({ work = self, name = name, base = self.folder .. "/" .. name, calls = 0, waiting = {},
    written = -math.huge, shown = lib.C.mel_seconds() }, Part)
  self.now = nil
  local path = part.base .. ".latent.safetensors"
  if fs.stat(path) then
    local found, message = load_tensors(path)
    if found and found.latent then
      part.result = found.latent
      part:remove_predictions()
      return part
    end
    require("melies.log").warn("%s is damaged and is made again: %s", path, tostring(message))
    os.remove(path)
  end
  self.now = part
  return part
end

function Part:path(i) return ("%s.model-%04d.safetensors"):format(self.base, i) end

-- Recorded predictions from number `from` on.
function Part:remove_predictions(from)
  local prefix = self.name .. ".model-"
  for _, name in ipairs(fs.list(self.work.folder) or {}) do
    local i = name:sub(1, #prefix) == prefix and tonumber(name:match("^(%d+)", #prefix + 1))
    if i and i >= (from or 1) then os.remove(self.work.folder .. "/" .. name) end
  end
end

function Part:flush(all)
  local now = lib.C.mel_seconds()
  if #self.waiting == 0 or not (all or now - self.written >= M.interval) then return end
  for _, entry in ipairs(self.waiting) do save_tensors(self:path(entry.i), entry.tensors, { input = entry.input }) end
  self.waiting, self.written = {}, lib.C.mel_seconds()
end

-- The predictions of call i with that input, or nil.
function Part:recorded(i, input)
  if self.replayed then return nil end
  local path = self:path(i)
  if fs.stat(path) then
    local found, metadata = load_tensors(path)
    if found and metadata.input == input then
      local list = {}
      while found["p" .. #list + 1] do list[#list + 1] = found["p" .. #list + 1] end
      return list
    end
    require("melies.log").warn("%s: %s; the model computes from here on", path,
      found and "it was recorded for another input" or "damaged")
  end
  self.replayed = true
  self:remove_predictions(i)
  return nil
end

function Part:predict(model, x, sigma, texts, options)
  self.calls = self.calls + 1
  local i, input = self.calls, require("melies.cache").hash { x, sigma, #texts }
  local list = self:recorded(i, input)
  if list then return list end
  list = model:predict(x, sigma, texts, options)
  local tensors = {}
  for k, prediction in ipairs(list) do
    list[k] = prediction:contiguous():clone()
    tensors["p" .. k] = list[k]
  end
  self.waiting[#self.waiting + 1] = { i = i, tensors = tensors, input = input }
  self:flush()
  return list
end

function Part:preview(latent, step, steps)
  local now = lib.C.mel_seconds()
  if not latent or latent.ndim ~= 4 or now - self.shown < M.interval * 4 then return end
  save_tensors(self.base .. ".preview.safetensors", { latent = latent:contiguous() }, { step = step, steps = steps })
  self.shown = lib.C.mel_seconds()
end

function Part:finish(latent)
  self.waiting = {}
  save_tensors(self.base .. ".latent.safetensors", { latent = latent:contiguous() })
  self:remove_predictions()
  os.remove(self.base .. ".preview.safetensors")
  self.work.now = nil
end

-- A step cache carries state from step to step that no prediction holds: a part with one begins again.
function Work:recorder(model)
  return setmetatable({ predict = function(_, x, sigma, texts, options)
    local part = self.now
    if not part or (options and options.cache) then return model:predict(x, sigma, texts, options) end
    return part:predict(model, x, sigma, texts, options)
  end }, { __index = model })
end

-- ---- shots --------------------------------------------------------------------------------------------

-- A folder inside with a lock of its own, so that several processes share a job's shots. nil, message, true where another
-- process has it.
function Work:sub(name)
  local folder = self.folder .. "/" .. name
  local made, message = fs.make(folder)
  if not made then return nil, message end
  local release, why, busy = acquire(folder)
  if not release then return nil, why, busy end
  sweep(folder)
  return setmetatable({ folder = folder, release = release, count = 0 }, Work)
end

-- A folder that another process opened and holds: its shots are shared through sub().
function M.join(folder)
  local saved, message = M.read(folder)
  if not saved then return nil, message end
  require("melies.film").end_with_parent()
  return setmetatable({ folder = folder, count = 0 }, Work), saved
end

-- ---- watching -----------------------------------------------------------------------------------------

local LOOKS = 8 -- parts that are looked at

function M.watch(folder)
  local found, out = {}, {}
  local saved, message = M.read(folder)
  if not saved then return nil, message end
  local function look(where, prefix)
    for _, name in ipairs(fs.list(where) or {}) do
      local path = where .. "/" .. name
      local s = fs.stat(path)
      local part, kind = name:match "^(%d%d.-)%.(%l+)%.safetensors$"
      if s and s.folder and name:find "^shot%-[%d.]+$" then look(path, name .. " ")
      elseif s and (kind == "preview" or kind == "latent") then
        found[#found + 1] = { name = prefix .. part, path = path, at = s.mtime, done = kind == "latent" }
      end
    end
  end
  look(folder, "")
  table.sort(found, function(a, b)
    if a.at ~= b.at then return a.at > b.at end
    return a.path < b.path
  end)
  for i = math.min(LOOKS, #found), 1, -1 do
    local entry = found[i]
    local tensors, metadata = load_tensors(entry.path) -- nil: gone meanwhile
    if tensors and tensors.latent then
      entry.latent, entry.step, entry.steps = tensors.latent, tonumber(metadata.step), tonumber(metadata.steps)
      out[#out + 1] = entry
    end
  end
  return out, saved
end

-- Unfinished outputs that dead processes left beside a film's path.
function M.remove_partials(output)
  local folder, name = output:match "^(.*/)([^/]+)$"
  folder, name = folder or "./", name or output
  local prefix = "." .. name:gsub("%.[^.]*$", "") .. ".partial-"
  for _, entry in ipairs(fs.list(folder) or {}) do
    local pid = entry:sub(1, #prefix) == prefix and entry:match("^(%d+)", #prefix + 1)
    local state = pid and ((fs.read("/proc/" .. pid .. "/stat") or ""):match "%) (%a)" or "X")
    if state == "X" or state == "Z" then os.remove(folder .. entry) end
  end
end

return M
