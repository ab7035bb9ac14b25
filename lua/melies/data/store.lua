-- A folder of clips to train on:
--   shards/clips-00001.safetensors   tensors NAME.frames, u8 [T, H, W, 3], or NAME.latent, f32 [C, T, H, W]
--   index.jsonl                      one line a clip: shard, name, caption, where it is from, what was measured
--   sources.jsonl                    one line a film that is done: its hash, how many clips, what was dropped and why
--   settings.json                    what the clips were made with
-- A film counts once its line in sources.jsonl is written, after its shards and its index lines: what an interrupted run
-- left without that line is taken away when the folder is opened again.
local fs = require "melies.fs"
local json = require "melies.json"
local weights = require "melies.weights"

local store = {}
local Store = {}
Store.__index = Store

local SHARD_CLIPS = 256
local SHARD_BYTES = 256 * 2 ^ 20

-- Objects of a file of lines; a last line that was cut off is left out.
local function read_lines(path)
  local list, file = {}, io.open(path, "rb")
  if not file then return list end
  for line in file:lines() do
    local o = line:find "%S" and json.decode(line)
    if type(o) == "table" then list[#list + 1] = o end
  end
  file:close()
  return list
end
store.read_lines = read_lines

-- In a file of its own first: a full disk leaves what was there.
local function write_lines(path, list)
  local temporary = path .. ".part"
  local file, message = io.open(temporary, "wb")
  if not file then return nil, message end
  local ok, why = true, nil
  for _, o in ipairs(list) do
    if ok then ok, why = file:write(json.encode(o), "\n") end
  end
  local closed, why_closed = file:close()
  if not (ok and closed) then
    os.remove(temporary)
    return nil, path .. ": " .. tostring(why or why_closed)
  end
  return os.rename(temporary, path)
end

local function append_lines(path, list)
  local file, message = io.open(path, "ab")
  if not file then return nil, message end
  local ok, why = true, nil
  for _, o in ipairs(list) do
    if ok then ok, why = file:write(json.encode(o), "\n") end
  end
  local closed, why_closed = file:close()
  if not (ok and closed) then return nil, path .. ": " .. tostring(why or why_closed) end
  return true
end

-- What differs between two tables of settings, as text; nil where nothing does.
local function difference(old, new)
  local names, lines = {}, {}
  for name in pairs(old) do names[name] = true end
  for name in pairs(new) do names[name] = true end
  for name in pairs(names) do
    local a = json.encode(old[name] == nil and "not set" or old[name])
    local b = json.encode(new[name] == nil and "not set" or new[name])
    if a ~= b then lines[#lines + 1] = ("%s was %s, is %s now"):format(name, a, b) end
  end
  table.sort(lines)
  return #lines > 0 and table.concat(lines, "; ") or nil
end

-- store.open(folder, settings): for writing. nil and a message where another process writes, or where the folder was
-- made with other settings (the message says which).
function store.open(folder, settings)
  folder = folder:gsub("(.)/+$", "%1")
  local ok, message = fs.make(folder .. "/shards")
  if not ok then return nil, message end
  local release, why = fs.lock(folder .. "/lock")
  if not release then return nil, why end
  local self = setmetatable({ folder = folder, release = release, sources = {}, clips = {}, pending = {}, waiting = {},
    tensors = {}, count = 0, bytes = 0, known = {} }, Store)
  local path = folder .. "/settings.json"
  local old = fs.stat(path) and json.read(path)
  if old then
    local differs = difference(old, settings)
    if differs and #read_lines(folder .. "/index.jsonl") == 0 then -- nothing is there that would not fit
      for _, name in ipairs { "sources.jsonl", "settings.json" } do os.remove(folder .. "/" .. name) end
      old = nil
    elseif differs then
      release()
      return nil, ("%s: was made with other settings (%s); use these, or another folder"):format(folder, differs)
    end
  end
  if not old then
    ok, message = json.write(path, settings, { indent = 2 })
    if not ok then
      release()
      return nil, message
    end
  end
  for _, s in ipairs(read_lines(folder .. "/sources.jsonl")) do
    -- A film of which nothing was kept for want of a caption is looked at again: it may have one now.
    if s.clips > 0 or not (s.dropped and s.dropped["no caption"]) then
      self.sources[#self.sources + 1], self.known[s.hash] = s, s
    end
  end
  local all, used, last = read_lines(folder .. "/index.jsonl"), {}, 0
  for _, clip in ipairs(all) do
    if self.known[clip.source] and fs.stat(folder .. "/shards/" .. clip.shard) then
      self.clips[#self.clips + 1] = clip
      used[clip.shard] = true
      last = math.max(last, tonumber(clip.shard:match "(%d+)") or 0)
    end
  end
  ok, message = write_lines(folder .. "/sources.jsonl", self.sources) -- also mends a last line that was cut off
  if ok then ok, message = write_lines(folder .. "/index.jsonl", self.clips) end
  if not ok then
    release()
    return nil, message
  end
  for _, name in ipairs(fs.list(folder .. "/shards") or {}) do
    if not used[name] then os.remove(folder .. "/shards/" .. name) end
  end
  self.shard = last + 1
  return self
end

function Store:shard_name() return ("clips-%05d.safetensors"):format(self.shard) end

local function write_shard(self)
  if self.count == 0 then return true end
  local ok, message = weights.save(self.folder .. "/shards/" .. self:shard_name(), self.tensors, { format = "melies clips" })
  if ok == nil then return nil, message end
  self.shard, self.tensors, self.count, self.bytes = self.shard + 1, {}, 0, 0
  return true
end

-- Adds a clip: entry is its line, kind "frames" or "latent". The tensor is kept until its shard is written.
function Store:add(entry, kind, tensor)
  if self.count >= SHARD_CLIPS or self.bytes + tensor:bytes() > SHARD_BYTES then
    local ok, message = write_shard(self)
    if not ok then return nil, message end
  end
  self.count = self.count + 1
  entry.shard, entry.name, entry.kind = self:shard_name(), ("%04d"):format(self.count), kind
  self.tensors[entry.name .. "." .. kind] = tensor
  self.bytes = self.bytes + tensor:bytes()
  self.waiting[#self.waiting + 1] = entry
  return true
end

-- A film is done. Its lines are written with the shard.
function Store:done(source)
  self.pending[#self.pending + 1] = source
  self.known[source.hash] = source
  if #self.pending >= 64 or self.bytes > SHARD_BYTES / 4 then return self:flush() end
  return true
end

-- What waits of films that are done goes to the disk.
function Store:flush()
  local ok, message = write_shard(self)
  if ok then ok, message = append_lines(self.folder .. "/index.jsonl", self.waiting) end
  if ok then ok, message = append_lines(self.folder .. "/sources.jsonl", self.pending) end
  if not ok then return nil, message end
  for _, clip in ipairs(self.waiting) do self.clips[#self.clips + 1] = clip end
  for _, source in ipairs(self.pending) do self.sources[#self.sources + 1] = source end
  self.waiting, self.pending = {}, {}
  return true
end

-- Forgets the clips of a film that was not finished.
function Store:forget(hash)
  local kept = {}
  for _, clip in ipairs(self.waiting) do
    if clip.source == hash then
      if clip.shard == self:shard_name() then self.tensors[clip.name .. "." .. clip.kind] = nil end
    else kept[#kept + 1] = clip end
  end
  self.waiting = kept
  if next(self.tensors) == nil then self.count, self.bytes = 0, 0 end
end

function Store:close() self.release() end

-- ---- reading -------------------------------------------------------------------------------------

local Data = {}
Data.__index = Data

-- store.read(folder): { count, clips = the lines of the index, settings, sources }, data:get(i). nil and a message where
-- it is no such folder, or holds no clip.
function store.read(folder)
  folder = folder:gsub("(.)/+$", "%1")
  local settings, message = json.read(folder .. "/settings.json")
  if not settings then return nil, ("%s: no folder of clips (%s)"):format(folder, tostring(message)) end
  local data = setmetatable({ folder = folder, settings = settings, sources = read_lines(folder .. "/sources.jsonl"),
    clips = {}, files = {} }, Data)
  local known = {}
  for _, s in ipairs(data.sources) do known[s.hash] = true end
  for _, clip in ipairs(read_lines(folder .. "/index.jsonl")) do
    if known[clip.source] then data.clips[#data.clips + 1] = clip end
  end
  data.count = #data.clips
  return data
end

-- data:get(i): the tensor of clip i (u8 frames [T, H, W, 3], or an f32 latent [C, T, H, W]: a view of the file) and its
-- line of the index. nil and a message where the shard cannot be read.
function Data:get(i)
  local clip = self.clips[i]
  if not clip then error(("clip %s of %d"):format(tostring(i), self.count), 2) end
  local file = self.files[clip.shard]
  if not file then
    local message
    file, message = weights.open(self.folder .. "/shards/" .. clip.shard)
    if not file then return nil, message end
    self.files[clip.shard] = file
  end
  local name = clip.name .. "." .. clip.kind
  if not file:has(name) then return nil, ("%s/shards/%s: holds no %s"):format(self.folder, clip.shard, name) end
  return file:get(name), clip
end

return store
