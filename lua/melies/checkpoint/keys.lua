-- What the architecture files beside this one are made of.
--
-- An architecture is a table:
--   name, part          "wan_dit", "dit" | "text_encoder" | "autoencoder" | "image_encoder" | ...
--   model               the file of melies/models that runs it, nil where there is none
--   anchors             canonical names, one of which every file of this architecture has
--   layouts             { name, rename(canonical) -> stored, block = pattern of a numbered block, alias, ignore }
--   config(at)          sizes from shapes, or nil and the tensor that was needed; at(canonical) -> shape or nil,
--                       at.count(pattern) -> blocks, at.has(canonical)
--   tensors(config)     a list of { name =, shape =, kind =, optional =, scale =, block = }, in canonical names
--   variant(config, part)  a short name and, where it helps, a sentence
--   model_of(config, part) the file of melies/models where it is not always the same one
--
-- rename gives a name, or a table where the stored tensor is not the canonical one:
--   { op = "concat", names... }      rows of several tensors one below the other
--   { op = "rows", name, i, n }      the ith of n equal parts of the rows
--   { op = "transpose", name }       a matrix the other way round
-- Kinds: "matrix" (may be quantised), "conv", "fixed" (a matrix that is kept: embeddings of time and text, heads),
-- "embedding", "norm" (near one), "bias", "modulation", "position".
local keys = {}

-- A rename function from ordered { pattern, replacement } pairs, each applied where it matches.
function keys.rules(list)
  return function(name)
    for _, rule in ipairs(list) do name = name:gsub(rule[1], rule[2]) end
    return name
  end
end

function keys.same(name) return name end

local List = {}
List.__index = List

function keys.list() return setmetatable({ scope = "" }, List) end

-- A part that can be streamed by itself: names get this beginning until the next call. nil: back to the whole.
function List:within(scope, block)
  self.scope, self.block = scope or "", block
  return self
end

function List:add(name, shape, kind, more)
  local entry = { name = self.scope .. name, shape = shape, kind = kind, block = self.block }
  for key, value in pairs(more or {}) do entry[key] = value end
  self[#self + 1] = entry
  return self
end

function List:linear(name, outputs, inputs, options)
  options = options or {}
  self:add(name .. ".weight", { outputs, inputs }, options.kind or "matrix", options.more)
  if options.bias ~= false then self:add(name .. ".bias", { outputs }, "bias", options.more) end
  return self
end

-- A kernel [outputs, inputs, ...]; bias unless it is false.
function List:conv(name, shape, bias)
  self:add(name .. ".weight", shape, "conv")
  if bias ~= false then self:add(name .. ".bias", { shape[1] }, "bias") end
  return self
end

function List:layer_norm(name, width, more)
  self:add(name .. ".weight", { width }, "norm", more)
  return self:add(name .. ".bias", { width }, "bias", more)
end

function keys.numel(shape)
  local n = 1
  for _, d in ipairs(shape) do n = n * d end
  return n
end

return keys
