-- Folders with a whole model: diffusers' (model_index.json, a folder a part), Wan's own (transformer, text encoder and
-- autoencoder side by side; A14B's experts in two folders), or a handful of single files. What a file is comes from
-- its tensors. Names of folders say one thing only, which tensors cannot: which of two experts is for high noise.
local fs = require "melies.fs"

local folder = {}

-- Names in a folder, sorted, without hidden ones; nil where it is none.
local function entries(path)
  local names = fs.list(path)
  if not names then return nil end
  local out = {}
  for _, name in ipairs(names) do if name:sub(1, 1) ~= "." then out[#out + 1] = name end end
  return out
end

function folder.is_folder(path)
  local s = fs.stat(path)
  return s ~= nil and s.folder
end

-- safetensors, GGUF or a zip container, by the first bytes.
local function holds_tensors(path)
  local f = io.open(path, "rb")
  if not f then return false end
  local head = f:read(9)
  f:close()
  if not head or #head < 4 then return false end
  return head:sub(1, 4) == "GGUF" or head:sub(1, 4) == "PK\3\4" or (head:byte(8) == 0 and head:sub(9, 9) == "{")
end

local function read_json(path)
  local ok, value = pcall(require("melies.json").read, path)
  return ok and type(value) == "table" and value or nil
end

local tokenizer_files = { ["spiece.model"] = 1, ["tokenizer.model"] = 2, ["tokenizer.json"] = 3, ["vocab.json"] = 4 }

-- Files with tensors of one folder: indexes of shards, and files that no index speaks of.
local function gather(path, out)
  local names, covered = entries(path), {}
  for _, name in ipairs(names) do
    local file = path .. "/" .. name
    if name:find "%.index%.json$" then
      local index = read_json(file)
      if index and type(index.weight_map) == "table" then
        out.files[#out.files + 1] = file
        for _, shard in pairs(index.weight_map) do covered[shard] = true end
      end
    end
  end
  for _, name in ipairs(names) do
    local file = path .. "/" .. name
    if tokenizer_files[name] and (not out.tokenizer_rank or tokenizer_files[name] < out.tokenizer_rank) then
      out.tokenizer, out.tokenizer_rank = file, tokenizer_files[name]
    elseif not covered[name] and not name:find "%.json$" and holds_tensors(file) then
      out.files[#out.files + 1] = file
    end
  end
  return names
end

-- Two transformers of one shape are the experts of A14B: "dit" works at high noise, "dit_low" below the boundary.
local function experts(parts)
  local dits = {}
  for _, part in ipairs(parts) do if part.part == "dit" then dits[#dits + 1] = part end end
  if #dits ~= 2 or dits[1].architecture ~= "wan_dit" or dits[1].parameters ~= dits[2].parameters then return end
  local function is_low(part) return part.path:find "[Ll][Oo][Ww]" ~= nil or part.path:find "transformer_2/" ~= nil end
  if is_low(dits[1]) == is_low(dits[2]) then return end
  local low = is_low(dits[1]) and dits[1] or dits[2]
  low.part = "dit_low"
  for _, part in ipairs(dits) do
    part.variant = part.config.in_channels == 36 and "wan2.2-i2v-a14b" or "wan2.2-t2v-a14b"
    part.text = part == low and "expert for low noise" or "expert for high noise"
  end
end

-- { path, index (model_index.json), parts, tokenizer, skipped = { { path, message } } }. Folders are looked through two
-- deep. A file that cannot be read fails the scan only where nothing else is found.
function folder.scan(path)
  path = #path > 1 and path:gsub("/+$", "") or path
  if not entries(path) then return nil, path .. ": is not a folder" end
  local found = { path = path, files = {}, parts = {}, skipped = {} }
  local function walk(at, depth)
    for _, name in ipairs(gather(at, found)) do
      local inner = at .. "/" .. name
      if depth > 0 and folder.is_folder(inner) then walk(inner, depth - 1) end
    end
  end
  walk(path, 2)
  found.index = read_json(path .. "/model_index.json")
  local weights, checkpoint = require "melies.weights", require "melies.checkpoint"
  for _, file in ipairs(found.files) do
    local parts
    local w, message = weights.open(file)
    if w then parts, message = checkpoint.parts(w) end
    if parts then
      for _, part in ipairs(parts) do
        found.parts[#found.parts + 1] = part
        local config = read_json((file:match "^(.*)/[^/]*$" or ".") .. "/config.json")
        if config and part.part == "dit" and not part.config.heads then
          part.config.heads = config.num_attention_heads or config.num_heads
        end
      end
    else
      found.skipped[#found.skipped + 1] = { path = file, message = message }
    end
  end
  if #found.parts == 0 then
    local first = found.skipped[1]
    return nil, first and first.message or path .. ": no file with weights in this folder"
  end
  experts(found.parts)
  return found
end

return folder
