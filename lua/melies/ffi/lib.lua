-- Loads libmelies, checks that its headers are the ones these declarations were made from, and turns
-- statuses into Lua errors.
-- LuaJIT 2.1.0-beta3, Debian 12's, patches a running pairs loop when it gives up compiling it, and the loop ends early or
-- yields its index for a key (LuaJIT issue 827, mended in April 2022). A loop over any other iterator is not touched.
if jit.version == "LuaJIT 2.1.0-beta3" then
  local next = next
  local function step(t, key) return next(t, key) end
  function pairs(t) return step, t, nil end -- luacheck: ignore
end

local ffi = require "ffi"
local decl = require "melies.ffi.cdef"

ffi.cdef(decl.cdef)

local lib = { version = decl.version }

-- In the melies program the symbols are there already; under a plain luajit the library is found by
-- MELIES_LIB (a path) or the loader's own search.
local function load_library()
  local ok = pcall(function() return ffi.C.mel_abi_hash end)
  if ok then return ffi.C end
  local path = os.getenv("MELIES_LIB") or "melies"
  local loaded, library = pcall(ffi.load, path)
  if not loaded then error("cannot load libmelies (" .. path .. "): " .. tostring(library), 0) end
  return library
end

local C = load_library()
lib.C = C

local found = ffi.string(C.mel_abi_hash())
if found ~= decl.hash then
  error(("libmelies %s (interface %s) does not fit these Lua files %s (interface %s): build both from one source")
    :format(ffi.string(C.mel_version()), found, decl.version, decl.hash), 0)
end

-- One error record for the process: C fills it, Lua reads it before the next call.
local err = ffi.new("mel_error")

lib.OK, lib.EINVAL, lib.ENOMEM, lib.EIO = 0, 1, 2, 3
lib.EFORMAT, lib.EUNSUPPORTED, lib.ECANCELED, lib.EINTERNAL = 4, 5, 6, 7

-- The last failure's message and status.
function lib.message() return ffi.string(err.message) end

-- Calls fn(..., err); raises its message at the level of the caller's caller on failure.
function lib.call(fn, ...)
  local n = select("#", ...)
  local args = { ... }
  args[n + 1] = err
  local status = tonumber(fn(unpack(args, 1, n + 1)))
  if status ~= 0 then lib.raise(status, 4) end
end

-- Raises the current message. Cancel is raised as the table lib.canceled, so that it is told from failures.
lib.canceled = setmetatable({ canceled = true }, { __tostring = function() return "canceled" end })
function lib.raise(status, level)
  if status == lib.ECANCELED then error(lib.canceled, 0) end
  error(lib.message(), level or 3)
end

-- Raises where status is not 0. Use it right after a call that was given lib.err.
lib.err = err
function lib.check(status, level)
  status = tonumber(status)
  if status ~= 0 then lib.raise(status, (level or 2) + 2) end
end

-- How many native bytes more than `live` are much: as many again, but 64 to 256 MiB, or a quarter, but 1 GiB.
function lib.much(live)
  local MiB = 2 ^ 20
  return math.max(math.min(math.max(live, 64 * MiB), 256 * MiB), math.min(live / 4, 1024 * MiB))
end

-- Collects what nobody holds. The bytes that live then.
function lib.collect()
  collectgarbage()
  collectgarbage() -- finalizers queued by the first run at their end
  return tonumber(C.mel_mem_live())
end

-- Collects between two parts of a work (never inside one: fresh pages are slow), and keeps so much of the freed memory for
-- what comes next as is not much.
function lib.tidy() C.mel_mem_trim(lib.much(lib.collect())) end

-- Gives back the memory of what nobody holds. Compiled traces hold the closures and tables that they were recorded with,
-- a model's layers among them: the traces go too, and what runs on is compiled again.
function lib.reclaim()
  jit.flush()
  lib.collect()
end

-- lib.make.mel_x(...): C.mel_x(...) for functions that make something new and change nothing else. Where memory is short,
-- they are called again after a collection, and where that was not enough, once more after reclaim.
lib.make = setmetatable({}, { __index = function(made, name)
  local fn = C[name]
  local function patient(...)
    local status = fn(...)
    if status == lib.ENOMEM then
      lib.collect()
      status = fn(...)
    end
    if status == lib.ENOMEM then
      lib.reclaim()
      status = fn(...)
    end
    return status
  end
  made[name] = patient
  return patient
end })

-- Expected failures: true, or nil, message, status.
function lib.try(fn, ...)
  local n = select("#", ...)
  local args = { ... }
  args[n + 1] = err
  local status = tonumber(fn(unpack(args, 1, n + 1)))
  if status == 0 then return true end
  return nil, lib.message(), status
end

-- A fresh box for an out pointer: lib.out("mel_tensor*").
local boxes = {}
function lib.out(ctype)
  local t = boxes[ctype]
  if not t then
    t = ffi.typeof(ctype .. "[1]")
    boxes[ctype] = t
  end
  return t()
end

-- ---- suggestions -----------------------------------------------------------------------------

local function distance(a, b)
  local row = {}
  for j = 0, #b do row[j] = j end
  for i = 1, #a do
    local diagonal = row[0]
    row[0] = i
    for j = 1, #b do
      local cost = a:byte(i) == b:byte(j) and 0 or 1
      local value = math.min(row[j] + 1, row[j - 1] + 1, diagonal + cost)
      diagonal, row[j] = row[j], value
    end
  end
  return row[#b]
end

-- The nearest of the names (an array, or the keys of a table), where one is near.
function lib.nearest(name, names)
  local best, least
  local function look(candidate)
    if type(candidate) ~= "string" then return end
    local d = distance(name:lower(), candidate:lower())
    if candidate:lower():find(name:lower(), 1, true) or name:lower():find(candidate:lower(), 1, true) then
      d = math.min(d, 2)
    end
    if not least or d < least or (d == least and candidate < best) then best, least = candidate, d end
  end
  for key, value in pairs(names) do look(type(key) == "number" and value or key) end
  if best and least <= math.max(2, math.floor(#name / 3)) then return best end
end

-- ", did you mean 'x'?" or "".
function lib.suggest(name, names)
  local best = lib.nearest(tostring(name), names)
  return best and (", did you mean '" .. best .. "'?") or ""
end

-- Options tables: raises on a key that is not in allowed, naming the nearest.
function lib.check_options(what, options, allowed, level)
  for key in pairs(options) do
    if not allowed[key] then
      error(("%s: unknown option '%s'%s"):format(what, tostring(key), lib.suggest(tostring(key), allowed)),
        (level or 2) + 1)
    end
  end
end

return lib
