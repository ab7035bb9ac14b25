-- melies-api: 1
-- Another size: cubic convolution up, area means down, then a little sharpening.
local melies = require "melies"

return {
  kind = "pass", name = "upscale",
  params = {
    factor = { "number", default = 2, min = 0.05, max = 16, help = "times the size, where width and height are not given" },
    width = { "integer", min = 8, max = 16384, help = "of the output; the height follows where it is not given" },
    height = { "integer", min = 8, max = 16384, help = "of the output" },
    sharpen = { "number", default = 0.35, min = 0, max = 5, help = "amount of unsharp mask after enlarging" },
  },
  new = function(p, info)
    local video = melies.video
    local w, h = p.width, p.height
    if not w and not h then w, h = info.width * p.factor, info.height * p.factor
    elseif not w then w = h * info.width / info.height
    elseif not h then h = w * info.height / info.width end
    -- Even, as codecs want it.
    w, h = math.max(8, 2 * math.floor(w / 2 + 0.5)), math.max(8, 2 * math.floor(h / 2 + 0.5))
    if w > 16384 or h > 16384 then return nil, ("frames of %d x %d; sides go up to 16384"):format(w, h) end
    local pass = { info = { width = w, height = h } }
    function pass.push(_, frame)
      local larger = video.resize(frame, h, w)
      if p.sharpen > 0 and w > info.width then
        local sigma = math.max(0.6, 0.5 * w / info.width)
        local detail = (larger - video.blur(larger, sigma)) * p.sharpen
        larger = (larger + detail:clamp(-0.1, 0.1)):clamp(0, 1)
      end
      return { larger }
    end
    function pass.finish() return {} end
    return pass
  end,
}
