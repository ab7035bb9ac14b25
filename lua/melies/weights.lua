-- Files of named tensors. Reads safetensors (also sharded, through the index), GGUF and PyTorch's .pth, told apart by
-- content; writes safetensors. Tensors are views of the file where type and alignment allow, else converted copies.
local ffi = require "ffi"
local lib = require "melies.ffi.lib"
local tensor = require "melies.tensor"
local C = lib.C

local weights = {}

-- What every source of tensors has, whatever is under it: names, has, get, shape, dtype, bytes, raw, prefetch, drop,
-- prefix, close and the fields metadata, format, path. A source gives find(name) -> its own key or nil, and the rest by key.
local Source = {}

local function opened(self, level)
  local s = self.source
  if not s then error(self.path .. ": these weights are closed", level + 1) end
  return s
end

Source.__index = function(self, key)
  local method = Source[key]
  if method ~= nil then return method end
  if key == "metadata" then
    local metadata = opened(self, 2).metadata()
    rawset(self, "metadata", metadata)
    return metadata
  end
  if type(key) == "string" and key ~= "source" then
    local known = { metadata = true, format = true, path = true }
    for name in pairs(Source) do known[name] = true end
    error(("weights have no '%s'%s"):format(key, lib.suggest(key, known)), 2)
  end
end

local function source(fields, path, format)
  return setmetatable({ source = fields, path = path, format = format }, Source)
end

-- weights.source(fields, path, format): the interface over tensors from anywhere. fields: find(name) -> key or nil,
-- names() (sorted), get(key, dtype code), shape, dtype, bytes, raw (each of a key), hint(which, key or nil), metadata(),
-- close(), and where they are known, files() -> paths; where it can do better than a slice of the whole:
-- rows(key, first, last, dtype name or nil).
weights.source = source

local function find(self, name, level)
  local s = opened(self, level + 1)
  if type(name) ~= "string" then error(("%s: a tensor's name is a string, not %s"):format(self.path, type(name)), level + 1) end
  local key = s.find(name)
  if not key then
    error(("%s: no tensor '%s'%s"):format(self.path, name, lib.suggest(name, s.names())), level + 1)
  end
  return s, key
end

-- f:names(): all names, sorted. A fresh table.
function Source:names() return opened(self, 2).names() end

-- f:has(name): whether there is such a tensor.
function Source:has(name) return opened(self, 2).find(name) ~= nil end

-- f:get(name, dtype): the tensor, as dtype where given. Raises where there is none, with the nearest name.
function Source:get(name, dtype)
  local s, key = find(self, name, 2)
  return s.get(key, tensor.dtype_code(dtype, 2))
end

-- f:shape(name): a table, row-major.
function Source:shape(name)
  local s, key = find(self, name, 2)
  return s.shape(key)
end

-- f:dtype(name): the type as stored: a dtype's name ("f32", "bf16", "s32" ...) or another one ("f8_e4m3", "q4_k" ...).
function Source:dtype(name)
  local s, key = find(self, name, 2)
  return s.dtype(key)
end

-- f:bytes(name): bytes as stored.
function Source:bytes(name)
  local s, key = find(self, name, 2)
  return s.bytes(key)
end

-- f:raw(name): the stored bytes, u8 [n]; quantised blocks stay as they are.
function Source:raw(name)
  local s, key = find(self, name, 2)
  return s.raw(key)
end

-- f:matrix(name): the tensor as a source that is read by rows when needed, quantised blocks included; for nn.linear.
function Source:matrix(name)
  local s, key = find(self, name, 2)
  return s.matrix(key)
end

-- f:scaled_matrix(name, factors): the same times another tensor of one value or one a row: fp8 with its scales.
function Source:scaled_matrix(name, factors)
  local s, key = find(self, name, 2)
  local _, factor_key = find(self, factors, 2)
  return s.scaled_matrix(key, factor_key)
end

-- f:rows(name, first, last, dtype): rows first..last of the outermost axis, without the memory for the others.
function Source:rows(name, first, last, dtype)
  local s, key = find(self, name, 2)
  if s.rows then return s.rows(key, first, last, dtype) end
  local x = s.get(key, -1):slice(1, first, last)
  return dtype and x:to(dtype) or x
end

-- f:prefetch(name): asks the system to read the tensor (nil: everything) ahead.
-- f:drop(name): gives the memory of its pages back; they are read again when next touched.
local function hint(which)
  return function(self, name)
    if name == nil then return opened(self, 2).hint(which) end
    local s, key = find(self, name, 2)
    s.hint(which, key)
  end
end
Source.prefetch = hint("mel_weights_prefetch")
Source.drop = hint("mel_weights_drop")

