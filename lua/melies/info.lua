-- What `melies info FILE` and `melies version` say.
local ffi = require "ffi"
local show = require "melies.show"

local info = {}

local function row(lines, name, value)
  if value ~= nil and value ~= "" then lines[#lines + 1] = ("%-12s %s"):format(name, tostring(value)) end
end

-- ---- weights --------------------------------------------------------------------------------------

local function weights(path)
  local f, message = require("melies.weights").open(path)
  if not f then return nil, message end
  local names = f:names()
  local tensors, by_dtype, dtypes, total = {}, {}, {}, 0
  for _, name in ipairs(names) do
    local shape, dtype = f:shape(name), f:dtype(name)
    local count = 1
    for _, d in ipairs(shape) do count = count * tonumber(d) end
    local bytes = f:bytes(name)
    total = total + bytes
    tensors[#tensors + 1] = { name = name, shape = shape, dtype = dtype, bytes = bytes, count = count }
    if not by_dtype[dtype] then by_dtype[dtype] = { 0, 0 } dtypes[#dtypes + 1] = dtype end
    by_dtype[dtype][1], by_dtype[dtype][2] = by_dtype[dtype][1] + 1, by_dtype[dtype][2] + count
  end
  local known = require("melies.checkpoint").describe(f) or require("melies.lora").describe(path)
  local lines, parts = known and { known, "" } or {}, {}
  table.sort(dtypes)
  for _, dtype in ipairs(dtypes) do
    parts[#parts + 1] = ("%s: %d with %d values"):format(dtype, by_dtype[dtype][1], by_dtype[dtype][2])
  end
  row(lines, "tensors", #names)
  row(lines, "dtypes", table.concat(parts, "; "))
  row(lines, "bytes", ("%d (%s)"):format(total, show.bytes_text(total)))
  local keys = {}
  for key in pairs(f.metadata or {}) do keys[#keys + 1] = tostring(key) end
  table.sort(keys)
  for _, key in ipairs(keys) do
    local value = tostring(f.metadata[key]):gsub("\n", " ")
    row(lines, key, #value > 200 and value:sub(1, 200) .. ("... (%d bytes)"):format(#value) or value)
  end
  table.sort(tensors, function(a, b)
    if a.bytes ~= b.bytes then return a.bytes > b.bytes end
    return a.name < b.name
  end)
  local shown = math.min(12, #tensors)
  if shown > 0 then
    lines[#lines + 1] = shown < #tensors and ("the %d largest:"):format(shown) or "all:"
    local wide = 0
    for i = 1, shown do wide = math.max(wide, #tensors[i].name) end
    for i = 1, shown do
      local x = tensors[i]
      lines[#lines + 1] = ("  %-" .. math.min(wide, 90) .. "s  %-5s %-24s %s"):format(x.name, x.dtype,
        "[" .. table.concat(x.shape, ", ") .. "]", show.bytes_text(x.bytes))
    end
  end
  return table.concat(lines, "\n")
end

-- ---- films and images -----------------------------------------------------------------------------

local function params_text(json_text)
  local ok, params = pcall(function() return require("melies.json").decode(json_text) end)
  if not ok or type(params) ~= "table" then return json_text end
  local names, lines = {}, {}
  for name in pairs(params) do names[#names + 1] = tostring(name) end
  table.sort(names)
  for _, name in ipairs(names) do
    local value = params[name]
    if type(value) == "table" then value = require("melies.json").encode(value) end
    if value ~= "" then lines[#lines + 1] = ("  %-12s %s"):format(name, tostring(value)) end
  end
  return "\n" .. table.concat(lines, "\n")
end

-- What containers note for themselves says nothing about the film.
local container_tags = { compatible_brands = true, major_brand = true, minor_version = true, handler_name = true,
  vendor_id = true, language = true }

local function media(path)
  local facts, message = require("melies.media").info(path)
  if not facts then return nil, message end
  local lines, tags = {}, facts.metadata or {}
  for _, key in ipairs { "recipe", "model", "seed", "version", "params" } do
    local value = tags["melies_" .. key]
    if value then
      if key == "params" then lines[#lines + 1] = "parameters" .. params_text(value)
      else row(lines, key == "version" and "melies" or key, value) end
    end
  end
  row(lines, "container", facts.container)
  row(lines, "codec", facts.codec)
  row(lines, "pixels", facts.pixel_format)
  row(lines, "size", ("%dx%d"):format(facts.width, facts.height))
  if not facts.is_image then
    row(lines, "frames", facts.frames and facts.frames >= 0 and facts.frames or nil)
    row(lines, "rate", facts.fps and facts.fps > 0 and ("%.6g frames a second"):format(facts.fps) or nil)
    local length = facts.duration or facts.duration_s
    row(lines, "length", length and length >= 0 and ("%.3f s"):format(length) or nil)
    row(lines, "sound", facts.has_audio and "yes" or nil)
  end
  local keys = {}
  for key in pairs(tags) do
    if not (tostring(key):find "^melies_" or container_tags[key]) then keys[#keys + 1] = key end
  end
  table.sort(keys)
  for _, key in ipairs(keys) do row(lines, key, tags[key]) end
  return table.concat(lines, "\n")
end

-- Text about the file at path; nil and a message where it cannot be read or is of no known kind.
function info.of(path)
  if require("melies.checkpoint.folder").is_folder(path) then return require("melies.checkpoint").describe(path) end
  local f, message = io.open(path, "rb")
  if not f then return nil, message end
  local first, why = f:read(9)
  f:close()
  if not first then return nil, path .. ": " .. (why or "the file is empty") end
  if first:sub(1, 4) == "GGUF" or first:sub(1, 4) == "PK\3\4" or first:sub(9, 9) == "{"
    or path:find "%.safetensors$" or path:find "%.gguf$"
    or path:find "%.index%.json$" then
    return weights(path)
  end
  return media(path)
end

-- ---- versions -------------------------------------------------------------------------------------

-- Versions of libraries that libmelies brings into the process; nil where one does not answer.
local function onednn()
  local ok, text = pcall(function()
    -- the head of dnnl_version_t, the same in 2.x and 3.x
    ffi.cdef "typedef struct { int major, minor, patch; } melies_dnnl_version; melies_dnnl_version *dnnl_version(void);"
    local v = ffi.C.dnnl_version()
    return ("%d.%d.%d"):format(v.major, v.minor, v.patch)
  end)
  return ok and text or nil
end

local function ffmpeg()
  local ok, text = pcall(function()
    ffi.cdef "const char *av_version_info(void);"
    return ffi.string(ffi.C.av_version_info())
  end)
  return ok and text or nil
end

function info.versions()
  local C = require("melies.ffi.lib").C
  local isa = { [0] = "plain", "avx2", "avx512", "avx512_bf16", "amx_bf16" }
  local lines = {}
  row(lines, "melies", ffi.string(C.mel_version()))
  row(lines, "LuaJIT", (jit.version:gsub("^LuaJIT ", "")))
  row(lines, "oneDNN", onednn())
  row(lines, "FFmpeg", ffmpeg())
  row(lines, "processor", ("%s, %s"):format(ffi.string(C.mel_cpu_name()), isa[tonumber(C.mel_cpu_isa())] or "?"))
  row(lines, "compute", require("melies").compute())
  row(lines, "threads", C.mel_threads())
  return table.concat(lines, "\n")
end

return info
