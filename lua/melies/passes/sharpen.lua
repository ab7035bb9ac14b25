-- melies-api: 1
-- Unsharp mask: x + amount (x - blur(x)), the added part held within `limit`.
local melies = require "melies"

return {
  kind = "pass", name = "sharpen",
  params = {
    amount = { "number", default = 0.5, min = 0, max = 5, help = "how much" },
    radius = { "number", default = 1.2, min = 0.3, max = 32, help = "deviation of the blur in pixels" },
    limit = { "number", default = 0.12, min = 0, max = 1, help = "the most a value may change: no halos" },
  },
  new = function(p)
    local pass = {}
    function pass.push(_, frame)
      local detail = (frame - melies.video.blur(frame, p.radius)) * p.amount
      return { (frame + detail:clamp(-p.limit, p.limit)):clamp(0, 1) }
    end
    function pass.finish() return {} end
    return pass
  end,
}
