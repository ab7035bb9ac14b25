-- The memory that a job may use.
local lib = require "melies.ffi.lib"

local M = {}

-- budget.size("1.5G"): bytes; units K, M, G, T of 1024, with or without B or iB. nil where it is not a size.
function M.size(text)
  local number, unit = tostring(text):match "^(%d+%.?%d*)%s*([KMGTkmgt]?)i?[Bb]?$"
  if not number then return nil end
  local power = ({ [""] = 0, K = 1, M = 2, G = 3, T = 4 })[unit:upper()]
  return math.floor(tonumber(number) * 1024 ^ power)
end

-- budget.set(bytes): what --memory says; nil: what the machine has free.
function M.set(bytes)
  M.given = bytes
  lib.C.mel_mem_set_limit(bytes or 0)
end

return M
