-- melies-api: 1
-- Wan's diffusion transformer run block of frames by block of frames, as Self-Forcing and other causal few-step
-- checkpoints are (guandeh17/Self-Forcing, wan/modules/causal_model.py and pipeline/causal_inference.py: facts only).
-- The tensors are wan_dit's; any wan_dit net has net:causal.
--
--   net:causal(options) -> stream
--     frames_per_block = 3        latent frames of a block
--     local_frames = nil          a window: how many frames the cache holds, those of the present block among them
--     sink_frames = 0             frames at the clip's start that never leave the window
--   stream:block(latent, t, context) -> velocity    latent [B, C, frames_per_block, H, W]; t as in net:forward
--   stream:next()                                   the present block is done
--   stream:blocks(noise, options) -> iterator       of a whole clip, block by block as they are finished
--
-- A block sees itself in both directions and everything before it. Calls for the same block put their keys and values in
-- the same place; the last one before next(), with the clean block and t = 0, leaves what later blocks see. Keys are
-- kept after their rotation, by the frame's number in the clip, also where a window has dropped frames.
--
-- As a model of its own, `wan_causal` is wan_dit with these options in config, so that a model file can state them.
local melies = require "melies"
local lib = require "melies.ffi.lib"
local kit = require "melies.modelkit"
local T = melies.tensor

local NAME = "wan_causal"
local Stream = {}
Stream.__index = Stream

local stream_options = { frames_per_block = true, local_frames = true, sink_frames = true }

local function whole(name, value, least)
  if type(value) ~= "number" or value % 1 ~= 0 or value < least then
    error(("%s: %s is %s, wanted a whole number from %d"):format(NAME, name, tostring(value), least), 4)
  end
  return value
end

local function stream(net, options)
  options = options or {}
  lib.check_options("causal", options, stream_options)
  if net.mask_spec then
    error(NAME .. ": a mask of attention wants all frames at once; here they come by blocks", 2)
  end
  local defaults = net.causal_options or {}
  local function option(name, default)
    local value = options[name]
    if value == nil then value = defaults[name] end
    if value == nil then return default end
    return value
  end
  local self = setmetatable({
    net = net, frames_per_block = whole("frames_per_block", option("frames_per_block", 3), 1),
    sink_frames = whole("sink_frames", option("sink_frames", 0), 0),
    done = 0,   -- frames of the blocks before this one
    kept = 0,   -- tokens in the cache, those of this block left out
    caches = {},
  }, Stream)
  local window = option("local_frames")
  if window and window ~= -1 then -- -1: no window, as the original writes it
    self.local_frames = whole("local_frames", window, self.sink_frames + self.frames_per_block)
  end
  return self
end

-- Room for `tokens` more tokens behind those that are kept; growing copies what is there.
local function reserve(buffer, kept, tokens, like, capacity)
  local s = like.shape
  if buffer and buffer.shape[2] >= kept + tokens then return buffer end
  local grown = T.empty({ s[1], capacity or kept + math.max(tokens, kept), s[3], s[4] }, like.dtype)
  if buffer and kept > 0 then grown:slice(2, 1, kept):copy_(buffer:slice(2, 1, kept)) end
  return grown
end

-- Drops tokens behind the sink until one more block fits into the window.
function Stream:make_room(tokens)
  local capacity = self.local_frames and self.local_frames * self.frame_tokens
  if not capacity or self.kept + tokens <= capacity then return end
  local dropped, sink = self.kept + tokens - capacity, self.sink_frames * self.frame_tokens
  for _, cache in ipairs(self.caches) do
    for _, name in ipairs { "k", "v" } do
      local buffer = cache[name]
      if self.kept > sink + dropped then -- the two ranges may overlap
        local rest = buffer:slice(2, sink + dropped + 1, self.kept):clone()
        buffer:slice(2, sink + 1, self.kept - dropped):copy_(rest)
        rest:free()
      end
    end
  end
  self.kept = self.kept - dropped
end