-- f:files(): paths of all files that the tensors lie in; nil where they do not come from files as they are.
function Source:files()
  local s = opened(self, 2)
  return s.files and s.files() or nil
end

-- f:prefix("model.diffusion_model."): the same interface over the tensors whose names begin so, without that beginning.
function Source:prefix(text)
  local outer = opened(self, 2)
  local fields = setmetatable({}, { __index = outer })
  function fields.find(name) return type(name) == "string" and outer.find(text .. name) or nil end
  function fields.names()
    local out = {}
    for _, name in ipairs(outer.names()) do
      if name:sub(1, #text) == text then out[#out + 1] = name:sub(#text + 1) end
    end
    return out
  end
  function fields.close() end
  return source(fields, self.path, self.format)
end

-- f:close(): lets go of the file now. Tensors taken from it stay valid. A prefix view only closes itself.
function Source:close()
  local s = self.source
  self.source = nil
  if s then s.close() end
end

-- ---- files -------------------------------------------------------------------------------------------

local box_type = ffi.typeof("mel_tensor*[1]")
local handle_type = ffi.typeof("mel_weights*[1]")
local value_type = ffi.typeof("mel_meta_value")

-- Whole numbers beyond 2^53 come as 64-bit cdata, so that none is changed.
local function scalar(v)
  local kind = v.type
  if kind == C.MEL_META_STRING then return ffi.string(v.text, v.length) end
  if kind == C.MEL_META_BOOL then return v.integer ~= 0 end
  if kind == C.MEL_META_U64 or kind == C.MEL_META_I64 then
    if v.number >= -2 ^ 53 and v.number <= 2 ^ 53 then return v.number end
    return kind == C.MEL_META_U64 and ffi.cast("uint64_t", v.integer) or v.integer
  end
  return v.number
end

local function read_metadata(handle)
  local out, v = {}, value_type()
  for i = 0, tonumber(C.mel_weights_meta_count(handle)) - 1 do
    local key, length = ffi.string(C.mel_weights_meta_key(handle, i)), tonumber(C.mel_weights_meta_length(handle, i))
    if length < 0 then
      lib.check(C.mel_weights_meta_get(handle, i, 0, v, lib.err))
      out[key] = scalar(v)
    else
      local list = {}
      for k = 1, length do
        lib.check(C.mel_weights_meta_get(handle, i, k - 1, v, lib.err))
        list[k] = scalar(v)
      end
      out[key] = list
    end
  end
  return out
end

-- Our names for stored types that have another one.
local stored_names = { i8 = "s8", i32 = "s32" }

-- path: for messages of views that outlive a closed file.
local function file_source(open_handle, path)
  local fields, handle = {}, open_handle
  local function live()
    if handle == nil then error(path .. ": these weights are closed", 4) end
    return handle
  end
  local function name_of(key) return C.mel_weights_name(live(), key) end
  function fields.find(name)
    local key = tonumber(C.mel_weights_find(live(), type(name) == "string" and name or nil))
    return key >= 0 and key or nil
  end
  function fields.names()
    local out = {}
    for i = 1, tonumber(C.mel_weights_count(live())) do out[i] = ffi.string(name_of(i - 1)) end
    return out
  end
  function fields.get(key, code)
    local box = box_type()
    lib.check(C.mel_weights_tensor(handle, name_of(key), code, box, lib.err), 3)
    return tensor.wrap(box[0])
  end
  function fields.raw(key)
    local box = box_type()
    lib.check(C.mel_weights_raw(handle, name_of(key), box, lib.err), 3)
    return tensor.wrap(box[0])
  end
  function fields.matrix(key)
    local box = ffi.new("mel_source*[1]")
    lib.check(C.mel_weights_source(handle, name_of(key), box, lib.err), 3)
    return require("melies.nn").wrap_source(box[0])
  end
  function fields.scaled_matrix(key, factors)
    local box = ffi.new("mel_source*[1]")
    lib.check(C.mel_weights_scaled_source(handle, name_of(key), name_of(factors), box, lib.err), 3)
    return require("melies.nn").wrap_source(box[0])
  end
  function fields.shape(key)
    local p, out = C.mel_weights_shape(handle, key), {}
    for i = 1, C.mel_weights_ndim(handle, key) do out[i] = tonumber(p[i - 1]) end
    return out
  end
  function fields.dtype(key)
    local name = ffi.string(C.mel_weights_stored(handle, key)):lower()
    return stored_names[name] or name
  end
  function fields.bytes(key) return tonumber(C.mel_weights_bytes(handle, key)) end
  function fields.files()
    local out, seen = {}, {}
    for i = 0, tonumber(C.mel_weights_count(live())) - 1 do
      local file = ffi.string(C.mel_weights_file(handle, i))
      if not seen[file] then out[#out + 1], seen[file] = file, true end
    end
    table.sort(out)
    return out
  end
  function fields.metadata() return read_metadata(live()) end
  function fields.hint(which, key) lib.check(C[which](live(), key and name_of(key) or nil, lib.err), 3) end
  function fields.close()
    C.mel_weights_close(ffi.gc(live(), nil))
    handle = nil
  end
  return fields
end

-- weights.open(path): a safetensors, GGUF or .pth file, or the index of a sharded one. nil and a message where it is
-- missing or not what it claims to be.
function weights.open(path)
  if type(path) ~= "string" then error("weights.open: a path is a string, not " .. type(path), 2) end
  local box = handle_type()
  local ok, message, status = lib.try(C.mel_weights_open, path, box)
  if not ok then return nil, message, status end
  local handle = ffi.gc(box[0], C.mel_weights_close)
  return source(file_source(handle, path), path, ffi.string(C.mel_weights_format(handle)))
end

-- ---- tables --------------------------------------------------------------------------------------------

local function sorted_keys(t)
  local out = {}
  for key in pairs(t) do out[#out + 1] = key end
  table.sort(out)
  return out
end

local function check_tensors(what, tensors, level, later)
  if type(tensors) ~= "table" then error(what .. ": a table of name = tensor is wanted", level + 1) end
  for name, x in pairs(tensors) do
    if type(name) ~= "string" or not (tensor.is(x) or (later and type(x) == "table" and x.make)) then
      error(("%s: '%s' is %s, not a tensor with a name"):format(what, tostring(name), type(x)), level + 1)
    end
  end
end

-- weights.from_table({ name = tensor, ... }, metadata): the same interface over tensors in memory.
function weights.from_table(tensors, metadata)
  check_tensors("weights.from_table", tensors, 2)
  local held = {}
  for name, x in pairs(tensors) do held[name] = x end
  local fields = {}
  function fields.find(name) return held[name] and name or nil end
  function fields.names() return sorted_keys(held) end
  function fields.get(key, code)
    if code < 0 then return held[key] end
    local box = box_type()
    lib.check(C.mel_tensor_cast(held[key].handle, code, box, lib.err), 3)
    return tensor.wrap(box[0])
  end
  function fields.shape(key)
    local out = {}
    for i, d in ipairs(held[key].shape) do out[i] = d end
    return out
  end
  function fields.dtype(key) return held[key].dtype end
  function fields.bytes(key) return held[key]:bytes() end
  function fields.raw(key)
    local dense = held[key]:contiguous()
    local copy = tensor.empty({ dense:bytes() }, "u8")
    ffi.copy(copy:ptr(), dense:ptr(), dense:bytes())
    return copy
  end
  function fields.matrix(key)
    local x = held[key]
    return require("melies.nn").source(x:reshape(x.shape[1], -1))
  end
  function fields.metadata() return metadata or {} end
  function fields.hint() end
  function fields.close() end
  return source(fields, "weights in memory", "table")
end

-- weights.save(path, { name = tensor, ... }, metadata): writes safetensors, under the name only when complete. metadata
-- maps strings to strings or numbers. true, or nil and a message where the file cannot be written. In place of a tensor:
-- { dtype =, shape =, make = function() return tensor end }, made when its turn has come and freed.
function weights.save(path, tensors, metadata)
  if type(path) ~= "string" then error("weights.save: a path is a string, not " .. type(path), 2) end
  check_tensors("weights.save", tensors, 2, true)
  local box = ffi.new("mel_weights_writer*[1]")
  local ok, message, status = lib.try(C.mel_weights_writer_create, path, box)
  if not ok then return nil, message, status end
  local writer = ffi.gc(box[0], C.mel_weights_writer_free)
  local failed
  local function try(fn, ...)
    if failed then return end
    local good, text, code = lib.try(fn, writer, ...)
    if not good then failed = { text, code } end
  end
  for _, key in ipairs(sorted_keys(metadata or {})) do
    try(C.mel_weights_writer_metadata, key, tostring(metadata[key]))
  end
  local names = sorted_keys(tensors)
  for _, name in ipairs(names) do
    local x = tensors[name]
    try(C.mel_weights_writer_declare, name, tensor.dtype_code(x.dtype), #x.shape, ffi.new("int64_t[8]", x.shape))
  end
  for _, name in ipairs(names) do
    local x = tensors[name]
    if tensor.is(x) then
      try(C.mel_weights_writer_write, name, x.handle)
    elseif not failed then
      local made = x.make()
      try(C.mel_weights_writer_write, name, made.handle)
      made:free()
    end
  end
  try(C.mel_weights_writer_finish)
  C.mel_weights_writer_free(ffi.gc(writer, nil))
  if failed then return nil, failed[1], failed[2] end
  return true
end

return weights
