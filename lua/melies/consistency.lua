-- Holding parts of a film still while the rest is sampled.
local T = require "melies.tensor"

local M = {}

-- A denoise(x, sigma) whose first latent frames stay `known` [C, K, T.., H, W]: at every step the first K frames of x
-- are put back on the straight path from known to noise, x_s = (1 - s) known + s n with one and the same n, and the
-- estimate of the clean latent is `known` there. A deterministic flow sampler that starts at n then stays on that path
-- by itself; one that adds noise is put back on it.
-- model: the owner of add_noise; noise [C, T, H, W]: what the sampler starts from at sigma 1.
function M.hold_first(denoise, model, known, noise)
  local k, frames = known.shape[2], noise.shape[2]
  if k > frames then error(("hold_first: %d frames held of %d"):format(k, frames), 2) end
  local n = noise:slice(2, 1, k):contiguous()
  known = known:contiguous()
  return function(x, sigma)
    local noised = model:add_noise(known, n, sigma)
    if k == frames then return known end
    local x0 = denoise(T.concat({ noised, x:slice(2, k + 1) }, 2), sigma)
    return T.concat({ known, x0:slice(2, k + 1) }, 2)
  end
end

-- latent with its first frames replaced by `known`.
function M.set_first(latent, known)
  local k = known.shape[2]
  if k >= latent.shape[2] then return known end
  return T.concat({ known, latent:slice(2, k + 1) }, 2)
end

return M
