-- Wan's diffusion transformer: Wan 2.1 (T2V, I2V, FLF2V) and 2.2 (TI2V-5B, the experts of A14B).
-- Canonical: Wan-Video/Wan2.1, wan/modules/model.py. diffusers: huggingface/diffusers,
-- scripts/convert_wan_to_diffusers.py (norm2 and norm3 change places there). ComfyUI's files have the original names
-- under "model.diffusion_model." or bare (comfy/model_detection.py); Self-Forcing's lie under "generator" or
-- "generator_ema" (guandeh17/Self-Forcing, wan_inference). Facts only.
local keys = require "melies.checkpoint.keys"

local diffusers = keys.rules {
  { "^time_embedding%.0%.", "condition_embedder.time_embedder.linear_1." },
  { "^time_embedding%.2%.", "condition_embedder.time_embedder.linear_2." },
  { "^text_embedding%.0%.", "condition_embedder.text_embedder.linear_1." },
  { "^text_embedding%.2%.", "condition_embedder.text_embedder.linear_2." },
  { "^time_projection%.1%.", "condition_embedder.time_proj." },
  { "^img_emb%.proj%.0%.", "condition_embedder.image_embedder.norm1." },
  { "^img_emb%.proj%.1%.", "condition_embedder.image_embedder.ff.net.0.proj." },
  { "^img_emb%.proj%.3%.", "condition_embedder.image_embedder.ff.net.2." },
  { "^img_emb%.proj%.4%.", "condition_embedder.image_embedder.norm2." },
  { "^img_emb%.emb_pos$", "condition_embedder.image_embedder.pos_embed" },
  { "^head%.modulation$", "scale_shift_table" },
  { "^head%.head%.", "proj_out." },
  { "%.modulation$", ".scale_shift_table" },
  { "%.ffn%.0%.", ".ffn.net.0.proj." },
  { "%.ffn%.2%.", ".ffn.net.2." },
  { "%.norm3%.", ".norm2." },
  { "%.self_attn%.", ".attn1." },
  { "%.cross_attn%.", ".attn2." },
  { "(%.attn%d)%.([qkv])%.", "%1.to_%2." },
  { "(%.attn%d)%.o%.", "%1.to_out.0." },
  { "%.attn2%.([kv])_img%.", ".attn2.add_%1_proj." },
  { "%.attn2%.norm_k_img%.", ".attn2.norm_added_k." },
}

local function tensors(c)
  local l, dim = keys.list(), c.dim
  local p = c.patch
  l:add("patch_embedding.weight", { dim, c.in_channels, p[1], p[2], p[3] }, "conv")
  l:add("patch_embedding.bias", { dim }, "bias")
  local fixed = { kind = "fixed" }
  l:linear("text_embedding.0", dim, c.text_dim, fixed):linear("text_embedding.2", dim, dim, fixed)
  l:linear("time_embedding.0", dim, c.freq_dim, fixed):linear("time_embedding.2", dim, dim, fixed)
  l:linear("time_projection.1", 6 * dim, dim, fixed)
  if c.image_dim then
    if c.image_tokens then l:add("img_emb.emb_pos", { 1, c.image_tokens, c.image_dim }, "position") end
    l:layer_norm("img_emb.proj.0", c.image_dim)
    l:linear("img_emb.proj.1", c.image_dim, c.image_dim, fixed):linear("img_emb.proj.3", dim, c.image_dim, fixed)
    l:layer_norm("img_emb.proj.4", dim)
  end
  for i = 0, c.layers - 1 do
    l:within(("blocks.%d."):format(i), i + 1)
    l:add("modulation", { 1, 6, dim }, "modulation")
    for _, a in ipairs { "self_attn", "cross_attn" } do
      for _, name in ipairs { "q", "k", "v", "o" } do l:linear(a .. "." .. name, dim, dim) end
      l:add(a .. ".norm_q.weight", { dim }, "norm"):add(a .. ".norm_k.weight", { dim }, "norm")
    end
    if c.image_dim then
      l:linear("cross_attn.k_img", dim, dim):linear("cross_attn.v_img", dim, dim)
      l:add("cross_attn.norm_k_img.weight", { dim }, "norm")
    end
    l:layer_norm("norm3", dim)
    l:linear("ffn.0", c.ffn, dim):linear("ffn.2", dim, c.ffn)
  end
  l:within()
  l:linear("head.head", c.out_channels * p[1] * p[2] * p[3], dim, fixed)
  l:add("head.modulation", { 1, 2, dim }, "modulation")
  return l
