-- CLIP's towers. Text, canonical: Hugging Face's CLIPTextModelWithProjection. Vision, canonical: the image encoder of
-- Wan's I2V (Wan-Video/Wan2.1, wan/modules/clip.py), whose file also has the text half ("textual."), which is not used.
-- open_clip names: mlfoundations/open_clip, src/open_clip/transformer.py, with q, k and v in one matrix. Facts only.
local keys = require "melies.checkpoint.keys"

-- ---- text ------------------------------------------------------------------------------------------------------

local open_text_rules = keys.rules {
  { "^text_model%.embeddings%.token_embedding%.weight$", "token_embedding.weight" },
  { "^text_model%.embeddings%.position_embedding%.weight$", "positional_embedding" },
  { "^text_model%.final_layer_norm%.", "ln_final." },
  { "^text_model%.encoder%.layers%.", "transformer.resblocks." },
  { "%.layer_norm(%d)%.", ".ln_%1." }, { "%.self_attn%.out_proj%.", ".attn.out_proj." },
  { "%.mlp%.fc1%.", ".mlp.c_fc." }, { "%.mlp%.fc2%.", ".mlp.c_proj." },
}

local function open_text(name)
  if name == "text_projection.weight" then return { op = "transpose", "text_projection" } end
  local layer, which, kind = name:match "^text_model%.encoder%.layers%.(%d+)%.self_attn%.([qkv])_proj%.(%l+)$"
  if layer then
    local part = ({ q = 1, k = 2, v = 3 })[which]
    return { op = "rows", ("transformer.resblocks.%s.attn.in_proj_%s"):format(layer, kind), part, 3 }
  end
  return open_text_rules(name)
end

local function text_tensors(c)
  local l = keys.list()
  l:add("text_model.embeddings.token_embedding.weight", { c.vocab, c.width }, "embedding")
  l:add("text_model.embeddings.position_embedding.weight", { c.context, c.width }, "position")
  for i = 0, c.layers - 1 do
    l:within(("text_model.encoder.layers.%d."):format(i), i + 1)
    l:layer_norm("layer_norm1", c.width):layer_norm("layer_norm2", c.width)
    for _, name in ipairs { "q_proj", "k_proj", "v_proj", "out_proj" } do
      l:linear("self_attn." .. name, c.width, c.width)
    end
    l:linear("mlp.fc1", c.mlp, c.width):linear("mlp.fc2", c.width, c.mlp)
  end
  l:within():layer_norm("text_model.final_layer_norm", c.width)
  l:add("text_projection.weight", { c.projection or c.width, c.width }, "fixed", { optional = true })
  return l
end

local function text_config(at)
  local tokens, positions = at "text_model.embeddings.token_embedding.weight",
    at "text_model.embeddings.position_embedding.weight"
  if not tokens then return nil, "text_model.embeddings.token_embedding.weight" end
  if not positions then return nil, "text_model.embeddings.position_embedding.weight" end
  local fc1 = at "text_model.encoder.layers.0.mlp.fc1.weight"
  if not fc1 then return nil, "text_model.encoder.layers.0.mlp.fc1.weight" end
  local projection = at "text_projection.weight"
  return { vocab = tokens[1], width = tokens[2], context = positions[1], layers = at.count(), mlp = fc1[1],
    projection = projection and projection[1] }
end

local text = {
  name = "clip_text", part = "text_encoder_clip", model = "clip_text", title = "CLIP text encoder",
  anchors = { "text_model.encoder.layers.0.self_attn.q_proj.weight", "text_model.encoder.layers.0.mlp.fc1.weight" },
  layouts = {
    { name = "huggingface", rename = keys.same, block = "^text_model%.encoder%.layers%.(%d+)%.",
      ignore = { "position_ids$", "^logit_scale$" } },
    { name = "open_clip", rename = open_text, block = "^transformer%.resblocks%.(%d+)%.",
      ignore = { "^logit_scale$", "^attn_mask$", "^visual%." }, not_within = "visual.",
      anchors = { "transformer.resblocks.0.attn.in_proj_weight" } },
  },
  config = text_config, tensors = text_tensors,
  variant = function(c)
    local known = { [768] = "clip-l", [1024] = "clip-h", [1280] = "clip-g" }
    return known[c.width] or "clip-text", ("width %d, %d blocks"):format(c.width, c.layers)
  end,
}

-- ---- vision ----------------------------------------------------------------------------------------------------

