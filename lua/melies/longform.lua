-- Films longer than what the model makes at once.
--
--   longform.frames(job, model, opts)     -> next() -> frame [H, W, 3] f32, nil at the end: chunk after chunk, each begun
--                                            with the last frames of the one before; one chunk is in memory
--   longform.windows(make, opts)          -> denoise over a latent of any length: windows over time, fused at every step
--   longform.free_noise(shape, first, opts) -> noise of latent frames first, first + 1, ... of a film without end
--   longform.chunk_of(model, frame, p, opts)  the number of the chunk that a frame is in
--   longform.weights(count, overlap, fuse, is_first, is_last) -> list
--
-- The chunks' latents are the job's parts (melies.durable), in their order.
local T = require "melies.tensor"
local lib = require "melies.ffi.lib"

local M = {}

M.fuses = { "flat", "pyramid", "overlap-linear" }

-- ---- noise ---------------------------------------------------------------------------------------------

-- FreeNoise (Qiu et al. 2023, arXiv 2310.15169): the frames of the first window's noise, in another order in each window
-- after it, so that far parts of a film share their noise and do not repeat. shape [C, T, H, W]: the window.
-- opts: seed=, count= (default: T).
function M.free_noise(shape, first, opts)
  opts = opts or {}
  lib.check_options("longform.free_noise", opts, { seed = true, count = true })
  local seed, window = opts.seed or 0, shape[2]
  local base = T.noise(shape, { seed = seed })
  local function order(block)
    local list = {}
    for i = 1, window do list[i] = i end
    if block == 0 then return list end
    local u = T.uniform({ window }, { seed = seed, stream = 2 ^ 32 + block }):list()
    for i = window, 2, -1 do -- Fisher-Yates
      local k = 1 + math.floor(u[i] * i)
      list[i], list[k] = list[k], list[i]
    end
    return list
  end
  local parts, block, list = {}, nil, nil
  for t = first - 1, first - 2 + (opts.count or window) do
    local b = math.floor(t / window)
    if b ~= block then block, list = b, order(b) end
    local i = list[t % window + 1]
    parts[#parts + 1] = base:slice(2, i, i)
  end
  return T.concat(parts, 2)
end

-- ---- windows over time -----------------------------------------------------------------------------------

-- Weights of the frames of a window of `count`. flat: 1. pyramid: up to the middle and down. overlap-linear: ramps over
-- the overlap, but at the ends of the film.
function M.weights(count, overlap, fuse, is_first, is_last)
  local out = {}
  for i = 1, count do
    local w = 1
    if fuse == "pyramid" then w = math.min(i, count + 1 - i)
    elseif fuse == "overlap-linear" then
      if not is_first and i <= overlap then w = i / (overlap + 1) end
      if not is_last and count + 1 - i <= overlap then w = math.min(w, (count + 1 - i) / (overlap + 1)) end
    elseif fuse ~= "flat" then
      error(("longform: no fuse '%s'%s (%s)"):format(tostring(fuse), lib.suggest(tostring(fuse), M.fuses),
        table.concat(M.fuses, ", ")), 2)
    end
    out[i] = w
  end
  return out
end

-- First frames (1-based) of windows that cover `total`, the last one at the end.
function M.starts(total, length, overlap)
  local out, at = {}, 1
  while at + length - 1 < total do
    out[#out + 1] = at
    at = at + length - overlap
  end
  out[#out + 1] = math.max(1, total - length + 1)
  return out
end

-- make() -> denoise(x, sigma): called once for each window, since guides keep state. opts: length (latent frames of a
-- window), overlap (default: a quarter), fuse (default: pyramid).
function M.windows(make, opts)
  lib.check_options("longform.windows", opts, { length = true, overlap = true, fuse = true })
  local length, fuse = opts.length, opts.fuse or "pyramid"
  local overlap = opts.overlap or math.floor(length / 4)
  if overlap >= length then error(("longform.windows: %d frames overlap in windows of %d"):format(overlap, length), 2) end
  M.weights(1, 0, fuse)
  local each = {}
  return function(x, sigma)
    local total = x.shape[2]
    if total <= length then
      each[1] = each[1] or make()
      return each[1](x, sigma)
    end
    local starts = M.starts(total, length, overlap)
    local sums = {}
    for t = 1, total do sums[t] = 0 end
    local weights = {}
    for n, at in ipairs(starts) do
      weights[n] = M.weights(length, overlap, fuse, n == 1, n == #starts)
      for i, w in ipairs(weights[n]) do sums[at + i - 1] = sums[at + i - 1] + w end
    end
    local out
    for n, at in ipairs(starts) do
      each[n] = each[n] or make()
      local x0 = each[n](x:slice(2, at, at + length - 1):contiguous(), sigma)
      local share = {}
      for i, w in ipairs(weights[n]) do share[i] = w / sums[at + i - 1] end
      local term = (x0 * T.of(share, { 1, length, 1, 1 })):pad(2, at - 1, total - at - length + 1, 0)
      out = out and out + term or term
    end
    return out
  end
end

-- ---- the colour anchor --------------------------------------------------------------------------------------

local function stats_of(frames)
  local video = require "melies.video"
  local mean, deviation, n = { 0, 0, 0 }, { 0, 0, 0 }, frames.shape[1]
  for i = 1, n do
    local m, d = video.lab_stats(frames:select(1, i))
    for c = 1, 3 do mean[c], deviation[c] = mean[c] + m[c] / n, deviation[c] + d[c] / n end
  end
  return mean, deviation
end

-- Mean and deviation in Lab, drawn towards the first frames': nothing at the chunk's first frame, `strength` of the
-- difference that its last frames have at its end. So there is no seam, and the next chunk begins with corrected frames.
-- whole: all frames alike, for a chunk that follows nothing.
local function anchored(frames, anchor, strength, whole)
  local video, n = require "melies.video", frames.shape[1]
  local mean, deviation = stats_of(frames:slice(1, math.max(1, n - 3), n))
  local parts = {}
  for i = 1, n do
    local s, gain, shift = whole and strength or strength * i / n, {}, {}
    for c = 1, 3 do
      local g = math.max(0.5, math.min(2, (anchor.deviation[c] + 0.5) / (deviation[c] + 0.5)))
      gain[c] = 1 + s * (g - 1)
      shift[c] = mean[c] + s * (anchor.mean[c] - mean[c]) - mean[c] * gain[c]
    end
    local lab = video.to_lab(frames:select(1, i):contiguous())
    parts[i] = video.from_lab(lab * T.of(gain, { 1, 1, 3 }) + T.of(shift, { 1, 1, 3 }))
  end
  return T.stack(parts, 1)
end

-- ---- chunks --------------------------------------------------------------------------------------------------

local FRAMES = { texts = true, frames = true, window = true, overlap = true, release = true, known = true, anchor = true,
  free_noise = true, seed = true, label = true, width = true, height = true, look = true, around = true, common = true }

-- The latent's shape of a chunk, its frames, and the latent frames that chunks share.
local function geometry(model, p, opts)
  local overlap = opts.overlap or 1
  local shape, message = model:latent_shape { frames = math.min(opts.window or model.defaults.frames, opts.frames
    + (opts.known and 1 + (overlap - 1) * model.stride[1] or 0)), width = opts.width or p.width,
    height = opts.height or p.height }
  if not shape then return nil, message end
  return shape, model:frame_count(shape[2]), math.min(overlap, shape[2]), overlap
end

-- The number of the chunk that gives the frame of that number; opts as for frames().
function M.chunk_of(model, frame, p, opts)
  local shape, window, overlap = geometry(model, p, opts)
  if not shape then return 1 end
  local shared = 1 + (overlap - 1) * model.stride[1]
  local taken = 0
  if opts.known then taken = not model.image_input and opts.known.shape[1] >= shared and shared or 1 end
  return 1 + math.max(0, math.ceil((frame - (window - taken)) / math.max(1, window - shared)))
end

-- opts: texts (job:texts), frames (how many in all), window (frames of a chunk; default: the model's own number), overlap
-- (latent frames that chunks share, default 1), release (below this sigma the shared frames are free; 0: held to the end),
-- known (frames [n, H, W, 3] before the first: the film goes on from them, and they are not given again), anchor (0..1,
-- default 0.5; 0: none), look ({ mean =, deviation = } in Lab that it holds to, not its own first chunk's), free_noise
-- (default true), seed, label, width and height (default: the job's), around (function(denoise, shape, first latent frame)
-- -> denoise), common ({ seed =, share = }: that part, 0..1, of the variance of the noise is another film's of that seed).
-- seed, anchor and common may be functions of the chunk's number.
function M.frames(job, model, opts)
  lib.check_options("longform.frames", opts, FRAMES)
  local p = job.params
  local function of(value, n) if type(value) == "function" then return value(n) end return value end
  local stride, release = model.stride[1], opts.release or 0
  local shape, window, overlap, wanted = geometry(model, p, opts)
  job:check(shape, window)
  if wanted >= shape[2] and opts.frames > window then
    require("melies.recipe").fail(("chunks of %d latent frames cannot share %d"):format(shape[2], wanted))
  end
  local shared = 1 + (overlap - 1) * stride -- frames
  job:budget(model, shape)
  local known, given, chunk, anchor = opts.known, 0, 0, opts.look
  local ready, at = nil, 0

  local function render()
    chunk = chunk + 1
    local seed, strength = of(opts.seed or job.seed, chunk), of(opts.anchor or 0.5, chunk)
    local first = 1 + (chunk - 1) * (shape[2] - overlap)
    local function noise_of(seed_of)
      return opts.free_noise == false and T.noise(shape, { seed = seed_of, stream = chunk })
        or M.free_noise(shape, first, { seed = seed_of })
    end
    local noise, common = noise_of(seed), of(opts.common, chunk)
    if common then
      noise = T.lincomb { math.sqrt(1 - common.share), noise, math.sqrt(common.share), noise_of(common.seed) }
    end
    local texts = {}
    for key, value in pairs(opts.texts) do texts[key] = value end
    local before
    if known and model.image_input then
      texts.condition = job:conditions(model, shape, known:slice(1, -1))
      known = known:slice(1, -1)
    elseif known then
      local n = known.shape[1]
      local take = n >= shared and shared or 1
      known = known:slice(1, n - take + 1, n):contiguous()
      before = model:encode_video(known)
    end
    local denoise = job:guide(model, texts)
    if opts.around then denoise = opts.around(denoise, shape, first) end
    if before then
      local free, held = denoise, require("melies.consistency").hold_first(denoise, model, before, noise)
      denoise = function(x, sigma) return sigma >= release and held(x, sigma) or free(x, sigma) end
    end
    local label = ("%s%d"):format(opts.label or "chunk ", chunk)
    local latent = job:sample(p.sampler, denoise, noise, job:sigmas(model), { label = label, seed = seed, stream = chunk })
    if before and release == 0 then latent = require("melies.consistency").set_first(latent, before) end
    local frames = model:decode(latent)
    if frames:nonfinite() > 0 then
      require("melies.recipe").fail(("chunk %d holds values that are no numbers"):format(chunk))
    end
    local from = known and known.shape[1] or 0
    if from > 0 and from < frames.shape[1] then frames = frames:slice(1, from + 1) end
    if strength > 0 then
      if anchor then frames = anchored(frames, anchor, strength, chunk == 1 and not known)
      else
        local mean, deviation = stats_of(frames)
        anchor = { mean = mean, deviation = deviation }
      end
    end
    -- A copy: the frames of the chunk before go.
    known = (known and frames.shape[1] < shared) and T.concat({ known, frames }, 1)
      or frames:slice(1, math.max(1, frames.shape[1] - shared + 1)):clone()
    return frames
  end

  return function()
    if given >= opts.frames then return nil end
    if not ready or at == ready.shape[1] then
      ready = nil
      lib.tidy()
      ready, at = render(), 0
    end
    at, given = at + 1, given + 1
    return ready:select(1, at)
  end
end

-- Frames of next() to the job's output, in parts of `batch`: its path, or the frames where there is no output.
function M.write(job, next_frame, opts)
  local writer = job:writer(opts)
  local parts, kept = {}, {}
  local function flush()
    if #parts == 0 then return end
    local frames = T.stack(parts, 1)
    if writer then job:check(writer:write(frames)) end
    if not writer or job.opts.keep ~= false then kept[#kept + 1] = frames end
    parts = {}
    lib.tidy() -- what the passes and checks of these frames left: it grows with the film else
  end
  for frame in next_frame do
    parts[#parts + 1] = frame
    if #parts == 16 then flush() end
  end
  flush()
  if writer then job:check(writer:finish()) end
  return #kept > 0 and T.concat(kept, 1) or job.saved
end

return M