function Stream:keep(index)
  return function(k, v)
    local cache, tokens = self.caches[index], k.shape[2]
    local frames = math.min(self.local_frames or math.huge, self.clip_frames or math.huge)
    local capacity = frames < math.huge and frames * self.frame_tokens or nil
    cache.k = reserve(cache.k, self.kept, tokens, k, capacity)
    cache.v = reserve(cache.v, self.kept, tokens, v, capacity)
    local last = self.kept + tokens
    cache.k:slice(2, self.kept + 1, last):copy_(k)
    cache.v:slice(2, self.kept + 1, last):copy_(v)
    return cache.k:slice(2, 1, last), cache.v:slice(2, 1, last)
  end
end

function Stream:block(latent, t, context)
  local net, s = self.net, latent.shape
  if latent.ndim ~= 5 or s[3] < 1 or s[3] > self.frames_per_block then
    error(("%s: a block is %s, wanted [B, %d, 1 to %d, H, W]"):format(NAME, kit.shape_text(s), net.latent_channels,
      self.frames_per_block), 2)
  end
  local frames = s[3] / net.patch[1]
  local size = ("%d samples of %dx%d"):format(context.batch or 1, s[5], s[4])
  if self.size and self.size ~= size then
    error(("%s: this block is %s, the blocks before it were %s"):format(NAME, size, self.size), 2)
  end
  self.size, self.frame_tokens = size, s[4] / net.patch[2] * s[5] / net.patch[3]
  if self.present and self.present ~= frames then
    error(("%s: this block has %d frames, its last call had %d"):format(NAME, frames, self.present), 2)
  end
  if not self.present then
    for i = 1, #net.blocks do self.caches[i] = self.caches[i] or {} end
    self:make_room(frames * self.frame_tokens)
    self.present = frames
  end
  local caches = {}
  for i = 1, #net.blocks do caches[i] = self:keep(i) end
  return net:forward(latent, t, context, { first_frame = self.done, caches = caches })
end

function Stream:next()
  if not self.present then error(NAME .. ": next: no call of block came before it", 2) end
  self.done, self.kept = self.done + self.present, self.kept + self.present * self.frame_tokens
  self.present = nil
end

-- for first, block in stream:blocks(noise [C, T, H, W], { context =, timesteps = { 1000, ... }, renoise =, step = })
-- gives the finished latent blocks [C, n, H, W] in order, with the number of their first frame. Timesteps fall and do not
-- hold the final 0; x = (1 - t / 1000) * x0 + t / 1000 * noise. renoise(shape, frame, step) is fresh noise for a step
-- after the first; by default melies.noise with a stream of its own for each block and step, from `seed` (0).
-- step(block, step, x0): progress; it may raise.
local blocks_options = { context = true, timesteps = true, renoise = true, step = true, seed = true }
function Stream:blocks(noise, options)
  lib.check_options("blocks", options or {}, blocks_options)
  local timesteps, context = options.timesteps, options.context
  if type(timesteps) ~= "table" or #timesteps == 0 or type(context) ~= "table" then
    error(NAME .. ": blocks wants a context and a list of timesteps", 2)
  end
  if context.batch ~= 1 then error(NAME .. ": blocks wants a context of one text", 2) end
  local first, number, total = 1, 0, noise.shape[2]
  self.clip_frames = total -- what the cache will hold
  local renoise = options.renoise or function(shape, _, step)
    return melies.noise(shape, { seed = options.seed or 0, stream = 1 + number * 64 + step })
  end
  return function()
    if first > total then return nil end
    local last = math.min(first + self.frames_per_block - 1, total)
    number = number + 1
    local x = noise:slice(2, first, last):unsqueeze(1):contiguous()
    for i, t in ipairs(timesteps) do
      local sigma = t / 1000
      if i > 1 then x = T.lincomb { 1 - sigma, x, sigma, renoise(x.shape, first, i) } end
      x = T.lincomb { 1, x, -sigma, self:block(x, t, context) }
      if options.step then options.step(number, i, x) end
    end
    self:block(x, 0, context)
    self:next()
    local from = first
    first = last + 1
    return from, x:squeeze(1)
  end
end

local function load(weights, config, options)
  local net = require("melies.models.wan_dit").load(weights, config, options)
  net.name, net.causal_options = NAME, {}
  for name in pairs(stream_options) do net.causal_options[name] = (config or {})[name] end
  stream(net) -- the options are sensible
  return net
end

return {
  kind = "model", name = NAME, help = "Wan diffusion transformer by blocks of frames with a key-value cache",
  params = {}, load = load, stream = stream,
}
