-- melies-api: 1
-- CLIP text encoders (openai/CLIP, clip/model.py: facts only; tensor names of transformers' CLIPTextModelWithProjection):
-- OpenAI's with quick GELU, OpenCLIP's with exact GELU.
--
--   net:encode(ids) -> result          ids: a list of numbers, begin and end marks included
--   net:forward(ids) -> result         ids: i64 [B, L], padded behind the end mark
--     result.last [B, L, width]        after the final norm (encode: [L, width])
--     result.penultimate               of the layer before the last one, without the final norm
--     result.pooled [B, width]         the row of `last` at the end mark (encode: [width])
--     result.embeds [B, projection]    pooled through the projection, where the file has one
--
-- Attention is causal, so what stands behind the end mark changes nothing before it: the rows of encode are those of a
-- padded run. The end mark is the largest id, its first place counts. Sizes come from the tensors; config: heads (by
-- default width / 64), activation ("quick_gelu" or "gelu"; by default quick_gelu), eps (1e-5).
local melies = require "melies"
local kit = require "melies.modelkit"
local T = melies.tensor

local NAME = "clip_text"
local Net = {}
Net.__index = Net

function Net:note(name, tensor)
  if self.trace then self.trace(name, tensor) end
end

function Net:attention(layer, x)
  local s = x.shape
  local function heads(y) return y:reshape(s[1], s[2], self.head_count, self.head_dim) end
  local y = T.attention(heads(layer.q(x)), heads(layer.k(x)), heads(layer.v(x)), { causal = true })
  return layer.o(y:reshape(s[1], s[2], self.width), { dtype = "f32" })
end

-- For each row of ids the index, from 1, of its largest id.
local function end_marks(ids)
  local flat, length, out = ids:list(), ids.shape[2], {}
  for b = 1, ids.shape[1] do
    local best = 1
    for i = 2, length do
      if flat[(b - 1) * length + i] > flat[(b - 1) * length + best] then best = i end
    end
    out[b] = best
  end
  return out
end

function Net:forward(ids)
  if ids.ndim ~= 2 or ids.shape[2] < 1 or ids.shape[2] > self.positions.shape[1] then
    error(("%s: ids are %s, wanted [B, 1 to %d]"):format(NAME, kit.shape_text(ids.shape), self.positions.shape[1]), 2)
  end
  local x = T.gather(self.embedding, ids, "f32") + self.positions:slice(1, 1, ids.shape[2])
  self:note("embeddings", x)
  local result = {}
  local function norm(pair) return { weight = pair[1], bias = pair[2], eps = self.eps, dtype = self.dtype } end
  for i, layer in ipairs(self.layers) do
    if i == #self.layers then result.penultimate = x:clone() end
    x:add_(self:attention(layer, x:layer_norm(norm(layer.norm1))))
    local y = layer.fc1(x:layer_norm(norm(layer.norm2)), { act = self.act })
    x:add_(layer.fc2(y, { dtype = "f32" }))
    if i == 1 then self:note("layer0_out", x) end
  end
  self:note("last_hidden_pre_norm", x)
  result.last = x:layer_norm { weight = self.norm[1], bias = self.norm[2], eps = self.eps, dtype = "f32" }
  local rows = {}
  for b, at in ipairs(end_marks(ids)) do rows[b] = result.last:select(1, b):select(1, at) end
  result.pooled = T.stack(rows, 1)
  if self.projection then result.embeds = self.projection(result.pooled, { dtype = "f32" }) end
  return result
end

function Net:encode(ids)
  if type(ids) ~= "table" or ids.shape or #ids == 0 then error(NAME .. ": encode wants a list of ids", 2) end
  for i, id in ipairs(ids) do
    if type(id) ~= "number" or id < 0 or id >= self.vocabulary or id % 1 ~= 0 then
      error(("%s: id %d is %s, outside 0..%d"):format(NAME, i, tostring(id), self.vocabulary - 1), 2)
    end
  end
  local result = self:forward(T.of(ids, { 1, #ids }, "i64"))
  for name, x in pairs(result) do result[name] = x:squeeze(1) end
  return result
end

local ACTIVATIONS = { quick_gelu = "quick_gelu", gelu = "gelu_erf" }

local function load(weights, config, options)
  config = config or {}
  local compute, trace = kit.options(NAME, options)
  local at = "text_model."
  local r = kit.reader(NAME, weights, { anchor = at .. "final_layer_norm.weight" })
  local embedding = r:take(at .. "embeddings.token_embedding.weight", { false, false })
  local width = kit.agree(NAME, config, { "width", "hidden_size" }, embedding.shape[2], "the token embedding")
  local positions = r:take_f32(at .. "embeddings.position_embedding.weight", { false, width })
  r:ignore(at .. "embeddings.position_ids")
  local activation = config.activation or config.hidden_act or "quick_gelu"
  if not ACTIVATIONS[activation] then
    error(("%s: activation is '%s', wanted 'quick_gelu' or 'gelu'"):format(NAME, tostring(activation)), 0)
  end
  local heads = config.heads or config.num_attention_heads or width / 64
  if heads < 1 or heads % 1 ~= 0 or width % heads ~= 0 then
    error(("%s: width %d does not divide into %s heads; the configuration must give heads"):format(NAME, width,
      tostring(heads)), 0)
  end
  local net = setmetatable({
    name = NAME, dtype = compute, trace = trace, width = width, embedding = embedding, positions = positions,
    vocabulary = embedding.shape[1], act = ACTIVATIONS[activation], eps = config.eps or config.layer_norm_eps or 1e-5,
    head_count = heads, head_dim = width / heads, layers = {},
  }, Net)
  local matrix = { compute = compute, lazy = options and options.lazy or nil }
  local function norm(name)
    return { r:take_f32(name .. ".weight", { width }), r:take_f32(name .. ".bias", { width }) }
  end
  local count = kit.agree(NAME, config, { "layers", "num_hidden_layers" },
    r:count(at .. "encoder.layers.%d.layer_norm1.weight"), "the file")
  if count == 0 then r:shape(at .. "encoder.layers.0.layer_norm1.weight") end
  for i = 0, count - 1 do
    local here = ("%sencoder.layers.%d."):format(at, i)
    local function linear(name, outputs, inputs) return r:linear(here .. name, outputs, inputs, matrix) end
    local inner = r:shape(here .. "mlp.fc1.weight")[1]
    net.layers[i + 1] = {
      norm1 = norm(here .. "layer_norm1"), norm2 = norm(here .. "layer_norm2"),
      q = linear("self_attn.q_proj", width, width), k = linear("self_attn.k_proj", width, width),
      v = linear("self_attn.v_proj", width, width), o = linear("self_attn.out_proj", width, width),
      fc1 = linear("mlp.fc1", inner, width), fc2 = linear("mlp.fc2", width, inner),
    }
  end
  net.norm = norm(at .. "final_layer_norm")
  if r:has "text_projection.weight" then
    net.projection = r:linear("text_projection", false, width, { compute = compute, bias = false })
  end
  r:finish()
  return net
end

return { kind = "model", name = NAME, help = "CLIP text encoders", params = {}, load = load }
