-- LoRA files: small changes of a model's weights, read in the ways that they are published.
--
--   lora.load(path) -> object | nil, message     path, kind, rank, alpha, bytes, targets, unknown
--   lora.find(name) -> path | nil, message       a file, or a name in melies/loras and the user's loras folder
--   lora.apply(weights, { { object or path, strength }, ... }, { mode = "auto" }) -> weights, applied | nil, message
--   lora.argument("file.safetensors:0.8") -> { file = , strength = } | nil, message
--
-- What apply gives is used like the weights it was made of, by any model. mode: "merged" gives changed tensors;
-- "beside" leaves matrices as they are and hands each linear layer what to add to its result (y + s up(down(x)));
-- "auto" takes "beside" where the stored matrix is quantised, where it is read from the file at each call, and where
-- a strength varies over the steps. applied: matched, unmatched (keys of the files), notices, varies, seek(step,
-- steps), set(i, strength) (for what is beside). The file itself is never changed: without LoRAs the model is as it
-- was. A strength is a number, or what prompt.strength reads: "0.8@0.2-0.7". weights may be { high =, low = }, as
-- wan_experts takes them.
--
-- Formats, from the code that reads them elsewhere (facts only): kohya-ss/sd-scripts and LyCORIS (lora_down, lora_up,
-- lora_mid, alpha, hada_*, lokr_*, dora_scale), huggingface/peft (lora_A, lora_B), diffusers, ComfyUI (.diff,
-- .diff_b).
local lib = require "melies.ffi.lib"
local prompt = require "melies.prompt"
local tensor = require "melies.tensor"
local names = require "melies.lora.names"
local deltas = require "melies.lora.deltas"

local M = {}

-- ---- files -----------------------------------------------------------------------------------------

local function exists(path)
  local f = io.open(path, "rb")
  if f then f:close() end
  return f ~= nil
end

function M.find(name)
  if name:find("/", 1, true) or exists(name) then
    if exists(name) then return name end
    return nil, ("no LoRA %s: there is no such file"):format(name)
  end
  local config = os.getenv "MELIES_CONFIG"
    or (os.getenv "XDG_CONFIG_HOME" or (os.getenv "HOME" or "") .. "/.config") .. "/melies"
  local searched = { "melies/loras", config .. "/loras" }
  for _, place in ipairs(searched) do
    for _, ending in ipairs { "", ".safetensors", ".gguf", ".pth" } do
      if exists(place .. "/" .. name .. ending) then return place .. "/" .. name .. ending end
    end
  end
  return nil, ("no LoRA '%s' here or in %s"):format(name, table.concat(searched, ", "))
end

-- A word of the command line: the file, and its strength after the last colon.
function M.argument(word)
  local file, tail = word:match("^(.+):([^:/]*)$")
  if not file then return { file = word, strength = 1 } end
  local strength, message = prompt.strength(tail)
  if not strength then
    if exists(word) then return { file = word, strength = 1 } end
    return nil, "FILE:STRENGTH: " .. message
  end
  return { file = file, strength = strength }
end

-- PEFT keeps alpha in a file beside the weights: the factor for a rank.
local function peft_scale(path)
  local folder = path:match("^(.*)/[^/]*$") or "."
  local file = folder .. "/adapter_config.json"
  if not path:find("adapter_model", 1, true) or not exists(file) then return nil end
  local config = require("melies.json").read(file)
  local alpha = type(config) == "table" and config.lora_alpha
  if type(alpha) ~= "number" then return nil end
  return function(rank) return alpha / (config.use_rslora and math.sqrt(rank) or rank) end
end

local Lora = {}
Lora.__index = Lora

