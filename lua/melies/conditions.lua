-- What a model is given beside noise and text: its first and last image, the rate of its frames. They become options of
-- the transformer's context (docs/models.md).
--
--   conditions.input(model)           -> "channels": an image latent and its mask stand beside the noise (Wan I2V, FLF2V,
--                                        Wan 2.2 I2V); "first": the first latent frames are given (TI2V-5B, LTX-Video);
--                                        nil: no input for images
--   conditions.refusal(model, images) -> what is wrong with these images for this model | nil
--   conditions.make(model, given)     -> options of dit:context | nil, message
--     given: first, last (frames [1, H, W, 3] of the film's size), shape (of the latent), fps
local T = require "melies.tensor"

local M = {}

local NONE = {} -- one table, so that contexts made with nothing are the same

function M.input(model)
  local net = model.dit
  if (net.in_channels or 0) > (net.latent_channels or net.out_channels) then return "channels" end
  if model.config.dit.first_frame then return "first" end
end

-- images: { first =, last = }, each anything but nil where it is given.
function M.refusal(model, images)
  local kind, net = model.image_input, model.dit
  if kind == "channels" and not images.first then
    return ("%s begins its films with an image: melies run image_to_video --image FILE"):format(model.name)
  end
  if images.last and kind ~= "channels" then
    return ("%s has no input for a last image"):format(model.name)
  end
  if net.image and net.image.position and not images.last then
    return ("%s goes from a first image to a last one: give --last-image FILE"):format(model.name)
  end
  if net.image and not model.sources.image_encoder then
    return ("%s reads its image through an image encoder: give --image-encoder FILE"):format(model.name)
  end
end

-- Tokens [n, tokens, width] of the picture tower, which is read for this call alone.
local function look(model, pictures)
  local source = model.sources.image_encoder
  local net = source.module.load(source.weights, source.settings, source.options)
  return net:encode(T.concat(pictures, 1))
end

local function frame_of(image, what, shape, stride)
  local h, w, s = shape[3] * stride[2], shape[4] * stride[3], image.shape
  if image.ndim ~= 4 or s[1] ~= 1 or s[2] ~= h or s[3] ~= w or s[4] ~= 3 then
    return nil, ("the %s image is %s, the film wants [1, %d, %d, 3]"):format(what, image:shape_text(), h, w)
  end
  return require("melies.video").floats(image)
end

-- The mask and the latent of the clip with these frames and grey elsewhere (0 in [-1, 1]); Wan2.1, wan/image2video.py
-- and first_last_frame2video.py.
local function beside(model, first, last, shape)
  local s = first.shape
  local clip = T.full({ model:frame_count(shape[2]), s[2], s[3], 3 }, 0.5)
  clip:slice(1, 1, 1):copy_(first)
  if last then clip:slice(1, -1, -1):copy_(last) end
  local latent = model:encode_video(clip)
  local mask = require("melies.models.wan_dit").condition_mask(shape[2], shape[3], shape[4], last ~= nil)
  return T.concat({ mask, latent }, 1)
end

function M.make(model, given)
  local options, kind = {}, model.image_input
  if model.config.dit.takes_fps then options.fps = given.fps end
  if given.first then
    local message = M.refusal(model, given)
    if message then return nil, message end
    local first, last
    first, message = frame_of(given.first, "first", given.shape, model.stride)
    if first and given.last then last, message = frame_of(given.last, "last", given.shape, model.stride) end
    if message then return nil, message end
    if kind == "channels" then
      options.condition = beside(model, first, last, given.shape)
      if model.dit.image then options.image = look(model, { first, last }) end
    elseif kind == "first" then
      options.first = model:encode_video(first)
    end
  end
  return next(options) and options or NONE
end

return M
