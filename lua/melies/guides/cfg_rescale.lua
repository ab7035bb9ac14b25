-- melies-api: 1
-- cfg brought back to the contrast of the conditional prediction.
-- Lin et al. 2023 (arXiv 2305.08891), section 3.4, on the model's own prediction. phi blends the rescaled result with
-- the plain one.
local T = require("melies").tensor

return {
  kind = "guide", name = "cfg_rescale",
  params = {
    scale = { "number", default = 5, min = 0, max = 100, help = "as in cfg" },
    phi = { "number", default = 0.7, min = 0, max = 1, help = "0 is plain cfg, 1 is fully rescaled" },
  },
  combine = function(cond, uncond, params)
    local w = params.scale
    local plain = T.lincomb { w, cond, 1 - w, uncond }
    local deviation = plain:std()
    if deviation == 0 then return plain end
    local factor = params.phi * cond:std() / deviation + 1 - params.phi
    return T.lincomb { factor * w, cond, factor * (1 - w), uncond }
  end,
}
