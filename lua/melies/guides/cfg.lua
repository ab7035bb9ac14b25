-- melies-api: 1
-- Classifier-free guidance: u + w (c - u).
-- Ho and Salimans 2022. The same in any space.
local T = require("melies").tensor

return {
  kind = "guide", name = "cfg",
  params = { scale = { "number", default = 5, min = 0, max = 100, help = "1 follows the text plainly, more follows it harder" } },
  combine = function(cond, uncond, params)
    return T.lincomb { params.scale, cond, 1 - params.scale, uncond }
  end,
}