end

local function config(at)
  local patch = at "patch_embedding.weight"
  if not patch then return nil, "patch_embedding.weight" end
  -- GGUF has four dimensions at most: [dim * channels, t, h, w] there (stable-diffusion.cpp), or all in one row.
  local bias, text = at "patch_embedding.bias" or at "text_embedding.2.bias", at "text_embedding.0.weight"
  local time, head = at "time_embedding.0.weight", at "head.head.weight"
  local ffn = at "blocks.0.ffn.0.weight" or at "blocks.1.ffn.0.weight"
  if not text then return nil, "text_embedding.0.weight" end
  if not head then return nil, "head.head.weight" end
  if not ffn then return nil, "blocks.0.ffn.0.weight" end
  local dim = bias and bias[1] or head[2]
  local c = { dim = dim, patch = { 1, 2, 2 }, layers = at.count(), ffn = ffn[1], text_dim = text[2],
    freq_dim = time and time[2] or 256 }
  if #patch == 5 then c.patch = { patch[3], patch[4], patch[5] } end
  local size = c.patch[1] * c.patch[2] * c.patch[3]
  c.in_channels = #patch == 5 and patch[2] or keys.numel(patch) / dim / size
  c.out_channels = head[1] / size
  -- The original's heads are 128 wide; smaller models state theirs in a configuration.
  if dim % 128 == 0 then c.heads = dim / 128 end
  local image, position = at "img_emb.proj.1.weight" or at "img_emb.proj.0.weight", at "img_emb.emb_pos"
  if image then c.image_dim = image[#image] end
  if position then c.image_tokens = position[#position - 1] end
  return c
end

local function variant(c, part)
  local causal = part and part.prefix:find "generator" and " (Self-Forcing, causal)" or ""
  local task = "t2v"
  if c.image_tokens then task = "flf2v" elseif c.image_dim then task = "i2v" end
  local function named(name, text) return name .. causal, text end
  if c.dim == 1536 and c.layers == 30 then return named(("wan2.1-%s-1.3b"):format(task)) end
  if c.dim == 5120 and c.layers == 40 then
    if c.image_dim then return named(("wan2.1-%s-14b"):format(task)) end
    if c.in_channels == 36 then
      return named("wan2.2-i2v-a14b", "one of its two experts; alone it serves only its half of the steps")
    end
    if c.in_channels == 16 then
      return named("wan2.1-t2v-14b", "or one of the two experts of wan2.2-t2v-a14b, which have the same shapes")
    end
  end
  if c.dim == 3072 and c.layers == 30 and c.out_channels == 48 then return named "wan2.2-ti2v-5b" end
  if c.out_channels == 48 then task = "ti2v" elseif c.in_channels > c.out_channels and task == "t2v" then task = "i2v" end
  return named(("wan-%s"):format(task), ("width %d, %d blocks, %d channels in, %d out"):format(c.dim, c.layers,
    c.in_channels, c.out_channels))
end

return {
  name = "wan_dit", part = "dit", model = "wan_dit", title = "Wan diffusion transformer",
  anchors = { "blocks.0.self_attn.q.weight", "blocks.1.self_attn.q.weight", "blocks.0.cross_attn.norm_q.weight" },
  layouts = {
    { name = "wan", rename = keys.same, block = "^blocks%.(%d+)%.",
      ignore = { "^freqs$" } },
    { name = "diffusers", rename = diffusers, block = "^blocks%.(%d+)%.",
      ignore = { "^rope%.", "^condition_embedder%.image_embedder%.pos_embed_" } },
  },
  config = config, tensors = tensors, variant = variant,
  model_of = function(_, part) return part.prefix:find "generator" and "wan_causal" or "wan_dit" end,
}
