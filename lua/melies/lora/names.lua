-- Keys of LoRA files: which part of a change a key is, and which tensor of the model it speaks of.
--
-- Names of modules come as the model's own (blocks.0.self_attn.q), as diffusers' (blocks.0.attn1.to_q), each with "."
-- or, from kohya's tools, with "_" between the words, and with a prefix. The tensors of a model are entered under all
-- of these spellings. Names of diffusers: huggingface/diffusers, scripts/convert_wan_to_diffusers.py and
-- scripts/convert_ltx_to_diffusers.py (facts only).
local M = {}

-- ---- what a key is -----------------------------------------------------------------------------------

-- Endings as Lua patterns, and the slot that each fills. An adapter of PEFT may have a name ("default").
local endings = {
  { "%.lora_down%.weight", "down" }, { "%.lora_up%.weight", "up" }, { "%.lora_mid%.weight", "mid" },
  { "%.lora_A%.weight", "down" }, { "%.lora_B%.weight", "up" },
  { "%.lora_A%.[%w_]+%.weight", "down" }, { "%.lora_B%.[%w_]+%.weight", "up" },
  { "%.lora_B%.bias", "up_bias" }, { "%.lora_B%.[%w_]+%.bias", "up_bias" },
  { "%.lora%.down%.weight", "down" }, { "%.lora%.up%.weight", "up" },
  { "_lora%.down%.weight", "down" }, { "_lora%.up%.weight", "up" },
  { "%.lora_linear_layer%.down%.weight", "down" }, { "%.lora_linear_layer%.up%.weight", "up" },
  { "%.lora_magnitude_vector%.[%w_]+%.weight", "dora" }, { "%.lora_magnitude_vector%.weight", "dora" },
  { "%.lora_magnitude_vector", "dora" }, { "%.dora_scale", "dora" }, { "%.alpha", "alpha" },
  { "%.hada_w1_a", "w1_a" }, { "%.hada_w1_b", "w1_b" }, { "%.hada_w2_a", "w2_a" }, { "%.hada_w2_b", "w2_b" },
  { "%.hada_t1", "t1" }, { "%.hada_t2", "t2" },
  { "%.lokr_w1", "k1" }, { "%.lokr_w2", "k2" }, { "%.lokr_w1_a", "k1_a" }, { "%.lokr_w1_b", "k1_b" },
  { "%.lokr_w2_a", "k2_a" }, { "%.lokr_w2_b", "k2_b" }, { "%.lokr_t2", "kt2" },
  { "%.diff", "diff" }, { "%.diff_b", "diff_b" },
}

local prefixes = { "^base_model%.model%.", "^model%.diffusion_model%.", "^diffusion_model%.", "^transformer%.",
  "^lora_unet_",
  "^lora_transformer_", "^unet%.", "^dit%.", "^model%." }

local function bare(name)
  local again = true
  while again do
    again = false
    for _, prefix in ipairs(prefixes) do
      local rest, n = name:gsub(prefix, "")
      if n > 0 and rest ~= "" then name, again = rest, true end
    end
  end
  return name
end

-- The module that a key speaks of and its slot; nil for a key of no kind known here.
function M.split(key)
  for _, ending in ipairs(endings) do
    local at = key:find(ending[1] .. "$")
    if at and at > 1 then return key:sub(1, at - 1), ending[2] end
  end
end

-- ---- spellings ---------------------------------------------------------------------------------------

