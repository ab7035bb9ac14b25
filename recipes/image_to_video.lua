-- melies-api: 1
-- A film that begins with an image. The model has no input for one, so the sampler holds it: the first latent frame
-- follows the image at every step, and the model continues from it.
local melies = require "melies"

return {
  kind = "recipe", name = "image_to_video", help = "A film that begins with an image.",
  params = melies.recipe.generation {
    image = { "image", required = true, unless = "latents", help = "the first frame; it is resized to the film" },
  },
  order = { "image", unpack(melies.recipe.generation_order) },
  run = function(_, job)
    local model = job:load()
    local p = job:defaults(model)
    local shape = job:shape(model)
    local latent = job:latent(model, function()
      local image = job:check(melies.media.load(p.image, { width = p.width, height = p.height, frames = 1 }))
      local known = model:encode_video(image)
      local noise = job:noise(shape)
      local denoise = job:guide(model, job:texts(model))
      denoise = melies.consistency.hold_first(denoise, model, known, noise)
      local latent = job:sample(p.sampler, denoise, noise, job:sigmas(model))
      return melies.consistency.set_first(latent, known)
    end)
    return job:film(model, latent)
  end,
}
