-- melies-api: 1
-- CFG-Zero*: cfg with a fitted scale of u, and a still start.
-- a u + w (c - a u) with a = <c, u> / |u|^2, and no movement over the first noise levels: Fan et al. 2025
-- (arXiv 2503.18886). On the velocity of a flow model, where zero stands still. The paper takes about 4% of the steps:
-- 1 of 20, 2 of 50.
local T = require("melies").tensor

return {
  kind = "guide", name = "cfg_zero_star",
  params = {
    scale = { "number", default = 5, min = 0, max = 100, help = "as in cfg" },
    zero_steps = { "integer", default = 1, min = 0, max = 100, help = "noise levels at the start that stand still" },
  },
  combine = function(cond, uncond, params, state)
    if state.sigmas <= params.zero_steps then return T.zeros(cond.shape) end
    local a = cond:dot(uncond) / (uncond:sumsq() + 1e-8)
    return T.lincomb { params.scale, cond, a * (1 - params.scale), uncond }
  end,
}
