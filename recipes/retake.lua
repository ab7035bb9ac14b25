-- melies-api: 1
-- A stretch of a film made anew: from where it begins to where it ends, between frames that stay.
local melies = require "melies"

return {
  kind = "recipe", name = "retake", help = "A stretch of a film is made anew; the frames around it stay.",
  params = melies.edit.params {
    from = { "seconds", required = true, min = 0, max = 360000, help = "where it begins" },
    to = { "seconds", min = 0, max = 360000, help = "where it ends (default: with the film)" },
  },
  order = { "video", "prompt", "from", "to", unpack(melies.edit.order) },
  run = function(p, job)
    if p.to and p.to <= p.from then
      melies.recipe.fail(("retake: it ends at %g s, before it begins at %g s"):format(p.to, p.from), melies.recipe.USAGE)
    end
    local model, source, fit = melies.edit.begin(job)
    local first = math.floor(p.from * source.fps + 0.5) + 1
    local last = p.to and math.max(first, math.floor(p.to * source.fps + 0.5)) or math.huge
    local function outside(seconds)
      melies.recipe.fail(("retake: %s is %.2f s long, nothing of it is after %g s"):format(p.video, seconds, p.from))
    end
    if source.duration and p.from >= source.duration then outside(source.duration) end
    local texts, count = job:texts(model), 0
    local next_frame = melies.edit.frames(job, model, source, { texts = texts, fit = fit, strength = p.strength,
      window = p.window, overlap = p.overlap, change = function(i) return i >= first and i <= last end })
    return melies.edit.write(job, function()
      local frame = next_frame()
      if frame then count = count + 1
      elseif count < first then outside(count / source.fps)
      elseif p.to and count < last then
        job:notice("the film ends at %.2f s: so does what is made anew", count / source.fps)
      end
      return frame
    end, { sound = source })
  end,
}
