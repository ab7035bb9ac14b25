-- melies-api: 1
-- A film from a prompt.
local melies = require "melies"

return {
  kind = "recipe", name = "text_to_video", help = "A film from a prompt.",
  params = melies.recipe.generation(),
  order = melies.recipe.generation_order,
  run = function(_, job)
    local model = job:load()
    local p = job:defaults(model)
    local shape = job:shape(model)
    local denoise = job:guide(model, job:texts(model))
    local latent = job:sample(p.sampler, denoise, job:noise(shape), job:sigmas(model))
    local frames = job:decode(model, latent)
    job:save(frames)
    return frames
  end,
}
