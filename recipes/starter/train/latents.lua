-- melies-api: 1
-- The training clips as latents, in files of 500: latents/NNNN.safetensors with `latent` bf16 [n, C, t, h, w] and `mask`
-- f32 [n, t, h, w], how much of each latent value's pixels is a subject. What a clip shows and says comes from its number.
local melies = require "melies"
local T = melies.tensor

local latents = {}
latents.seed, latents.frames = 1, 17
local SHARD = 500

local function path_of(folder, shard) return ("%s/%04d.safetensors"):format(folder, shard) end

-- The share of a subject in the pixels of every latent value: frame t of the latent is drawn from frames 4t - 3 .. 4t.
local function shares(mask, t, h, w)
  local m = mask:to("f32") * (1 / 255)
  m = m:pad(1, 3, 0, "edge")
  local n, y, x = m.shape[1] / t, m.shape[2] / h, m.shape[3] / w
  return m:reshape(t, n, h, y, w, x):mean(6):mean(4):mean(2)
end

-- latents.make(world, net, o): writes what is missing of `clips` clips. o: folder, size, clips, progress(done)
function latents.make(world, net, o)
  local ok, message = melies.fs.make(o.folder)
  if not ok then return nil, message end
  for shard = 0, math.ceil(o.clips / SHARD) - 1 do
    local path = path_of(o.folder, shard)
    if not melies.fs.stat(path) then
      local list, masks = {}, {}
      for i = 1, SHARD do
        local clip = world.clip { seed = latents.seed, index = shard * SHARD + i, size = o.size, frames = latents.frames }
        local latent = net:encode(clip.frames)
        list[i] = latent:to("bf16")
        masks[i] = shares(clip.mask, latent.shape[2], latent.shape[3], latent.shape[4])
        latent:free()
        if i % 20 == 0 then o.progress(shard * SHARD + i) end
      end
      ok, message = melies.weights.save(path, { latent = T.stack(list, 1), mask = T.stack(masks, 1) },
        { size = tostring(o.size), first = tostring(shard * SHARD + 1), seed = tostring(latents.seed) })
      if not ok then return nil, message end
    end
  end
  return true
end

-- latents.open(folder) -> store, or nil and a message. store.count; store:get(i) -> latent [C, t, h, w] bf16, mask; clip i
-- has the world's number i. store:look() takes in what has been written since.
local Store = {}
Store.__index = Store
function latents.open(folder)
  local store = setmetatable({ folder = folder, shards = {}, count = 0 }, Store)
  store:look()
  if store.count == 0 then return nil, folder .. ": no latents there" end
  return store
end
function Store:look()
  while melies.fs.stat(path_of(self.folder, #self.shards)) do
    local file = assert(melies.weights.open(path_of(self.folder, #self.shards)))
    self.shards[#self.shards + 1] = { file = file, latent = file:get "latent", mask = file:get "mask" }
    self.count = self.count + SHARD
  end
end
function Store:get(i)
  local shard, at = self.shards[math.floor((i - 1) / SHARD) + 1], (i - 1) % SHARD + 1
  return shard.latent:select(1, at), shard.mask:select(1, at)
end

return latents
