-- melies-api: 1
-- diffusers' FlowMatchEulerDiscreteScheduler with a static shift.
-- Evenly spaced from 1 to the lowest trained level, which has been shifted once before, then shifted. (Its dynamic
-- shift is the schedule flow with mu.)
local S = require("melies").schedule

return {
  kind = "schedule", name = "flowmatch_euler", params = { shift = S.shift_param },
  sigmas = function(n, params)
    local list = S.linspace(1, S.shift(0.001, params.shift), n)
    for i, s in ipairs(list) do list[i] = S.shift(s, params.shift) end
    return S.append_zero(list)
  end,
}
