-- T5 v1.1 and UMT5 encoders. Canonical: Wan-Video/Wan2.1, wan/modules/t5.py. Hugging Face names: T5EncoderModel and
-- UMT5EncoderModel (also ComfyUI's t5xxl and umt5_xxl files, which bring the tokenizer as a tensor "spiece_model").
-- GGUF of the encoder alone: llama.cpp's names as city96/ComfyUI-GGUF, loader.py, maps them. Facts only.
local keys = require "melies.checkpoint.keys"

local hf = keys.rules {
  { "^token_embedding%.weight$", "shared.weight" },
  { "^norm%.weight$", "encoder.final_layer_norm.weight" },
  { "^pos_embedding%.embedding%.", "blocks.0.pos_embedding.embedding." },
  { "^blocks%.", "encoder.block." },
  { "%.pos_embedding%.embedding%.", ".layer.0.SelfAttention.relative_attention_bias." },
  { "%.attn%.", ".layer.0.SelfAttention." },
  { "%.norm1%.", ".layer.0.layer_norm." },
  { "%.norm2%.", ".layer.1.layer_norm." },
  { "%.ffn%.gate%.0%.", ".layer.1.DenseReluDense.wi_0." },
  { "%.ffn%.fc1%.", ".layer.1.DenseReluDense.wi_1." },
  { "%.ffn%.fc2%.", ".layer.1.DenseReluDense.wo." },
}

local llama = keys.rules {
  { "^token_embedding%.weight$", "token_embd.weight" },
  { "^norm%.weight$", "enc.output_norm.weight" },
  { "^pos_embedding%.embedding%.", "blocks.0.pos_embedding.embedding." },
  { "^blocks%.", "enc.blk." },
  { "%.pos_embedding%.embedding%.", ".attn_rel_b." },
  { "%.attn%.", ".attn_" },
  { "%.norm1%.", ".attn_norm." },
  { "%.norm2%.", ".ffn_norm." },
  { "%.ffn%.gate%.0%.", ".ffn_gate." },
  { "%.ffn%.fc1%.", ".ffn_up." },
  { "%.ffn%.fc2%.", ".ffn_down." },
}

local function tensors(c)
  local l = keys.list()
  l:add("token_embedding.weight", { c.vocab, c.dim }, "embedding")
  if c.shared_pos then l:add("pos_embedding.embedding.weight", { c.buckets, c.heads }, "position") end
  local plain = { bias = false }
  for i = 0, c.layers - 1 do
    l:within(("blocks.%d."):format(i), i + 1)
    l:add("norm1.weight", { c.dim }, "norm")
    -- scores are not scaled by 1/sqrt(head width), the queries' weights are
    l:linear("attn.q", c.dim_attn, c.dim, { bias = false, more = { scale = math.sqrt(c.heads / c.dim_attn) } })
    l:linear("attn.k", c.dim_attn, c.dim, plain):linear("attn.v", c.dim_attn, c.dim, plain)
    l:linear("attn.o", c.dim, c.dim_attn, plain)
    l:add("norm2.weight", { c.dim }, "norm")
    l:linear("ffn.gate.0", c.dim_ffn, c.dim, plain):linear("ffn.fc1", c.dim_ffn, c.dim, plain)
    l:linear("ffn.fc2", c.dim, c.dim_ffn, plain)
    if not c.shared_pos then l:add("pos_embedding.embedding.weight", { c.buckets, c.heads }, "position") end
  end
  l:within():add("norm.weight", { c.dim }, "norm")
  return l
end

local function config(at)
  local embedding = at "token_embedding.weight"
  if not embedding then return nil, "token_embedding.weight" end
  local q = at "blocks.0.attn.q.weight" or at "blocks.1.attn.q.weight"
  if not q then return nil, "blocks.0.attn.q.weight" end
  local ffn = at "blocks.0.ffn.fc1.weight" or at "blocks.1.ffn.fc1.weight"
  if not ffn then return nil, "blocks.0.ffn.fc1.weight" end
  local c = { vocab = embedding[1], dim = embedding[2], dim_attn = q[1], dim_ffn = ffn[1], layers = at.count() }
  -- Hugging Face keeps the one table of T5 in its first block.
  local first = at "blocks.0.pos_embedding.embedding.weight"
  local later = at "blocks.1.pos_embedding.embedding.weight" or at "blocks.2.pos_embedding.embedding.weight"
  c.shared_pos = at "pos_embedding.embedding.weight" ~= nil and not later and (c.layers > 1 or not first)
  local table_shape = c.shared_pos and at "pos_embedding.embedding.weight" or first or later
  if not table_shape then return nil, "blocks.0.pos_embedding.embedding.weight" end
  c.buckets, c.heads = table_shape[1], table_shape[2]
  return c
end

local function variant(c)
  if c.vocab == 256384 and c.dim == 4096 and c.layers == 24 then return "umt5-xxl" end
  if c.vocab == 32128 and c.dim == 4096 and c.layers == 24 then return "t5-v1.1-xxl" end
  return c.shared_pos and "t5-v1.1" or "umt5", ("width %d, %d blocks, vocabulary %d"):format(c.dim, c.layers, c.vocab)
end

local decoder = { "^decoder%.", "^lm_head%.", "^spiece_model$", "^logit_scale$" }

return {
  name = "t5", part = "text_encoder", model = "t5", title = "T5 text encoder",
  anchors = { "blocks.0.attn.q.weight", "blocks.1.attn.q.weight", "blocks.0.ffn.fc1.weight" },
  layouts = {
    { name = "wan", rename = keys.same, block = "^blocks%.(%d+)%.", ignore = decoder },
    { name = "huggingface", rename = hf, block = "^encoder%.block%.(%d+)%.", ignore = decoder,
      alias = { ["shared.weight"] = "encoder.embed_tokens.weight" } },
    { name = "llama.cpp", rename = llama, block = "^enc%.blk%.(%d+)%.", ignore = { "^dec%.", "^output%." } },
  },
  config = config, tensors = tensors, variant = variant,
}
