-- melies-api: 1
-- A whole film in another look: it is noised up to a strength and denoised under the prompt and a style, chunk by chunk;
-- each chunk goes on from the last frames of the one before.
local melies = require "melies"

return {
  kind = "recipe", name = "restyle", help = "A film in another style, of any length.",
  params = melies.edit.params {
    prompt = { "text", default = "", help = "what the film shows" },
    style = { "style", help = "melies list styles" },
    strength = { "number", default = 0.6, min = 0.01, max = 1, help = "share of noise: 1 forgets the film" },
    passes = { "string", help = "passes over what came out (default: the style's own; \"\": none)" },
  },
  order = { "video", "prompt", "style", "strength", "passes", unpack(melies.edit.order) },
  run = function(p, job)
    if not p.style and p.prompt == "" then
      melies.recipe.fail("restyle: give --style NAME (melies list styles), --prompt TEXT, or both", melies.recipe.USAGE)
    end
    local style = p.style and job:check(melies.style.get(p.style))
    local passes = p.passes or style and style.passes
    local model, source, fit = melies.edit.begin(job)
    local next_frame = melies.edit.frames(job, model, source, { texts = job:texts(model), fit = fit, strength = p.strength,
      window = p.window, overlap = p.overlap, change = function() return true end })
    if passes and #passes > 0 then
      local info
      next_frame, info = melies.pass.over(next_frame, passes, { width = source.width, height = source.height,
        fps = source.fps })
      job:check(next_frame, info)
      return melies.edit.write(job, next_frame, { fps = info.fps, sound = source })
    end
    return melies.edit.write(job, next_frame, { sound = source })
  end,
}
