-- melies-api: 1
-- A film that begins with an image, and perhaps ends with another one. Models made for it get the images beside the
-- noise. With any other one the sampler holds the first latent frame at the image, and the model continues from it.
local melies = require "melies"

-- Samples with the first latent frame held at the image's.
local function held(job, model, image, shape)
  local p, known, noise = job.params, model:encode_video(image), job:noise(shape)
  local denoise = melies.consistency.hold_first(job:guide(model, job:texts(model)), model, known, noise)
  local latent = job:sample(p.sampler, denoise, noise, job:sigmas(model))
  return melies.consistency.set_first(latent, known)
end

return {
  kind = "recipe", name = "image_to_video", help = "A film that begins with an image.",
  params = melies.recipe.generation {
    image = { "image", required = true, unless = "latents", help = "the first frame; it is resized to the film" },
    last_image = { "image", help = "the last frame, for models that take one" },
  },
  order = { "image", "last_image", unpack(melies.recipe.generation_order) },
  run = function(_, job)
    local model = job:load()
    local p = job:defaults(model)
    local shape = job:shape(model)
    local latent = job:latent(model, function()
      local image, last = job:image(p.image), job:image(p.last_image)
      if not model.image_input then return held(job, model, image, shape) end
      local texts = job:texts(model)
      texts.condition = job:conditions(model, shape, image, last)
      return job:sample(p.sampler, job:guide(model, texts), job:noise(shape), job:sigmas(model))
    end)
    return job:film(model, latent)
  end,
}
