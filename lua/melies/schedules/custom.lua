-- melies-api: 1
-- A list of noise levels as given.
-- Where another number of steps is asked for, the list is resampled evenly in log sigma (as ComfyUI does for its
-- "align your steps" lists).
local S = require("melies").schedule

return {
  kind = "schedule", name = "custom",
  params = { sigmas = { "list", of = "number", required = true, help = "descending noise levels; a last 0 may be left out" } },
  sigmas = function(n, params)
    local given = {}
    for i, s in ipairs(params.sigmas) do given[i] = s end
    if given[#given] == 0 then given[#given] = nil end
    if #given == n or #given < 2 then return S.append_zero(given) end
    local list = {}
    for i, at in ipairs(S.linspace(1, #given, n)) do
      local low = math.min(math.floor(at), #given - 1)
      list[i] = math.exp(math.log(given[low]) + (math.log(given[low + 1]) - math.log(given[low])) * (at - low))
    end
    return S.append_zero(list)
  end,
}
