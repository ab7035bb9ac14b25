-- melies: the one module that recipes and plugins require. Its parts load when first used.
local lib = require "melies.ffi.lib"
local C = lib.C

local melies = { version = lib.version }

-- melies.compute(): the dtype of matrix work, "bf16", "f32" or "s8" (8 bits in the large matrices of models that know
-- it, bf16 elsewhere). melies.set_compute(dtype) changes it for what is loaded from then on.
local eight = false
function melies.compute() return eight and "s8" or tonumber(C.mel_compute()) == 1 and "bf16" or "f32" end
function melies.set_compute(dtype)
  local code = require("melies.tensor").dtype_code(dtype == "s8" and "bf16" or dtype)
  lib.check(C.mel_set_compute(code, lib.err))
  eight = dtype == "s8"
end
-- melies.threads(n): sets (0: one a core) or tells the number of threads.
function melies.threads(count)
  if count then lib.check(C.mel_set_threads(count, lib.err)) end
  return C.mel_threads()
end
-- melies.memory(): live, peak and pooled bytes, and the limit (0: none). melies.memory_limit(bytes) sets it.
function melies.memory()
  return { live = tonumber(C.mel_mem_live()), peak = tonumber(C.mel_mem_peak()), pooled = tonumber(C.mel_mem_pooled()),
    limit = tonumber(C.mel_mem_limit()) }
end
function melies.memory_limit(bytes) C.mel_mem_set_limit(bytes) end
function melies.seconds() return C.mel_seconds() end

-- melies.noise(shape, {seed=, stream=, offset=}): standard normal f32, the same for any thread count.
function melies.noise(shape, options) return require("melies.tensor").noise(shape, options) end
-- melies.run(recipe, params): runs a recipe from Lua.
function melies.run(...) return require("melies.recipe").call(...) end

return setmetatable(melies, {
  __index = function(self, name)
    if type(name) ~= "string" then return nil end
    local path = "melies." .. name
    if not package.searchpath(path, package.path) then return nil end
    local part = require(path)
    rawset(self, name, part)
    return part
  end,
})
