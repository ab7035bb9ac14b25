-- melies-api: 1
-- Adaptive projected guidance: high scales without oversaturation.
-- Sadat et al. 2024 (arXiv 2410.02416), Algorithm 1, on estimates of x0. The difference c - u is averaged over steps
-- (momentum), clipped to a norm, and split against c; the part along c, which oversaturates, is weighed by eta.
local T = require("melies").tensor

return {
  kind = "guide", name = "apg", prediction = "x0",
  params = {
    scale = { "number", default = 5, min = 0, max = 100, help = "as in cfg" },
    eta = { "number", default = 0, min = -1, max = 2, help = "weight of the part along c; 1 is cfg" },
    momentum = { "number", default = -0.5, min = -1, max = 1, help = "share of the running difference; 0 is none" },
    norm_threshold = { "number", default = 0, min = 0, help = "greatest norm of the difference; 0 does not clip" },
  },
  combine = function(cond, uncond, params, state)
    local difference = T.lincomb { 1, cond, -1, uncond }
    if params.momentum ~= 0 and state.running then
      difference = T.lincomb { 1, difference, params.momentum, state.running }
    end
    state.running = difference
    local clip = 1
    if params.norm_threshold > 0 then clip = math.min(1, params.norm_threshold / math.max(difference:norm(), 1e-12)) end
    local along = difference:dot(cond) / math.max(cond:sumsq(), 1e-24) -- times c: the parallel part
    local w = (params.scale - 1) * clip
    return T.lincomb { 1 + w * along * (params.eta - 1), cond, w, difference }
  end,
}
