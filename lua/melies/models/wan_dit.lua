-- melies-api: 1
-- The diffusion transformer of Wan 2.1 and 2.2: text, image and first-and-last-frame to video, TI2V-5B, and each expert
-- of the A14B pair (Wan-Video/Wan2.1 and Wan2.2, wan/modules/model.py: facts only).
--
--   net:context({ text, ... }, options) -> context     text: [L, text_dim], the real rows only
--     image = features                                 of the clip_vision tower, [n, width] or [images, n, width]
--     condition = [C, T, H, W]                         channels that stand beside the latent's: mask and image latent
--     first = [C, n, H, W]                             latent frames that are given (TI2V-5B's start image)
--     plain = true                                     keeps every padded row
--   net:join({ context, ... }) -> context              contexts side by side in one batch
--   net:forward(latent, t, context) -> velocity        latent, velocity: [B, C, T, H, W] f32
--   net:causal(options) -> stream                      block by block with a key-value cache: see wan_causal.lua
--
-- t is one timestep a sample, 0 to 1000 (1000 * sigma), or a list of them, one a frame; a latent or a t of one sample
-- serves a context of several. The context holds each block's cross-attention keys and values, computed once a prompt.
-- The model reads text padded with zero rows to text_len, unmasked: all those rows give one key and one value, so what
-- is kept are the real rows and the padding as a key whose bias is the logarithm of the count (exact in real
-- arithmetic). Image tokens are keys of a second cross-attention whose result is added to the first.
--
-- Frames given as `first` take the place of the latent's first frames and have timestep 0; their velocity is the one
-- that leads there, (x - first) / sigma, so that any sampler ends on them.
--
-- With the option `attention` of load, self-attention is what melies.sparse_attention makes of it: scores in 8 bits, and
-- a mask that leaves out what is far away. A mask does not serve a stream, whose keys are those of other blocks too.
--
-- Sizes come from the tensors. config: heads (or num_heads; by default dim / 128), text_len (512), eps (1e-6),
-- and three additions for small models, without tensors of their own: preconditioned (false; the weights give the
-- network's part of ditkit.preconditioning), positions ({ frames, rows, columns } trained on: ditkit.positions are added
-- to the tokens), pooled (false; the embedding of the mean of a text's rows is added to that of the time). Others
-- (dim, ffn, layers, text_dim, freq_dim, in_channels, out_channels, patch) are only checked against the tensors.
-- Matrix work and attention run in `compute`; the residual stream, norms, modulation and time embedding in float32.
local melies = require "melies"
local kit = require "melies.modelkit"
local ditkit = require "melies.ditkit"
local lib = require "melies.ffi.lib"
local sparse = require "melies.sparse_attention"
local T, nn = melies.tensor, melies.nn

local NAME = "wan_dit"
local batched, modulation, side_by_side = ditkit.batched, ditkit.modulation, ditkit.side_by_side
local Net, Context = {}, {}
Net.__index = Net
Context.__index = Context

local function fail(format, ...) error(format:format(...), 0) end

-- ---- position and time ------------------------------------------------------------------------------------------

-- Channels of a head of width d that turn with frame, row and column.
local function rope_split(d)
  local sixth = math.floor(d / 6)
  return d - 4 * sixth, 2 * sixth, 2 * sixth
end

-- cos and sin [frames * rows * columns, d / 2] f32; angles in double. Each axis has its own series
-- 10000^(-2i / n) over its n channels. first_frame shifts the frame axis.
local function rope_tables(d, frames, rows, columns, first_frame)
  local half = d / 2
  local length = frames * rows * columns
  local cos, sin = T.empty({ length, half }), T.empty({ length, half })
  local pc, ps = cos:ptr(), sin:ptr()
  local nt, nh, nw = rope_split(d)
  local function fill(width, first_pair, count, stride, offset)
    for i = 0, width / 2 - 1 do
      local omega = 10000 ^ (-2 * i / width)
      for position = 0, count - 1 do
        local angle = (position + offset) * omega
        local c, s = math.cos(angle), math.sin(angle)
        -- Tokens whose coordinate on this axis is `position`: runs of `stride`, one every count * stride.
        for start = position * stride, length - 1, count * stride do
          for token = start, start + stride - 1 do
            local at = token * half + first_pair + i
            pc[at], ps[at] = c, s
          end
        end
      end
    end
  end
  fill(nt, 0, frames, rows * columns, first_frame)
  fill(nh, nt / 2, rows, columns, 0)
  fill(nw, nt / 2 + nh / 2, columns, 1, 0)
  return cos, sin
end

function Net:rope(frames, rows, columns, first_frame)
  local key = ("%d,%d,%d,%d"):format(frames, rows, columns, first_frame or 0)
  local tables = self.ropes[key]
  if not tables then
    if self.rope_count >= 8 then self.ropes, self.rope_count = {}, 0 end -- a few sizes at a time are in use
    tables = { rope_tables(self.head_dim, frames, rows, columns, first_frame or 0) }
    self.ropes[key], self.rope_count = tables, self.rope_count + 1
  end
  return tables[1], tables[2]
end

-- The mask of a clip of this size and the tables of `rope` in its order, or nil and these.
function Net:masked(frames, rows, columns, groups, cos, sin)
  local spec = self.mask_spec
  if not spec then return nil, cos, sin end
  if groups > 1 and spec.tile[1] ~= 1 then
    error(("%s: frames with timesteps of their own want tiles of one frame, such as @1x8x8; these have %d"):format(NAME,
      spec.tile[1]), 0)
  end
  local key = ("%d,%d,%d"):format(frames, rows, columns)
  local mask = self.masks[key]
  if not mask then
    mask = sparse.mask(spec, frames, rows, columns)
    mask.cos, mask.sin = T.gather(cos, mask.order), T.gather(sin, mask.order)
    self.masks = { [key] = mask } -- one size at a time is in use
  end
  return mask, mask.cos, mask.sin
end

function Net:note(name, tensor)
  if self.trace then self.trace(name, tensor) end
end

-- ---- text -------------------------------------------------------------------------------------------------------

local context_options = { plain = true, image = true, condition = true, first = true }

-- Texts [L, text_dim] as one padded batch and the bias of its keys, nil where every row is kept.
local function padded_texts(net, texts, plain)
  local longest = 0
  for i, text in ipairs(texts) do
    local s = text.shape
    if text.ndim ~= 2 or s[2] ~= net.text_dim then
      error(("%s: text %d is %s, wanted [L, %d]"):format(NAME, i, kit.shape_text(s), net.text_dim), 3)
    end
    if s[1] > net.text_len then
      error(("%s: text %d has %d rows, the model takes at most %d"):format(NAME, i, s[1], net.text_len), 3)
    end
    longest = math.max(longest, s[1])
  end
  local rows = plain and net.text_len or math.min(longest + 1, net.text_len)
  local padded, bias = {}, {}
  for i, text in ipairs(texts) do
    local real = text.shape[1]
    padded[i] = real < rows and text:to("f32"):pad(1, 0, rows - real, 0) or text:to("f32")
    -- text_len - real equal rows stand as rows - real of them.
    local weight = real < rows and math.log((net.text_len - real) / (rows - real)) or 0
    for j = 1, rows do bias[#bias + 1] = j > real and weight or 0 end
  end
  return T.stack(padded, 1), not plain and T.of(bias, { #texts, rows }) or nil
end

-- The image tokens [1, n, dim] of CLIP features.
local function image_tokens(net, features)
  local layers = net.image
  if not layers then error(NAME .. ": these weights have no image branch (img_emb)", 3) end
  local s = features.shape
  if features.ndim == 3 then features = features:reshape(s[1] * s[2], s[3]) end
  local n = features.shape[1]
  if features.ndim ~= 2 or features.shape[2] ~= layers.width or (layers.position and n ~= layers.position.shape[1]) then
    error(("%s: image features are %s, wanted [%s, %d]"):format(NAME, kit.shape_text(s),
      layers.position and layers.position.shape[1] or "tokens", layers.width), 3)
  end
  local x = features:to("f32")
  if layers.position then x = x + layers.position end
  x = x:layer_norm { weight = layers.norm_in[1], bias = layers.norm_in[2], eps = 1e-5, dtype = net.dtype }
  x = layers.second(layers.first(x, { act = "gelu_erf" }), { dtype = "f32" })
  x = x:layer_norm { weight = layers.norm_out[1], bias = layers.norm_out[2], eps = 1e-5 }
  return x:unsqueeze(1)
end

function Net:context(texts, options)
  options = options or {}
  lib.check_options(NAME .. ": context", options, context_options)
  if type(texts) ~= "table" or texts.shape or #texts == 0 then
    error(NAME .. ": context wants a list of texts, each [L, text_dim]", 2)
  end
  local x, key_bias = padded_texts(self, texts, options.plain)
  x = self.text_in(x, { act = "gelu", dtype = self.dtype })
  x = self.text_out(x, { dtype = "f32" })
  self:note("text_context_embedded", x)
  x = x:to(self.dtype)
  local pooled
  if self.pooled then
    local means = {}
    for i, text in ipairs(texts) do means[i] = text:to("f32"):mean(1) end
    pooled = self.text_out(self.text_in(T.stack(means, 1), { act = "gelu", dtype = self.dtype }), { dtype = "f32" })
  end

  local context = setmetatable({ net = self, batch = #texts, rows = x.shape[2], key_bias = key_bias, blocks = {},
    pooled = pooled,
    condition = options.condition and self:beside(options.condition), features = options.image,
    first = options.first and ditkit.given(NAME, options.first, self.latent_channels, self.patch[1]) }, Context)
  local image
  if options.image then
    image = image_tokens(self, options.image)
    self:note("img_emb_out", image)
    image = image:to(self.dtype)
  elseif self.image then
    error(NAME .. ": this model reads image features: context(texts, { image = features })", 2)
  end
  for i, block in ipairs(self.blocks) do
    local k = block.cross_k(x):rms_norm { weight = block.cross_norm_k, eps = self.eps, dtype = self.dtype }
    local kept = { k = self:heads(k), v = self:heads(block.cross_v(x)) }
    if image then
      k = block.image_k(image):rms_norm { weight = block.image_norm_k, eps = self.eps, dtype = self.dtype }
      kept.image_k, kept.image_v = self:heads(k), self:heads(block.image_v(image))
    end
    context.blocks[i] = kept
  end
  return context
end

-- A condition [C, T, H, W] checked, as [1, C, T, H, W].
function Net:beside(condition)
  local wanted = self.in_channels - self.latent_channels
  if condition.ndim ~= 4 or condition.shape[1] ~= wanted or wanted == 0 then
    error(("%s: the condition is %s, %s"):format(NAME, kit.shape_text(condition.shape), wanted == 0
      and "but this model takes none" or ("wanted [%d, T, H, W]"):format(wanted)), 3)
  end
  return condition:to("f32"):unsqueeze(1)
end

-- The samples of several contexts of this net as one batch; shorter ones get masked rows.
function Net:join(contexts)
  if type(contexts) == "table" and #contexts == 1 then return contexts[1] end
  local out, same_image = setmetatable(ditkit.join(contexts, Context, self, NAME), Context), true
  for _, c in ipairs(contexts) do same_image = same_image and rawequal(c.features, contexts[1].features) end
  out.features = same_image and contexts[1].features or nil
  out.condition = side_by_side(contexts, function(c) return c.condition end, NAME, "a condition")
  out.first = side_by_side(contexts, function(c) return c.first end, NAME, "first frames")
  out.pooled = self.pooled and side_by_side(contexts, function(c) return c.pooled end, NAME, "a pooled text") or nil
  for b, kept in ipairs(self.image and out.blocks or {}) do
    if same_image and contexts[1].blocks[b].image_k.shape[1] == 1 then
      kept.image_k, kept.image_v = contexts[1].blocks[b].image_k, contexts[1].blocks[b].image_v
    else
      kept.image_k = side_by_side(contexts, function(c) return c.blocks[b].image_k end, NAME, "an image")
      kept.image_v = side_by_side(contexts, function(c) return c.blocks[b].image_v end, NAME, "an image")
    end
  end
  return out
end

-- ---- the network ------------------------------------------------------------------------------------------------

-- [B, L, dim] as [B, L, heads, head_dim].
function Net:heads(x)
  return x:reshape(x.shape[1], x.shape[2], self.head_count, self.head_dim)
end

-- keep(k, v) -> k, v: what a cache holds with these among them.
function Net:self_attention(block, x, cos, sin, keep, mask)
  local norm = { weight = block.self_norm_q, eps = self.eps, dtype = self.dtype }
  local q = self:heads(block.self_q(x):rms_norm(norm)):rope(cos, sin, { interleaved = true })
  norm.weight = block.self_norm_k
  local k = self:heads(block.self_k(x):rms_norm(norm)):rope(cos, sin, { interleaved = true })
  local v = self:heads(block.self_v(x))
  if keep then k, v = keep(k, v) end
  local y = T.attention(q, k, v, { scale = self.scale, scores = self.scores, values = self.values, mask = mask })
  return block.self_o(y:reshape(x.shape[1], x.shape[2], self.dim), { dtype = "f32" })
end

function Net:cross_attention(block, x, kept, key_bias)
  local q = block.cross_q(x):rms_norm { weight = block.cross_norm_q, eps = self.eps, dtype = self.dtype }
  q = self:heads(q)
  local y = T.attention(q, kept.k, kept.v, { scale = self.scale, key_bias = key_bias })
  if kept.image_k then
    local k, v, s = kept.image_k, kept.image_v, { unpack(kept.image_k.shape) }
    if s[1] < q.shape[1] then
      s[1] = q.shape[1]
      k, v = k:expand(s), v:expand(s)
    end
    y:add_(T.attention(q, k, v, { scale = self.scale }))
  end
  return block.cross_o(y:reshape(x.shape[1], x.shape[2], self.dim), { dtype = "f32" })
end

-- Self-attention and feed-forward are modulated (shift, scale, gate each), cross-attention is not. Changes x. groups is
-- x as [B, G, tokens of a group, dim]: a group has one timestep.
function Net:run_block(index, x, groups, e0, context, cos, sin, keep, mask)
  local block, note = self.blocks[index], index == 1 and self.trace
  local m = modulation(block.modulation, e0)
  local s, grouped = x.shape, groups.shape
  local y = groups:layer_norm { eps = self.eps, shift = m[1], scale = m[2], dtype = self.dtype }:reshape(s)
  y = self:self_attention(block, y, cos, sin, keep, mask)
  if note then note("block0_self_attn_out", y) end
  groups:add_(y:reshape(grouped), 1, m[3])

  y = x:layer_norm { weight = block.norm3_weight, bias = block.norm3_bias, eps = self.eps, dtype = self.dtype }
  y = self:cross_attention(block, y, context.blocks[index], context.key_bias)
  if note then note("block0_cross_attn_out", y) end
  x:add_(y)

  y = groups:layer_norm { eps = self.eps, shift = m[4], scale = m[5], dtype = self.dtype }:reshape(s)
  y = block.ffn_out(block.ffn_in(y, { act = "gelu" }), { dtype = "f32" })
  if note then note("block0_ffn_out", y) end
  groups:add_(y:reshape(grouped), 1, m[6])
  if note then note("block0_out", x) end
end

-- [B, C, T, H, W] to tokens [B, t * h * w, C * patch], the patch's values in the weight's order (channel slowest).
local function patchify(x, p)
  local s = x.shape
  local t, h, w = s[3] / p[1], s[4] / p[2], s[5] / p[3]
  local y = x:reshape(s[1], s[2], t, p[1], h, p[2], w, p[3]):permute(1, 3, 5, 7, 2, 4, 6, 8)
  return y:reshape(s[1], t * h * w, s[2] * p[1] * p[2] * p[3]), t, h, w
end

-- Tokens whose values are [patch frame, row, column, channel], channel fastest, back to [B, C, T, H, W].
local function unpatchify(x, p, t, h, w)
  local batch = x.shape[1]
  local channels = x.shape[3] / (p[1] * p[2] * p[3])
  local y = x:reshape(batch, t, h, w, p[1], p[2], p[3], channels):permute(1, 8, 2, 5, 3, 6, 4, 7)
  return y:reshape(batch, channels, t * p[1], h * p[2], w * p[3])
end

function Net:check_latent(latent, t, context)
  local s, p = latent.shape, self.patch
  if latent.ndim ~= 5 or s[2] ~= self.latent_channels then
    error(("%s: latent is %s, wanted [B, %d, T, H, W]"):format(NAME, kit.shape_text(s), self.latent_channels), 3)
  end
  for i, axis in ipairs { "T", "H", "W" } do
    if s[i + 2] < 1 or s[i + 2] % p[i] ~= 0 then
      error(("%s: latent is %s: %s must be a multiple of %d"):format(NAME, kit.shape_text(s), axis, p[i]), 3)
    end
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
  for i, one in ipairs(t) do
    if type(one) == "table" and #one ~= s[3] / p[1] then
      error(("%s: sample %d has %d timesteps for %d frames"):format(NAME, i, #one, s[3] / p[1]), 3)
    end
  end
  local condition, first = context.condition, context.first
  if not condition and self.in_channels > self.latent_channels then
    error(("%s: this model takes %d more channels beside the latent: context(texts, { condition = ... })"):format(NAME,
      self.in_channels - self.latent_channels), 3)
  end
  for _, beside in ipairs { condition or first, condition and first } do
    local c = beside.shape
    if c[4] ~= s[4] or c[5] ~= s[5] or (beside == condition and c[3] ~= s[3]) or c[3] > s[3] then
      error(("%s: latent is %s, the context's %s %s"):format(NAME, kit.shape_text(s),
        beside == condition and "condition" or "first frames", kit.shape_text(c)), 3)
    end
  end
end

-- options: first_frame, the number of frames before these; caches, keep(k, v) for every block; cache, a step cache
-- (melies.step_cache), with sigma, which tells it the noise level.
function Net:forward(latent, t, context, options)
  options = options or {}
  t = ditkit.times_of_samples(t, type(context) == "table" and context.batch)
  self:check_latent(latent, t, context)
  local batch, first = context.batch, context.first
  local x = ditkit.put_first(latent:to("f32"), first)
  if context.condition then
    x = batched(x, math.max(x.shape[1], context.condition.shape[1]))
    x = T.concat({ x, batched(context.condition, x.shape[1]) }, 2)
  end
  local times, groups = ditkit.times(t, latent.shape[3] / self.patch[1], first and first.shape[3] / self.patch[1] or 0)

  local wave = ditkit.sinusoid(times, self.freq_dim)
  self:note("time_sinusoid", wave)
  local e = self.time_out(self.time_in(wave, { act = "silu" }))
  if context.pooled then
    e = (e:reshape(batch, groups, self.dim) + context.pooled:unsqueeze(2)):reshape(batch * groups, self.dim)
  end
  self:note("time_embedding_e", e)
  local e0 = self.time_projection(e:silu()):reshape(batch * groups, 6, self.dim)
  self:note("time_projection_e0", e0)
  e0 = e0:reshape(batch, groups, 6, self.dim)

  local tokens, frames, rows, columns = patchify(x, self.patch)
  local cos, sin = self:rope(frames, rows, columns, options.first_frame)
  local mask
  mask, cos, sin = self:masked(frames, rows, columns, groups, cos, sin)
  if mask then tokens = sparse.reorder(tokens, mask.order) end
  x = self.patch_in(tokens, { dtype = "f32" })
  if self.positions then
    local where = ditkit.positions(self.dim, frames, rows, columns, self.positions, options.first_frame)
    x = x + (mask and sparse.reorder(where, mask.order) or where)
  end
  self:note("patch_embedding_out", x)
  if x.shape[1] < batch then x = x:expand({ batch, x.shape[2], self.dim }):clone() end
  local view = x:reshape(batch, groups, x.shape[2] / groups, self.dim)
  -- The collector lets garbage grow by half of all that is alive, weights included: large blocks collect at their end.
  local large = batch * x.shape[2] * self.ffn > 2 ^ 24
  local cache = options.cache
  local before, seen = cache and x:clone(), nil
  for i = 1, #self.blocks do
    self:run_block(i, x, view, e0, context, cos, sin, options.caches and options.caches[i], mask)
    if large then collectgarbage() end
    if self.after_block then self.after_block(i) end
    if cache and i == 1 then
      seen = { first = x - before, time = e0, sigma = options.sigma }
      local rest = cache:reuse(seen)
      if rest then
        x:add_(rest)
        seen = nil
        break
      end
      before = x:clone()
    end
  end
  if seen then cache:keep(seen, x - before) end
  self:note("last_block_out", x)

  local m = modulation(self.head_modulation, e:reshape(batch, groups, 1, self.dim))
  x = view:layer_norm { eps = self.eps, shift = m[1], scale = m[2], dtype = self.dtype }:reshape(x.shape)
  x = self.head(x, { dtype = "f32" })
  if mask then x = sparse.reorder(x, mask.inverse) end
  self:note("head_out", x)
  x = unpatchify(x, self.patch, frames, rows, columns)
  if self.preconditioned then
    local skip, gain = ditkit.preconditioning(t)
    x = x * gain + latent * skip
  end
  return ditkit.aim_first(x, latent, first, t)
end

-- The mask of an image condition [4, T, H, W]: 1 in the pixel frames that are given, the first and perhaps the last. It
-- stands before the latent of the clip that has those frames, and grey (0 in [-1, 1]) elsewhere.
local function condition_mask(t, h, w, last)
  local mask = T.zeros { 4, t, h, w }
  mask:slice(2, 1, 1):fill_(1)
  if last then mask:slice(1, 4, 4):slice(2, t, t):fill_(1) end
  return mask
end

function Net:causal(options) return require("melies.models.wan_causal").stream(self, options) end

-- ---- loading ----------------------------------------------------------------------------------------------------

local function load_block(r, index, net, ffn, lazy)
  local dim, compute, once = net.dim, { compute = net.matrix, lazy = lazy }, { compute = net.dtype, lazy = lazy }
  local function at(name) return ("blocks.%d.%s"):format(index, name) end
  local function linear(name, outputs, inputs) return r:linear(at(name), outputs or dim, inputs or dim, compute) end
  local block = {
    modulation = r:take_f32(at "modulation", { 1, 6, dim }),
    self_q = linear "self_attn.q", self_k = linear "self_attn.k",
    self_v = linear "self_attn.v", self_o = linear "self_attn.o",
    self_norm_q = r:take_f32(at "self_attn.norm_q.weight", { dim }),
    self_norm_k = r:take_f32(at "self_attn.norm_k.weight", { dim }),
    -- The text's keys and values are computed once a prompt: 8 bits would win nothing there.
    cross_q = linear "cross_attn.q", cross_k = r:linear(at "cross_attn.k", dim, dim, once),
    cross_v = r:linear(at "cross_attn.v", dim, dim, once), cross_o = linear "cross_attn.o",
    cross_norm_q = r:take_f32(at "cross_attn.norm_q.weight", { dim }),
    cross_norm_k = r:take_f32(at "cross_attn.norm_k.weight", { dim }),
    norm3_weight = r:take_f32(at "norm3.weight", { dim }),
    norm3_bias = r:take_f32(at "norm3.bias", { dim }),
    ffn_in = linear("ffn.0", ffn, dim), ffn_out = linear("ffn.2", dim, ffn),
  }
  if net.image then
    block.image_k, block.image_v = linear "cross_attn.k_img", linear "cross_attn.v_img"
    block.image_norm_k = r:take_f32(at "cross_attn.norm_k_img.weight", { dim })
  end
  return block
end

-- LayerNorm, linear, GELU, linear, LayerNorm; first-and-last-frame models add a table of positions before it.
local function load_image(r, dim, matrix)
  if not r:has("img_emb.proj.1.weight") then return nil end
  local width = r:shape("img_emb.proj.1.weight")[1]
  local function norm(name, size)
    return { r:take_f32(name .. ".weight", { size }), r:take_f32(name .. ".bias", { size }) }
  end
  local position = r:has("img_emb.emb_pos") and r:take_f32("img_emb.emb_pos", { 1, false, width }):squeeze(1) or nil
  return {
    width = width, norm_in = norm("img_emb.proj.0", width), first = r:linear("img_emb.proj.1", width, width, matrix),
    second = r:linear("img_emb.proj.3", dim, width, matrix), norm_out = norm("img_emb.proj.4", dim),
    position = position,
  }
end

local function load(weights, config, options)
  config = config or {}
  local compute, trace, matrix_dtype = kit.options(NAME, options, "attention")
  local attention = sparse.parse(options and options.attention or {})
  local r = kit.reader(NAME, weights, { anchor = "patch_embedding.weight", quantization = options and options.quantization })
  local function agree(names, found, where) return kit.agree(NAME, config, names, found, where) end

  local shape = r:shape("patch_embedding.weight")
  if #shape ~= 5 then
    fail("%s: tensor '%s' is %s, wanted [dim, channels, t, h, w]", NAME, r:key("patch_embedding.weight"),
      kit.shape_text(shape))
  end
  local dim = agree({ "dim" }, shape[1], "patch_embedding.weight")
  local net = setmetatable({
    name = NAME, dtype = compute, matrix = matrix_dtype, trace = trace, dim = dim, patch = { shape[3], shape[4], shape[5] },
    in_channels = agree({ "in_channels", "in_dim" }, shape[2], "patch_embedding.weight"),
    text_dim = agree({ "text_dim" }, r:shape("text_embedding.0.weight")[2], "text_embedding.0.weight"),
    freq_dim = agree({ "freq_dim" }, r:shape("time_embedding.0.weight")[2], "time_embedding.0.weight"),
    text_len = config.text_len or 512, eps = config.eps or 1e-6, preconditioned = config.preconditioned or false,
    positions = config.positions or false, pooled = config.pooled or false,
    blocks = {}, ropes = {}, rope_count = 0, masks = {}, scores = attention.scores,
    values = attention.values, mask_spec = attention.mask,
  }, Net)
  if type(config.patch) == "table" then
    for i = 1, 3 do
      if config.patch[i] ~= net.patch[i] then
        fail("%s: the configuration says patch %s, patch_embedding.weight gives %s", NAME, kit.shape_text(config.patch),
          kit.shape_text(net.patch))
      end
    end
  end
  net.head_count = config.heads or config.num_heads or dim / 128
  if net.head_count < 1 or dim % net.head_count ~= 0 or net.head_count % 1 ~= 0 or (dim / net.head_count) % 2 ~= 0 then
    fail("%s: width %d does not divide into %s heads of an even size; the configuration must give heads", NAME, dim,
      tostring(net.head_count))
  end
  net.head_dim = dim / net.head_count
  net.scale = 1 / math.sqrt(net.head_dim)

  local patch_size = net.patch[1] * net.patch[2] * net.patch[3]
  local patch_weight = r:take("patch_embedding.weight", shape):reshape(dim, net.in_channels * patch_size)
  net.patch_in = nn.linear(patch_weight, r:take("patch_embedding.bias", { dim }), { compute = compute })
  local matrix, exact = { compute = compute }, { compute = "f32" }
  net.text_in = r:linear("text_embedding.0", dim, net.text_dim, matrix)
  net.text_out = r:linear("text_embedding.2", dim, dim, matrix)
  net.image = load_image(r, dim, matrix)
  net.time_in = r:linear("time_embedding.0", dim, net.freq_dim, exact)
  net.time_out = r:linear("time_embedding.2", dim, dim, exact)
  net.time_projection = r:linear("time_projection.1", 6 * dim, dim, exact)

  local layers = agree({ "layers", "num_layers" }, r:count("blocks.%d.modulation"), "the file")
  if layers == 0 then r:shape("blocks.0.modulation") end
  local ffn = agree({ "ffn", "ffn_dim" }, r:shape("blocks.0.ffn.0.weight")[1], "blocks.0.ffn.0.weight")
  net.ffn = ffn
  local lazy = options and options.lazy
  for i = 1, layers do
    net.blocks[i] = load_block(r, i - 1, net, ffn, lazy == true or (type(lazy) == "number" and i > lazy) or nil)
  end

  local head = r:shape("head.head.weight")
  net.out_channels = agree({ "out_channels", "out_dim" }, head[1] / patch_size, "head.head.weight")
  if net.out_channels % 1 ~= 0 then
    fail("%s: tensor '%s' is %s: its rows must be a multiple of the patch's %d values", NAME, r:key("head.head.weight"),
      kit.shape_text(head), patch_size)
  end
  net.latent_channels = net.out_channels
  if net.latent_channels > net.in_channels then
    fail("%s: patch_embedding.weight takes %d channels, head.head.weight gives %d", NAME, net.in_channels,
      net.out_channels)
  end
  net.head = r:linear("head.head", head[1], dim, matrix)
  net.head_modulation = r:take_f32("head.modulation", { 1, 2, dim })
  r:finish()
  return net
end

return {
  kind = "model", name = NAME, help = "Wan 2.1 and 2.2 diffusion transformer",
  params = {}, load = load,
  rope_split = rope_split, rope_tables = rope_tables, condition_mask = condition_mask,
}
