-- Editing of films that are there: what recipes/retake, inpaint, outpaint, restyle, extend and loop stand on.
-- A film streams through; the frames that change are taken up in chunks of the model's length, with frames around them
-- that are known. Latents of what is known are held while the rest is sampled, and pixels that should stay come out as
-- they went in.
--
--   edit.params(own)                     -> a recipe's parameters: recipe.generation's without length and size
--   edit.begin(job)                      -> model, source, fit of a job with these parameters
--   edit.write(job, next_frame, opts)    -> frames, or the output's path
--   edit.open(job, path)                 -> source: next() -> frame u8 [H, W, 3] at an even rate, width, height, fps, info
--   edit.fit(model, w, h, work)          -> fit: the size at which the model works; to(frame), from(frame)
--   edit.frames(job, model, source, opts) -> next() -> frame, the edited film
--   edit.latent(job, model, opts)        -> latent of one chunk, of which parts are known
--   edit.hold(denoise, model, known, mask, noise, top) -> denoise
--   edit.region(free, feather)           -> region: which pixels of a frame may change
--   edit.boxes(text, w, h), edit.image_region(path, w, h, opts)   see docs/editing.md
--   edit.seam(frames, joints)            -> ratio, difference at the joints, elsewhere
--   edit.below(sigmas, strength)         -> the part of a schedule from there on
local lib = require "melies.ffi.lib"
local media = require "melies.media"
local recipe = require "melies.recipe"
local T = require "melies.tensor"
local video = require "melies.video"

local M = {}

function M.params(own)
  local params = recipe.generation {
    prompt = { "text", required = true, help = "what the film shows there" },
    video = { "video", required = true, help = "the film" },
    strength = { "number", default = 1, min = 0.01, max = 1, help = "share of noise: below 1 what was there shines through" },
    work = { "size", min = 8, max = 8192, help = "size at which the model works (default: near the film's and its own)" },
    window = { "integer", min = 1, max = 10000, help = "frames that the model sees at once (default: the model's length)" },
    overlap = { "integer", default = 2, min = 1, max = 100, help = "latent frames that chunks share" },
    frames = false, seconds = false, size = false, width = false, height = false, fps = false, strict = false,
    latents = false, save_latents = false, reuse = false,
  }
  for name, spec in pairs(own or {}) do params[name] = spec or nil end
  return params
end

M.order = { "video", "prompt", "strength", "work", "window", "overlap", unpack(recipe.generation_order) }

-- ---- the film that comes in -------------------------------------------------------------------------------

-- Frames of next() -> frame, time at one rate: each stays as it is while its time is near its place; where times run away
-- from the rate (a film of a variable one), a frame is shown again or left out. said(shown again, left out) at the end.
function M.even(next_frame, fps, said)
  local slot, held, ahead, ended, again, out = 0, nil, nil, false, 0, 0
  return function()
    while true do
      if not ahead and not ended then
        local frame, time = next_frame()
        if frame then ahead = { frame = frame, at = time * fps }
        else
          ended = true
          if type(time) == "string" then error({ failure = time }, 0) end
          said(again, out)
        end
      end
      if not ahead then return nil end
      local late = ahead.at - slot
      if late > 0.75 and held then
        slot, again = slot + 1, again + 1
        return held
      elseif late < -0.75 and held then
        ahead, out = nil, out + 1
      else
        held, ahead, slot = ahead.frame, nil, slot + 1
        return held
      end
    end
  end
end

-- The rate is the file's own (of an image, the model's), and goes into the job's parameters with the size: p.fps, p.width,
-- p.height are those of the output. duration: seconds, nil where the file does not say.
function M.open(job, path)
  local reader = job:check(media.reader(path))
  local info, p = reader:info(), job.params
  local fps = info.fps > 0 and info.fps or p.fps or 24
  p.width, p.height, p.fps = info.width, info.height, fps
  local next_even = M.even(function() return reader:next() end, fps, function(again, out)
    reader:close()
    if again + out > 0 then
      job:notice("%s: its frames come at uneven times; at an even %.4g a second %d are shown again and %d left out", path,
        fps, again, out)
    end
  end)
  return { width = info.width, height = info.height, fps = fps, info = info, path = path, duration = info.duration,
    next = function()
      job:check_cancel()
      return next_even()
    end }
