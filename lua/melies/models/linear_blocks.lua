-- melies-api: 1
-- A linear autoencoder of blocks: `latent` numbers stand for a block of frames x rows x columns x 3 values, by one
-- matrix each way. The starter model uses it.
--
--   net:encode(video) -> latent       video [T, H, W, 3], T = 1 + frames * k; latent [C, t, h, w] f32
--   net:decode(latent) -> video       f32 in [0, 1], [frames * (t - 1) + 1, H, W, 3]
--   net:decoder() -> stream           stream:push(latent frames [C, n, h, w]) -> video frames; the same bits as decode
--
-- The first frame is repeated in front to fill its block when encoding, and those copies are dropped after decoding.
-- config: block = { frames, rows, columns } (by default { 4, 8, 8 }). Within a block: frame, row, column, channel.
local melies = require "melies"
local kit = require "melies.modelkit"
local T = melies.tensor

local NAME = "linear_blocks"
local Net, Stream = {}, {}
Net.__index = Net
Stream.__index = Stream

function Net:encode(video)
  if not self.to_latent then error(NAME .. ": these weights have no encoder", 2) end
  local bt, bh, bw = self.block[1], self.block[2], self.block[3]
  local x = kit.frames(NAME, video, 1, 2)
  local frames, height, width = x.shape[1], x.shape[2], x.shape[3]
  if (frames - 1) % bt ~= 0 or height % bh ~= 0 or width % bw ~= 0 then
    error(("%s: a clip of %d frames of %dx%d: wanted 1 + %dk frames, width a multiple of %d, height of %d"):format(NAME,
      frames, width, height, bt, bw, bh), 2)
  end
  if bt > 1 then x = x:pad(1, bt - 1, 0, "edge") end
  local t, h, w = x.shape[1] / bt, height / bh, width / bw
  x = x:reshape(t, bt, h, bh, w, bw, 3):permute(1, 3, 5, 2, 4, 6, 7):reshape(t, h, w, bt * bh * bw * 3)
  return self.to_latent(x, { dtype = "f32" }):permute(4, 1, 2, 3):contiguous()
end

function Net:decoder()
  return setmetatable({ net = self, first = true }, Stream)
end

function Stream:push(latent)
  local net = self.net
  local x = kit.latent_frames(NAME, latent, net.latent_channels, 2)
  local bt, bh, bw = net.block[1], net.block[2], net.block[3]
  local out = {}
  for t = 1, x.shape[1] do
    local h, w = x.shape[2], x.shape[3]
    local y = net.from_latent(x:slice(1, t, t), { dtype = "f32" })
    y = y:reshape(h, w, bt, bh, bw, 3):permute(3, 1, 4, 2, 5, 6):reshape(bt, h * bh, w * bw, 3)
    if self.first then y = y:slice(1, bt, bt) end
    self.first = false
    if net.trace then net.trace("decoded_unclamped", y) end
    out[t] = y:clamp(0, 1)
  end
  return #out == 1 and out[1] or T.concat(out, 1)
end

function Net:decode(latent, options)
  kit.latent_frames(NAME, latent, self.latent_channels, 2)
  return kit.decode(self, latent, options)
end

local function load(weights, config, options)
  config = config or {}
  local compute, trace = kit.options(NAME, options)
  local r = kit.reader(NAME, weights, { anchor = "decoder.weight" })
  local shape = r:shape("decoder.weight")
  local block = config.block or { 4, 8, 8 }
  local values = block[1] * block[2] * block[3] * 3
  local channels = kit.agree(NAME, config, { "latent" }, shape[2], "decoder.weight")
  local matrix = { compute = compute }
  local net = setmetatable({
    name = NAME, dtype = compute, trace = trace, block = block, stride = block, latent_channels = channels,
    from_latent = r:linear("decoder", values, channels, matrix),
    to_latent = r:has("encoder.weight") and r:linear("encoder", channels, values, matrix) or nil,
  }, Net)
  r:finish()
  return net
end

return { kind = "model", name = NAME, help = "linear autoencoder of blocks", params = {}, load = load }
