-- Packed layers kept in the cache: where a transformer was packed before, its layers are read where they lie in that file.
-- Packing reads all weights and writes them to memory of its own; a mapped file costs neither, and its pages are the
-- system's to take back.
--
--   packed.of(model, plan) -> p | nil     nil: there is no cache, or the model cannot be kept (files that have no name,
--                                         LoRAs, experts, a transformer that the plan does not pack whole)
--   p:pack(layer)                         from the cache where it is there and whole, else as ever
--   p:finish()                            keeps the layers where they were not there
--
-- An entry depends on the transformer's file, the calibration, oneDNN and the instruction set; each layer in it says
-- its layout and its checksum, and is packed anew where one of them is not right. Then the entry is written again.
local ffi = require "ffi"
local lib = require "melies.ffi.lib"
local log = require "melies.log"

local M = {}
local Packed = {}
Packed.__index = Packed

M.share = 0.75 -- of the cache's limit: what an entry may take

function M.of(model, plan)
  local cache = require "melies.cache"
  local disk, source = cache.default(), model.sources and model.sources.dit
  if not disk or not source or plan.resident < plan.of or not plan.rest or model.dit.nets
    or (model.lora_key or "") ~= "" then
    return nil
  end
  local files = source.weights:files()
  local who = files and cache.identity(files)
  local q = source.options.quantization
  local calibration = q and q.path and cache.identity(q.path)
  if not who or (q and not calibration) then return nil end
  local key = disk:key("packed", { transformer = who, calibration = calibration or "none", compute = source.options.compute,
    onednn = ffi.string(lib.C.mel_onednn_version()) })
  return setmetatable({ disk = disk, key = key, name = model.name, file = disk:map("packed", key), layers = {},
    missed = 0 }, Packed)
end

function Packed:pack(layer)
  local name = layer.name
  local kept = name and self.file and self.file:has(name) and self.file:get(name) or nil
  local fits = layer:pack(kept)
  if name and layer.kept then
    self.layers[name] = layer
    if not fits then self.missed = self.missed + 1 end
  end
end

function Packed:finish()
  if self.missed == 0 then return end
  if self.file then
    log.warn("the cache's packed layers of %s do not fit or are damaged: %d were packed again", self.name, self.missed)
  end
  local parts = {}
  for name, layer in pairs(self.layers) do
    parts[name] = { dtype = "u8", shape = { layer:packed_bytes() }, make = function() return layer:packed() end }
  end
  self.disk:put_parts("packed", self.key, parts, { model = self.name }, M.share)
end

return M
