-- melies-api: 1
-- The diffusion transformer of LTX-Video (Lightricks/LTX-Video, ltx_video/models/transformers: facts only).
--
--   net:context({ text, ... }, options) -> context    text: [L, caption width], the real rows only
--     fps                                             frames a second of the clip (by default the configuration's)
--     first = [C, n, H, W]                            latent frames that are given, as in wan_dit
--   net:join({ context, ... }) -> context
--   net:forward(latent, t, context) -> velocity       latent, velocity: [B, C, T, H, W] f32
--
-- t is 0 to 1000 (1000 * sigma): one a sample, or a list of them, one a frame or one a token (frame, row, column).
-- Shorter texts of a batch have masked keys, as padding has in the original. Positions are those of pixels and seconds:
-- the frame axis runs in 1 / fps, and the first latent frame is one pixel frame.
--
-- Sizes come from the tensors. config: heads (or num_attention_heads; by default width / attention_head_dim or 64),
-- fps (25), scale ({ 8, 32, 32 }: pixels to a latent value), causal_fix (true), positional_embedding_max_pos
-- ({ 20, 2048, 2048 }), positional_embedding_theta (10000). Matrix work and attention run in `compute`; the residual
-- stream, norms, modulation and time embedding in float32.
local melies = require "melies"
local kit = require "melies.modelkit"
local ditkit = require "melies.ditkit"
local lib = require "melies.ffi.lib"
local T, f32 = melies.tensor, kit.f32

local NAME = "ltx_dit"
local EPS, QK_EPS = 1e-6, 1e-5
local Net, Context = {}, {}
Net.__index = Net
Context.__index = Context

function Net:note(name, tensor)
  if self.trace then self.trace(name, tensor) end
end

-- cos and sin [tokens, dim / 2] of pairs of channels of the full width: dim % 6 channels in front stand still, then for
-- each frequency the frame, row and column axis in turn. The frequencies are theta^(0..1) * pi / 2 times the position
-- within (-1, 1). Every step is rounded to float32, as in the original: arguments reach 1.6e4, where that moves the
-- cosine by 1e-3.
local function rope_tables(dim, frames, rows, columns, o)
  local count, pairs_ = math.floor(dim / 6), dim / 2
  local still = (dim % 6) / 2
  local omega = {}
  for i = 0, count - 1 do
    -- PyTorch's linspace counts from the nearer end.
    local step = f32(1 / math.max(1, count - 1))
    local at = i < count / 2 and f32(step * i) or f32(1 - f32(step * (count - 1 - i)))
    omega[i] = f32(f32(o.theta ^ at) * f32(math.pi) / 2)
  end
  local cos, sin = T.full({ frames * rows * columns, pairs_ }, 1), T.zeros { frames * rows * columns, pairs_ }
  local pc, ps = cos:ptr(), sin:ptr()
  local sizes, strides = { frames, rows, columns }, { rows * columns, columns, 1 }
  for axis = 1, 3 do
    for position = 0, sizes[axis] - 1 do
      local pixel = position * o.scale[axis]
      if axis == 1 then
        if o.causal_fix then pixel = math.max(0, pixel + 1 - o.scale[1]) end
        pixel = f32(pixel * f32(1 / o.fps))
      end
      local place = f32(f32(f32(pixel / o.max_pos[axis]) * 2) - 1)
      for i = 0, count - 1 do
        local angle = f32(omega[i] * place)
        local c, s, at = math.cos(angle), math.sin(angle), still + 3 * i + axis - 1
        for start = position * strides[axis], frames * rows * columns - 1, sizes[axis] * strides[axis] do
          for token = start, start + strides[axis] - 1 do
            pc[token * pairs_ + at], ps[token * pairs_ + at] = c, s
          end
        end
      end
    end
  end
  return cos, sin
end

function Net:rope(frames, rows, columns, fps)
  local key = ("%d,%d,%d,%.17g"):format(frames, rows, columns, fps)
  if self.rope_key ~= key then
    local cos, sin = rope_tables(self.dim, frames, rows, columns, { scale = self.scale, max_pos = self.max_pos,
      theta = self.theta, causal_fix = self.causal_fix, fps = fps })
    self.rope_key, self.rope_cos, self.rope_sin = key, cos, sin
  end
  return self.rope_cos, self.rope_sin
end

-- ---- text -------------------------------------------------------------------------------------------------------

local context_options = { fps = true, first = true }

function Net:context(texts, options)
  options = options or {}
  lib.check_options(NAME .. ": context", options, context_options)
  if type(texts) ~= "table" or texts.shape or #texts == 0 then
    error(NAME .. ": context wants a list of texts, each [L, width]", 2)
  end
  local fps = options.fps or self.fps
  if type(fps) ~= "number" or fps <= 0 then error(("%s: fps is %s"):format(NAME, tostring(fps)), 2) end
  local rows = 0
  for i, text in ipairs(texts) do
    if text.ndim ~= 2 or text.shape[2] ~= self.text_dim or text.shape[1] < 1 then
      error(("%s: text %d is %s, wanted [L, %d]"):format(NAME, i, kit.shape_text(text.shape), self.text_dim), 2)
    end
    rows = math.max(rows, text.shape[1])
  end
  local padded, bias = {}, {}
  for i, text in ipairs(texts) do
    local real = text.shape[1]
    padded[i] = real < rows and text:to("f32"):pad(1, 0, rows - real, 0) or text:to("f32")
    for j = 1, rows do bias[#bias + 1] = j > real and -math.huge or 0 end
  end
  local x = T.stack(padded, 1)
  if self.text_in then x = self.text_out(self.text_in(x, { act = "gelu", dtype = self.dtype }), { dtype = "f32" }) end
  self:note("caption_projection_out", x)
  x = x:to(self.dtype)
  local context = setmetatable({ net = self, batch = #texts, rows = rows, fps = fps, blocks = {},
    key_bias = T.of(bias, { #texts, rows }),
    first = options.first and ditkit.given(NAME, options.first, self.latent_channels, 1) }, Context)
  for i, block in ipairs(self.blocks) do
    local a = block.cross
    local k = a.k(x):rms_norm { weight = a.k_norm, eps = QK_EPS, dtype = self.dtype }
    context.blocks[i] = { k = self:heads(k), v = self:heads(a.v(x)) }
  end
  return context
end

function Net:join(contexts)
  if type(contexts) == "table" and #contexts == 1 then return contexts[1] end
  local out = setmetatable(ditkit.join(contexts, Context, self, NAME), Context)
  for _, c in ipairs(contexts) do
    if c.fps ~= contexts[1].fps then error(NAME .. ": join: the contexts have different fps", 2) end
  end
  out.fps = contexts[1].fps
  out.first = ditkit.side_by_side(contexts, function(c) return c.first end, NAME, "first frames")
  return out
end

-- ---- the network ------------------------------------------------------------------------------------------------

-- [B, L, dim] as [B, L, heads, head_dim].
function Net:heads(x)
  return x:reshape(x.shape[1], x.shape[2], self.head_count, self.head_dim)
end

-- The norm and the rotation run over the full width, before the split into heads.
function Net:self_attention(a, x, cos, sin)
  local s = x.shape
  local function turned(y, weight)
    y = y:rms_norm { weight = weight, eps = QK_EPS, dtype = self.dtype }
    return self:heads(y:reshape(s[1], s[2], 1, self.dim):rope(cos, sin, { interleaved = true }):reshape(s))
  end
  local y = T.attention(turned(a.q(x), a.q_norm), turned(a.k(x), a.k_norm), self:heads(a.v(x)))
  return a.o(y:reshape(s), { dtype = "f32" })
end

function Net:cross_attention(a, x, kept, key_bias)
  local q = a.q(x):rms_norm { weight = a.q_norm, eps = QK_EPS, dtype = self.dtype }
  local y = T.attention(self:heads(q), kept.k, kept.v, { key_bias = key_bias })
  return a.o(y:reshape(x.shape), { dtype = "f32" })
end

-- groups: x as [B, G, tokens of a group, dim]. No norm and no modulation stand before the cross-attention.
function Net:run_block(index, x, groups, e, context, cos, sin)
  local block, note = self.blocks[index], index == 1 and self.trace
  local m = ditkit.modulation(block.modulation, e)
  local s, grouped = x.shape, groups.shape
  local y = groups:rms_norm { eps = EPS, shift = m[1], scale = m[2], dtype = self.dtype }:reshape(s)
  y = self:self_attention(block.self, y, cos, sin)
  if note then note("block0_attn1_out", y) end
  groups:add_(y:reshape(grouped), 1, m[3])
  y = self:cross_attention(block.cross, x:to(self.dtype), context.blocks[index], context.key_bias)
  if note then note("block0_attn2_out", y) end
  x:add_(y)
  y = groups:rms_norm { eps = EPS, shift = m[4], scale = m[5], dtype = self.dtype }:reshape(s)
  y = block.ffn_out(block.ffn_in(y, { act = "gelu" }), { dtype = "f32" })
  if note then note("block0_ff_out", y) end
  groups:add_(y:reshape(grouped), 1, m[6])
  self:note(("block%d_out"):format(index - 1), x)
end

function Net:check(latent, t, context)
  local s = latent.shape
  if latent.ndim ~= 5 or s[2] ~= self.latent_channels then
    error(("%s: latent is %s, wanted [B, %d, T, H, W]"):format(NAME, kit.shape_text(s), self.latent_channels), 3)
  end
  if getmetatable(context) ~= Context or context.net ~= self then
    error(NAME .. ": the third argument must be a context of this model (net:context)", 3)
  end
  if s[1] ~= context.batch and s[1] ~= 1 then
    error(("%s: %d latents with a context of %d texts"):format(NAME, s[1], context.batch), 3)
  end
  if #t ~= context.batch then
    error(("%s: %d timesteps for %d samples"):format(NAME, #t, context.batch), 3)
  end
  local groups = s[3]
  for i, one in ipairs(t) do
    if type(one) == "table" then
      local tokens = s[3] * s[4] * s[5]
      if (#one ~= s[3] and #one ~= tokens) or (i > 1 and #one ~= groups) then
        error(("%s: sample %d has %d timesteps, wanted one, %d (frames) or %d (tokens)"):format(NAME, i, #one, s[3],
          tokens), 3)
      end
      groups = #one
    end
  end
  local c = context.first and context.first.shape
  if c and (c[3] > s[3] or c[4] ~= s[4] or c[5] ~= s[5]) then
    error(("%s: latent is %s, the context's first frames %s"):format(NAME, kit.shape_text(s), kit.shape_text(c)), 3)
  end
  return groups
end

function Net:forward(latent, t, context)
  t = ditkit.times_of_samples(t, type(context) == "table" and context.batch)
  local groups = self:check(latent, t, context)
  local batch, first, s = context.batch, context.first, latent.shape
  local x = ditkit.put_first(latent:to("f32"), first)
  local times
  times, groups = ditkit.times(t, groups, first and first.shape[3] * groups / s[3] or 0)

  local e = self.time_out(self.time_in(ditkit.sinusoid_f32(times, self.freq_dim), { act = "silu" }))
  self:note("embedded_timestep", e)
  local modulation = self.time_modulation(e:silu())
  self:note("adaln_modulation", modulation)
  modulation = modulation:reshape(batch, groups, 6, self.dim)

  local length = s[3] * s[4] * s[5]
  x = x:permute(1, 3, 4, 5, 2):reshape(x.shape[1], length, self.in_channels)
  x = self.patch_in(x, { dtype = "f32" })
  self:note("patchify_proj_out", x)
  if x.shape[1] < batch then x = x:expand({ batch, length, self.dim }):clone() end
  local cos, sin = self:rope(s[3], s[4], s[5], context.fps)
  local view = x:reshape(batch, groups, length / groups, self.dim)
  local large = batch * length * self.ffn > 2 ^ 24 -- as in wan_dit
  for i = 1, #self.blocks do
    self:run_block(i, x, view, modulation, context, cos, sin)
    if large then collectgarbage() end
    if self.after_block then self.after_block(i) end
  end

  local m = ditkit.modulation(self.head_modulation, e:reshape(batch, groups, 1, self.dim))
  x = view:layer_norm { eps = EPS, shift = m[1], scale = m[2], dtype = self.dtype }:reshape(x.shape)
  x = self.head(x, { dtype = "f32" })
  self:note("output_tokens", x)
  x = x:reshape(batch, s[3], s[4], s[5], self.out_channels):permute(1, 5, 2, 3, 4):contiguous()
  return ditkit.aim_first(x, latent, first, t)
end

-- ---- loading ----------------------------------------------------------------------------------------------------

local function load_attention(r, at, net, keys, matrix)
  local dim = net.dim
  return {
    q = r:linear(at .. "to_q", dim, dim, matrix), k = r:linear(at .. "to_k", dim, keys, matrix),
    v = r:linear(at .. "to_v", dim, keys, matrix), o = r:linear(at .. "to_out.0", dim, dim, matrix),
    q_norm = r:take_f32(at .. "q_norm.weight", { dim }), k_norm = r:take_f32(at .. "k_norm.weight", { dim }),
  }
end

local function load(weights, config, options)
  config = config or {}
  local compute, trace = kit.options(NAME, options)
  local r = kit.reader(NAME, weights, { anchor = "patchify_proj.weight" })
  local function agree(names, found, where) return kit.agree(NAME, config, names, found, where) end
  local shape = r:shape "patchify_proj.weight"
  local dim = shape[1]
  local heads = config.heads or config.num_attention_heads or dim / (config.attention_head_dim or 64)
  if heads < 1 or heads % 1 ~= 0 or dim % heads ~= 0 then
    error(("%s: width %d does not divide into %s heads; the configuration must give heads"):format(NAME, dim,
      tostring(heads)), 0)
  end
  local net = setmetatable({
    name = NAME, dtype = compute, trace = trace, dim = dim, head_count = heads, head_dim = dim / heads,
    in_channels = agree({ "in_channels" }, shape[2], "patchify_proj.weight"), patch = { 1, 1, 1 },
    scale = config.scale or { 8, 32, 32 }, fps = config.fps or 25, causal_fix = config.causal_fix ~= false,
    max_pos = config.positional_embedding_max_pos or { 20, 2048, 2048 },
    theta = config.positional_embedding_theta or 10000, blocks = {},
  }, Net)
  net.latent_channels = net.in_channels
  local matrix, exact = { compute = compute }, { compute = "f32" }
  net.patch_in = r:linear("patchify_proj", dim, net.in_channels, matrix)
  net.text_dim = dim
  if r:has "caption_projection.linear_1.weight" then
    net.text_dim = agree({ "caption_channels" }, r:shape("caption_projection.linear_1.weight")[2],
      "caption_projection.linear_1.weight")
    net.text_in = r:linear("caption_projection.linear_1", dim, net.text_dim, matrix)
    net.text_out = r:linear("caption_projection.linear_2", dim, dim, matrix)
  end
  local time = "adaln_single.emb.timestep_embedder.linear_"
  net.freq_dim = r:shape(time .. "1.weight")[2]
  net.time_in, net.time_out = r:linear(time .. 1, dim, net.freq_dim, exact), r:linear(time .. 2, dim, dim, exact)
  net.time_modulation = r:linear("adaln_single.linear", 6 * dim, dim, exact)

  local layers = agree({ "layers", "num_layers" }, r:count "transformer_blocks.%d.scale_shift_table", "the file")
  if layers == 0 then r:shape "transformer_blocks.0.scale_shift_table" end
  net.ffn = r:shape("transformer_blocks.0.ff.net.0.proj.weight")[1]
  local lazy = options and options.lazy
  for i = 0, layers - 1 do
    local at = ("transformer_blocks.%d."):format(i)
    local block = { compute = compute, lazy = lazy == true or (type(lazy) == "number" and i >= lazy) or nil }
    net.blocks[i + 1] = {
      modulation = r:take_f32(at .. "scale_shift_table", { 6, dim }):unsqueeze(1),
      self = load_attention(r, at .. "attn1.", net, dim, block), cross = load_attention(r, at .. "attn2.", net, dim, block),
      ffn_in = r:linear(at .. "ff.net.0.proj", net.ffn, dim, block),
      ffn_out = r:linear(at .. "ff.net.2", dim, net.ffn, block),
    }
  end
  net.out_channels = agree({ "out_channels" }, r:shape("proj_out.weight")[1], "proj_out.weight")
  net.head = r:linear("proj_out", net.out_channels, dim, matrix)
  net.head_modulation = r:take_f32("scale_shift_table", { 2, dim }):unsqueeze(1)
  r:finish()
  return net
end

return {
  kind = "model", name = NAME, help = "LTX-Video diffusion transformer", params = {}, load = load,
  rope_tables = rope_tables,
}
