-- melies-api: 1
-- A film to a sound: it is planned from a prompt, its shots are repeated until the sound is over, and it is cut on the beats.
local melies = require "melies"

return {
  kind = "recipe", name = "music_video", help = "A film that is cut to a sound.",
  params = melies.film.params {
    prompt = { "text", required = true, help = "what is seen: a few sentences, whose shots are repeated" },
    audio = { "file", required = true, help = "the sound; the film gets it" },
    length = { "seconds", min = 1, max = 36000, help = "of the film; by default until the sound ends" },
    planner = { "string", default = "rules", help = "melies list planners" },
    pace = { "enum", choices = { "calm", "normal", "fast" }, help = "how long shots are: 10 to 5, 6 to 2, 3 to 1 seconds" },
    style = { "style", help = "melies list styles" },
  },
  order = { "prompt", "audio", "audio_from", "length", "pace", "steer", "style", "reference", "as", "passes", "checks", "tries",
    "film_tries", "jobs", unpack(melies.recipe.generation_order) },
  run = function(p, job)
    return melies.film.run(job, function() return melies.film.plan(p, job) end,
      setmetatable({ fill_sound = true }, { __index = p }))
  end,
}
