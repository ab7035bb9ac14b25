-- melies-api: 1
-- The shots overlap; one goes while the other comes.
-- Frame i of n is (1 - x) a + x b with x = i / (n + 1), eased by 3 x^2 - 2 x^3 where `ease` is set.
local melies = require "melies"

return {
  kind = "transition", name = "dissolve",
  params = {
    seconds = { "number", default = 0.5, min = 0, max = 10, help = "length" },
    ease = { "boolean", default = false, help = "slow at both ends" },
  },
  frames = function(p, info) return math.floor(p.seconds * info.fps + 0.5) end,
  run = function(tail, head, p)
    local n = math.min(#tail, #head)
    local frames = {}
    for i = 1, #tail - n do frames[i] = tail[i] end
    for i = 1, n do
      local x = i / (n + 1)
      if p.ease then x = x * x * (3 - 2 * x) end
      frames[#frames + 1] = melies.tensor.lincomb { 1 - x, tail[#tail - n + i]:contiguous(), x, head[i]:contiguous() }
    end
    for i = n + 1, #head do frames[#frames + 1] = head[i] end
    return frames, #tail - n + math.floor(n / 2) + 1
  end,
}
