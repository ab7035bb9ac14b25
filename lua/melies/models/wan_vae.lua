-- melies-api: 1
-- The video autoencoder of Wan 2.1 (Wan-Video/Wan2.1, wan/modules/vae.py: facts only): causal, stride 4 x 8 x 8.
--
--   net:encode(video) -> latent       video [T, H, W, 3], T = 1 + 4k, u8 or float in [0, 1]; latent [C, t, h, w] f32,
--                                     the mean of the distribution, normalised by the mean and std of each channel
--   net:decode(latent, options) -> video    f32 in [0, 1]; options: { tile =, overlap = } in latent values, for frames
--                                     too large to decode at once; without them the same bits as a stream
--   net:decoder() -> stream           stream:push(latent frames [C, n, h, w]) -> video frames, in memory that does not
--                                     grow
--
-- Sizes come from the tensors; config: mean and std, lists of C numbers (by default those of Wan 2.1's 16 channels).
-- Layers, chunks and memory: wan_vae_layers.lua.
local layers = require "melies.wan_vae_layers"

local MEAN = { -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517, -0.3632,
  -0.1922, -0.9497, 0.2503, -0.2921 }
local STD = { 2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579, 1.6382,
  1.1253, 2.8251, 1.9160 }

local layout = { name = "wan_vae", mean = MEAN, std = STD, pixel_patch = 1, first_stage = ".0.residual.2.weight" }

-- The kind of a numbered layer is told by the names of its tensors.
function layout.stage(r, name, side, compute)
  if r:has(name .. ".residual.2.weight") then return layers.residual(r, name, compute) end
  if r:has(name .. ".to_qkv.weight") then return layers.attention(r, name, compute) end
  if r:has(name .. ".resample.1.weight") then
    local resample = side == "encoder" and layers.down or layers.up
    return resample(r, name, compute), r:has(name .. ".time_conv.weight")
  end
end

local function load(weights, config, options) return layers.load(layout, weights, config, options) end

return { kind = "model", name = layout.name, help = "Wan 2.1 video autoencoder", params = {}, load = load }
