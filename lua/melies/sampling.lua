-- Runs samplers, and holds the few formulas that they share.
--
-- Two noise spaces. "ve": x = x0 + sigma n. "flow": x = (1 - sigma) x0 + sigma n. Both are x = alpha x0 + sigma n;
-- lambda = log(alpha / sigma) is half the log of the signal-to-noise ratio. In both, dx/dsigma = (x - x0) / sigma along
-- the probability-flow ODE, so what is written with that derivative needs no case for the space.
local lib = require "melies.ffi.lib"
local registry = require "melies.registry"
local T = require "melies.tensor"

local sampling = {}

-- ---- formulas -----------------------------------------------------------------------------------

function sampling.alpha(space, sigma) return space == "flow" and 1 - sigma or 1 end

-- +inf at sigma 0; -inf at sigma 1 of flow.
function sampling.lambda(space, sigma)
  return math.log(sampling.alpha(space, sigma)) - math.log(sigma)
end

-- The sigma of a lambda.
function sampling.sigma_at(space, lambda)
  return space == "flow" and 1 / (1 + math.exp(lambda)) or math.exp(-lambda)
end

-- Where lambda is needed at the very start of flow (alpha = 0), ComfyUI's samplers begin a little lower.
function sampling.finite_start(space, sigma)
  return space == "flow" and math.min(sigma, 0.9999) or sigma
end

-- An ancestral step from sigma to sigma_next: go down to the first result by the ODE, then x = scale * x + up * noise.
-- eta = 0 is the ODE. VE: k-diffusion's get_ancestral_step. Flow: ComfyUI's sample_euler_ancestral_RF.
function sampling.ancestral_step(space, sigma, sigma_next, eta)
  if eta == 0 or sigma_next == 0 then return sigma_next, 0, 1 end
  if space == "flow" then
    local down = sigma_next * (1 + (sigma_next / sigma - 1) * eta)
    local scale = (1 - sigma_next) / (1 - down)
    return down, math.sqrt(math.max(0, sigma_next ^ 2 - (down * scale) ^ 2)), scale
  end
  local up = math.min(sigma_next, eta * math.sqrt(sigma_next ^ 2 * (sigma ^ 2 - sigma_next ^ 2) / sigma ^ 2))
  return math.sqrt(sigma_next ^ 2 - up ^ 2), up, 1
end

-- Parameters of stochastic churn, Karras et al. 2022, Algorithm 2, for samplers that offer it.
sampling.churn_params = {
  s_churn = { "number", default = 0, min = 0, help = "noise added back over the whole run; 0 is the plain ODE" },
  s_tmin = { "number", default = 0, min = 0, help = "churn only at sigmas from here" },
  s_tmax = { "number", default = math.huge, min = 0, help = "churn only at sigmas up to here" },
  s_noise = { "number", default = 1, min = 0, help = "strength of the noise that churn adds" },
}

-- x and sigma before a step of n with churn: sigma / alpha grows by gamma, and noise fills the difference.
function sampling.churn(x, sigma, n, params, noise)
  local gamma = math.min(params.s_churn / n, math.sqrt(2) - 1)
  local alpha = sampling.alpha(params.space, sigma)
  if gamma <= 0 or alpha <= 0 or sigma < params.s_tmin or sigma > params.s_tmax then return x, sigma end
  local ratio = sigma / alpha
  local ratio_hat = ratio * (1 + gamma)
  local alpha_hat = params.space == "flow" and 1 / (1 + ratio_hat) or 1
  local sigma_hat = ratio_hat * alpha_hat
  local up = alpha_hat * math.sqrt(ratio_hat ^ 2 - ratio ^ 2) * params.s_noise
  return T.lincomb { alpha_hat / alpha, x, up, noise(sigma, sigma_hat) }, sigma_hat
end

-- ---- running ------------------------------------------------------------------------------------

local OPTIONS = { params = true, seed = true, stream = true, space = true, on_step = true, start_step = true, noise = true }

