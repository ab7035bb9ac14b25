-- melies-api: 1
-- T5 encoders: T5 v1.1 (one table of relative biases) and UMT5 (a table a layer). Wan-Video/Wan2.1, wan/modules/t5.py;
-- Raffel et al. 2020, Chung et al. 2023.
--
--   net:encode(ids) -> [L, dim] f32          ids: a list of numbers, the end mark included
--   net:encode({ ids, ids, ... }) -> a list of such tensors, the same bits, in one pass over the weights
--   net:forward(ids, mask) -> [B, L, dim]    ids: i64 [B, L], padded; mask: [B, L], 1 for a real token, or nil
--
-- Masked keys take no part, so the real rows of a padded batch equal those of encode. Rows of padding are meaningless.
-- Tensor names are Wan's or those of Hugging Face's T5EncoderModel. Sizes come from the tensors, the number of heads
-- from the bias table. config: eps (1e-6), max_distance (128); others are only checked.
local melies = require "melies"
local kit = require "melies.modelkit"
local lib = require "melies.ffi.lib"
local T, f32 = melies.tensor, kit.f32

local NAME = "t5"
local Net = {}
Net.__index = Net

-- Bucket (from 0) of a relative position: key minus query. One half of the buckets for each direction; the first half
-- of those exact, the others logarithmic up to max_distance. Every step in float32: powers of two lie on borders.
local function bucket(relative, buckets, max_distance)
  local half = math.floor(buckets / 2)
  local exact = math.floor(half / 2)
  local base, n = relative > 0 and half or 0, math.abs(relative)
  if n < exact then return base + n end
  local ratio = f32(f32(math.log(f32(n / exact))) / f32(math.log(max_distance / exact)))
  return base + math.min(half - 1, exact + math.floor(f32(ratio * (half - exact))))
end

-- i64 [L, L]: bucket of key j seen from query i.
local function bucket_table(length, buckets, max_distance)
  local by_offset = {}
  for offset = 1 - length, length - 1 do by_offset[offset] = bucket(offset, buckets, max_distance) end
  local out = T.empty({ length, length }, "i64")
  local p = out:ptr()
  for i = 0, length - 1 do
    for j = 0, length - 1 do p[i * length + j] = by_offset[j - i] end
  end
  return out
end

function Net:note(name, tensor)
  if self.trace then self.trace(name, tensor) end
end

-- Relative bias of a layer for sequences of one length: f32 [1, heads, L, L].
function Net:position_bias(weight, ids)
  return T.gather(weight, ids):permute(3, 1, 2):contiguous():unsqueeze(1)
end

-- x [B, L, dim]; no scaling of the scores.
function Net:attention(layer, x, bias, key_bias)
  local batch, length = x.shape[1], x.shape[2]
  local function heads(y) return y:reshape(batch, length, self.head_count, self.head_dim) end
  local y = T.attention(heads(layer.q(x)), heads(layer.k(x)), heads(layer.v(x)),
    { scale = 1, bias = bias, key_bias = key_bias })
  return layer.o(y:reshape(batch, length, self.head_count * self.head_dim), { dtype = "f32" })
end

-- One layer over x [B, L, dim], in place. Returns its bias, which a shared table hands on.
function Net:run_layer(i, x, positions, bias, key_bias)
  local layer, tag = self.layers[i], "block" .. (i - 1)
  if layer.bias then
    bias = self:position_bias(layer.bias, positions)
    self:note(tag .. "_pos_bias", bias)
  end
  local y = x:rms_norm { weight = layer.norm1, eps = self.eps, dtype = self.dtype }
  self:note(tag .. "_norm1", y)
  y = self:attention(layer, y, bias, key_bias)
  self:note(tag .. "_attn", y)
  x:add_(y)
  y = x:rms_norm { weight = layer.norm2, eps = self.eps, dtype = self.dtype }
  y = layer.fc2(layer.fc1(y) * layer.gate(y, { act = "gelu" }), { dtype = "f32" })
  self:note(tag .. "_ffn", y)
  x:add_(y)
  self:note(tag, x)
end

-- The pages of a layer's matrices: "prefetch" or "drop". Of a large file only a layer or two are in memory.
function Net:hint(what, i)
  local file, layer = self.file, self.layers[i]
  if not (file and self.streamed and layer) then return end
  for _, name in ipairs(layer.names) do file[what](file, name) end
end

-- ids i64 [B, L] -> [B, L, dim] f32. A quantised table is read by rows: it is never whole in memory.
function Net:embed(ids)
  if self.embedding then return T.gather(self.embedding, ids, "f32") end
  local dense = ids:contiguous()
  local out = T.empty { ids.shape[1], ids.shape[2], self.dim }
  local from, to = dense:ptr(), out:ptr()
  for i = 0, dense:numel() - 1 do
    lib.check(lib.C.mel_source_read(self.rows.handle, from[i], 1, lib.C.MEL_F32, to + i * self.dim, lib.err))
  end
  return out
