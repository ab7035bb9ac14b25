-- melies-api: 1
-- A film from a prompt. A causal model makes it block by block, and its frames are written as blocks are finished.
local melies = require "melies"

return {
  kind = "recipe", name = "text_to_video", help = "A film from a prompt.",
  params = melies.recipe.generation { style = { "style", help = "melies list styles" } },
  order = melies.recipe.generation_order,
  run = function(_, job)
    local model = job:load()
    melies.style.use(job, model)
    local p = job:defaults(model)
    local shape = job:shape(model)
    local latent = job:latent(model, function()
      local texts, noise, sigmas = job:texts(model), job:noise(shape), job:sigmas(model)
      if model.causal then return job:stream(model, texts, noise, sigmas) end
      return job:sample(p.sampler, job:guide(model, texts), noise, sigmas)
    end)
    return job:film(model, latent)
  end,
}
