-- melies-api: 1
-- One take, longer than the model makes at once: chunks that begin with the last frames of the one before, or windows over
-- one long latent. Frames are written as they come; memory does not grow with the length in chunks.
local melies = require "melies"

return {
  kind = "recipe", name = "long_take", help = "One take of any length.",
  params = melies.recipe.generation {
    seconds = { "seconds", default = 120, min = 0.01, max = 3600, help = "length" },
    frames = { "integer", min = 1, max = 1000000, help = "length in frames, in place of seconds" },
    method = { "enum", choices = { "chunks", "windows" }, default = "chunks",
      help = "chunks: any length in the memory of one; windows: all at once, fused at every step" },
    window = { "integer", min = 1, max = 10000, help = "frames of a chunk or window (default: the model's length)" },
    overlap = { "integer", default = 1, min = 1, max = 1000, help = "latent frames that neighbours share" },
    fuse = { "enum", choices = melies.longform.fuses, default = "pyramid", help = "how windows are weighed" },
    release = { "number", default = 0, min = 0, max = 1, help = "below this sigma shared frames may change" },
    anchor = { "number", default = 0.5, min = 0, max = 1, help = "how much the colours of the beginning hold; 0: none" },
    free_noise = { "boolean", default = true, help = "chunks share their noise, in another order" },
    latents = false, save_latents = false, reuse = false,
    prompt = { "text", required = true, help = "what the take shows" },
  },
  order = { "prompt", "seconds", "method", "window", "overlap", unpack(melies.recipe.generation_order) },
  run = function(_, job)
    local model, given = job:load(), job.params.frames
    local p = job:defaults(model)
    if given then p.frames = given end
    p.window = p.window or model.defaults.frames
    local texts = job:texts(model)
    if p.method == "windows" then
      local shape = job:shape(model)
      local window = job:check(model:latent_shape { frames = p.window, width = p.width, height = p.height })
      local denoise = melies.longform.windows(function() return job:guide(model, texts) end,
        { length = window[2], overlap = math.min(p.overlap, window[2] - 1), fuse = p.fuse })
      local noise = p.free_noise and melies.longform.free_noise(window, 1, { seed = job.seed, count = shape[2] })
        or job:noise(shape)
      return job:film(model, job:sample(p.sampler, denoise, noise, job:sigmas(model)))
    end
    return melies.longform.write(job, melies.longform.frames(job, model, { texts = texts, frames = p.frames,
      window = p.window, overlap = p.overlap, release = p.release, anchor = p.anchor, free_noise = p.free_noise }))
  end,
}
