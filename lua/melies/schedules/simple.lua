-- melies-api: 1
-- Every so many of the trained levels, from the highest.
-- ComfyUI's simple_scheduler.
local S = require("melies").schedule

return {
  kind = "schedule", name = "simple", params = { shift = S.shift_param },
  sigmas = function(n, params)
    local levels = S.levels(params)
    n = math.min(n, #levels)
    local list = {}
    for i = 1, n do list[i] = levels[#levels - math.floor((i - 1) * #levels / n)] end
    return S.append_zero(list)
  end,
}
