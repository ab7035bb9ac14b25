-- melies-api: 1
-- How well the picture fits the words, where something can tell.
-- The mean over sampled frames of info.score(frame, prompt), or of the model's score(frame, prompt) where it has one: a
-- number from 0 to 1, such as the cosine of a picture's and a text's embedding. Without either nothing is judged.
local melies = require "melies"

return {
  kind = "check", name = "prompt_adherence",
  params = {
    threshold = { "number", default = 0.2, min = -1, max = 1, help = "the least mean that passes" },
    rate = { "number", default = 1, min = 0.01, max = 60, help = "samples a second" },
  },
  new = function(p, info)
    local series, self = melies.check.series(), {}
    local score = info.score
    if not score and info.model and info.model.score then
      score = function(frame, prompt) return info.model:score(frame, prompt) end
    end
    local every = math.max(1, math.floor(info.fps / p.rate + 0.5))
    function self.push(_, here)
      if score and info.prompt and (here.index - 1) % every == 0 then series:add(here, score(here.raw, info.prompt)) end
    end
    function self.finish()
      local value = series:mean()
      if not value then
        return { note = score and "no prompt is known" or "the model has no measure of it", threshold = p.threshold,
          better = "high" }
      end
      return { value = value, pass = value >= p.threshold, threshold = p.threshold, better = "high", series = series,
        where = series:worst("low", p.threshold), remedy = { seed = true } }
    end
    return self
  end,
}