local function check_sigmas(sigmas, space)
  local function wrong(format, ...) error("sigmas: " .. format:format(...), 4) end
  if type(sigmas) ~= "table" or #sigmas < 2 then wrong("need a list of at least two") end
  for i, s in ipairs(sigmas) do
    if type(s) ~= "number" or s ~= s or s < 0 or s == math.huge then
      wrong("%s at %d is not a noise level", tostring(s), i)
    end
    if i > 1 and s >= sigmas[i - 1] then wrong("%g at %d does not descend from %g", s, i, sigmas[i - 1]) end
  end
  if space == "flow" and sigmas[1] > 1 then wrong("%g at 1, but flow has 0 to 1", sigmas[1]) end
end

-- Runs a sampler (a name or a plugin's table) from x at sigmas[1] to the last sigma and returns the final x. The
-- cancel flag is looked at after each step and raises lib.canceled, as operations in C do. denoise(x, sigma) ->
-- estimate of x0.
--   params      the sampler's own parameters; checked against its declaration
--   space       "flow" (default) or "ve"
--   seed, stream  key the noise of stochastic samplers: step i draws from the stream's own place, so that a run taken up
--               in the middle draws what the whole run would have drawn
--   start_step  begins at this step (1-based); x is then the state at sigmas[start_step]
--   on_step     function(i, n, x, info) after step i of n; info: sigma, denoised, evals, evals_total (nil where the
--               sampler does not say), seconds
--   noise       function(sigma, sigma_next) in place of the seeded noise
function sampling.run(sampler, denoise, x, sigmas, opts)
  opts = opts or {}
  lib.check_options("sampling.run", opts, OPTIONS)
  local plugin, message = sampler, nil
  if type(sampler) == "string" then plugin, message = registry.get("sampler", sampler) end
  if type(plugin) ~= "table" or type(plugin.run) ~= "function" then
    error(message or ("a sampler is a name or a table with run, not a " .. type(sampler)), 2)
  end
  local space = opts.space or "flow"
  if space ~= "flow" and space ~= "ve" then error(("space is '%s', must be flow or ve"):format(tostring(space)), 2) end
  check_sigmas(sigmas, space)
  local params
  params, message = registry.resolve_params(plugin, opts.params)
  if not params then error(message, 2) end
  params.space = space

  local n, start = #sigmas - 1, opts.start_step or 1
  if start % 1 ~= 0 or start < 1 or start > n then error(("start_step is %s, must be 1 to %d"):format(start, n), 2) end
  local part = {}
  for i = start, n + 1 do part[#part + 1] = sigmas[i] end

  local evals, draws, at = 0, 0, start
  local began = lib.C.mel_seconds()
  local evals_total = plugin.evals and plugin.evals(#part - 1, params)
  local numel, shape = x:numel(), x.shape
  local stream = (opts.stream or 0) * 2 ^ 20 + 2 ^ 40

  local function counted(xt, sigma)
    evals = evals + 1
    return denoise(xt, sigma)
  end
  local function noise(sigma, sigma_next)
    if opts.noise then return opts.noise(sigma, sigma_next) end
    draws = draws + 1
    return T.noise(shape, { seed = opts.seed or 0, stream = stream + at, offset = (draws - 1) * numel })
  end
  local function step(i, xt, info)
    at, draws = start + i, 0
    if opts.on_step then
      info = info or {}
      info.evals, info.evals_total, info.seconds = evals, evals_total, lib.C.mel_seconds() - began
      opts.on_step(start + i - 1, n, xt, info)
    end
    if lib.C.mel_canceled() then error(lib.canceled, 0) end
  end

  local result = plugin.run(counted, x, part, params, step, noise)
  if type(result) ~= "table" or type(result.numel) ~= "function" or result:numel() ~= numel then
    error(("sampler %s: run returned %s, must return x"):format(plugin.name or "?", tostring(result)), 2)
  end
  return result
end

return sampling