end

-- Batches { { ids =, key_bias = }, ... } through the layers, in one pass over the weights. -> { [B, L, dim], ... }
function Net:run(batches)
  local states = {}
  self:hint("prefetch", 1)
  for n, batch in ipairs(batches) do
    local x = self:embed(batch.ids)
    self:note("token_embedding", x)
    local positions = bucket_table(batch.ids.shape[2], self.buckets, self.max_distance)
    local bias = self.shared_bias and self:position_bias(self.shared_bias, positions)
    if bias then self:note("pos_bias", bias) end
    states[n] = { x = x, positions = positions, bias = bias }
  end
  for i = 1, #self.layers do
    self:hint("prefetch", i + 1)
    for n, batch in ipairs(batches) do
      local s = states[n]
      self:run_layer(i, s.x, s.positions, s.bias, batch.key_bias)
    end
    self:hint("drop", i)
    lib.call(lib.C.mel_check_cancel)
  end
  local out = {}
  for n, s in ipairs(states) do out[n] = s.x:rms_norm { weight = self.norm, eps = self.eps, dtype = "f32" } end
  return out
end

function Net:forward(ids, mask)
  if ids.ndim ~= 2 or ids.shape[2] < 1 then
    error(("%s: ids are %s, wanted [B, L]"):format(NAME, kit.shape_text(ids.shape)), 2)
  end
  local key_bias
  if mask then
    key_bias = T.empty({ ids.shape[1], ids.shape[2] })
    local to, from = key_bias:ptr(), mask:to("f32"):contiguous():ptr()
    for i = 0, ids:numel() - 1 do to[i] = from[i] ~= 0 and 0 or -math.huge end
  end
  return self:run({ { ids = ids, key_bias = key_bias } })[1]
end

local function check_ids(net, ids, level)
  if #ids == 0 then
    error(NAME .. ": the list of ids is empty (it should hold the end mark at least)", level + 1)
  end
  for i, id in ipairs(ids) do
    if type(id) ~= "number" or id < 0 or id >= net.vocabulary or id % 1 ~= 0 then
      error(("%s: id %d is %s, outside 0..%d"):format(NAME, i, tostring(id), net.vocabulary - 1), level + 1)
    end
  end
end

