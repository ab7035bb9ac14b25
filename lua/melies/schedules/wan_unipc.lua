-- melies-api: 1
-- Wan's UniPC schedule: flow that starts at 0.999 before the shift.
-- Wan2.1, fm_solvers_unipc.py.
local S = require("melies").schedule

return {
  kind = "schedule", name = "wan_unipc", params = { shift = S.shift_param },
  sigmas = function(n, params)
    local list = S.linspace(0.999, 0, n + 1)
    for i, s in ipairs(list) do list[i] = S.shift(s, params.shift) end
    return list
  end,
}
