-- melies-api: 1
-- A fixed stride through the trained levels.
-- ComfyUI's ddim_scheduler: from the second lowest. Where the stride does not divide the levels it gives a step more
-- than asked for, as there.
local S = require("melies").schedule

return {
  kind = "schedule", name = "ddim_uniform", params = { shift = S.shift_param },
  sigmas = function(n, params)
    local levels, list = S.levels(params), {}
    local stride = math.max(1, math.floor(#levels / n))
    for k = 2, #levels, stride do table.insert(list, 1, levels[k]) end
    return S.append_zero(list)
  end,
}
