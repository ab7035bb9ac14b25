-- melies-api: 1
-- A film from a prompt, its first steps at a smaller size: faster, the more so the larger the film.
local melies = require "melies"
local c2f = melies.coarse_to_fine

return {
  kind = "recipe", name = "coarse_to_fine", help = "A film from a prompt, whose first steps are made at a smaller size.",
  params = melies.recipe.generation {
    style = { "style", help = "melies list styles" },
    coarse = { "number", default = 0.4, min = 0, max = 1, help = "share of the steps at the smaller size" },
    scale = { "number", default = 0.5, min = 0.05, max = 0.99, help = "the smaller size, of the film's width and height" },
    renoise = { "number", min = 0.01, max = 1,
      help = "noise level that the full size begins at (default: where the schedule goes on)" },
  },
  order = { "prompt", "coarse", "scale", "renoise", unpack(melies.recipe.generation_order) },
  run = function(_, job)
    local model = job:load()
    melies.style.use(job, model)
    local p = job:defaults(model)
    local shape = job:shape(model)
    local latent = job:latent(model, function()
      local texts, noise, sigmas = job:texts(model), job:noise(shape), job:sigmas(model)
      local coarse, fine, steps = c2f.split(sigmas, p.coarse, p.renoise)
      local small = c2f.shape(model, shape, p.scale)
      if not small or steps == 0 then
        job:notice(small and "no step of %d is at the smaller size: all are made at full size"
          or "there is no smaller size than this: all steps are made at it", #sigmas - 1)
        return job:sample(p.sampler, job:guide(model, texts), noise, sigmas)
      end
      local estimate = job:sample(p.sampler, job:guide(model, texts), job:noise(small, 1), coarse, { label =
        ("sampling at %dx%d"):format(small[4] * model.stride[3], small[3] * model.stride[2]), whole = sigmas })
      local start = model:add_noise(c2f.enlarge(estimate, shape), noise, fine[1])
      texts.after = steps
      return job:sample(p.sampler, job:guide(model, texts), start, fine, { whole = sigmas, stream = 1 })
    end)
    return job:film(model, latent)
  end,
}
