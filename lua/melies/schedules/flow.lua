-- melies-api: 1
-- Evenly spaced, then shifted: for flow models such as Wan, SD3, LTX-Video.
-- Esser et al. 2024. The shift is static, or dynamic when mu or a token count is given (Flux, LTX-Video). With start
-- = 1 it is Wan's FlowDPMSolver.
local S = require("melies").schedule

return {
  kind = "schedule", name = "flow",
  params = {
    shift = S.shift_param,
    start = { "number", default = 1, min = 0.001, max = 1, help = "first noise level before the shift" },
    mu = { "number", help = "dynamic shift: e^mu in place of shift" },
    tokens = { "number", min = 1, help = "dynamic shift from the number of latent tokens" },
    base_tokens = { "number", default = 1024, min = 1, help = "tokens at base_shift" },
    max_tokens = { "number", default = 4096, min = 1, help = "tokens at max_shift" },
    base_shift = { "number", default = 0.95, help = "mu at base_tokens" },
    max_shift = { "number", default = 2.05, help = "mu at max_tokens" },
    terminal = { "number", min = 0.0001, max = 0.9, help = "stretch the list so that its last level before 0 is this" },
  },
  sigmas = function(n, params)
    local mu = params.mu
    if not mu and params.tokens then
      mu = S.mu(params.tokens, params.base_tokens, params.max_tokens, params.base_shift, params.max_shift)
    end
    local list = S.linspace(params.start, 0, n + 1)
    list[n + 1] = nil
    for i, s in ipairs(list) do list[i] = mu and S.shift_mu(s, mu) or S.shift(s, params.shift) end
    if params.terminal and n > 1 then S.stretch_to(list, params.terminal) end
    return S.append_zero(list)
  end,
}
