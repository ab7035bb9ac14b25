-- What a file of weights is, seen from its keys and shapes, never from its name, and its tensors under canonical names.
--
--   checkpoint.detect(weights or path)  -> part | nil, message     the first part; .others lists more of them
--   checkpoint.parts(weights)           -> { part, ... }           every model in one file (LTX: transformer and autoencoder)
--   checkpoint.problems(part)           -> message | nil           missing, extra and wrong-shaped tensors in one line
--   checkpoint.open(path, options)      -> weights | nil, message  one part with canonical names; path: a file, an index
--                                          of shards or a folder. options: part = "dit", extra = "ignore"
--   checkpoint.scan(folder)             -> found | nil, message    see melies.checkpoint.folder
--   checkpoint.describe(path)           -> text | nil, message     what `melies info` prints
--
-- A part: { architecture, part, model, variant, text, layout, format, prefix, path, config, entries (canonical name ->
-- { name, stored, shape, kind ... }), list (in order), missing, extra, wrong, ignored, dtypes, parameters, bytes,
-- memory { resident, streamed } }. What it was opened from is kept open by the weights that come from it.
local keys = require "melies.checkpoint.keys"
local lib = require "melies.ffi.lib"

local checkpoint = {}

local architectures = {}
for _, file in ipairs { "wan_dit", "t5", "wan_vae", "taehv", "clip", "ltx" } do
  local found = require("melies.checkpoint." .. file)
  if found.name then found = { found } end
  for _, a in ipairs(found) do architectures[#architectures + 1] = a end
end
checkpoint.architectures = architectures

function checkpoint.architecture(name)
  for _, a in ipairs(architectures) do if a.name == name then return a end end
end

local function shape_text(shape) return "[" .. table.concat(shape, ", ") .. "]" end
checkpoint.shape_text = shape_text

-- ---- one file as names and shapes -------------------------------------------------------------------------------

local function look(weights)
  local file = { weights = weights, list = weights:names(), names = {}, shapes = {} }
  for _, name in ipairs(file.list) do file.names[name] = true end
  return file
end

local function stored_shape(file, name)
  local shape = file.shapes[name]
  if not shape then
    shape = file.weights:shape(name)
    file.shapes[name] = shape
  end
  return shape
end

-- The stored tensors behind a canonical name: { op, names = {...}, i, n }, or nil and the first that is not there.
local function resolve(file, prefix, layout, canonical)
  local to = layout.rename(canonical)
  if type(to) == "string" then to = { to } end
  local out = { op = to.op, names = {} }
  if to.op == "rows" then out.i, out.n = to[2], to[3] end
  for i, name in ipairs(to) do
    if type(name) == "number" then break end
    local stored = prefix .. name
    if not file.names[stored] and layout.alias and layout.alias[name] then stored = prefix .. layout.alias[name] end
    if not file.names[stored] then return nil, prefix .. name end
    out.names[i] = stored
  end
  return out
end

local function resolved_shape(file, found)
  local shape = stored_shape(file, found.names[1])
  if not found.op then return shape end
  local out = {}
  for i, d in ipairs(shape) do out[i] = d end
  if found.op == "transpose" then
    out[1], out[2] = shape[2], shape[1]
  elseif found.op == "rows" then
    out[1] = shape[1] / found.n
  else
    for i = 2, #found.names do out[1] = out[1] + stored_shape(file, found.names[i])[1] end
  end
  return out
end

local function squeezed(shape)
  local out = {}
  for _, d in ipairs(shape) do if d ~= 1 then out[#out + 1] = d end end
  return table.concat(out, ",")
end

-- nil: does not fit; "same"; "reshape": the same values in the same order with other dimensions. GGUF has no more than
-- four dimensions, drops outer ones of 1, and its tools merge or flatten what they cannot hold.
local function fits(found, wanted, format)
  if table.concat(found, ",") == table.concat(wanted, ",") then return "same" end
  if squeezed(found) == squeezed(wanted) then return "reshape" end
  if format == "gguf" and #wanted ~= 2 and keys.numel(found) == keys.numel(wanted) then return "reshape" end
end

-- ---- dtypes ------------------------------------------------------------------------------------------------------

local float_types = { f32 = true, f16 = true, bf16 = true, f64 = true, f8_e4m3 = true, f8_e5m2 = true }
local function is_weight_type(dtype) return float_types[dtype] or dtype:find "^q%d" ~= nil end

-- fp8 comes with a factor a tensor, or one a row: ComfyUI's "scale_weight" (beside a marker "scaled_fp8"), and
-- "weight_scale" of its later files and of compressed-tensors (comfy/utils.py, convert_old_quants). Scales of the
-- inputs and descriptions are for kernels that work in fp8.
local scale_names = { "scale_weight", "weight_scale" }
local companions = { "scale_weight", "weight_scale", "scale_input", "input_scale", "comfy_quant" }

local function scale_of(file, stored)
  local stem = stored:match "^(.*)%.weight$"
  if not stem then return nil end
  for _, name in ipairs(scale_names) do
    if file.names[stem .. "." .. name] then return stem .. "." .. name end
  end
end

local function is_companion(file, name)
  if name:find "scaled_fp8$" then return true end
  for _, tail in ipairs(companions) do
    if name:sub(-#tail - 1) == "." .. tail then return file.names[name:sub(1, -#tail - 1) .. "weight"] or false end
  end
  return false
end

-- ---- recognising ---------------------------------------------------------------------------------------------------

-- Where the anchor stands: the beginnings before it.
local function prefixes(file, layout, architecture)
  local out, seen = {}, {}
  local anchors = layout.anchors
  if not anchors then
    anchors = {}
    for i, name in ipairs(architecture.anchors) do anchors[i] = layout.rename(name) end
  end
  for _, anchor in ipairs(anchors) do
    for _, name in ipairs(file.list) do
      if name:sub(-#anchor) == anchor then
        local prefix = name:sub(1, #name - #anchor)
        if (prefix == "" or prefix:sub(-1) == ".") and not seen[prefix]
          and not (layout.not_within and prefix:sub(-#layout.not_within) == layout.not_within) then
          seen[prefix], out[#out + 1] = true, prefix
        end
      end
    end
  end
  return out
end

local function block_count(file, prefix, layout)
  local most = -1
  if not layout.block then return 0 end
  for _, name in ipairs(file.list) do
    if name:sub(1, #prefix) == prefix then
      local n = name:sub(#prefix + 1):match(layout.block)
      if n then most = math.max(most, tonumber(n)) end
    end
  end
  return most + 1
end

-- How a file fits one architecture in one layout, as a part without its totals.
local function try(file, architecture, layout, prefix)
  local at = setmetatable({ count = function() return block_count(file, prefix, layout) end }, {
    __call = function(_, canonical)
      local found = resolve(file, prefix, layout, canonical)
      return found and resolved_shape(file, found)
    end })
  local part = { architecture = architecture.name, part = architecture.part, title = architecture.title,
    model = architecture.model, layout = layout.name, layout_rules = layout, prefix = prefix, entries = {}, list = {},
    missing = {}, wrong = {}, extra = {}, claimed = {}, ignored = 0, format = file.weights.format, path = file.weights.path }
  local config, needed = architecture.config(at)
  if not config then
    part.config, part.unsized = {}, needed
    local _, absent = resolve(file, prefix, layout, needed)
    part.missing[1] = absent or needed
    return part
  end
  part.config = config
  for _, wanted in ipairs(architecture.tensors(config)) do
    local found, absent = resolve(file, prefix, layout, wanted.name)
    if not found then
      if not wanted.optional then part.missing[#part.missing + 1] = absent end
    else
      local shape = resolved_shape(file, found)
      local how, dtype = fits(shape, wanted.shape, part.format), file.weights:dtype(found.names[1])
      for _, name in ipairs(found.names) do part.claimed[name] = true end
      local entry = { name = wanted.name, names = found.names, op = found.op, i = found.i, n = found.n,
        shape = wanted.shape, kind = wanted.kind, block = wanted.block, dtype = dtype, reshape = how == "reshape" }
      if dtype:find "^f8_" then entry.scale = scale_of(file, found.names[1]) end
      if not how then
        part.wrong[#part.wrong + 1] = ("'%s' is %s, wanted %s"):format(found.names[1], shape_text(shape),
          shape_text(wanted.shape))
      elseif not is_weight_type(dtype) then
        part.wrong[#part.wrong + 1] = ("'%s' is stored as %s"):format(found.names[1], dtype)
      else
        part.entries[wanted.name] = entry
        part.list[#part.list + 1] = entry
      end
    end
  end
  part.variant, part.text = architecture.variant(config, part)
  if architecture.model_of then part.model = architecture.model_of(config, part) end
  return part
end

local function better(a, b)
  if (a.unsized == nil) ~= (b.unsized == nil) then return a.unsized == nil end
  local lost_a, lost_b = #a.missing + #a.wrong, #b.missing + #b.wrong
  if lost_a * (#b.list + 1) ~= lost_b * (#a.list + 1) then return lost_a * (#b.list + 1) < lost_b * (#a.list + 1) end
  return #a.list > #b.list
end

-- A candidate of which another one has most tensors is a second reading of the same thing.
local function distinct(candidates)
  table.sort(candidates, better)
  local out, taken = {}, {}
  for _, part in ipairs(candidates) do
    local n, shared = 0, 0
    for name in pairs(part.claimed) do
      n = n + 1
      if taken[name] then shared = shared + 1 end
    end
    local same = false
    if n == 0 then
      for _, other in ipairs(out) do same = same or other.prefix == part.prefix end
    end
    if shared * 2 <= n and not same then
      out[#out + 1] = part
      for name in pairs(part.claimed) do taken[name] = true end
    end
  end
  return out, taken
end

local function is_ignored(file, part, name)
  local bare = name:sub(#part.prefix + 1)
  for _, pattern in ipairs(part.layout_rules.ignore or {}) do if bare:find(pattern) then return true end end
  local alias = part.layout_rules.alias
  for _, other in pairs(alias or {}) do if bare == other then return true end end
  return is_companion(file, name)
end

-- Training keeps a model and its moving average, which is the one that is used.
local function averaged(parts)
  local out, left = {}, {}
  for _, part in ipairs(parts) do
    local ema
    for _, other in ipairs(parts) do
      if other ~= part and other.architecture == part.architecture and other.prefix:find "ema" then ema = other end
    end
    if ema and not part.prefix:find "ema" then left[#left + 1] = part else out[#out + 1] = part end
  end
  return out, left
end

local function totals(file, part)
  local compute = require("melies").compute()
  local wide = compute == "f32" and 4 or 2
  local dtypes, n, bytes, resident, outside, blocks = {}, 0, 0, 0, 0, {}
  for _, e in ipairs(part.list) do
    local count = keys.numel(e.shape)
    dtypes[e.dtype] = (dtypes[e.dtype] or 0) + 1
    n = n + count
    if not e.op or e.op == "concat" or e.op == "transpose" then
      for _, name in ipairs(e.names) do bytes = bytes + file.weights:bytes(name) end
    else
      bytes = bytes + file.weights:bytes(e.names[1]) / e.n
    end
    -- matrices and kernels are packed in the computing type; an embedding is read row by row where it lies in the file
    local held = count * 4
    if e.kind == "embedding" then held = 0
    elseif e.kind == "matrix" then held = count * (compute == "s8" and 1 or wide)
    elseif e.kind == "conv" or e.kind == "fixed" then held = count * wide end
    resident = resident + held
    if e.block then blocks[e.block] = (blocks[e.block] or 0) + held else outside = outside + held end
  end
  local largest = 0
  for _, b in pairs(blocks) do largest = math.max(largest, b) end
  part.dtypes, part.parameters, part.bytes = dtypes, n, bytes
  -- two blocks: one at work, one being read
  part.memory = { resident = resident, streamed = math.min(resident, outside + 2 * largest) }
end

local function is_lora(file)
  local count, first = 0, nil
  for _, name in ipairs(file.list) do
    if name:find "lora_[ABdum]" or name:find "lora%.down" or name:find "hada_w" or name:find "lokr_w" or name:find "%.diff_?b?$"
    then
      count, first = count + 1, first or name
    end
  end
  return count * 2 > #file.list and first
end

-- Every model in one file, the best recognised first; nil and a message where there is none.
function checkpoint.parts(weights)
  local file = look(weights)
  local lora = is_lora(file)
  if lora then
    return nil, ("%s: is a LoRA ('%s' ...): it is applied to a model, it is none"):format(weights.path, lora)
  end
  local candidates = {}
  for _, architecture in ipairs(architectures) do
    for _, layout in ipairs(architecture.layouts) do
      for _, prefix in ipairs(prefixes(file, layout, architecture)) do
        candidates[#candidates + 1] = try(file, architecture, layout, prefix)
      end
    end
  end
  local parts, taken = distinct(candidates)
  if #parts == 0 then
    local first = file.list[1]
    return nil, ("%s: no architecture known here has these %d tensors%s"):format(weights.path, #file.list,
      first and (" ('%s' %s ...)"):format(first, shape_text(stored_shape(file, first))) or "")
  end
  local left
  parts, left = averaged(parts)
  for _, name in ipairs(file.list) do
    if not taken[name] then
      local owner
      for _, part in ipairs(parts) do
        if name:sub(1, #part.prefix) == part.prefix and (not owner or #part.prefix > #owner.prefix) then owner = part end
      end
      for _, part in ipairs(left) do if name:sub(1, #part.prefix) == part.prefix then owner = nil end end
      if owner then
        if is_ignored(file, owner, name) then owner.ignored = owner.ignored + 1
        elseif not owner.unsized then owner.extra[#owner.extra + 1] = name end
      end
    end
  end
  for _, part in ipairs(parts) do
    totals(file, part)
    part.tokenizer = file.names[part.prefix .. "spiece_model"] and part.prefix .. "spiece_model" or nil
    part.weights = weights
    if #part.extra > 0 then part.extra_shape = shape_text(stored_shape(file, part.extra[1])) end
  end
  return parts
end

local function opened(what)
  if type(what) ~= "string" then return what end
  return require("melies.weights").open(what)
end

function checkpoint.detect(what)
  local weights, message = opened(what)
  if not weights then return nil, message end
  local parts
  parts, message = checkpoint.parts(weights)
  if not parts then return nil, message end
  local first = table.remove(parts, 1)
  first.others = parts
  return first
end

-- ---- what is wrong -------------------------------------------------------------------------------------------------

local function some(list, quote)
  local out = {}
  for i = 1, math.min(3, #list) do out[i] = quote and "'" .. list[i] .. "'" or list[i] end
  return table.concat(out, ", ") .. (#list > 3 and (" and %d more"):format(#list - 3) or "")
end

-- One line, nil where everything fits. options.extra = "ignore": tensors of no use are no problem.
function checkpoint.problems(part, options)
  local out = {}
  local function say(count, one, many, text)
    if count > 0 then out[#out + 1] = ("%d %s: %s"):format(count, count == 1 and one or many, text) end
  end
  say(#part.missing, "tensor is missing", "tensors are missing", some(part.missing, true))
  say(#part.wrong, "tensor does not fit", "tensors do not fit", some(part.wrong))
  if not (options and options.extra == "ignore") then
    say(#part.extra, "tensor is not of this model", "tensors are not of this model", some(part.extra, true))
  end
  if #out == 0 then return nil end
  local where = part.prefix ~= "" and (", under '%s'"):format(part.prefix) or ""
  return ("%s: read as %s (%s names%s): %s"):format(part.path, part.variant or part.title, part.layout, where,
    table.concat(out, "; "))
end

-- ---- tensors under canonical names -----------------------------------------------------------------------------------

local plain_types = { f32 = true, bf16 = true, f16 = true }

-- The stored matrix as a source that is read by rows.
local function matrix(part, e)
  if e.scale then return part.weights:scaled_matrix(e.names[1], e.scale) end
  return part.weights:matrix(e.names[1])
end

local function scaled(part, e, tensor, dtype)
  if not e.scale then return tensor end
  local scale = part.weights:get(e.scale, "f32")
  local x = tensor:to "f32"
  if scale:numel() == 1 then
    x = x * scale:item()
  else
    if scale:numel() ~= e.shape[1] then
      error(("%s: '%s' has %d values, '%s' %d rows"):format(part.path, e.scale, scale:numel(), e.names[1], e.shape[1]), 0)
    end
    local shape = { -1 }
    for i = 2, tensor.ndim do shape[i] = 1 end
    x = x * scale:reshape(shape)
  end
  return dtype and x or x:to "bf16"
end

local function read(part, e, dtype)
  local w, T = part.weights, require "melies.tensor"
  local x
  if e.op == "concat" then
    local list = {}
    for i, name in ipairs(e.names) do list[i] = w:get(name, dtype) end
    x = T.concat(list, 1)
  else
    x = w:get(e.names[1], not e.scale and dtype or nil)
    if e.op == "transpose" then x = x:transpose(1, 2):contiguous() end
    if e.op == "rows" then
      local rows = x.shape[1] / e.n
      x = x:slice(1, (e.i - 1) * rows + 1, e.i * rows)
    end
  end
  x = scaled(part, e, x, dtype)
  if e.reshape then x = x:reshape(e.shape) end
  return dtype and x.dtype ~= dtype and x:to(dtype) or x
end

local function read_rows(part, e, first, last, dtype)
  if e.op == "concat" or e.op == "transpose" or e.reshape then
    return read(part, e, dtype):slice(1, first, last)
  end
  local from = e.op == "rows" and (e.i - 1) * e.shape[1] or 0
  if #e.shape > 1 and (e.scale or not plain_types[e.dtype]) then -- converted a row at a time
    local lib_T, source = require "melies.tensor", matrix(part, e)
    local x = lib_T.empty({ last - first + 1, unpack(e.shape, 2) }, dtype or "f32")
    lib.call(lib.C.mel_source_read, source.handle, from + first - 1, last - first + 1, lib_T.dtype_code(dtype or "f32"),
      x:ptr())
    return x
  end
  local x = part.weights:rows(e.names[1], from + first, from + last, dtype)
  return dtype and x.dtype ~= dtype and x:to(dtype) or x
end

-- The tensors of a part under canonical names: names, has, get, shape, dtype, bytes, raw, matrix, rows, prefetch, drop,
-- prefix, close, and the fields info (the part), metadata, format, path. close() closes the file.
function checkpoint.view(part)
  local weights, fields = require "melies.weights", {}
  local w = part.weights
  local codes
  function fields.find(name) return part.entries[name] end
  function fields.names()
    local out = {}
    for name in pairs(part.entries) do out[#out + 1] = name end
    table.sort(out)
    return out
  end
  function fields.get(e, code)
    if code and code >= 0 then
      codes = codes or { [0] = "f32", "bf16", "f16", "s8", "u8", "s32", "i64" }
      return read(part, e, codes[code])
    end
    return read(part, e)
  end
  function fields.rows(e, first, last, dtype) return read_rows(part, e, first, last, dtype) end
  function fields.matrix(e)
    if e.op or e.reshape then
      local x = read(part, e)
      return require("melies.nn").source(x:reshape(x.shape[1], -1))
    end
    return matrix(part, e)
  end
  function fields.shape(e)
    local out = {}
    for i, d in ipairs(e.shape) do out[i] = d end
    return out
  end
  function fields.dtype(e) return e.dtype end
  function fields.bytes(e)
    if e.op == "rows" then return w:bytes(e.names[1]) / e.n end
    local n = 0
    for _, name in ipairs(e.names) do n = n + w:bytes(name) end
    return n
  end
  function fields.raw(e)
    if e.op then error(("%s: '%s' is not one stored tensor"):format(part.path, e.name), 0) end
    return w:raw(e.names[1])
  end
  function fields.hint(which, e)
    local method = which == "mel_weights_prefetch" and "prefetch" or "drop"
    for _, name in ipairs(e and e.names or {}) do w[method](w, name) end
    if not e then w[method](w) end
  end
  function fields.files() return w:files() end
  function fields.metadata() return w.metadata end
  function fields.close() w:close() end
  local view = weights.source(fields, part.path, part.format)
  rawset(view, "info", part)
  return view
end

local function check_options(options)
  options = options or {}
  lib.check_options("checkpoint.open", options, { part = true, extra = true }, 3)
  return options
end

-- One of several parts, by its kind.
local function choose(parts, path, kind)
  if not kind then
    if #parts == 1 then return parts[1] end
    local names = {}
    for i, part in ipairs(parts) do names[i] = part.part end
    return nil, ("%s: holds several models (%s): say which part"):format(path, table.concat(names, ", "))
  end
  for _, part in ipairs(parts) do if part.part == kind then return part end end
  local names = {}
  for i, part in ipairs(parts) do names[i] = ("%s (%s)"):format(part.part, part.variant or part.title) end
  return nil, ("%s: has no %s; it holds %s"):format(path, kind, table.concat(names, ", "))
end

function checkpoint.open(path, options)
  if type(path) ~= "string" then error("checkpoint.open: a path is a string, not " .. type(path), 2) end
  options = check_options(options)
  local parts, message
  if require("melies.checkpoint.folder").is_folder(path) then
    local found
    found, message = checkpoint.scan(path)
    if not found then return nil, message end
    parts = found.parts
  else
    local weights
    weights, message = opened(path)
    if not weights then return nil, message end
    parts, message = checkpoint.parts(weights)
    if not parts then return nil, message end
  end
  local part
  part, message = choose(parts, path, options.part)
  if not part then return nil, message end
  message = checkpoint.problems(part, options)
  if message then return nil, message end
  return checkpoint.view(part)
end

function checkpoint.scan(folder) return require("melies.checkpoint.folder").scan(folder) end

function checkpoint.describe(path) return require("melies.checkpoint.report").describe(path) end

return checkpoint
