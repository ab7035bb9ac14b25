-- What `melies info` says about weights: one part a paragraph.
local report = {}

local function row(lines, name, value)
  if value ~= nil and value ~= "" then lines[#lines + 1] = ("%-12s %s"):format(name, tostring(value)) end
end

local function count_text(n)
  if n >= 1e9 then return ("%.2f billion"):format(n / 1e9) end
  if n >= 1e6 then return ("%.1f million"):format(n / 1e6) end
  return tostring(n)
end

local sizes = {
  { "dim", "width" }, { "width", "width" }, { "layers", "blocks" }, { "heads", "heads" }, { "ffn", "ffn" },
  { "dim_ffn", "ffn" }, { "vocab", "vocabulary" }, { "in_channels", "in" }, { "out_channels", "out" }, { "z", "channels" },
  { "latent", "channels" }, { "patch", "patch" }, { "image", "image" }, { "text_dim", "text" },
}

local function config_text(config)
  local out = {}
  for _, pair in ipairs(sizes) do
    local value = config[pair[1]]
    if type(value) == "table" then value = table.concat(value, "x") end
    if value then out[#out + 1] = pair[2] .. " " .. tostring(value) end
  end
  return table.concat(out, ", ")
end

local function dtype_text(dtypes)
  local names, out = {}, {}
  for name in pairs(dtypes) do names[#names + 1] = name end
  table.sort(names, function(a, b) if dtypes[a] ~= dtypes[b] then return dtypes[a] > dtypes[b] end return a < b end)
  for i, name in ipairs(names) do out[i] = ("%s in %d tensors"):format(name, dtypes[name]) end
  return table.concat(out, ", ")
end

local function runs(part)
  if not part.model or not package.searchpath("melies.models." .. part.model, package.path) then
    return "nothing here runs this architecture yet"
  end
  local plugin = require("melies.models." .. part.model)
  return ("models/%s.lua: %s"):format(part.model, plugin.help or part.title)
end

-- Lines about one part.
function report.part(part)
  local checkpoint, bytes = require "melies.checkpoint", require("melies.show").bytes_text
  local lines = {}
  row(lines, "model", (part.variant or part.title) .. (part.text and " (" .. part.text .. ")" or ""))
  row(lines, "architecture", part.title .. (part.unsized and "" or ": " .. config_text(part.config)))
  row(lines, "layout", ("%s names%s, %s"):format(part.layout,
    part.prefix ~= "" and (" under '%s'"):format(part.prefix) or "", part.format))
  row(lines, "parameters", ("%s in %d tensors%s"):format(count_text(part.parameters), #part.list,
    part.ignored > 0 and (", %d more that are not needed"):format(part.ignored) or ""))
  row(lines, "dtypes", dtype_text(part.dtypes))
  row(lines, "bytes", ("%d (%s)"):format(part.bytes, bytes(part.bytes)))
  row(lines, "memory", ("%s resident, %s streamed (compute %s)"):format(bytes(part.memory.resident),
    bytes(part.memory.streamed), require("melies").compute()))
  row(lines, "runs", runs(part))
  local problem = checkpoint.problems(part)
  row(lines, "problem", problem and problem:sub(#part.path + 3) or nil)
  return lines
end

-- Text about a file or folder of weights, or about weights that are open; nil and a message.
function report.describe(path)
  local checkpoint, folder = require "melies.checkpoint", require "melies.checkpoint.folder"
  local lines = {}
  if type(path) == "string" and folder.is_folder(path) then
    local found, message = checkpoint.scan(path)
    if not found then return nil, message end
    local have = {}
    for i, part in ipairs(found.parts) do
      have[part.part] = true
      if i > 1 then lines[#lines + 1] = "" end
      row(lines, part.part, part.path:sub(#found.path + 2))
      for _, line in ipairs(report.part(part)) do lines[#lines + 1] = line end
    end
    lines[#lines + 1] = ""
    row(lines, "pipeline", found.index and found.index._class_name)
    row(lines, "tokenizer", found.tokenizer and found.tokenizer:sub(#found.path + 2) or "none in this folder")
    local missing = {}
    for _, kind in ipairs { "dit", "text_encoder", "autoencoder" } do
      if not have[kind] then missing[#missing + 1] = kind end
    end
    row(lines, "missing", #missing > 0 and table.concat(missing, ", ") or nil)
    for _, skipped in ipairs(found.skipped) do row(lines, "skipped", skipped.message) end
  else
    local first, message = checkpoint.detect(path)
    if not first then return nil, message end
    local parts = { first, unpack(first.others) }
    for i, part in ipairs(parts) do
      if i > 1 then lines[#lines + 1] = "" end
      if #parts > 1 then row(lines, "part", part.part) end
      for _, line in ipairs(report.part(part)) do lines[#lines + 1] = line end
      row(lines, "tokenizer", part.tokenizer and ("in the file: '%s'"):format(part.tokenizer) or nil)
    end
  end
  return table.concat(lines, "\n")
end

return report
