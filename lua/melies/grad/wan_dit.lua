-- The transformer of models/wan_dit.lua for training: the same tensors under the same names, the same arithmetic, from
-- differentiable operations. What is trained here loads there.
--
--   local params = wan.init({ dim = 48, heads = 2, ffn = 96, layers = 2, channels = 16, text_dim = 32 }, seed)
--   local net = wan.net(params, { heads = 2 })
--   net:forward(latent [B, C, T, H, W], { t, ... }, text [B, L, text_dim], key_bias [B, L]) -> velocity, a variable
--
-- params may hold plain tensors (bf16 too): those weights are frozen. net.lora[name] = { down = param [rank, inputs],
-- up = param [outputs, rank], scale = 1 } adds scale * up down to the linear layer `name`, such as "blocks.0.self_attn.q".
--
-- t: 0 to 1000, one a sample. key_bias: see wan.padded. net.save_memory: blocks are computed twice instead of kept.
local melies = require "melies"
local ditkit = require "melies.ditkit"
local grad = require "melies.grad"
local lib = require "melies.ffi.lib"
local plugin = require "melies.models.wan_dit"
local T = melies.tensor

local wan = {}
local Net = {}
Net.__index = Net

local init_known = { dim = true, heads = true, ffn = true, layers = true, channels = true, out_channels = true,
  text_dim = true, freq_dim = true, patch = true }

-- Fresh parameters { name = grad.param }: matrices normal with 1 / sqrt(inputs), the head zero, so that the first velocity
-- is 0.
function wan.init(c, seed)
  lib.check_options("wan.init", c, init_known)
  local patch, freq, stream, params = c.patch or { 1, 2, 2 }, c.freq_dim or 256, 0, {}
  local size = patch[1] * patch[2] * patch[3]
  local function normal(shape, scale)
    stream = stream + 1
    return T.noise(shape, { seed = seed or 0, stream = stream }) * scale
  end
  local function set(name, t) params[name] = grad.param(t) end
  local function linear(name, n, k, scale)
    set(name .. ".weight", normal({ n, k }, (scale or 1) / math.sqrt(k)))
    set(name .. ".bias", T.zeros { n })
  end
  local dim, ffn = c.dim, c.ffn
  set("patch_embedding.weight", normal({ dim, c.channels, unpack(patch) }, 1 / math.sqrt(c.channels * size)))
  set("patch_embedding.bias", T.zeros { dim })
  linear("text_embedding.0", dim, c.text_dim)
  linear("text_embedding.2", dim, dim)
  linear("time_embedding.0", dim, freq)
  linear("time_embedding.2", dim, dim)
  linear("time_projection.1", 6 * dim, dim)
  for i = 0, c.layers - 1 do
    local at = ("blocks.%d."):format(i)
    set(at .. "modulation", normal({ 1, 6, dim }, 1 / math.sqrt(dim)))
    for _, kind in ipairs { "self_attn", "cross_attn" } do
      for _, name in ipairs { "q", "k", "v", "o" } do linear(at .. kind .. "." .. name, dim, dim) end
      set(at .. kind .. ".norm_q.weight", T.full({ dim }, 1))
      set(at .. kind .. ".norm_k.weight", T.full({ dim }, 1))
    end
    set(at .. "norm3.weight", T.full({ dim }, 1))
    set(at .. "norm3.bias", T.zeros { dim })
    linear(at .. "ffn.0", ffn, dim)
    linear(at .. "ffn.2", dim, ffn)
  end
  set("head.modulation", normal({ 1, 2, dim }, 1 / math.sqrt(dim)))
  linear("head.head", (c.out_channels or c.channels) * size, dim, 0)
  return params
end

local net_known = { heads = true, eps = true, compute = true, text_len = true, preconditioned = true,
  positions = true, pooled = true }
