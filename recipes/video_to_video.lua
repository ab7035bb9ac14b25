-- melies-api: 1
-- A film made over: the input is noised up to a strength and denoised again under the prompt.
local melies = require "melies"

-- The part of a schedule from `strength` down: sigma = strength first, then what lies below.
local function below(sigmas, strength)
  local out = { strength }
  for _, s in ipairs(sigmas) do
    if s < strength then out[#out + 1] = s end
  end
  return out
end

return {
  kind = "recipe", name = "video_to_video", help = "A film made over under a prompt.",
  params = melies.recipe.generation {
    video = { "video", required = true, unless = "latents", help = "the film to begin with; it is resized to the new one" },
    strength = { "number", default = 0.7, min = 0.01, max = 1, help = "share of noise: 1 forgets the input" },
  },
  order = { "video", "strength", unpack(melies.recipe.generation_order) },
  run = function(_, job)
    local model = job:load()
    local p = job:defaults(model)
    local input
    if not p.latents then
      -- At the film's own rate: motion keeps its speed.
      input = job:check(melies.media.load(p.video,
        { width = p.width, height = p.height, fps = p.fps, frames = p.frames }))
      if input.shape[1] < p.frames then
        job:notice("the input has %d frames; the film is as long", input.shape[1])
        p.frames = input.shape[1]
      end
    end
    local shape = job:shape(model)
    local latent = job:latent(model, function()
      if input.shape[1] ~= p.frames then -- the grid's nearest length: repeat the last frame, or drop some
        local more = p.frames - input.shape[1]
        input = more > 0 and input:pad(1, 0, more, "edge") or input:slice(1, 1, p.frames)
      end
      local source = model:encode_video(input)
      local sigmas = below(job:sigmas(model), p.strength)
      local start = model:add_noise(source, job:noise(shape), sigmas[1])
      return job:sample(p.sampler, job:guide(model, job:texts(model)), start, sigmas)
    end)
    return job:film(model, latent)
  end,
}