local hf_vision_rules = keys.rules {
  { "^visual%.cls_embedding$", "vision_model.embeddings.class_embedding" },
  { "^visual%.pos_embedding$", "vision_model.embeddings.position_embedding.weight" },
  { "^visual%.patch_embedding%.", "vision_model.embeddings.patch_embedding." },
  { "^visual%.pre_norm%.", "vision_model.pre_layrnorm." }, { "^visual%.post_norm%.", "vision_model.post_layernorm." },
  { "^visual%.transformer%.", "vision_model.encoder.layers." },
  { "%.norm(%d)%.", ".layer_norm%1." }, { "%.attn%.proj%.", ".self_attn.out_proj." },
  { "%.mlp%.0%.", ".mlp.fc1." }, { "%.mlp%.2%.", ".mlp.fc2." },
}

local function hf_vision(name)
  if name == "visual.head" then return { op = "transpose", "visual_projection.weight" } end
  local layer, kind = name:match "^visual%.transformer%.(%d+)%.attn%.to_qkv%.(%l+)$"
  if layer then
    local out = { op = "concat" }
    for i, which in ipairs { "q", "k", "v" } do
      out[i] = ("vision_model.encoder.layers.%s.self_attn.%s_proj.%s"):format(layer, which, kind)
    end
    return out
  end
  return hf_vision_rules(name)
end

local open_vision = keys.rules {
  { "^visual%.cls_embedding$", "visual.class_embedding" }, { "^visual%.pos_embedding$", "visual.positional_embedding" },
  { "^visual%.patch_embedding%.", "visual.conv1." }, { "^visual%.pre_norm%.", "visual.ln_pre." },
  { "^visual%.post_norm%.", "visual.ln_post." }, { "^visual%.head$", "visual.proj" },
  { "^visual%.transformer%.(%d+)", "visual.transformer.resblocks.%1" },
  { "%.norm(%d)%.", ".ln_%1." }, { "%.attn%.to_qkv%.", ".attn.in_proj_" }, { "%.attn%.proj%.", ".attn.out_proj." },
  { "%.mlp%.0%.", ".mlp.c_fc." }, { "%.mlp%.2%.", ".mlp.c_proj." },
}

local function vision_tensors(c)
  local l, w = keys.list(), c.width
  l:add("visual.cls_embedding", { 1, 1, w }, "position"):add("visual.pos_embedding", { 1, c.tokens, w }, "position")
  l:add("visual.patch_embedding.weight", { w, 3, c.patch, c.patch }, "conv")
  l:layer_norm("visual.pre_norm", w)
  for i = 0, c.layers - 1 do
    l:within(("visual.transformer.%d."):format(i), i + 1)
    l:layer_norm("norm1", w):linear("attn.to_qkv", 3 * w, w):linear("attn.proj", w, w)
    l:layer_norm("norm2", w):linear("mlp.0", c.mlp, w):linear("mlp.2", w, c.mlp)
  end
  l:within():layer_norm("visual.post_norm", w)
  l:add("visual.head", { w, c.out or w }, "fixed", { optional = true })
  return l
end

local function vision_config(at)
  local patch, position = at "visual.patch_embedding.weight", at "visual.pos_embedding"
  if not patch then return nil, "visual.patch_embedding.weight" end
  if not position then return nil, "visual.pos_embedding" end
  local fc1 = at "visual.transformer.0.mlp.0.weight"
  if not fc1 then return nil, "visual.transformer.0.mlp.0.weight" end
  local tokens, out = position[#position - 1], at "visual.head"
  return { width = patch[1], patch = patch[4], tokens = tokens, image = math.sqrt(tokens - 1) * patch[4],
    layers = at.count(), mlp = fc1[1], out = out and out[2] }
end

local vision = {
  name = "clip_vision", part = "image_encoder", model = "clip_vision", title = "CLIP image encoder",
  anchors = { "visual.transformer.0.attn.to_qkv.weight", "visual.transformer.0.mlp.0.weight" },
  layouts = {
    { name = "wan", rename = keys.same, block = "^visual%.transformer%.(%d+)%.", ignore = { "^textual%.", "^log_scale$" } },
    { name = "huggingface", rename = hf_vision, block = "^vision_model%.encoder%.layers%.(%d+)%.",
      ignore = { "position_ids$", "^logit_scale$" },
      anchors = { "vision_model.encoder.layers.0.self_attn.q_proj.weight" } },
    { name = "open_clip", rename = open_vision, block = "^visual%.transformer%.resblocks%.(%d+)%.",
      ignore = { "^logit_scale$", "^transformer%.", "^token_embedding%.", "^positional_embedding$", "^ln_final%.",
        "^text_projection$", "^attn_mask$" } },
  },
  config = vision_config, tensors = vision_tensors,
  variant = function(c)
    if c.width == 1280 and c.layers == 32 then return "clip-vit-h-14" end
    return "clip-vision", ("width %d, %d blocks"):format(c.width, c.layers)
  end,
}

return { text, vision }