-- Several texts stay batches of their own: what one gives does not depend on what stands beside it.
function Net:encode(ids)
  if type(ids) ~= "table" or ids.shape then error(NAME .. ": encode wants a list of ids", 2) end
  local several = type(ids[1]) == "table"
  local batches = {}
  for n, one in ipairs(several and ids or { ids }) do
    check_ids(self, one, 2)
    batches[n] = { ids = T.of(one, { 1, #one }, "i64") }
  end
  if #batches == 0 then error(NAME .. ": the list of ids is empty (it should hold the end mark at least)", 2) end
  local out = self:run(batches)
  for n, x in ipairs(out) do out[n] = x:reshape(x.shape[2], self.dim) end
  return several and out or out[1]
end

-- ---- loading ----------------------------------------------------------------------------------------------------

-- Hugging Face's name of each tensor; {} is the layer's number.
local HUGGING_FACE = {
  ["token_embedding.weight"] = "shared.weight",
  ["norm.weight"] = "encoder.final_layer_norm.weight",
  ["pos_embedding.embedding.weight"] = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
  ["attn.q.weight"] = "layer.0.SelfAttention.q.weight",
  ["attn.k.weight"] = "layer.0.SelfAttention.k.weight",
  ["attn.v.weight"] = "layer.0.SelfAttention.v.weight",
  ["attn.o.weight"] = "layer.0.SelfAttention.o.weight",
  ["layer.pos_embedding.embedding.weight"] = "layer.0.SelfAttention.relative_attention_bias.weight",
  ["norm1.weight"] = "layer.0.layer_norm.weight",
  ["norm2.weight"] = "layer.1.layer_norm.weight",
  ["ffn.gate.0.weight"] = "layer.1.DenseReluDense.wi_0.weight",
  ["ffn.fc1.weight"] = "layer.1.DenseReluDense.wi_1.weight",
  ["ffn.fc2.weight"] = "layer.1.DenseReluDense.wo.weight",
}
local function hugging_face(name)
  local layer, rest = name:match("^blocks%.(%d+)%.(.*)$")
  if not layer then return HUGGING_FACE[name] or name end
  if rest == "pos_embedding.embedding.weight" then rest = "layer." .. rest end
  return ("encoder.block.%s.%s"):format(layer, HUGGING_FACE[rest] or rest)
end

local function reader(weights)
  local r = kit.reader(NAME, weights, { anchor = "token_embedding.weight" })
  if r:has("token_embedding.weight") then return r end
  local hf = kit.reader(NAME, weights, { anchor = "shared.weight", rename = hugging_face })
  if not hf:has("token_embedding.weight") then return r end -- neither: the error names Wan's tensor
  -- Hugging Face's files may hold the embedding a second time.
  hf.taken[hf.prefix .. "encoder.embed_tokens.weight"] = true
  return hf
end

local function load(weights, config, options)
  config = config or {}
  local compute, trace = kit.options(NAME, options)
  local r = reader(weights)
  local function agree(names, found, where) return kit.agree(NAME, config, names, found, where) end
  local embedding, rows = "token_embedding.weight", nil
  local size = r:shape(embedding)
  if r.file and r.file.matrix and r.file:dtype(r:key(embedding)):find "^q%d" then
    rows, embedding = r.file:matrix(r:claim(embedding, { false, false })), nil
  else
    embedding = r:take(embedding, { false, false })
  end
  local dim = agree({ "dim" }, size[2], "the token embedding")
  local net = setmetatable({
    name = NAME, dtype = compute, trace = trace, dim = dim, embedding = embedding, rows = rows,
    layers = {}, file = r.file, vocabulary = agree({ "vocab" }, size[1], "the token embedding"),
    eps = config.eps or 1e-6, max_distance = config.max_distance or 128,
  }, Net)

  -- Hugging Face keeps the shared table in block 0, so one table alone is a shared one.
  local layers = agree({ "layers", "num_layers" }, r:count("blocks.%d.norm1.weight"), "the file")
  if layers == 0 then r:shape("blocks.0.norm1.weight") end
  local table_of = "blocks.%d.pos_embedding.embedding.weight"
  local shared
  if not r:has(table_of:format(0)) or (layers > 1 and not r:has(table_of:format(1)) and r.rename) then
    shared = "pos_embedding.embedding.weight"
  end
  local sizes = r:shape(shared or table_of:format(0))
  local heads = agree({ "heads", "num_heads" }, sizes[2], "the bias table")
  local inner = agree({ "dim_attn" }, r:shape("blocks.0.attn.q.weight")[1], "blocks.0.attn.q.weight")
  local ffn = agree({ "ffn", "dim_ffn" }, r:shape("blocks.0.ffn.fc1.weight")[1], "blocks.0.ffn.fc1.weight")
  net.buckets = agree({ "buckets", "num_buckets" }, sizes[1], "the bias table")
  if inner % heads ~= 0 then
    error(("%s: attention of width %d does not divide into %d heads"):format(NAME, inner, heads), 0)
  end
  net.head_count, net.head_dim = heads, inner / heads
  if shared then net.shared_bias = r:take_f32(shared, { net.buckets, heads }) end

  local matrix = { compute = compute, bias = false, lazy = options and options.lazy or nil }
  for i = 0, layers - 1 do
    local at = ("blocks.%d."):format(i)
    local layer = {
      norm1 = r:take_f32(at .. "norm1.weight", { dim }), norm2 = r:take_f32(at .. "norm2.weight", { dim }),
      q = r:linear(at .. "attn.q", inner, dim, matrix), k = r:linear(at .. "attn.k", inner, dim, matrix),
      v = r:linear(at .. "attn.v", inner, dim, matrix), o = r:linear(at .. "attn.o", dim, inner, matrix),
      gate = r:linear(at .. "ffn.gate.0", ffn, dim, matrix), fc1 = r:linear(at .. "ffn.fc1", ffn, dim, matrix),
      fc2 = r:linear(at .. "ffn.fc2", dim, ffn, matrix),
    }
    if not shared then layer.bias = r:take_f32(table_of:format(i), { net.buckets, heads }) end
    layer.names = {}
    for k, name in ipairs { "attn.q", "attn.k", "attn.v", "attn.o", "ffn.gate.0", "ffn.fc1", "ffn.fc2" } do
      layer.names[k] = r:key(at .. name .. ".weight")
    end
    net.layers[i + 1] = layer
  end
  net.norm = r:take_f32("norm.weight", { dim })
  -- Large and lazy: pages of the file are given back as the layers go by.
  net.streamed = matrix.lazy and layers * (4 * inner + 3 * ffn) * dim > 2 ^ 26 or false
  r:finish()
  return net
end

return {
  kind = "model", name = NAME, help = "T5 v1.1 and UMT5 text encoders",
  params = {}, load = load, bucket = bucket,
}
