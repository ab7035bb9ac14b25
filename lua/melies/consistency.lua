-- Consistency of films: holding frames still while the rest is sampled, drawing shots towards a picture of their place, and a
-- report on a whole film.
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

-- What is coarse in a latent [C, T, H, W]: half its rows and columns, and up again.
local function coarse(x)
  local h, w = x.shape[3], x.shape[4]
  return x:resize(3, math.max(1, math.floor(h / 2)), "bilinear", true):resize(4, math.max(1, math.floor(w / 2)), "bilinear", true)
    :resize(3, h, "bilinear"):resize(4, w, "bilinear")
end

-- A denoise(x, sigma) whose estimates lean on a reference [C, 1 or 2, H, W] (the latent of a still; its second frame stands
-- for all later ones): x0 + k low(mean_t reference - mean_t x0) at noise levels from `from` on, k growing from 0 there to
-- `strength` at sigma 1. Like ILVR (Choi et al. 2021), but of the mean over time alone, so that what moves is left to move.
function M.draw_to(denoise, reference, strength, from)
  from = from or 0.5
  local first, later = reference:slice(2, 1, 1), reference:slice(2, -1, -1)
  return function(x, sigma)
    local x0 = denoise(x, sigma)
    local k = strength * (sigma - from) / (1 - from)
    if k <= 0 then return x0 end
    local n = x0.shape[2]
    local still = T.lincomb { 1 / n, first:contiguous(), (n - 1) / n, later:contiguous() }
    return x0 + coarse(still - x0:mean(2, true)) * k
  end
end

-- A denoise(x, sigma) that draws what looks like a character to the colours of its picture, wherever it is. reference: the
-- latent [C, T, H, W] of a still of the picture; c is the mean of the middle half of its last frame. share: how much of the
-- frame the character takes, 0..1. Of each frame of the coarse estimate y, with d = |y - c|^2 per place and q the largest d
-- among the `share` of the places that are nearest to c:
--   x0 + k max(0, 1 - d / 2q) (c - y)
-- at noise levels from `from` on, k growing from 0 there to `strength` at sigma 1. A place is moved the more, the more it looks
-- like the character already; what is fine stays the model's.
function M.draw_subject(denoise, reference, share, strength, from)
  from = from or 0.5
  local h, w = reference.shape[3], reference.shape[4]
  local middle = reference:slice(2, -1, -1):slice(3, 1 + math.floor(h / 4), math.ceil(3 * h / 4))
    :slice(4, 1 + math.floor(w / 4), math.ceil(3 * w / 4))
  local colour = middle:contiguous():mean(4, true):mean(3, true)
  return function(x, sigma)
    local x0 = denoise(x, sigma)
    local k = strength * (sigma - from) / (1 - from)
    if k <= 0 then return x0 end
    local way = colour - coarse(x0)
    local d = way:square():sum(1, true)
    local places = d.shape[3] * d.shape[4]
    local nearest = math.max(1, math.min(places, math.ceil(share * places)))
    local limits = T.empty { 1, d.shape[2], 1, 1 }
    for t = 1, d.shape[2] do
      local list = d:select(2, t):contiguous():list()
      table.sort(list)
      limits:set(t, math.max(2 * list[nearest], 1e-12))
    end
    return x0 + way * (1 - d / limits):clamp(0, 1) * k
  end
end

-- ---- the report -----------------------------------------------------------------------------------

local function number(value) -- JSON has no others
  return type(value) == "number" and value == value and math.abs(value) ~= math.huge and value or nil
end

local function array() return require("melies.json").array() end

local function places_of(list)
  local out = array()
  for i, place in ipairs(list or {}) do
    out[i] = { frame = place.frame, time = place.time, shot = place.shot, value = number(place.value), what = place.what }
  end
  return out
end

local report_options = { checks = true, prompt = true, fps = true, cuts = true, progress = true }

-- What all checks say of a film, as plain data that JSON takes. source: a file's path, or frames as check.run takes them.
-- opts: checks (a list or text; default: all), prompt, fps and cuts as check.run takes them, progress(frames so far).
--   video, recipe, prompt   the file, and what melies wrote into it, where it did
--   width, height, fps, frames, seconds
--   cuts                    numbers of the frames (from 1) that begin a new shot
--   shots                   { first =, last =, from =, to = } in frames and seconds
--   checks                  { name =, help =, value =, threshold =, better = "high" | "low", pass = true | false | nil, note =,
--                             params =, where = { { frame =, time =, shot =, value =, what = } },
--                             series = { frames = { }, values = { } } }
--   passed, failed          no check failed; the names of those that did
-- Also gives what check.run returned. nil and a message.
function M.report(source, opts)
  opts = opts or {}
  require("melies.ffi.lib").check_options("consistency.report", opts, report_options)
  local check, out = require "melies.check", {}
  local given = { prompt = opts.prompt, fps = opts.fps, cuts = opts.cuts, progress = opts.progress }
  local raw, message
  if type(source) == "string" then
    local info
    info, message = require("melies.media").info(source)
    if not info then return nil, message end
    local ok, params = pcall(require("melies.json").decode, info.metadata.melies_params or "{}")
    out.video, out.recipe = source, info.metadata.melies_recipe
    given.prompt = given.prompt or ok and type(params) == "table" and type(params.prompt) == "string" and params.prompt or nil
    raw, message = check.file(source, opts.checks, given)
  else
    raw, message = check.run(source, opts.checks, given)
  end
  if not raw then return nil, message end
  out.prompt = given.prompt
  out.width, out.height, out.fps, out.frames = raw.width, raw.height, raw.fps, raw.frames
  out.seconds = raw.frames / raw.fps
  out.cuts, out.shots, out.checks, out.failed = array(), array(), array(), array()
  for i, shot in ipairs(raw.shots) do
    if i > 1 then out.cuts[#out.cuts + 1] = shot.first end
    out.shots[i] = { first = shot.first, last = shot.last, from = (shot.first - 1) / raw.fps, to = shot.last / raw.fps }
  end
  local help = {}
  for _, entry in ipairs(require("melies.registry").list "check") do help[entry.name] = entry.help end
  for i, r in ipairs(raw.results) do
    local series = r.series and { frames = array(), values = array() }
    for k = 1, series and #r.series.frames or 0 do
      local value = number(r.series.values[k])
      if value then
        series.frames[#series.frames + 1], series.values[#series.values + 1] = r.series.frames[k], value
      end
    end
    local about = (r.help or help[r.name] or ""):match "^[^\n]*"
    out.checks[i] = { name = r.name, help = about, value = number(r.value), threshold = number(r.threshold),
      better = r.better, pass = r.pass, note = r.note, params = r.params, where = places_of(r.where), series = series }
  end
  out.passed = raw.passed
  for i, name in ipairs(raw.failed) do out.failed[i] = name end
  return out, raw
end

return M
