-- Results that are kept on disk under the hash of everything they depend on: text embeddings, latents of images and
-- films, finished latents. Several processes may use one folder: entries appear whole under their names, and a name
-- says its content.
--
--   cache.default()                      -> the user's cache, or nil where it is off
--   cache.at(folder, { limit = bytes })  -> a cache in that folder
--   cache.hash(value), cache.identity(paths)  -> 64 hexadecimal digits
--   c:key(kind, fields)                  -> key
--   c:get(kind, key)                     -> { name = tensor }, metadata; nil where there is none
--   c:put(kind, key, tensors, metadata)  -> whether it was kept
--   c:map(kind, key)                     -> the entry as open weights, read where it lies, for "packed" (melies.packed)
--   c:list(), c:clear{ older = seconds }, c:verify(), c:evict()
--
-- The folder is $MELIES_CACHE ("off": none), $XDG_CACHE_HOME/melies or ~/.cache/melies; the limit $MELIES_CACHE_LIMIT
-- (such as 500M) or 4 GB, kept by removing what was used longest ago. Nothing here fails a job: a folder that cannot be
-- written is told once, and the work goes on without it.
local ffi = require "ffi"
local lib = require "melies.ffi.lib"
local fs = require "melies.fs"
local log = require "melies.log"
local C = lib.C

local M = {}
local Cache = {}
Cache.__index = Cache

local FORMAT = 1 -- part of every key: a change of what is kept, or how, raises it
local DEFAULT_LIMIT = 4 * 2 ^ 30
local BY_PARTS = "parts"
local STALE = 3600 -- seconds after which an unfinished file is a dead process's

-- ---- hashes ----------------------------------------------------------------------------------------

local digest = ffi.new("uint8_t[32]")

local function sha256(data, size)
  lib.check(C.mel_sha256(data, size, digest, lib.err), 3)
  return (ffi.string(digest, 32):gsub(".", function(c) return ("%02x"):format(c:byte()) end))
end

local function tensor_hash(x)
  local dense = x:contiguous()
  return sha256(ffi.cast("const uint8_t *", dense:ptr()), dense:bytes())
end

