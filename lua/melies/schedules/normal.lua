-- melies-api: 1
-- Evenly spaced in the trained time, both ends included.
-- ComfyUI's normal_scheduler.
local S = require("melies").schedule

return {
  kind = "schedule", name = "normal", params = { shift = S.shift_param },
  sigmas = function(n, params)
    local levels, at, last = S.levels(params)
    local list = S.linspace(#levels - 1, last, n)
    for i, t in ipairs(list) do list[i] = at(t) end
    return S.append_zero(list)
  end,
}
