-- melies-api: 1
-- A film from a prompt: it is planned, and its shots are rendered, checked, joined and written.
local melies = require "melies"

return {
  kind = "recipe", name = "film", help = "A film of several shots, planned from a prompt.",
  params = melies.film.params {
    prompt = { "text", required = true, help = "the whole film, in a few sentences or many" },
    planner = { "string", default = "rules", help = "melies list planners" },
    pace = { "enum", choices = { "calm", "normal", "fast" }, help = "how long shots are" },
    style = { "style", help = "melies list styles" },
  },
  order = { "prompt", "pace", "style", "audio", "audio_from", "steer", "reference", "as", "passes", "checks", "tries",
    "film_tries", "jobs", unpack(melies.recipe.generation_order) },
  run = function(p, job)
    return melies.film.run(job, function() return melies.film.plan(p, job) end, p)
  end,
}