-- { model's own, diffusers' } of what follows "blocks.N." and of the rest.
local wan_block, wan_top = {
  { "ffn.0", "ffn.net.0.proj" }, { "ffn.2", "ffn.net.2" }, { "norm3", "norm2" }, { "modulation", "scale_shift_table" },
  { "cross_attn.k_img", "attn2.add_k_proj" }, { "cross_attn.v_img", "attn2.add_v_proj" },
  { "cross_attn.norm_k_img", "attn2.norm_added_k" },
}, {
  { "time_embedding.0", "condition_embedder.time_embedder.linear_1" },
  { "time_embedding.2", "condition_embedder.time_embedder.linear_2" },
  { "text_embedding.0", "condition_embedder.text_embedder.linear_1" },
  { "text_embedding.2", "condition_embedder.text_embedder.linear_2" },
  { "time_projection.1", "condition_embedder.time_proj" },
  { "img_emb.proj.0", "condition_embedder.image_embedder.norm1" },
  { "img_emb.proj.1", "condition_embedder.image_embedder.ff.net.0.proj" },
  { "img_emb.proj.3", "condition_embedder.image_embedder.ff.net.2" },
  { "img_emb.proj.4", "condition_embedder.image_embedder.norm2" },
  { "head.head", "proj_out" }, { "head.modulation", "scale_shift_table" },
}
for own, theirs in pairs { self_attn = "attn1", cross_attn = "attn2" } do
  for _, pair in ipairs { { "q", "to_q" }, { "k", "to_k" }, { "v", "to_v" }, { "o", "to_out.0" }, { "norm_q",
    "norm_q" },
    { "norm_k", "norm_k" } } do
    wan_block[#wan_block + 1] = { own .. "." .. pair[1], theirs .. "." .. pair[2] }
  end
end
local ltx_block, ltx_top = {}, {
  { "patchify_proj", "proj_in" }, { "adaln_single.linear", "time_embed.linear" },
  { "adaln_single.emb.timestep_embedder.linear_1", "time_embed.emb.timestep_embedder.linear_1" },
  { "adaln_single.emb.timestep_embedder.linear_2", "time_embed.emb.timestep_embedder.linear_2" },
}
for _, a in ipairs { "attn1", "attn2" } do
  for _, n in ipairs { "q", "k" } do ltx_block[#ltx_block + 1] = { a .. "." .. n .. "_norm", a .. ".norm_" .. n } end
end

local function both_ways(pairs_)
  local out = {}
  for _, pair in ipairs(pairs_) do
    out[pair[1]] = out[pair[1]] or pair[2]
    out[pair[2]] = out[pair[2]] or pair[1]
  end
  return out
end
local families = {
  { "^(blocks%.%d+%.)(.+)$", both_ways(wan_block), both_ways(wan_top) },
  { "^(transformer_blocks%.%d+%.)(.+)$", both_ways(ltx_block), both_ways(ltx_top) },
}

-- The other spelling of a module, or nil.
local function other(family, module)
  local head, rest = module:match(family[1])
  if head then return family[2][rest] and head .. family[2][rest] end
  return family[3][module]
end

-- A module of a model by diffusers' name, for example blocks.0.attn1.to_q; its own where that is the same.
function M.diffusers(module)
  local family = families[module:find "^transformer_blocks%." and 2 or 1]
  return other(family, module) or module
end

-- ---- the model's tensors -----------------------------------------------------------------------------

local Index = {}
Index.__index = Index

-- Spellings of all tensors of a model: index:lookup(target) -> { { name =, part = "weight" | "bias" }, ... } and the
-- target's keys that fit nothing.
function M.index(weights)
  local self, all, ltx = setmetatable({ modules = {}, names = {} }, Index), weights:names(), false
  for _, name in ipairs(all) do
    ltx = ltx or bare(name):find("^transformer_blocks%.") ~= nil
    self.names[name] = true
  end
  local family = families[ltx and 2 or 1]
  local function enter(spelling, module)
    if not spelling then return end
    for _, s in ipairs { spelling, (spelling:gsub("%.", "_")) } do self.modules[s] = self.modules[s] or module end
  end
  for round = 1, 2 do -- the model's own names stand before other spellings
    for _, name in ipairs(all) do
      local module = name:gsub("%.weight$", ""):gsub("%.bias$", "")
      local short = bare(module)
      enter(round == 1 and short or other(family, short), module)
    end
  end
  return self
end

function Index:lookup(target)
  local module = self.modules[bare(target.module)]
  local weight = module and (self.names[module .. ".weight"] and module .. ".weight" or self.names[module] and module)
  local bias = module and self.names[module .. ".bias"] and module .. ".bias"
  local found, free, of_weight = {}, {}, false
  for slot, key in pairs(target.keys) do
    local for_bias = slot == "diff_b" or slot == "up_bias"
    if not (for_bias and bias or not for_bias and weight) then free[#free + 1] = key end
    if for_bias and bias then found[#found + 1] = { name = bias, part = "bias" } end
    of_weight = of_weight or not for_bias and slot ~= "alpha" and slot ~= "dora"
  end
  if of_weight and weight then found[#found + 1] = { name = weight, part = "weight" } end
  table.sort(free)
  return found, free
end

return M
