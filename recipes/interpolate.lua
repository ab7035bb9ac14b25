-- melies-api: 1
-- Any film at another frame rate, with frames made along the motion in between; or slower, with as many frames a second.
local melies = require "melies"

return {
  kind = "recipe", name = "interpolate", help = "A film at another frame rate, or slower.",
  params = {
    video = { "video", required = true, help = "the film" },
    fps = { "number", min = 0.1, max = 1000, help = "frames a second of what is written" },
    factor = { "number", min = 0.01, max = 64, help = "times the film's rate, where fps is not given (default: 2)" },
    slow = { "number", default = 1, min = 0.1, max = 64, help = "how many times as long it lasts" },
    quality = { "number", min = 1, max = 100, help = "quality of the output file; each format has its own default" },
    bitrate = { "integer", min = 1000, max = 1e9, help = "bits a second of the output, in place of quality" },
    codec = { "string", help = "h264 or av1 in .mp4, vp9 or av1 in .webm" },
  },
  order = { "video", "fps", "factor", "slow", "quality", "bitrate", "codec" },
  run = function(p, job)
    if p.fps and p.factor then
      melies.recipe.fail("interpolate: give either --fps or --factor", melies.recipe.USAGE)
    end
    local rate = p.fps
    local source = melies.edit.open(job, p.video)
    if source.info.is_image then melies.recipe.fail(p.video .. " is an image: there is no motion in it") end
    rate = rate or source.fps * (p.factor or (p.slow > 1 and 1 or 2))
    -- For the pass, slower is a higher rate that is then played at the one wanted.
    local next_frame, info = melies.pass.over(source.next, { { "interpolate", fps = rate * p.slow } },
      { width = source.width, height = source.height, fps = source.fps })
    job:check(next_frame, info)
    p.fps, p.factor = rate, nil
    return melies.edit.write(job, next_frame, p.slow == 1 and { sound = source } or nil)
  end,
}
