-- Denoising from coarse to fine: the first steps, which decide the layout, at a smaller size; then the estimate of the
-- clean latent is enlarged, noised again to the level where the schedule goes on, and the last steps are made at full
-- size. A step over a quarter of the tokens costs less than a quarter.
--
--   M.shape(model, shape, scale)       -> the smaller latent's shape [C, T, H, W], of the model's patches; nil: none is
--   M.split(sigmas, share, renoise)    -> coarse, fine, steps: the sigmas of both runs, how many steps the first has
--   M.enlarge(latent, shape)           -> latent of that height and width, by linear interpolation
--
-- The coarse sigmas end with 0, so every sampler's last step there gives its estimate of the clean latent, and no call of
-- the model is added. The fine ones begin where the schedule goes on, or at renoise.
local M = {}

local function fit(value, unit) return math.max(unit, math.floor(value / unit + 0.5) * unit) end

function M.shape(model, shape, scale)
  local h, w = fit(shape[3] * scale, model.patch[2]), fit(shape[4] * scale, model.patch[3])
  if h >= shape[3] and w >= shape[4] then return nil end
  return { shape[1], shape[2], math.min(h, shape[3]), math.min(w, shape[4]) }
end

function M.split(sigmas, share, renoise)
  local all = #sigmas - 1
  local steps = math.min(all - 1, math.floor(share * all + 0.5))
  local coarse = {}
  for i = 1, steps do coarse[i] = sigmas[i] end
  coarse[steps + 1] = 0
  local fine = { renoise or sigmas[steps + 1] }
  for i = steps + 1, #sigmas do
    if sigmas[i] < fine[1] then fine[#fine + 1] = sigmas[i] end
  end
  return coarse, fine, steps
end

function M.enlarge(latent, shape) return latent:resize(3, shape[3]):resize(4, shape[4]) end

return M