-- Bytes of the file's tensors; the kind is "mixed" where there are several; rank and alpha are those of the first
-- target that has them.
function M.load(path)
  if type(path) ~= "string" then error("lora.load: a path is a string, not " .. type(path), 2) end
  local weights, message = require("melies.weights").open(path)
  if not weights then return nil, message end
  local self = setmetatable({ path = path, name = path:match("([^/]+)$"):gsub("%.%w+$", ""), weights = weights,
    targets = {}, unknown = {}, bytes = 0 }, Lora)
  local by_module = {}
  for _, key in ipairs(weights:names()) do
    self.bytes = self.bytes + weights:bytes(key)
    local module, slot = names.split(key)
    if module then
      local target = by_module[module]
      if not target then
        target = { module = module, keys = {} }
        by_module[module], self.targets[#self.targets + 1] = target, target
      end
      target.keys[slot] = key
    else self.unknown[#self.unknown + 1] = key end
  end
  local scale, targets = peft_scale(path), self.targets
  self.targets = {}
  for _, target in ipairs(targets) do
    local ok
    ok, message = deltas.describe(self, target, scale)
    if not ok then return nil, ("%s: %s"):format(path, message) end
    if target.kind then
      self.targets[#self.targets + 1] = target
      self.kind = (not self.kind or self.kind == target.kind) and target.kind or "mixed"
      self.rank, self.alpha = self.rank or target.rank, self.alpha or target.alpha
    else -- a scale of nothing
      for _, key in pairs(target.keys) do self.unknown[#self.unknown + 1] = key end
    end
  end
  table.sort(self.unknown)
  if #self.targets == 0 then
    return nil, ("%s: is no LoRA: none of its %d tensors has a name like one ('%s' ...)"):format(path, #self.unknown,
      self.unknown[1] or "")
  end
  return self
end

-- What `melies info` says of a file that is a LoRA; nil for another file.
function M.describe(path)
  local lora = M.load(path)
  if not lora then return nil end
  local said = { ("%s for %d module%s"):format(lora.kind == "lora" and "LoRA" or "LoRA (" .. lora.kind .. ")",
    #lora.targets, #lora.targets == 1 and "" or "s") }
  if lora.rank then said[#said + 1] = ("rank %d"):format(lora.rank) end
  if lora.alpha then said[#said + 1] = ("alpha %g"):format(lora.alpha) end
  local odd = #lora.unknown
  if odd > 0 then said[#said + 1] = ("%d key%s of no known kind"):format(odd, odd == 1 and "" or "s") end
  return ("%-12s %s"):format("model", table.concat(said, ", "))
end

-- ---- strengths --------------------------------------------------------------------------------------

-- Strengths of phases differ between experts, each of which may vary or not.
local function is_varying(strength)
  if type(strength) == "string" then strength = prompt.strength(strength) end
  if type(strength) ~= "table" then return false end
  if not strength.phases then return true end
  for _, phase in ipairs(strength.phases) do
    if type(phase) == "table" then return true end
  end
  return false
end

-- { object, strength, now } for each entry of the list: { file or object, strength }, or fields of those names.
-- phase: which of the strengths counts where there is one for each expert.
local function entries(list, phase)
  local out = {}
  for i, item in ipairs(list) do
    local object, strength = item[1] or item.lora or item.file, item[2] or item.strength or 1
    if type(object) == "string" then
      local path, message = M.find(object)
      if not path then return nil, message end
      object, message = M.load(path)
      if not object then return nil, message end
    end
    if getmetatable(object) ~= Lora then error(("lora.apply: entry %d is no LoRA"):format(i), 3) end
    if type(strength) == "string" then
      local text = strength
      local message
      strength, message = prompt.strength(text)
      if not strength then error("lora.apply: " .. message, 3) end
    end
    if type(strength) == "table" and strength.phases then
      strength = strength.phases[math.min(phase, #strength.phases)]
    end
    -- What is merged for a strength that varies has to have one: the largest.
    local steady = strength
    if is_varying(strength) then
      steady = strength.value or 0
      for _, v in ipairs(strength.values or {}) do
        if math.abs(v) > math.abs(steady) then steady = v end
      end
    end
    out[i] = { lora = object, strength = strength, steady = steady, now = prompt.strength_at(strength, 1, 1) }
  end
  return out
end

local Applied = {}
Applied.__index = Applied

-- Sets the strengths of a step (from 1) of a run.
function Applied:seek(step, steps)
  self.step, self.steps = step, steps
  for _, part in pairs(self.parts or {}) do part:seek(step, steps) end
  for _, entry in ipairs(self.entries) do entry.now = prompt.strength_at(entry.strength, step, steps) end
end

-- Changes the strength of the ith LoRA where it is beside the weights; what is merged stays.
function Applied:set(i, strength)
  for _, part in pairs(self.parts or {}) do part:set(i, strength) end
  if self.parts then return end
  local entry = self.entries[i]
  if not entry then error(("lora: there is no LoRA %s"):format(tostring(i)), 2) end
  entry.strength, entry.now = strength, prompt.strength_at(strength, 1, 1)
end

-- ---- weights with LoRAs ---------------------------------------------------------------------------------

local dtypes = {}
for _, name in ipairs { "f32", "bf16", "f16", "s8", "u8", "s32", "i64" } do dtypes[tensor.dtype_code(name)] = name end
local plain_types = { f32 = true, bf16 = true, f16 = true, f64 = true }

-- { base name = { { entry =, target = }, ... } }, how many fit, and a list of { path =, keys = that fit nothing }; or
-- nil and a message.
local function bind(weights, list)
  local index, bound, matched, unmatched, told = names.index(weights), {}, 0, {}, {}
  for _, entry in ipairs(list) do
    local lora, fits, misfits = entry.lora, 0, {}
    -- A file that is used twice is told of once.
    if not told[lora.path] then unmatched[#unmatched + 1] = { path = lora.path, keys = misfits } end
    told[lora.path] = true
    for _, target in ipairs(lora.targets) do
      local found, free = index:lookup(target)
      for _, place in ipairs(found) do
        local message = deltas.check(lora, target, place.part, place.name, weights:shape(place.name))
        if message then return nil, ("%s: %s: it is for another model"):format(lora.path, message) end
        bound[place.name] = bound[place.name] or {}
        table.insert(bound[place.name], { entry = entry, target = target, part = place.part })
        fits, matched = fits + 1, matched + 1
      end
      for _, key in ipairs(free) do misfits[#misfits + 1] = key end
    end
    if fits == 0 then
      return nil, ("%s: is for another model: none of its %d targets is in this one ('%s' ...)"):format(lora.path,
        #lora.targets, lora.targets[1].module)
    end
    for _, key in ipairs(lora.unknown) do misfits[#misfits + 1] = key end
    table.sort(misfits)
  end
  return bound, matched, unmatched
end

-- One line about keys that fit nothing: up to five names, and how many there are.
local function unmatched_text(path, keys)
  local shown = {}
  for i = 1, math.min(5, #keys) do shown[i] = keys[i] end
  return ("%s: %d key%s fit%s nothing in the model: %s%s"):format(path, #keys, #keys == 1 and "" or "s",
    #keys == 1 and "s" or "", table.concat(shown, ", "), #keys > 5 and (" and %d more"):format(#keys - 5) or "")
end

-- A model of two transformers: { high =, low = }, each weights or a function that gives them when they are wanted.
local function apply_to_experts(weights, list, opts)
  local both = setmetatable({ parts = {}, entries = {}, matched = 0, unmatched = {}, notices = {}, varies = false },
    Applied)
  local function part(i, source)
    local view, applied = M.apply(source, list, { mode = opts.mode, phase = i })
    if not view then return nil, applied end
    both.parts[i], both.varies = applied, both.varies or applied.varies
    if #both.notices == 0 then both.unmatched, both.notices = applied.unmatched, applied.notices end
    both.matched = both.matched + applied.matched
    if both.step then applied:seek(both.step, both.steps) end
    return view
  end
  local out = {}
  for i, which in ipairs { "high", "low" } do
    local source = weights[which]
    if type(source) == "function" then
      for _, item in ipairs(list) do both.varies = both.varies or is_varying(item[2] or item.strength) end
      out[which] = function()
        local found, why = source()
        if found == nil then return nil, why end
        return part(i, found)
      end
    else
      local view, message = part(i, source)
      if not view then return nil, message end
      out[which] = view
    end
  end
  return out, both
end

local OPTIONS = { mode = true, phase = true }
local MODES = { auto = true, merged = true, beside = true }

function M.apply(weights, list, opts)
  opts = opts or {}
  lib.check_options("lora.apply", opts, OPTIONS, 2)
  local mode = opts.mode or "auto"
  if not MODES[mode] then
    error(("lora.apply: mode is '%s'%s"):format(tostring(mode), lib.suggest(tostring(mode), MODES)), 2)
  end
  if rawget(weights, "high") and rawget(weights, "low") then return apply_to_experts(weights, list, opts) end
  if not weights.get then weights = require("melies.weights").from_table(weights) end
  local all, message = entries(list, opts.phase or 1)
  if not all then return nil, message end
  local bound, matched, unmatched = bind(weights, all)
  if not bound then return nil, matched end
  local applied = setmetatable({ entries = all, matched = matched, unmatched = {}, notices = {}, varies = false },
    Applied)
  for _, file in ipairs(unmatched) do
    for _, key in ipairs(file.keys) do applied.unmatched[#applied.unmatched + 1] = key end
    if #file.keys > 0 then table.insert(applied.notices, unmatched_text(file.path, file.keys)) end
  end
  for _, entry in ipairs(all) do applied.varies = applied.varies or is_varying(entry.strength) end

  local base = weights.source
  -- Tensors that a layer takes with its LoRAs beside it are then given as they are.
  local besides = {}
  local function changed(name)
    if not bound[name] or besides[name] then return nil end
    for _, b in ipairs(bound[name]) do
      if b.entry.steady ~= 0 then return bound[name] end
    end
  end
  local function merged(name)
    local x = base.get(base.find(name), tensor.dtype_code "f32")
    local shape = x.shape
    for _, b in ipairs(bound[name]) do
      local s = b.entry.steady
      if s ~= 0 then x = deltas.add(b.entry.lora, b.target, b.part, x, s) end
    end
    return x:reshape(shape)
  end

  local fields = setmetatable({}, { __index = base })
  local function key_of(entry) return base.find(entry.name) end
  local kept = {}
  function fields.find(name)
    if type(name) ~= "string" or base.find(name) == nil then return nil end
    kept[name] = kept[name] or { name = name }
    return kept[name]
  end
  function fields.get(entry, code)
    if not changed(entry.name) then return base.get(key_of(entry), code) end
    local x = merged(entry.name)
    return dtypes[code] and x:to(dtypes[code]) or x
  end
  function fields.shape(entry) return base.shape(key_of(entry)) end
  function fields.dtype(entry) return changed(entry.name) and "f32" or base.dtype(key_of(entry)) end
  function fields.bytes(entry)
    if not changed(entry.name) then return base.bytes(key_of(entry)) end
    local n = 4
    for _, d in ipairs(base.shape(key_of(entry))) do n = n * d end
    return n
  end
  function fields.raw(entry)
    if not changed(entry.name) then return base.raw(key_of(entry)) end
    error(("%s: '%s' has LoRAs merged into it and is not stored as it is"):format(weights.path, entry.name), 0)
  end
  function fields.matrix(entry)
    if not changed(entry.name) and base.matrix then return base.matrix(key_of(entry)) end
    local x = fields.get(entry, -1)
    return require("melies.nn").source(x:reshape(x.shape[1], -1))
  end
  function fields.rows(entry, first, last, dtype)
    if not changed(entry.name) then return weights:rows(entry.name, first, last, dtype) end
    local x = merged(entry.name):slice(1, first, last)
    return dtype and x:to(dtype) or x
  end
  function fields.hint(which, entry) base.hint(which, entry and key_of(entry)) end
  function fields.close() base.close() end

  local view = require("melies.weights").source(fields, weights.path, weights.format)
  rawset(view, "info", rawget(weights, "info"))
  -- For the layer of a matrix: functions of x that give what to add, or nil where its tensors come with all of it.
  rawset(view, "adapters", function(name, options)
    local own, bias = bound[name], bound[name:gsub("%.weight$", ".bias")]
    if mode == "merged" or not (own or bias) then return nil end
    local beside = mode == "beside" or options.lazy or not plain_types[base.dtype(base.find(name))]
    for _, part in ipairs { own or {}, bias or {} } do
      for _, b in ipairs(part) do beside = beside or is_varying(b.entry.strength) end
    end
    if not beside then return nil end
    local out, bias_name = {}, name:gsub("%.weight$", ".bias")
    besides[name], besides[bias_name] = true, true
    for _, b in ipairs(own or {}) do out[#out + 1] = deltas.adapter(b, options, function()
      return base.get(base.find(name), tensor.dtype_code "f32")
    end) end
    for _, b in ipairs(bias or {}) do out[#out + 1] = deltas.bias_adapter(b) end
    return out
  end)
  return view, applied
end

return M
