-- melies-api: 1
-- A film without a seam. From a prompt: one latent that is a ring in time; before every step it is turned, so that each place
-- of it is once the beginning (Mobius, arXiv 2502.20307). From a film: frames are added (or its last ones made anew) that
-- lead from its end to its beginning; both ends are held while the join is sampled.
local melies = require "melies"
local T, edit, recipe = melies.tensor, melies.edit, melies.recipe

-- ---- a ring -------------------------------------------------------------------------------------------------------

-- denoise of a ring x [C, L, h, w] by a denoiser of L + 1 latent frames. Autoencoders make the first latent of one frame and
-- the others of several: so what the model sees begins with the ring's last one again, and its estimate there is left out.
local function around(denoise, length)
  local hop, turn = math.max(1, math.floor(length * 0.382 + 0.5)), 0
  local function rolled(x, by)
    by = by % length
    if by == 0 then return x end
    return T.concat({ x:slice(2, by + 1, length), x:slice(2, 1, by) }, 2)
  end
  return function(x, sigma)
    local turned = rolled(x, turn)
    local x0 = denoise(T.concat({ turned:slice(2, length, length), turned }, 2), sigma)
    local out = rolled(x0:slice(2, 2, length + 1):contiguous(), length - turn)
    turn = (turn + hop) % length
    return out
  end
end

local WARM = 2 -- latent frames in front that a decoder of causal convolutions wants

