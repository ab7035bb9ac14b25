-- melies-api: 1
-- Film grain: noise that is new in every frame, strongest in the middle tones.
-- x + amount n (4 Y (1 - Y) + 0.25) / 1.25, Y the luma. n is standard normal from the counter-based generator, keyed by the
-- seed and the number of the frame: the same film gets the same grain however it is cut into jobs.
local melies = require "melies"

return {
  kind = "pass", name = "grain",
  params = {
    amount = { "number", default = 0.03, min = 0, max = 1, help = "deviation in the middle tones, of full range" },
    size = { "number", default = 1, min = 1, max = 16, help = "of a grain in pixels" },
    color = { "number", default = 0.2, min = 0, max = 1, help = "0: grey grain; 1: each channel its own" },
    seed = { "integer", default = 0, min = 0, help = "which grain" },
  },
  new = function(p)
    local T, video = melies.tensor, melies.video
    local index = 0
    local function noise(h, w, channels, stream)
      local nh, nw = math.ceil(h / p.size), math.ceil(w / p.size)
      local n = T.noise({ nh, nw, channels }, { seed = p.seed, stream = stream })
      if nh == h and nw == w then return n end
      n = n:resize(1, h, "bicubic"):resize(2, w, "bicubic")
      return n * (1 / math.max(1e-6, n:std()))
    end
    local pass = {}
    function pass.push(_, frame)
      local h, w = frame.shape[1], frame.shape[2]
      local n = noise(h, w, 1, 2 * index)
      if p.color > 0 then
        n = n * math.sqrt(1 - p.color ^ 2) + noise(h, w, 3, 2 * index + 1) * p.color
      end
      index = index + 1
      local y = video.luma(frame):unsqueeze(3):clamp(0, 1)
      local weight = (y * (1 - y) * 4 + 0.25) * (p.amount / 1.25)
      return { (frame + n * weight):clamp(0, 1) }
    end
    function pass.finish() return {} end
    return pass
  end,
}