-- options: heads (by default dim / 128), eps (1e-6), compute, text_len (512), and the additions of the model: preconditioned,
-- positions, pooled.
function wan.net(params, o)
  o = o or {}
  lib.check_options("wan.net", o, net_known)
  local p = params["patch_embedding.weight"]
  if not p then error("wan.net: patch_embedding.weight is missing", 2) end
  local s = p.shape
  local net = setmetatable({ params = params, dim = s[1], channels = s[2], patch = { s[3], s[4], s[5] },
    heads = o.heads or s[1] / 128, eps = o.eps or 1e-6, dtype = o.compute or melies.compute(), layers = 0,
    text_len = o.text_len or 512, preconditioned = o.preconditioned or false,
    positions = o.positions or false, pooled = o.pooled or false, freq = params["time_embedding.0.weight"].shape[2], ropes = {},
    lora = {} }, Net)
  while params[("blocks.%d.modulation"):format(net.layers)] do net.layers = net.layers + 1 end
  return net
end

-- Texts { [L, text_dim], ... } as one batch [B, rows, text_dim] and the bias of its keys, as the model pads them: every
-- text is followed by zero rows up to text_len, which count through the logarithm of their number. rows: at least the
-- longest text and one.
function wan.padded(texts, rows, text_len)
  text_len = text_len or 512
  local parts, bias = {}, {}
  for i, x in ipairs(texts) do
    local n = x.shape[1]
    if n >= rows and n < text_len then error(("padded: text %d has %d rows of %d"):format(i, n, rows), 2) end
    parts[i] = n < rows and x:to("f32"):pad(1, 0, rows - n, 0) or x:to("f32")
    local weight = n < rows and math.log((text_len - n) / (rows - n)) or 0
    for j = 1, rows do bias[#bias + 1] = j > n and weight or 0 end
  end
  return T.stack(parts, 1), T.of(bias, { #texts, rows })
end

function Net:linear(x, name, o)
  o = o or {}
  local p, lora, compute = self.params, self.lora[name], o.compute or self.dtype
  local y = grad.linear(x, p[name .. ".weight"], p[name .. ".bias"], { act = not lora and o.act or nil,
    dtype = o.dtype, compute = compute })
  if not lora then return y end
  local low = grad.linear(x, lora.down, nil, { dtype = self.dtype, compute = compute })
  y = grad.add(y, grad.mul(grad.linear(low, lora.up, nil, { dtype = y.dtype, compute = compute }), lora.scale or 1))
  return o.act and grad.act(y, o.act) or y
end

function Net:norm_heads(x, name)
  local s = x.shape
  local y = grad.rms_norm(x, { weight = self.params[name .. ".weight"], eps = self.eps })
  return y:reshape(s[1], s[2], self.heads, self.dim / self.heads)
end

function Net:block(index, x, e0, text, key_bias, cos, sin)
  local p, at, s = self.params, ("blocks.%d."):format(index), x.shape
  local head, eps, dtype = self.dim / self.heads, self.eps, self.dtype
  local function split(v) return v:reshape(v.shape[1], v.shape[2], self.heads, head) end
  local mods, m = grad.add(e0, p[at .. "modulation"]), {}
  for i = 1, 6 do m[i] = mods:slice(2, i, i):contiguous() end

  local y = grad.layer_norm(x, { eps = eps, shift = m[1], scale = m[2], dtype = dtype })
  local q = self:norm_heads(self:linear(y, at .. "self_attn.q"), at .. "self_attn.norm_q"):rope(cos, sin)
  local k = self:norm_heads(self:linear(y, at .. "self_attn.k"), at .. "self_attn.norm_k"):rope(cos, sin)
  y = grad.attention(q, k, split(self:linear(y, at .. "self_attn.v")))
  y = self:linear(y:reshape(s), at .. "self_attn.o", { dtype = "f32" })
  x = grad.gated(x, y, m[3])

  y = grad.layer_norm(x, { weight = p[at .. "norm3.weight"], bias = p[at .. "norm3.bias"], eps = eps, dtype = dtype })
  q = self:norm_heads(self:linear(y, at .. "cross_attn.q"), at .. "cross_attn.norm_q")
  k = self:norm_heads(self:linear(text, at .. "cross_attn.k"), at .. "cross_attn.norm_k")
  y = grad.attention(q, k, split(self:linear(text, at .. "cross_attn.v")), { key_bias = key_bias })
  x = grad.gated(x, self:linear(y:reshape(s), at .. "cross_attn.o", { dtype = "f32" }))

  y = grad.layer_norm(x, { eps = eps, shift = m[4], scale = m[5], dtype = dtype })
  y = self:linear(self:linear(y, at .. "ffn.0", { act = "gelu" }), at .. "ffn.2", { dtype = "f32" })
  return grad.gated(x, y, m[6])
end

function Net:rope(frames, rows, columns)
  local key = ("%d,%d,%d"):format(frames, rows, columns)
  if not self.ropes[key] then
    self.ropes[key] = { plugin.rope_tables(self.dim / self.heads, frames, rows, columns, 0) }
  end
  return unpack(self.ropes[key])
end

-- Where the tokens of a batch stand: `first` is the number of each sample's first frame, from 0, or nil.
function Net:where(frames, rows, columns, first)
  local list = {}
  for i = 1, first and #first or 1 do
    list[i] = ditkit.positions(self.dim, frames, rows, columns, self.positions, first and first[i])
  end
  return grad.const(first and T.concat(list, 1) or list[1])
end

-- The embedding of the mean of each text's rows [B, dim]; rows of zeros are padding.
function Net:pooled_text(text)
  local there = (text.value:square():sum(3) * 1e20):clamp(0, 1)
  local mean = grad.mul(grad.sum(text, 2), 1 / there:sum(2, true))
  return self:linear(self:linear(mean, "text_embedding.0", { act = "gelu" }), "text_embedding.2", { dtype = "f32" })
end

-- latent, text: tensors or variables. first: with positions, the number of each sample's first frame (0).
function Net:forward(latent, t, text, key_bias, first)
  local s, q = latent.shape, self.patch
  local frames, rows, columns = s[3] / q[1], s[4] / q[2], s[5] / q[3]
  if #t ~= s[1] or text.shape[1] ~= s[1] then
    error(("wan: %d latents, %d timesteps, %d texts"):format(s[1], #t, text.shape[1]), 2)
  end
  local volume = q[1] * q[2] * q[3]
  if not grad.is(latent) then latent = grad.const(latent) end
  if not grad.is(text) then text = grad.const(text) end

  local c = self:linear(text, "text_embedding.0", { act = "gelu", dtype = self.dtype })
  c = self:linear(c, "text_embedding.2", { dtype = "f32" }):to(self.dtype)

  local e = self:linear(ditkit.sinusoid(t, self.freq), "time_embedding.0", { act = "silu", compute = "f32" })
  e = self:linear(e, "time_embedding.2", { compute = "f32" })
  if self.pooled then e = grad.add(e, self:pooled_text(text)) end
  local e0 = self:linear(grad.silu(e), "time_projection.1", { compute = "f32" }):reshape(s[1], 6, self.dim)

  local x = latent:reshape(s[1], s[2], frames, q[1], rows, q[2], columns, q[3]):permute(1, 3, 5, 7, 2, 4, 6, 8)
  x = x:reshape(s[1], frames * rows * columns, s[2] * volume)
  local weight = self.params["patch_embedding.weight"]
  x = grad.linear(x, grad.reshape(weight, self.dim, s[2] * volume), self.params["patch_embedding.bias"],
    { compute = self.dtype, dtype = "f32" })
  if self.positions then x = grad.add(x, self:where(frames, rows, columns, first)) end
  local cos, sin = self:rope(frames, rows, columns)
  for i = 0, self.layers - 1 do
    if self.save_memory then
      x = grad.checkpoint(function(...) return self:block(i, ...) end, x, e0, c, key_bias, cos, sin)
    else
      x = self:block(i, x, e0, c, key_bias, cos, sin)
    end
  end

  local mods = grad.add(grad.reshape(e, s[1], 1, self.dim), self.params["head.modulation"])
  x = grad.layer_norm(x, { eps = self.eps, shift = mods:slice(2, 1, 1):contiguous(),
    scale = mods:slice(2, 2, 2):contiguous(), dtype = self.dtype })
  x = self:linear(x, "head.head", { dtype = "f32" })
  local channels = x.shape[3] / volume
  x = x:reshape(s[1], frames, rows, columns, q[1], q[2], q[3], channels):permute(1, 8, 2, 5, 3, 6, 4, 7)
  x = x:reshape(s[1], channels, s[3], s[4], s[5])
  if not self.preconditioned then return x end
  local skip, gain = ditkit.preconditioning(t)
  return grad.add(grad.mul(x, gain), grad.mul(latent, skip))
end

return wan
