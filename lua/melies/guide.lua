-- Guidance: makes denoise(x, sigma) of a model and texts. A guide is a plugin with combine(cond, uncond, params,
-- state), where cond and uncond are the model's own predictions (velocity for a flow model), or estimates of x0 where
-- the plugin says prediction = "x0". What it returns is of the same sort.
--
--   guide.cfg(model, { text = text, negative = other, scale = 5 })      -> denoise
--   guide.make("apg", model, { text = text, scale = 8, eta = 0.2 })     the same for any name
--
-- The model has predict(x, sigma, { text, ... }) -> { prediction, ... }, to_x0(x, sigma, prediction) -> x0, and
-- encode(prompt) where texts are given as strings or the negative one is left out.
local registry = require "melies.registry"
local T = require "melies.tensor"

local guide = {}

-- What every guide takes besides its own parameters.
local COMMON = { text = true, negative = true, first = true, interval = true, cache = true,
  condition = true, low = true, after = true }

-- A text as the model encodes it.
local function encoded(model, text, what, level)
  if type(text) ~= "string" then return text end
  local rows, message = model:encode(text)
  if not rows then error(what .. ": " .. tostring(message), level + 1) end
  return rows
end

-- The latent frames [C, k, H, W] that first stands for: it is one already, or an image [H, W, 3] or frames [T, H, W,
-- 3].
local function first_latent(model, first)
  if first.shape[first.ndim] ~= 3 then return first end
  return model:encode_video(first.ndim == 3 and first:unsqueeze(1) or first)
end

-- The estimate with its first frames replaced. A sampler then takes those frames along their exact path to `first`, and
-- the model sees them at each noise level with the noise that they started with.
local function hold(x0, first)
  local frames = first.shape[2]
  if frames == x0.shape[2] then return first end
  return T.concat({ first, x0:slice(2, frames + 1) }, 2)
end

-- Texts that change over the run, or are several (melies.prompt): they have now() -> { { rows=, weight= }, ... }.
local function changes(text) return type(text) == "table" and not T.is(text) and text.now ~= nil end
local function now(text)
  if changes(text) then return text:now() end
  return { { rows = text, weight = 1 } }
end

-- One conditional prediction of several: u + sum of w (c - u), Liu et al. 2022 (arXiv 2206.01714), equation 11. The
-- factors sum to 1, so it is the same for predictions and for estimates of x0.
local function compose(conditions, predictions, uncond)
  if #conditions == 1 and conditions[1].weight == 1 then return predictions[1] end
  local terms, rest = {}, 1
  for i, condition in ipairs(conditions) do
    terms[2 * i - 1], terms[2 * i], rest = condition.weight, predictions[i], rest - condition.weight
  end
  terms[#terms + 1], terms[#terms + 2] = rest, uncond
  return T.lincomb(terms)
end

-- denoise(x, sigma) -> estimate of x0, for samplers. opts:
--   text        the prompt: what model:encode gave (melies.prompt's conditions too), or a string
--   negative    what to go away from (default: the empty prompt); not used at scale 1
--   scale, ...  the guide's own parameters, checked against its declaration
--   first       first frames to hold: a latent [C, k, H, W], an image or frames
--   cache       a step cache (melies.step_cache.make)
--   condition   what the model is given beside the text (model:conditions)
--   low         { scale =, below = sigma }: another scale below a noise level, as Wan 2.2's expert for low noise has
--   after       how many noise levels an earlier part of the run went through (default: 0)
--   interval    { low, high }: guidance only at sigmas from low to high (Kynkäänniemi et al. 2024)
function guide.make(name, model, opts)
  local plugin, message = name, nil
  if type(name) == "string" then plugin, message = registry.get("guide", name) end
  if type(plugin) ~= "table" or type(plugin.combine) ~= "function" then
    error(message or ("a guide is a name or a table with combine, not a " .. type(name)), 2)
  end
  local own = {}
  for key, value in pairs(opts or {}) do
    if not COMMON[key] then own[key] = value end
  end
  local params
  params, message = registry.resolve_params(plugin, own)
  if not params then error(message, 2) end
  if not opts or opts.text == nil then error(("guide %s: text is missing"):format(plugin.name or "?"), 2) end
  local below, low_params = opts.low and opts.low.below or 0, {}
  for key, value in pairs(params) do low_params[key] = value end
  low_params.scale = opts.low and opts.low.scale or params.scale
  local low, high = 0, math.huge
  if opts.interval then
    low, high = opts.interval[1], opts.interval[2]
    if type(low) ~= "number" or type(high) ~= "number" or low > high then
      error(("guide %s: interval must be { low, high }"):format(plugin.name or "?"), 2)
    end
  end

  local text, negative = encoded(model, opts.text, "text", 2), nil
  -- Conditions joined by AND are weighed against the negative text, guidance or not.
  if params.scale ~= 1 or low_params.scale ~= 1 or changes(text) then
    negative = encoded(model, opts.negative or "", "negative", 2)
  end
  local first = opts.first and first_latent(model, opts.first)
  local in_x0 = plugin.prediction == "x0"
  -- state.sigmas: how many noise levels were seen in this run; the rest is the plugin's own.
  local state, begin, latest = { sigmas = 0 }, nil, nil

  return function(x, sigma)
    if not begin or sigma >= begin then -- a new run
      state, begin, latest = { sigmas = opts.after or 0 }, sigma, nil
    end
    if sigma ~= latest then state.sigmas, latest = state.sigmas + 1, sigma end
    state.sigma, state.x = sigma, x
    local x0
    local now_params = sigma < below and low_params or params
    local conditions, texts = now(text), {}
    for i, condition in ipairs(conditions) do texts[i] = condition.rows end
    local plain = now_params.scale == 1 or sigma < low or sigma > high
    if not plain or #conditions > 1 or conditions[1].weight ~= 1 then texts[#texts + 1] = now(negative)[1].rows end
    local predictions = model:predict(x, sigma, texts, { cache = opts.cache, condition = opts.condition })
    local uncond = predictions[#conditions + 1]
    local cond = compose(conditions, predictions, uncond)
    if plain then
      x0 = model:to_x0(x, sigma, cond)
    elseif in_x0 then
      x0 = plugin.combine(model:to_x0(x, sigma, cond), model:to_x0(x, sigma, uncond), now_params, state)
    else
      x0 = model:to_x0(x, sigma, plugin.combine(cond, uncond, now_params, state))
    end
    return first and hold(x0, first) or x0
  end
end

return setmetatable(guide, {
  __index = function(_, name)
    if type(name) ~= "string" then return nil end
    local plugin, message = registry.get("guide", name)
    if not plugin then error(message, 2) end
    return function(model, opts) return guide.make(plugin, model, opts) end
  end,
})