end

-- ---- sizes ------------------------------------------------------------------------------------------------

local LARGEST = 2.25 -- times the model's own picture; larger films are scaled down for it

-- to(frame [H, W, 3]) -> f32 [height, width, 3] on the model's grid: scaled down where the film is much larger than what the
-- model makes, then its borders are repeated up to the grid. from(frame) goes back. work: { width =, height = } in place of
-- that size. nil and a message where it is not on the grid.
function M.fit(model, width, height, work)
  local unit_h, unit_w = model.stride[2] * model.patch[2], model.stride[3] * model.patch[3]
  local inner_w, inner_h = width, height
  if work then
    local shape, message = model:latent_shape { frames = 1, width = work.width, height = work.height }
    if not shape then return nil, message end
    inner_w, inner_h = work.width, work.height
  else
    local scale = math.sqrt(LARGEST * model.defaults.width * model.defaults.height / (width * height))
    if scale < 1 then
      inner_w, inner_h = math.max(1, math.floor(width * scale + 0.5)), math.max(1, math.floor(height * scale + 0.5))
    end
  end
  local fit = { inner_width = inner_w, inner_height = inner_h, width = math.ceil(inner_w / unit_w) * unit_w,
    height = math.ceil(inner_h / unit_h) * unit_h, stride = model.stride }
  local right, under = fit.width - inner_w, fit.height - inner_h
  local function padded(frame)
    if under > 0 then frame = frame:pad(1, 0, under, "edge") end
    if right > 0 then frame = frame:pad(2, 0, right, "edge") end
    return frame
  end
  function fit.to(frame) return padded(video.resize(video.floats(frame), inner_h, inner_w)):contiguous() end
  function fit.from(frame)
    frame = frame:slice(1, 1, inner_h):slice(2, 1, inner_w):contiguous()
    return video.resize(frame, height, width)
  end
  -- [h, w] of the latent: 1 where a pixel of that cell is free. free: [H, W] of 0 and 1.
  function fit.cells(free)
    local x = free:unsqueeze(3)
    if inner_h ~= height or inner_w ~= width then
      x = ((x:resize(1, inner_h, "area"):resize(2, inner_w, "area") - 1e-3) * 1e6):clamp(0, 1)
    end
    local h, w = fit.height / fit.stride[2], fit.width / fit.stride[3]
    return padded(x):contiguous():reshape(h, fit.stride[2], w, fit.stride[3]):amax(4):amax(2)
  end
  return fit
end

-- ---- regions ----------------------------------------------------------------------------------------------

-- free: [H, W] f32, 1 where pixels may change, 0 where they stay. What is new comes in over `feather` pixels inside the
-- free part.
function M.region(free, feather)
  free = free:contiguous()
  local alpha = free:unsqueeze(3)
  if feather and feather > 0 then
    local soft = video.blur(alpha:expand { free.shape[1], free.shape[2], 3 }:contiguous(), feather / 2):slice(3, 1, 1)
    alpha = (soft * 2 - 1):clamp(0, 1) * alpha
  end
  return { free = free, alpha = alpha }
end

-- The frame `old` with what `new` has in the region; where nothing is free the bits are those of old / 255.
function M.compose(old, new, region)
  local base = video.floats(old)
  return base + (new - base) * region.alpha
end

