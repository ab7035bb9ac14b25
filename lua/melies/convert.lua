-- `melies convert`: any checkpoint that is recognised as one safetensors or GGUF file, in a chosen precision and layout,
-- a few megabytes at a time.
--
--   convert.run(input, output, options) -> facts | nil, message
--   options: dtype, layout ("wan", "comfyui", "diffusers"), part (of a file or folder with several), quick, extra
--   facts: { path, tensors, bytes, types = { type = tensors } }
--
-- What gets the precision: with f32, bf16 or f16 every matrix, kernel and embedding; with a quantised type the matrices
-- of the blocks only. Everything else that has more than one dimension is then bf16 (f16 where it comes as f16). Norms,
-- biases, modulation tables and positions stay in the type they come in, f32 where they come in fp8 or quantised. A
-- matrix whose rows are no whole blocks of 256 gets Q8_0 instead of a K-type, bf16 where they are none of 32.
local checkpoint = require "melies.checkpoint"
local keys = require "melies.checkpoint.keys"
local lib = require "melies.ffi.lib"

local convert = {}

-- Values in one piece: 16 MiB as f32.
local PIECE = 2 ^ 22

local floats = { f32 = 4, bf16 = 2, f16 = 2 }
local blocks = { q4_0 = 32, q4_1 = 32, q5_0 = 32, q5_1 = 32, q8_0 = 32, q2_k = 256, q3_k = 256, q4_k = 256, q5_k = 256,
  q6_k = 256 }
-- general.file_type of llama.cpp's files (ggml-org/llama.cpp, include/llama.h, llama_ftype), which says what most are.
local file_types = { f32 = 0, f16 = 1, q4_0 = 2, q4_1 = 3, q8_0 = 7, q5_0 = 8, q5_1 = 9, q2_k = 10, q3_k = 12, q4_k = 15,
  q5_k = 17, q6_k = 18, bf16 = 32 }
-- general.architecture as city96/ComfyUI-GGUF and llama.cpp have it.
local gguf_names = { wan_dit = "wan", ltx_dit = "ltxv", t5 = "t5encoder" }

local layouts = { "wan", "comfyui", "diffusers" }
convert.layouts = layouts

