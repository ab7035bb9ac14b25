-- melies-api: 1
-- Evenly spaced in the trained time, the lowest level left out.
-- ComfyUI's normal_scheduler with sgm.
local S = require("melies").schedule

return {
  kind = "schedule", name = "sgm_uniform", params = { shift = S.shift_param },
  sigmas = function(n, params)
    local levels, at, last = S.levels(params)
    local list = S.linspace(#levels - 1, last, n + 1)
    list[n + 1] = nil
    for i, t in ipairs(list) do list[i] = at(t) end
    return S.append_zero(list)
  end,
}
