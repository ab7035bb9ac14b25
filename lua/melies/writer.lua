-- Files of weights written piece by piece, safetensors or GGUF, of any size in little memory.
--
--   local w = writer.create(path, { format = "safetensors" or "gguf", quick = false }) -> writer | nil, message
--   w:metadata(key, text)  w:number(key, whole number)      -- numbers in GGUF only
--   w:declare(name, "bf16", shape)                          -- everything, before the first rows
--   w:rows(name, first, tensor)                             -- rows from `first` (1-based) on, converted or quantised
--   w:finish()                                              -- only now the file stands under its name
--   w:discard()                                             -- nothing stays; after finish it does nothing
-- What fails raises; Ctrl-C raises as everywhere.
local ffi = require "ffi"
local lib = require "melies.ffi.lib"
local C = lib.C

local writer = {}
local Writer = {}
Writer.__index = Writer

function writer.create(path, options)
  options = options or {}
  lib.check_options("writer.create", options, { format = true, quick = true })
  local box = ffi.new("mel_weights_writer*[1]")
  local create = options.format == "gguf" and C.mel_weights_writer_create_gguf or C.mel_weights_writer_create
  local ok, message, status = lib.try(create, path, box)
  if not ok then return nil, message, status end
  local self = setmetatable({ handle = ffi.gc(box[0], C.mel_weights_writer_free), path = path }, Writer)
  if options.quick then C.mel_weights_writer_set_quick(self.handle, true) end
  return self
end

local function live(self)
  if not self.handle then error(self.path .. ": this writer has ended", 3) end
  return self.handle
end

function Writer:metadata(key, text) lib.check(C.mel_weights_writer_metadata(live(self), key, text, lib.err), 2) end

function Writer:number(key, value)
  lib.check(C.mel_weights_writer_number(live(self), key, C.MEL_META_U32, value, lib.err), 2)
end

-- Our names of types to the files'.
local stored_names = { s8 = "I8", s32 = "I32" }

function Writer:declare(name, stored, shape)
  local dims = ffi.new("int64_t[?]", math.max(1, #shape))
  for i, d in ipairs(shape) do dims[i - 1] = d end
  local type_name = stored_names[stored] or stored:upper()
  lib.check(C.mel_weights_writer_declare_stored(live(self), name, type_name, #shape, dims, lib.err), 2)
end

function Writer:rows(name, first, tensor)
  lib.check(C.mel_weights_writer_rows(live(self), name, first - 1, tensor.handle, lib.err), 2)
end

function Writer:discard()
  if self.handle then C.mel_weights_writer_free(ffi.gc(self.handle, nil)) end
  self.handle = nil
end

function Writer:finish()
  lib.check(C.mel_weights_writer_finish(live(self), lib.err), 2)
  self:discard()
end

return writer