local function ring(job, model)
  local p, stride = job.params, model.stride[1]
  if model.image_input == "channels" then
    recipe.fail(model.name .. " begins its films with an image; a loop from a prompt wants a text-to-video model")
  end
  local frames = p.frames
  local shape = job:check(model:latent_shape { frames = frames + 1, width = p.width, height = p.height })
  job:budget(model, shape)
  local length = shape[2] - 1
  if length < 2 then recipe.fail(("a loop of %d frames is too short for %s"):format(frames, model.name)) end
  p.frames = length * stride
  if frames ~= p.frames then
    job:notice("%d frames are rounded to %d: loops of this model have %dk frames", frames, p.frames, stride)
  end
  local texts, warm = job:texts(model), math.min(WARM, length)
  return function(try)
    local noise = job:noise({ shape[1], length, shape[3], shape[4] }, try)
    local latent = job:sample(p.sampler, around(job:guide(model, texts), length), noise, job:sigmas(model),
      { label = ("ring %d"):format(try), stream = try })
    local decoded = edit.decode(model, T.concat({ latent:slice(2, length - warm + 1, length), latent }, 2))
    local list, from = {}, decoded.shape[1] - p.frames
    for i = 1, p.frames do list[i] = decoded:select(1, from + i) end
    local circle = { unpack(list) }
    circle[#circle + 1] = list[1]
    return list, circle, { [#list] = true }
  end
end

-- ---- a film that becomes one ---------------------------------------------------------------------------------------

-- head: the film's last frames that stay; start: its first frames; the join of `count` frames is between them.
local function join(job, model, fit, head, start, count)
  local p, texts = job.params, job:texts(model)
  local clip, free = {}, {}
  for _, frame in ipairs(head) do clip[#clip + 1], free[#free + 1] = fit.to(frame), 0 end
  local a, b = clip[#clip], fit.to(start[1])
  for i = 1, count do
    clip[#clip + 1], free[#free + 1] = a + (b - a) * (i / (count + 1)), 1
  end
  for _, frame in ipairs(start) do clip[#clip + 1], free[#free + 1] = fit.to(frame), 0 end
  clip = T.stack(clip, 1)
  return function(try)
    local decoded = edit.decode(model, edit.latent(job, model, { clip = clip, free = free, texts = texts,
      strength = p.strength, label = ("join %d"):format(try), stream = try }))
    local list, all = {}, {}
    for i = 1, count do list[i] = fit.from(decoded:select(1, #head + i)) end
    for _, part in ipairs { head, list, start } do
      for _, frame in ipairs(part) do all[#all + 1] = frame end
    end
    return list, all, { [#head] = true, [#head + count] = true }
  end
end

-- The frames of the attempt with the smallest seam.
local function best_of(job, render)
  local best, least
  for try = 1, job.params.tries do
    local list, all, joints = render(try)
    local ratio, seam, other = edit.seam(all, joints)
    local passed = ratio <= 1
    job:notice("attempt %d of %d: the seam's difference is %.4f, the largest beside it %.4f%s", try, job.params.tries, seam,
      other, passed and "" or ": it shows")
    if not best or ratio < least then best, least = list, ratio end
    if passed then break end
  end
  return best
end

return {
  kind = "recipe", name = "loop", help = "A film that flows from its end into its beginning.",
  params = edit.params {
    video = { "video", help = "a film to make a loop of (default: one is made from the prompt)" },
    frames = { "integer", from_model = true, min = 4, max = 100000, help = "length of a loop from a prompt" },
    size = { "size", min = 8, max = 8192, help = "of a loop from a prompt" },
    fps = { "number", from_model = true, min = 0.1, max = 240, help = "of a loop from a prompt" },
    width = { "integer", from_model = true, min = 8, max = 8192, help = "pixels" },
    height = { "integer", from_model = true, min = 8, max = 8192, help = "pixels" },
    seconds = { "seconds", min = 0.01, max = 3600, help = "length of a loop from a prompt, or of the join" },
    keep_length = { "boolean", default = false, help = "the join takes the place of the film's last frames" },
    overlap = { "integer", default = 1, min = 1, max = 100, help = "latent frames of either end that are held" },
    tries = { "integer", default = 3, min = 1, max = 100, help = "attempts at a join without a seam" },
    window = false,
  },
  order = { "prompt", "video", "frames", "seconds", "keep_length", "tries", unpack(edit.order) },
  run = function(p, job)
    if not p.video then
      local model = job:load()
      local seconds = p.seconds
      p.seconds = nil
      job:defaults(model)
      if seconds then p.frames = math.max(1, math.floor(seconds * p.fps + 0.5)) end
      local list = best_of(job, ring(job, model))
      return edit.write(job, melies.pass.stream(list))
    end
    local model, source, fit
    local seconds = p.seconds
    p.frames, p.fps, p.width, p.height, p.size, p.seconds = nil, nil, nil, nil, nil, nil
    model, source, fit = edit.begin(job)
    local stride = model.stride[1]
    local known, held = p.overlap * stride, 1 + p.overlap * stride
    local count = seconds and math.max(1, math.floor(seconds * source.fps / stride + 0.5)) * stride
      or math.max(stride, 1 + math.ceil((model.defaults.frames - 1) / stride) * stride - known - held)
    p.frames, p.seconds = count, seconds
    local start, tail, ready, cut = {}, {}, nil, p.keep_length and count or 0
    return edit.write(job, function()
      while not ready do
        local frame = source.next()
        if frame then
          if #start < known then start[#start + 1] = frame end
          tail[#tail + 1] = frame
          if #tail > held + cut then return melies.video.floats(table.remove(tail, 1)) end
        else
          if #tail <= cut then
            recipe.fail(("%s has %d frames; a join of %d takes the place of all of them: give fewer --seconds, or "
              .. "leave --keep_length out"):format(p.video, #tail, cut))
          end
          for _ = 1, cut do tail[#tail] = nil end
          while #start < known do start[#start + 1] = start[#start] end
          local head, from = {}, #tail - math.floor((#tail - 1) / stride) * stride
          for i = from, #tail do head[#head + 1] = tail[i] end
          ready = {}
          for _, each in ipairs(tail) do ready[#ready + 1] = melies.video.floats(each) end
          for _, each in ipairs(best_of(job, join(job, model, fit, head, start, count))) do ready[#ready + 1] = each end
        end
      end
      return table.remove(ready, 1)
    end)
  end,
}
