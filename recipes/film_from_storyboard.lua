-- melies-api: 1
-- A film from a storyboard, as `melies plan` writes it and a person edits it.
local melies = require "melies"

return {
  kind = "recipe", name = "film_from_storyboard", help = "A film from a storyboard.",
  params = melies.film.params {
    prompt = false,
    storyboard = { "file", required = true, help = "a storyboard: .lua, .json, the text of HoloCine or Wan2GP" },
  },
  order = { "storyboard", "audio", "audio_from", "steer", "reference", "as", "passes", "checks", "tries", "film_tries",
    "jobs", unpack(melies.recipe.generation_order) },
  run = function(p, job)
    return melies.film.run(job, function() return job:check(melies.plan.read(p.storyboard)) end, p)
  end,
}
