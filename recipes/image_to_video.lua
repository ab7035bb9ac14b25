-- melies-api: 1
-- A film that begins with an image, and perhaps ends with another one. Models made for it get the images beside the
-- noise. With any other one the sampler holds the first latent frame at the image, and the model continues from it.
local melies = require "melies"

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
      return job:sample_from_image(model, job:texts(model), job:noise(shape), job:image(p.image),
        { last = job:image(p.last_image) })
    end)
    return job:film(model, latent)
  end,
}
