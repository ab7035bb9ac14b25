-- melies-api: 1
-- A film made longer: its frames as they are, then new ones that go on from its last.
local melies = require "melies"

return {
  kind = "recipe", name = "extend", help = "A film goes on after its end.",
  params = melies.recipe.generation {
    video = { "video", required = true, help = "the film that goes on" },
    prompt = { "text", required = true, help = "what happens" },
    seconds = { "seconds", default = 2, min = 0.01, max = 3600, help = "how much is added" },
    overlap = { "integer", default = 1, min = 1, max = 100, help = "latent frames that new chunks begin with" },
    anchor = { "number", default = 0.5, min = 0, max = 1, help = "how much the colours of the beginning hold; 0: none" },
    frames = false, size = false, width = false, height = false, fps = false,
    latents = false, save_latents = false, reuse = false,
  },
  order = { "video", "prompt", "seconds", unpack(melies.recipe.generation_order) },
  run = function(_, job)
    local model = job:load()
    local p = job:defaults(model)
    local info = job:check(melies.media.info(p.video))
    p.width, p.height, p.fps = info.width, info.height, info.fps
    local reader = job:check(melies.media.reader(p.video))
    local tail, size, more = {}, 1 + (p.overlap - 1) * model.stride[1], nil
    return melies.longform.write(job, function()
      local frame = not more and reader:next()
      if frame then
        tail[#tail + 1] = frame
        if #tail > size then table.remove(tail, 1) end
        return melies.video.floats(frame)
      end
      if not more then
        reader:close()
        local known = {}
        for i, each in ipairs(tail) do known[i] = melies.video.floats(each) end
        if #known == 0 then melies.recipe.fail(p.video .. ": there are no frames") end
        more = melies.longform.frames(job, model, { texts = job:texts(model), overlap = p.overlap, anchor = p.anchor,
          frames = math.max(1, math.floor(p.seconds * p.fps + 0.5)),
          known = melies.tensor.stack(#known == size and known or { known[#known] }, 1) })
      end
      return more()
    end)
  end,
}