-- "x,y,w,h" or "x,y,w,h@t0-t1", several with a semicolon between: a list of { x, y, w, h, from =, to = } in pixels and
-- seconds. nil and a message.
function M.boxes(text, width, height)
  local out = {}
  for part in (text .. ";"):gmatch "%s*(.-)%s*;" do
    if part ~= "" then
      local x, y, w, h, rest = part:match "^(%d+)%s*,%s*(%d+)%s*,%s*(%d+)%s*,%s*(%d+)%s*(.*)$"
      local from, to = (rest or ""):match "^@%s*(%d+%.?%d*)%s*%-%s*(%d+%.?%d*)$"
      if not x or (rest ~= "" and not from) then
        return nil, ("box '%s': wanted is x,y,w,h in pixels, or x,y,w,h@t0-t1 with seconds"):format(part)
      end
      local box = { tonumber(x), tonumber(y), tonumber(w), tonumber(h), from = tonumber(from), to = tonumber(to), text = part }
      if box[3] < 1 or box[4] < 1 then return nil, ("box '%s' is empty"):format(part) end
      if box[1] + box[3] > width or box[2] + box[4] > height then
        return nil, ("box '%s' reaches outside the film, which is %dx%d"):format(part, width, height)
      end
      if from and box.to <= box.from then return nil, ("box '%s' ends at %s s, before it begins"):format(part, to) end
      out[#out + 1] = box
    end
  end
  if #out == 0 then return nil, "box: none is given" end
  return out
end

-- The region of boxes that are there at a time (nil: none are), made once for each set of them.
function M.box_regions(boxes, width, height, opts)
  local kept = {}
  return function(time)
    local here, key = {}, {}
    for i, box in ipairs(boxes) do
      if not box.from or (time >= box.from - 1e-6 and time < box.to - 1e-6) then here[#here + 1], key[#key + 1] = box, i end
    end
    if #here == 0 and not opts.invert then return nil end
    key = table.concat(key, " ")
    if not kept[key] then
      local free = T.zeros { height, width }
      for _, b in ipairs(here) do free:slice(1, b[2] + 1, b[2] + b[4]):slice(2, b[1] + 1, b[1] + b[3]):fill_(1) end
      kept[key] = M.region(opts.invert and 1 - free or free, opts.feather)
    end
    return kept[key]
  end
end

-- An image of the film's size, white (from middle grey on) where pixels may change. nil and a message.
function M.image_region(path, width, height, opts)
  local image, message = media.load(path, { frames = 1 })
  if not image then return nil, message end
  local s = image.shape
  if s[3] ~= width or s[2] ~= height then
    return nil, ("%s is %dx%d, the film is %dx%d; a mask has the film's size"):format(path, s[3], s[2], width, height)
  end
  local free = ((video.luma(image:select(1, 1)) - 0.5) * 1e6 + 0.5):clamp(0, 1)
  if opts.invert then free = 1 - free end
  if free:amax() == 0 then
    return nil, ("%s marks nothing: what should change is %s"):format(path, opts.invert and "black" or "white")
  end
  return M.region(free, opts.feather)
end

-- ---- holding what is known --------------------------------------------------------------------------------------

-- sigma = strength first, then what lies below. At strength 1 the whole schedule.
function M.below(sigmas, strength)
  if strength >= 1 then return sigmas end
  local out = { strength }
  for _, s in ipairs(sigmas) do
    if s < strength then out[#out + 1] = s end
  end
  return out
end

-- A denoise(x, sigma) under which `known` [C, T, H, W] stays where mask [1, T, H, W] is 0. At each step x is put back there on
-- the path from known to noise, (1 - s) known + s n with one n (RePaint, arXiv 2201.09865, in flow form), and the estimate is
-- `known`. A mask in between is held while sigma / top is above it and free then (Differential Diffusion, arXiv 2306.00950):
-- the join keeps its layout and gets new detail. top: the first sigma.
function M.hold(denoise, model, known, mask, noise, top)
  known = known:contiguous()
  local binary = (mask * (1 - mask)):amax() == 0
  return function(x, sigma)
    local m = binary and mask or ((mask - sigma / top) * 1e6 + 1):clamp(0, 1)
    local kept = 1 - m
    return denoise(x * m + model:add_noise(known, noise, sigma) * kept, sigma) * m + known * kept
  end
end

-- [1, T, h, w] of frames' cells: a latent frame of which only some frames are free has their share.
local function mask_of(free, count, h, w, stride)
  local function cells(i)
    local f = free[math.min(i, #free)]
    return type(f) == "number" and T.full({ h, w }, f) or f
  end
  local list = { cells(1) }
  for t = 2, count do
    local sum
    for i = 2 + (t - 2) * stride, 1 + (t - 1) * stride do sum = sum and sum + cells(i) or cells(i) end
    list[t] = sum * (1 / stride)
  end
  return T.stack(list, 1):unsqueeze(1)
end

-- The first (and last) image for models that have an input for them; a failure where such a model needs one and has none.
local function conditions(job, model, shape, clip, first_known, last_known)
  local kind, net = model.image_input, model.dit
  if not kind then return nil end
  if kind == "channels" and not first_known then
    recipe.fail(("%s begins its films with an image, and here the first one is not known; give a text-to-video model")
      :format(model.name))
  end
  if not first_known then return nil end
  local positions = net.image and net.image.position
  local last = kind == "channels" and last_known and (positions or not net.image) and clip:slice(1, -1, -1):contiguous() or nil
  if positions and not last then
    recipe.fail(("%s goes from a first image to a last one, and here the last one is not known"):format(model.name))
  end
  return job:conditions(model, shape, clip:slice(1, 1, 1):contiguous(), last)
end

local LATENT = { clip = true, free = true, texts = true, strength = true, label = true, stream = true }

-- One chunk. clip: frames [N, h, w, 3] at the fit's size (their last is repeated up to the model's grid); free: for each of
-- them 1, 0 or cells [h, w]; texts, strength, label, stream.
function M.latent(job, model, opts)
  lib.check_options("edit.latent", opts, LATENT)
  local clip, free, p = opts.clip, opts.free, job.params
  local n, stride, s = clip.shape[1], model.stride[1], clip.shape
  local want = { frames = 1 + math.ceil((n - 1) / stride) * stride, width = s[3], height = s[2] }
  local shape = job:check(model:latent_shape(want))
  want.frames = model:frame_count(shape[2])
  job:budget(model, shape)
  if want.frames > n then clip = clip:pad(1, 0, want.frames - n, "edge") end
  local strength = opts.strength or 1
  local mask = mask_of(free, shape[2], shape[3], shape[4], stride)
  local held = mask:amin() < 1
  local sigmas = M.below(job:sigmas(model, setmetatable(want, { __index = p })), strength)
  local noise = job:noise(shape, opts.stream)
  local texts = {}
  for key, value in pairs(opts.texts) do texts[key] = value end
  texts.condition = conditions(job, model, shape, clip, free[1] == 0, free[#free] == 0)
  local denoise, start, known = job:guide(model, texts), noise, nil
  if held or strength < 1 then known = model:encode_video(clip) end
  if strength < 1 then start = model:add_noise(known, noise, sigmas[1]) end
  if held then denoise = M.hold(denoise, model, known, mask, noise, sigmas[1]) end
  local latent = job:sample(p.sampler, denoise, start, sigmas, { label = opts.label, stream = opts.stream })
  if not held then return latent end
  local m = (mask * 1e6):clamp(0, 1)
  return latent * m + known * (1 - m)
end

-- Its frames, which are numbers.
function M.decode(model, latent, label)
  local frames = model:decode(latent)
  if frames:nonfinite() > 0 then
    recipe.fail((label or "a chunk") .. " holds values that are no numbers; another sampler, shift or precision may help")
  end
  return frames
end

-- ---- seams ------------------------------------------------------------------------------------------------------

-- How much larger the differences between neighbours are at joints than elsewhere in a list of frames: the largest one over
-- the largest of the others. joints[i]: one is between frames i and i + 1. Also both differences (mean over pixels).
function M.seam(frames, joints)
  local seam, other = 0, 0
  for i = 1, #frames - 1 do
    local d = (video.floats(frames[i + 1]) - video.floats(frames[i])):abs():mean()
    if joints[i] then seam = math.max(seam, d) else other = math.max(other, d) end
  end
  return seam / math.max(other, 1e-4), seam, other
end

-- ---- recipes ----------------------------------------------------------------------------------------------------

-- What the recipes begin with: model, source and fit of p.video and p.work.
function M.begin(job)
  local model = job:load()
  require("melies.style").use(job, model)
  local p = job:defaults(model)
  p.fps = p.fps or model.defaults.fps
  local source = M.open(job, p.video)
  return model, source, job:check(M.fit(model, source.width, source.height, p.work))
end

-- Frames of next_frame() to the job's output, as longform.write does it; a size that the format cannot have is padded.
-- opts: sound, a source that the film lasts as long as (or longer: silence follows): its sound goes with it; what media.writer
-- takes.
function M.write(job, next_frame, opts)
  local settings, sound = { pad = true }, opts and opts.sound
  for key, value in pairs(opts or {}) do settings[key] = value end
  settings.sound = nil
  if sound and sound.info.has_audio and job.output then
    if media.holds_sound(job.output) then settings.audio = sound.path
    else job:notice("%s: this format holds no sound; MP4 and WebM do", job.output) end
  end
  return require("melies.longform").write(job, next_frame, settings)
end

-- ---- films ------------------------------------------------------------------------------------------------------

local FRAMES = { texts = true, change = true, strength = true, window = true, overlap = true, fit = true }

-- opts: texts (job:texts); change(i) -> false (frame i stays), true (it is made anew), or a region; strength, window (frames),
-- overlap (latent frames of a chunk that are known from the one before), fit.
function M.frames(job, model, source, opts)
  lib.check_options("edit.frames", opts, FRAMES)
  local stride, fit = model.stride[1], opts.fit
  local window = opts.window or model.defaults.frames
  window = 1 + math.max(1, math.ceil((window - 1) / stride)) * stride
  local overlap = 1 + ((opts.overlap or 2) - 1) * stride
  if overlap >= window then
    recipe.fail(("chunks of %d frames cannot share %d latent frames, which are %d"):format(window, opts.overlap or 2, overlap))
  end
  local cells = setmetatable({}, { __mode = "k" })
  local before, ready, at, index, chunk = {}, {}, 0, 0, 0

  -- Known frames in front: as many as fit, on the model's grid, so that what changes begins with a latent of its own.
  local function head_of(changing)
    local room = changing > window - 2 and overlap or math.max(1, math.floor((window - changing) / 2))
    room = math.min(room, #before)
    return room < 1 and 0 or 1 + math.floor((room - 1) / stride) * stride
  end

  local function render(first)
    chunk = chunk + 1
    local changing = 1
    for i = 2, window do
      if opts.change(index + i) then changing = i end
    end
    local head = head_of(changing)
    local clip, free, old, what = {}, {}, {}, {}
    for i = #before - head + 1, #before do clip[#clip + 1], free[#free + 1] = fit.to(before[i]), 0 end
    local frame, count = first, 0
    while frame do
      count = count + 1
      local region = opts.change(index + count) or false
      old[count], what[count], clip[#clip + 1] = frame, region, fit.to(frame)
      if region and region ~= true then
        cells[region] = cells[region] or fit.cells(region.free)
        free[#free + 1] = cells[region]
      else free[#free + 1] = region and 1 or 0 end
      frame = #clip < window and source.next() or nil
    end
    local label = ("chunk %d"):format(chunk)
    local frames = M.decode(model, M.latent(job, model, { clip = T.stack(clip, 1), free = free, texts = opts.texts,
      strength = opts.strength, label = label, stream = chunk }), label)
    ready, at = {}, 0
    for i = 1, count do
      local out = old[i]
      if what[i] then
        out = fit.from(frames:select(1, head + i))
        if what[i] ~= true then out = M.compose(old[i], out, what[i]) end
      end
      ready[i] = out
    end
    index = index + count
  end

  return function()
    local out
    if at < #ready then
      at = at + 1
      out, ready[at] = ready[at], false
    else
      local frame = source.next()
      if not frame then return nil end
      if opts.change(index + 1) then
        render(frame)
        lib.tidy()
        out, at = ready[1], 1
      else
        index, out = index + 1, frame
      end
    end
    before[#before + 1] = out
    if #before > window then table.remove(before, 1) end
    return video.floats(out)
  end
end

return M