-- A value spelled out without ambiguity: every text with its length, table keys in order, tensors by their content.
local function spell(value, out)
  local kind = type(value)
  if kind == "table" and value.handle ~= nil and value.dtype then
    out[#out + 1] = ("tensor %s [%s] %s;"):format(value.dtype, table.concat(value.shape, ","), tensor_hash(value))
  elseif kind == "table" then
    local keys = {}
    for key in pairs(value) do keys[#keys + 1] = key end
    table.sort(keys, function(a, b)
      if type(a) ~= type(b) then return type(a) < type(b) end
      return a < b
    end)
    out[#out + 1] = ("{%d;"):format(#keys)
    for _, key in ipairs(keys) do
      spell(key, out)
      spell(value[key], out)
    end
    out[#out + 1] = "}"
  elseif kind == "string" then
    out[#out + 1] = ("s%d:%s;"):format(#value, value)
  elseif kind == "number" then
    out[#out + 1] = ("n%.17g;"):format(value)
  elseif kind == "boolean" then
    out[#out + 1] = tostring(value) .. ";"
  else
    error("cache: a " .. kind .. " cannot be part of a key", 0)
  end
end

-- cache.hash(value): of text, numbers, booleans, tensors and tables of them.
function M.hash(value)
  local out = {}
  spell(value, out)
  local text = table.concat(out)
  return sha256(text, #text)
end

local PIECE, WHOLE, SAMPLES, PAGE = 2 ^ 20, 64 * 2 ^ 20, 256, 4096

-- Of one file. Up to 64 MB: its content. A larger one: its size, time of change, first megabyte (the header of a weight
-- file: names, shapes, offsets), last page and 256 pages spread evenly between.
local function file_hash(path, size, mtime)
  local parts = {}
  local function add(offset, count)
    local text, message = fs.read(path, offset, count)
    if not text then return nil, message end
    parts[#parts + 1] = sha256(text, #text)
    return true
  end
  local small = size <= WHOLE
  if small then
    for offset = 0, size - 1, PIECE do
      local ok, message = add(offset, PIECE)
      if not ok then return nil, message end
    end
  else
    parts[1] = ("%.9f"):format(mtime)
    for i = 0, SAMPLES + 1 do
      local offset = i == 0 and 0 or math.floor((size - PAGE) * (i - 1) / SAMPLES)
      local ok, message = add(offset, i == 0 and PIECE or PAGE)
      if not ok then return nil, message end
    end
  end
  local text = ("%s %.0f %s"):format(small and "whole" or "sampled", size, table.concat(parts, " "))
  return sha256(text, #text)
end

local known = {} -- path -> { size, mtime, hash }: a file is hashed once a process

-- cache.identity(path or { path, ... }): who these files are. nil and a message where one cannot be read.
function M.identity(paths)
  if type(paths) == "string" then paths = { paths } end
  local out = {}
  for i, path in ipairs(paths) do
    local s, message = fs.stat(path)
    if not s then return nil, message end
    local last = known[path]
    if not (last and last.size == s.size and last.mtime == s.mtime) then
      local hash
      hash, message = file_hash(path, s.size, s.mtime)
      if not hash then return nil, message end
      last = { size = s.size, mtime = s.mtime, hash = hash }
      known[path] = last
    end
    out[i] = last.hash
  end
  return M.hash(out)
end

-- ---- one folder ------------------------------------------------------------------------------------

-- opts.limit: bytes.
function M.at(folder, opts)
  return setmetatable({ folder = (folder:gsub("/+$", "")), limit = opts and opts.limit or DEFAULT_LIMIT }, Cache)
end

local default

-- nil where MELIES_CACHE is "off", or there is no home folder.
function M.default()
  if default ~= nil then return default or nil end
  local home = os.getenv "HOME"
  local base = os.getenv "XDG_CACHE_HOME"
  if not base or base:sub(1, 1) ~= "/" then base = home and home ~= "" and home .. "/.cache" end
  local folder = os.getenv "MELIES_CACHE"
  if not folder or folder == "" then folder = base and base .. "/melies" end
  default = folder and folder ~= "off" and M.at(folder) or false
  local limit = os.getenv "MELIES_CACHE_LIMIT"
  if default and limit and limit ~= "" then
    local bytes = require("melies.budget").size(limit)
    if bytes then default.limit = bytes
    else log.warn("MELIES_CACHE_LIMIT is '%s'; it should be a size such as 500M or 8G", limit) end
  end
  return default or nil
end

-- Makes c (nil: none) the one that default() gives from now on, and returns the one before; for tests and scripts.
function M.use(c)
  local before = M.default()
  default = c or false
  return before
end

function Cache:path(kind, key) return ("%s/%s-%s.safetensors"):format(self.folder, kind, key) end

function Cache:key(kind, fields)
  return M.hash { FORMAT, kind, ffi.string(C.mel_version()), tonumber(C.mel_cpu_isa()), fields }
end

-- What is in an entry, of names, shapes, types and values.
local function content_hash(tensors) return M.hash(tensors) end

-- The entry in a file, checked against its own hash; nil and a message where it is not whole.
local function read_entry(path)
  local f, message = require("melies.weights").open(path)
  if not f then return nil, message end
  local tensors, metadata = {}, f.metadata
  local parts = metadata.melies_content == BY_PARTS -- large ones say in every part whether it is whole
  local ok, why = pcall(function()
    for _, name in ipairs(f:names()) do
      local x = f:get(name)
      if parts then lib.call(C.mel_linear_packed_check, x.handle) end
      tensors[name] = parts and x or x:clone()
    end
  end)
  if parts then return ok and tensors or nil, ok and metadata or ("%s: %s"):format(path, tostring(why)) end
  f:close()
  if not ok then return nil, tostring(why) end
  if metadata.melies_content ~= content_hash(tensors) then return nil, path .. ": the content is not what was written" end
  return tensors, metadata
end

function Cache:get(kind, key)
  local path = self:path(kind, key)
  local s = fs.stat(path)
  if not s then return nil end
  local tensors, metadata = read_entry(path)
  if not tensors then
    if not fs.stat(path) then return nil end -- removed by another process meanwhile
    local gone = os.remove(path)
    log.warn("the cache's %s is damaged%s", path, gone and "; it was removed" or " and is not used")
    return nil
  end
  fs.touch(path) -- fails in a read-only folder: then it only counts as older
  return tensors, metadata
end

-- Nothing of it is checked: packed layers check themselves.
function Cache:map(kind, key)
  local path = self:path(kind, key)
  if not fs.stat(path) then return nil end
  local f = require("melies.weights").open(path)
  if not f then os.remove(path) return nil end
  fs.touch(path)
  return f
end

-- An entry of parts: { name = { dtype =, shape =, make = } } as weights.save takes them. At most `share` of the limit.
function Cache:put_parts(kind, key, parts, metadata, share)
  local bytes = 0
  for _, part in pairs(parts) do bytes = bytes + part.shape[1] end
  if self.gave_up or bytes > self.limit * share then return false end
  local made, message = fs.make(self.folder)
  if not made then return self:give_up(message) end
  local all = { melies_kind = kind, melies_key = key, melies_content = BY_PARTS }
  for name, value in pairs(metadata) do all[name] = value end
  local ok, why = require("melies.weights").save(self:path(kind, key), parts, all)
  if not ok then return self:give_up(why) end
  self:evict()
  return true
end

-- Told once: a folder that cannot be written, a full disk.
function Cache:give_up(message)
  if not self.gave_up then log.warn("going on without writing to the cache: %s", message) end
  self.gave_up = true
  return false
end

function Cache:put(kind, key, tensors, metadata)
  if self.gave_up then return false end
  local made, message = fs.make(self.folder)
  if not made then return self:give_up(message) end
  local all = {}
  for name, value in pairs(metadata or {}) do all[name] = value end
  all.melies_kind, all.melies_key, all.melies_content = kind, key, content_hash(tensors)
  local bytes = 0
  for _, x in pairs(tensors) do bytes = bytes + x:bytes() end
  if bytes > self.limit then return false end
  local ok, why = require("melies.weights").save(self:path(kind, key), tensors, all)
  if not ok then return self:give_up(why) end
  self:evict()
  return true
end

-- ---- upkeep ----------------------------------------------------------------------------------------

-- { { path=, name=, kind=, key=, size=, used= }, ... }, the last used first; nil and a message where it can't be read.
-- A folder that is not there is empty.
function Cache:list()
  local names, message = fs.list(self.folder)
  if not names then
    if not fs.stat(self.folder) then return {} end
    return nil, message
  end
  local out = {}
  for _, name in ipairs(names) do
    local kind, key = name:match "^([%l_]+)%-(%x+)%.safetensors$"
    local s = kind and fs.stat(self.folder .. "/" .. name)
    if s then
      out[#out + 1] = { path = self.folder .. "/" .. name, name = name, kind = kind, key = key, size = s.size,
        used = s.mtime }
    end
  end
  table.sort(out, function(a, b)
    if a.used ~= b.used then return a.used > b.used end
    return a.name < b.name
  end)
  return out
end

-- Unfinished files of processes that died.
local function remove_stale(self)
  local now = os.time()
  for _, name in ipairs(fs.list(self.folder) or {}) do
    if name:find("-%x+%.safetensors") and not name:find "%.safetensors$" then
      local s = fs.stat(self.folder .. "/" .. name)
      if s and now - s.mtime > STALE then os.remove(self.folder .. "/" .. name) end
    end
  end
end

-- Removes the least recently used entries until nine tenths of the limit are left, where more than the limit is there.
-- One process at a time. Returns how many went.
function Cache:evict()
  local entries, total, count = self:list() or {}, 0, 0
  for _, e in ipairs(entries) do total = total + e.size end
  if total <= self.limit then return 0 end
  local release = fs.lock(self.folder .. "/lock")
  if not release then return 0 end
  remove_stale(self)
  for i = #entries, 1, -1 do
    if total <= 0.9 * self.limit then break end
    local s = fs.stat(entries[i].path)
    if s and s.mtime == entries[i].used and os.remove(entries[i].path) then count = count + 1 end
    total = total - entries[i].size
  end
  release()
  return count
end

-- Removes all entries, or those that were not used for opts.older seconds. Returns how many, and their bytes.
function Cache:clear(opts)
  local entries, message = self:list()
  if not entries then return nil, message end
  local older, now, count, bytes = opts and opts.older or 0, os.time(), 0, 0
  for _, e in ipairs(entries) do
    if older == 0 or now - e.used >= older then
      local ok, why = os.remove(e.path)
      if ok then count, bytes = count + 1, bytes + e.size
      elseif fs.stat(e.path) then return nil, why end
    end
  end
  remove_stale(self)
  return count, bytes
end

-- Reads every entry and removes what is damaged. Returns how many are good, and { { path, message }, ... } of the rest.
function Cache:verify()
  local entries, message = self:list()
  if not entries then return nil, message end
  local good, bad = 0, {}
  for _, e in ipairs(entries) do
    local tensors, why = read_entry(e.path)
    if tensors then
      local metadata = why
      if metadata.melies_kind ~= e.kind or metadata.melies_key ~= e.key then
        tensors, why = nil, ("%s: it is the entry %s-%s"):format(e.path, tostring(metadata.melies_kind),
          tostring(metadata.melies_key))
      end
    end
    if tensors then good = good + 1
    elseif fs.stat(e.path) then
      os.remove(e.path)
      bad[#bad + 1] = { e.path, why }
    end
  end
  return good, bad
end

return M
