-- The encoder of models/t5.lua for training: the same tensors under Wan's names, the same arithmetic.
--
--   local params = t5.init({ vocabulary = 2000, dim = 256, heads = 4, ffn = 512, layers = 2 }, seed)
--   local net = t5.net(params)
--   net:forward(ids i64 [B, L], mask [B, L] or nil) -> a variable [B, L, dim] in float32
--
-- mask: 1 for a real token, 0 for padding, which then is no key of the attention.
local melies = require "melies"
local grad = require "melies.grad"
local lib = require "melies.ffi.lib"
local plugin = require "melies.models.t5"
local T = melies.tensor

local t5 = {}
local Net = {}
Net.__index = Net

local init_known = { vocabulary = true, dim = true, inner = true, heads = true, ffn = true, layers = true,
  buckets = true, shared = true }
-- Fresh parameters. inner: the width of attention (dim); buckets: 32; shared: one table of relative biases for all layers
-- (T5 v1.1) instead of one each (UMT5). Scales as in Raffel et al.'s code: queries are not divided by sqrt(d) later.
function t5.init(c, seed)
  lib.check_options("t5.init", c, init_known)
  local stream, params, dim, inner, buckets = 0, {}, c.dim, c.inner or c.dim, c.buckets or 32
  local function normal(name, shape, scale)
    stream = stream + 1
    params[name] = grad.param(T.noise(shape, { seed = seed or 0, stream = stream }) * scale)
  end
  local function ones(name) params[name] = grad.param(T.full({ dim }, 1)) end
  normal("token_embedding.weight", { c.vocabulary, dim }, 1)
  if c.shared then normal("pos_embedding.embedding.weight", { buckets, c.heads }, dim ^ -0.5) end
  for i = 0, c.layers - 1 do
    local at = ("blocks.%d."):format(i)
    ones(at .. "norm1.weight")
    ones(at .. "norm2.weight")
    normal(at .. "attn.q.weight", { inner, dim }, (dim * inner / c.heads) ^ -0.5)
    normal(at .. "attn.k.weight", { inner, dim }, dim ^ -0.5)
    normal(at .. "attn.v.weight", { inner, dim }, dim ^ -0.5)
    normal(at .. "attn.o.weight", { dim, inner }, inner ^ -0.5)
    normal(at .. "ffn.gate.0.weight", { c.ffn, dim }, dim ^ -0.5)
    normal(at .. "ffn.fc1.weight", { c.ffn, dim }, dim ^ -0.5)
    normal(at .. "ffn.fc2.weight", { dim, c.ffn }, c.ffn ^ -0.5)
    if not c.shared then normal(at .. "pos_embedding.embedding.weight", { buckets, c.heads }, dim ^ -0.5) end
  end
  ones "norm.weight"
  return params
end

local net_known = { eps = true, max_distance = true, compute = true }
-- options: eps (1e-6), max_distance (128), compute. Sizes come from the tensors.
function t5.net(params, o)
  o = o or {}
  lib.check_options("t5.net", o, net_known)
  local shared = params["pos_embedding.embedding.weight"]
  local biases = shared or params["blocks.0.pos_embedding.embedding.weight"]
  if not biases or not params["token_embedding.weight"] then
    error("t5.net: token_embedding.weight and a pos_embedding.embedding.weight are wanted", 2)
  end
  local net = setmetatable({ params = params, shared = shared, eps = o.eps or 1e-6, buckets = biases.shape[1],
    heads = biases.shape[2], max_distance = o.max_distance or 128, dtype = o.compute or melies.compute(), layers = 0,
    tables = {} }, Net)
  while params[("blocks.%d.norm1.weight"):format(net.layers)] do net.layers = net.layers + 1 end
  return net
end

-- i64 [L, L]: the bucket of key j seen from query i.
function Net:positions(length)
  if not self.tables[length] then
    local list = {}
    for i = 1, length do
      for j = 1, length do list[#list + 1] = plugin.bucket(j - i, self.buckets, self.max_distance) end
    end
    self.tables[length] = T.of(list, { length, length }, "i64")
  end
  return self.tables[length]
end

function Net:bias(weight, length)
  return grad.gather(weight, self:positions(length)):permute(3, 1, 2):contiguous():unsqueeze(1)
end

function Net:forward(ids, mask)
  local p, batch, length = self.params, ids.shape[1], ids.shape[2]
  local key_bias
  if mask then
    key_bias = T.empty { batch, length }
    local to, from = key_bias:ptr(), mask:to("f32"):contiguous():ptr()
    for i = 0, batch * length - 1 do to[i] = from[i] ~= 0 and 0 or -math.huge end
  end
  local x = grad.gather(p["token_embedding.weight"], ids)
  local bias = self.shared and self:bias(self.shared, length)
  for i = 0, self.layers - 1 do
    local at = ("blocks.%d."):format(i)
    local function linear(y, name, o)
      o = o or {}
      o.compute = self.dtype
      return grad.linear(y, p[at .. name .. ".weight"], nil, o)
    end
    local function norm(name) return grad.rms_norm(x, { weight = p[at .. name], eps = self.eps, dtype = self.dtype }) end
    local y = norm "norm1.weight"
    local function heads(v) return v:reshape(batch, length, self.heads, v.shape[3] / self.heads) end
    local q, k, v = heads(linear(y, "attn.q")), heads(linear(y, "attn.k")), heads(linear(y, "attn.v"))
    y = grad.attention(q, k, v, { scale = 1, key_bias = key_bias,
      bias = bias or self:bias(p[at .. "pos_embedding.embedding.weight"], length) })
    x = grad.gated(x, linear(y:reshape(batch, length, -1), "attn.o", { dtype = "f32" }))
    y = norm "norm2.weight"
    y = grad.mul(linear(y, "ffn.fc1"), linear(y, "ffn.gate.0", { act = "gelu" }))
    x = grad.gated(x, linear(y, "ffn.fc2", { dtype = "f32" }))
  end
  return grad.rms_norm(x, { weight = p["norm.weight"], eps = self.eps })
end

return t5
