-- melies-api: 1
-- The first shot fades out to a colour, the next fades in from it.
-- No frame is lost: `seconds` are the last ones of the first shot and the first ones of the next, half each.
local melies = require "melies"

local function toward(frame, p, x)
  local T = melies.tensor
  local colour = T.of({ p.red, p.green, p.blue }, { 1, 1, 3 })
  return frame * (1 - x) + colour * x
end

return {
  kind = "transition", name = "fade",
  params = {
    seconds = { "number", default = 1, min = 0, max = 20, help = "length, out and in" },
    red = { "number", default = 0, min = 0, max = 1, help = "of the colour between" },
    green = { "number", default = 0, min = 0, max = 1, help = "of the colour between" },
    blue = { "number", default = 0, min = 0, max = 1, help = "of the colour between" },
  },
  frames = function(p, info) return math.floor(p.seconds * info.fps / 2 + 0.5) end,
  run = function(tail, head, p)
    local frames = {}
    for i, frame in ipairs(tail) do frames[i] = toward(frame, p, i / #tail) end
    for i, frame in ipairs(head) do frames[#tail + i] = toward(frame, p, 1 - i / (#head + 1)) end
    return frames, #tail + 1
  end,
}
