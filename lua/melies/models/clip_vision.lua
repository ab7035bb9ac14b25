-- melies-api: 1
-- The picture tower of CLIP as Wan 2.1 uses it for image to video (Wan-Video/Wan2.1, wan/modules/clip.py: facts only):
-- the tokens before the last block.
--
--   net:encode(picture) -> [tokens, width]               picture [H, W, 3], u8 or float in [0, 1]
--   net:encode(pictures) -> [n, tokens, width]           pictures [n, H, W, 3]
--
-- A picture is resized to the tower's square, whatever its shape: bicubic without antialiasing, not clamped. The first
-- token is the class token. Sizes come from the tensors; config: heads (or num_heads; by default width / 80), blocks
-- left out at the end as `skip_last` (1), activation ("gelu" exact or "quick_gelu"), mean and std of the three colours,
-- eps (1e-5). The tensors of what is left out (last block, post_norm, head) may be there and are not read.
local melies = require "melies"
local kit = require "melies.modelkit"
local T = melies.tensor

local NAME = "clip_vision"
local Net = {}
Net.__index = Net

local MEAN = { 0.48145466, 0.4578275, 0.40821073 }
local STD = { 0.26862954, 0.26130258, 0.27577711 }

function Net:note(name, tensor)
  if self.trace then self.trace(name, tensor) end
end

function Net:attention(block, x)
  local s = x.shape
  local qkv = block.qkv(x):reshape(s[1], s[2], 3, self.head_count, self.head_dim)
  local function part(i) return qkv:select(3, i) end
  local y = T.attention(part(1), part(2), part(3))
  return block.proj(y:reshape(s[1], s[2], self.width), { dtype = "f32" })
end

-- [n, H, W, 3] in [0, 1] to tokens of patches [n, tokens, 3 * patch * patch], channel slowest.
function Net:patches(x)
  local size, p = self.image_size, self.patch
  x = (x * 2 - 1):resize(2, size, "bicubic"):resize(3, size, "bicubic")
  self:note("resized", x)
  x = (x * 0.5 + 0.5 - self.mean) / self.std
  self:note("normalised", x)
  local g, n = size / p, x.shape[1]
  return x:reshape(n, g, p, g, p, 3):permute(1, 2, 4, 6, 3, 5):reshape(n, g * g, 3 * p * p)
end

function Net:encode(pictures)
  local single = pictures.ndim == 3
  local x = single and pictures:unsqueeze(1) or pictures
  if x.ndim ~= 4 or x.shape[4] ~= 3 or x:numel() == 0 then
    error(("%s: a picture is [H, W, 3], got %s"):format(NAME, kit.shape_text(pictures.shape)), 2)
  end
  x = kit.frames(NAME, x, 1, 2)
  x = self.patch_in(self:patches(x), { dtype = "f32" })
  self:note("patch_embedding", x)
  local n = x.shape[1]
  x = T.concat({ self.class:expand { n, 1, self.width }, x }, 2) + self.positions
  if self.pre_norm then x = x:layer_norm { weight = self.pre_norm[1], bias = self.pre_norm[2], eps = self.eps } end
  self:note("after_pre_norm", x)
  local function norm(pair) return { weight = pair[1], bias = pair[2], eps = self.eps, dtype = self.dtype } end
  for i, block in ipairs(self.blocks) do
    x:add_(self:attention(block, x:layer_norm(norm(block.norm1))))
    local y = block.fc1(x:layer_norm(norm(block.norm2)), { act = self.act })
    x:add_(block.fc2(y, { dtype = "f32" }))
    if i == 1 then self:note("block0_out", x) end
  end
  return single and x:squeeze(1) or x
end

local ACTIVATIONS = { quick_gelu = "quick_gelu", gelu = "gelu_erf" }

local function load(weights, config, options)
  config = config or {}
  local compute, trace = kit.options(NAME, options)
  -- Wan's file holds a text tower as well: only what is named "visual." is read.
  local r = kit.reader(NAME, weights, { anchor = "cls_embedding" })
  local shape = r:shape "patch_embedding.weight"
  local width = kit.agree(NAME, config, { "dim", "width" }, shape[1], "patch_embedding.weight")
  local patch = kit.agree(NAME, config, { "patch_size" }, shape[3], "patch_embedding.weight")
  local positions = r:take_f32("pos_embedding", { 1, false, width })
  local grid = math.sqrt(positions.shape[2] - 1)
  if grid % 1 ~= 0 or grid < 1 then
    error(("%s: tensor '%s' has %d rows, wanted one more than a square"):format(NAME, r:key "pos_embedding",
      positions.shape[2]), 0)
  end
  kit.agree(NAME, config, { "image_size" }, grid * patch, "the position table")
  local activation = config.activation or "gelu"
  if not ACTIVATIONS[activation] then
    error(("%s: activation is '%s', wanted 'gelu' or 'quick_gelu'"):format(NAME, tostring(activation)), 0)
  end
  local heads = config.heads or config.num_heads or width / 80
  if heads < 1 or heads % 1 ~= 0 or width % heads ~= 0 then
    error(("%s: width %d does not divide into %s heads; the configuration must give heads"):format(NAME, width,
      tostring(heads)), 0)
  end
  local matrix = { compute = compute, lazy = options and options.lazy or nil }
  local bias = r:has "patch_embedding.bias" and r:take("patch_embedding.bias", { width }) or nil
  local net = setmetatable({
    name = NAME, dtype = compute, trace = trace, width = width, patch = patch, image_size = grid * patch,
    head_count = heads, head_dim = width / heads, positions = positions, act = ACTIVATIONS[activation],
    class = r:take_f32("cls_embedding", { 1, 1, width }), eps = config.eps or config.norm_eps or 1e-5,
    mean = T.of(config.mean or MEAN, { 3 }), std = T.of(config.std or STD, { 3 }), blocks = {},
    patch_in = melies.nn.linear(r:take("patch_embedding.weight", { width, 3, patch, patch }):reshape(width,
      3 * patch * patch), bias, matrix),
  }, Net)
  local function norm(name)
    return { r:take_f32(name .. ".weight", { width }), r:take_f32(name .. ".bias", { width }) }
  end
  net.pre_norm = r:has "pre_norm.weight" and norm "pre_norm" or nil

  local count = kit.agree(NAME, config, { "layers", "num_layers" }, r:count "transformer.%d.norm1.weight", "the file")
  local kept = count - (config.skip_last or 1)
  if kept < 1 then r:shape(("transformer.%d.norm1.weight"):format(count)) end
  for i = 0, kept - 1 do
    local at = ("transformer.%d."):format(i)
    local inner = r:shape(at .. "mlp.0.weight")[1]
    net.blocks[i + 1] = {
      norm1 = norm(at .. "norm1"), norm2 = norm(at .. "norm2"),
      qkv = r:linear(at .. "attn.to_qkv", 3 * width, width, matrix),
      proj = r:linear(at .. "attn.proj", width, width, matrix),
      fc1 = r:linear(at .. "mlp.0", inner, width, matrix), fc2 = r:linear(at .. "mlp.2", width, inner, matrix),
    }
  end
  r:ignore "post_norm."
  r:ignore "head"
  for i = kept, count - 1 do r:ignore(("transformer.%d."):format(i)) end
  r:finish()
  return net
end

return { kind = "model", name = NAME, help = "CLIP picture tower of Wan's image to video", params = {}, load = load }