-- "Q4_K_M" and "fp16" are what people type.
function convert.dtype(text)
  local name = text:lower():gsub("%-", "_"):gsub("^fp", "f"):gsub("^(q%d_k)_[sml]$", "%1")
  if floats[name] or blocks[name] then return name end
  local all = {}
  for key in pairs(floats) do all[#all + 1] = key end
  for key in pairs(blocks) do all[#all + 1] = key end
  table.sort(all)
  return nil, ("no type '%s'%s (%s)"):format(text, lib.suggest(name, all), table.concat(all, ", "))
end

-- "safetensors" or "gguf", by the ending of the name that is to be written.
function convert.format(path, dtype)
  if path:find "%.gguf$" then return "gguf" end
  if not path:find "%.safetensors$" then
    return nil, ("%s: the name says what is written: .safetensors or .gguf"):format(path)
  end
  if blocks[dtype or ""] then return nil, ("%s: %s is a type of GGUF: name a .gguf file"):format(path, dtype) end
  return "safetensors"
end

-- The type that an entry { kind, shape, dtype } is written in. shape: as stored.
function convert.stored_type(entry, dtype, shape)
  shape = shape or entry.shape
  local from = entry.dtype
  local plain = floats[from] and from
  if entry.kind == "norm" or entry.kind == "bias" or entry.kind == "modulation" or entry.kind == "position"
    or #shape < 2 then
    return dtype == "f32" and "f32" or plain or "f32"
  end
  if not dtype then return plain or (from == "f64" and "f32") or "bf16" end
  if floats[dtype] then return dtype end
  if entry.kind == "matrix" then
    if shape[#shape] % blocks[dtype] == 0 then return dtype end
    if shape[#shape] % 32 == 0 then return "q8_0" end
  end
  return from == "f16" and "f16" or "bf16"
end

-- ---- names to write ------------------------------------------------------------------------------------------------

-- rename, prefix of a layout that is written.
function convert.naming(architecture, layout, config)
  if layout == "comfyui" then
    return keys.same, architecture.part == "dit" and "model.diffusion_model." or ""
  end
  if not layout or layout == "wan" then return architecture.layouts[1].rename, "" end
  for _, l in ipairs(architecture.layouts) do
    if l.name == "diffusers" or l.name == "huggingface" then
      -- LTX's autoencoder has two renamings, by whether it knows of time
      if not (architecture.name == "ltx_vae" and (l.anchors[1]:find "time_embedder" ~= nil) ~= (config.timed ~= nil)) then
        return l.rename, ""
      end
    end
  end
  return nil, ("%s has no other names than its own"):format(architecture.title)
end

-- Tensors to write: { name, shape, kind, dtype, read(first, last) }, from canonical ones of the same form.
function convert.renamed(entries, rename, prefix)
  local out = {}
  for _, e in ipairs(entries) do
    local to = rename(e.name)
    if type(to) == "string" then
      out[#out + 1] = { name = prefix .. to, shape = e.shape, kind = e.kind, dtype = e.dtype, read = e.read, drop = e.drop }
    elseif to.op == "concat" then
      local rows = e.shape[1] / #to
      for i, name in ipairs(to) do
        local shape = { rows, unpack(e.shape, 2) }
        out[#out + 1] = { name = prefix .. name, shape = shape, kind = e.kind, dtype = e.dtype, drop = e.drop,
          read = function(first, last) return e.read(first + (i - 1) * rows, last + (i - 1) * rows) end }
      end
    elseif to.op == "transpose" then
      out[#out + 1] = { name = prefix .. to[1], shape = { e.shape[2], e.shape[1] }, kind = e.kind, dtype = e.dtype,
        drop = e.drop, read = function(first, last)
          return e.read(1, e.shape[1]):transpose(1, 2):slice(1, first, last):contiguous()
        end }
    else
      return nil, ("'%s' has no place of its own in this layout"):format(e.name)
    end
  end
  return out
end

-- ---- writing ---------------------------------------------------------------------------------------------------------

local function type_of(e, options) return convert.stored_type(e, options.dtype, e.shape) end

local function stored_bytes(stored, shape)
  local n = keys.numel(shape)
  if floats[stored] then return n * floats[stored] end
  local size = ({ q4_0 = 18, q4_1 = 20, q5_0 = 22, q5_1 = 24, q8_0 = 34, q2_k = 84, q3_k = 110, q4_k = 144, q5_k = 176,
    q6_k = 210 })[stored]
  return n / blocks[stored] * size
end

-- Bytes that an entry takes in the file.
function convert.bytes_of(e, options) return stored_bytes(type_of(e, options), e.shape) end

local function write_entries(w, entries, options, bar)
  local done = 0
  for _, e in ipairs(entries) do
    local rows = #e.shape > 0 and e.shape[1] or 1
    local columns = math.max(1, keys.numel(e.shape) / math.max(1, rows))
    local step = math.max(1, math.floor(PIECE / columns))
    for first = 1, rows, step do
      local last = math.min(rows, first + step - 1)
      local x = e.read(first, last)
      w:rows(e.name, first, x)
      x:free()
      if bar then bar:step(math.floor((done + convert.bytes_of(e, options) * last / rows) / 2 ^ 20), e.name) end
    end
    done = done + convert.bytes_of(e, options)
    if e.drop then e.drop() end
  end
end

-- Writes one file from entries. options: format, dtype, quick, metadata (texts), architecture (GGUF's name for it),
-- label (of the progress line). nil and a message where the file cannot be written; Ctrl-C raises, nothing stays.
function convert.write(path, entries, options)
  local facts = { path = path, tensors = #entries, bytes = 0, types = {} }
  local w, message = require("melies.writer").create(path, { format = options.format, quick = options.quick })
  if not w then return nil, message end
  for _, e in ipairs(entries) do facts.bytes = facts.bytes + convert.bytes_of(e, options) end
  local bar = options.label and require("melies.progress").bar { label = options.label,
    total = math.floor(facts.bytes / 2 ^ 20) }
  local ok, e = pcall(function()
    if options.format == "gguf" then
      w:metadata("general.architecture", options.architecture)
      w:number("general.quantization_version", 2)
      w:number("general.file_type", file_types[options.dtype or "bf16"])
    else
      w:metadata("format", "pt")
    end
    for key, text in pairs(options.metadata or {}) do w:metadata(key, text) end
    for _, entry in ipairs(entries) do
      local stored = type_of(entry, options)
      facts.types[stored] = (facts.types[stored] or 0) + 1
      w:declare(entry.name, stored, entry.shape)
    end
    write_entries(w, entries, options, bar)
    w:finish()
  end)
  w:discard()
  if bar then bar:finish(not ok and "stopped" or nil) end
  if ok then return facts end
  if type(e) == "table" then error(e, 0) end
  return nil, tostring(e)
end

function convert.gguf_name(architecture) return gguf_names[architecture] or architecture end

local known = { dtype = true, layout = true, part = true, quick = true, extra = true, label = true }

function convert.run(input, output, options)
  options = options or {}
  lib.check_options("convert.run", options, known)
  local dtype
  if options.dtype then
    local why
    dtype, why = convert.dtype(options.dtype)
    if not dtype then return nil, why end
  end
  local format, message = convert.format(output, dtype)
  if not format then return nil, message end
  local source
  source, message = checkpoint.open(input, { part = options.part, extra = options.extra })
  if not source then return nil, message end
  local part = source.info
  local architecture = checkpoint.architecture(part.architecture)
  local rename, prefix = convert.naming(architecture, options.layout, part.config)
  if not rename then return nil, ("%s: layout %s: %s"):format(output, options.layout, prefix) end
  local entries = {}
  for i, e in ipairs(part.list) do
    entries[i] = { name = e.name, shape = e.shape, kind = e.kind, dtype = e.dtype,
      read = function(first, last)
        if #e.shape == 0 then return source:get(e.name, "f32") end
        local x = source:rows(e.name, first, last)
        return floats[x.dtype] and x or x:to "f32"
      end,
      drop = function() source:drop(e.name) end }
  end
  entries, message = convert.renamed(entries, rename, prefix)
  if not entries then return nil, ("%s: layout %s: %s"):format(output, options.layout, message) end
  local facts
  facts, message = convert.write(output, entries, { format = format, dtype = dtype, quick = options.quick,
    architecture = convert.gguf_name(part.architecture), label = options.label })
  source:close()
  if facts then facts.part = part end
  return facts, message
end

-- "q8_0 in 300 tensors, bf16 in 12"
function convert.types_text(types)
  local names, out = {}, {}
  for name in pairs(types) do names[#names + 1] = name end
  table.sort(names, function(a, b) if types[a] ~= types[b] then return types[a] > types[b] end return a < b end)
  for i, name in ipairs(names) do out[i] = ("%s in %d tensors"):format(name, types[name]) end
  return table.concat(out, ", ")
end

-- ---- the command -------------------------------------------------------------------------------------------------------

-- Words after `melies convert`. An exit code, and a message where it failed.
function convert.main(words, say)
  local options, values, i = { label = "convert" }, {}, 1
  local flags = { ["--dtype"] = "dtype", ["--layout"] = "layout", ["--part"] = "part", ["-o"] = "output",
    ["--output"] = "output" }
  while i <= #words do
    local name, value = words[i]:match "^(%-%-?[%w-]+)=(.*)$"
    name = name or words[i]
    if flags[name] then
      if not value then
        i = i + 1
        value = words[i]
      end
      if not value then return 2, name .. " wants a value" end
      options[flags[name]] = value
    elseif name == "--quick" then
      options.quick = true
    elseif name == "--ignore-extra" then
      options.extra = "ignore"
    elseif name:sub(1, 1) == "-" and name ~= "-" then
      local all = { "--quick", "--ignore-extra" }
      for flag in pairs(flags) do all[#all + 1] = flag end
      return 2, ("convert: unknown option '%s'%s"):format(name, lib.suggest(name, all))
    else
      values[#values + 1] = name
    end
    i = i + 1
  end
  local output = options.output
  options.output = nil
  if #values ~= 1 or not output then return 2, "usage: melies convert FILE|FOLDER -o OUT.safetensors|OUT.gguf" end
  if options.dtype then
    local dtype, message = convert.dtype(options.dtype)
    if not dtype then return 2, "--dtype: " .. message end
  end
  if options.layout then
    local found = false
    for _, name in ipairs(layouts) do found = found or name == options.layout end
    if not found then
      return 2, ("--layout is '%s'%s (%s)"):format(options.layout, lib.suggest(options.layout, layouts),
        table.concat(layouts, ", "))
    end
  end
  local facts, message = convert.run(values[1], output, options)
  if not facts then return 1, message end
  say(("%s: %s, %s, %s"):format(output, facts.part.variant or facts.part.title, convert.types_text(facts.types),
    require("melies.show").bytes_text(facts.bytes)))
  return 0
end

return convert
