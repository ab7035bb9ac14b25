-- melies-api: 1
-- A film made longer: its frames as they are, with new ones that go on from its last, or that lead to its first.
local melies = require "melies"
local T, video = melies.tensor, melies.video

local function frames_in(p) return math.max(1, math.floor(p.seconds * p.fps + 0.5)) end

-- Latents of what comes before, the earliest first, and how many frames of each are wanted; `first`: the film's first
-- frames. Chunk after chunk towards the beginning: each ends with what the one after it begins with.
local function backward(job, model, texts, first, fit)
  local p, stride = job.params, model.stride[1]
  local known, rest, latents, number = p.overlap * stride, frames_in(p), {}, 0
  local window = 1 + math.ceil(((p.window or model.defaults.frames) - 1) / stride) * stride
  if known >= window then
    melies.recipe.fail(("chunks of %d frames cannot share %d latent frames, which are %d"):format(window, p.overlap, known))
  end
  while #first < known do first[#first + 1] = first[#first] end
  while rest > 0 do
    number = number + 1
    local count = math.min(window, 1 + math.ceil((rest + known - 1) / stride) * stride)
    local clip, free = {}, {}
    for i = 1, count do
      local back = i - (count - known)
      clip[i], free[i] = first[math.max(1, back)], back < 1 and 1 or 0
    end
    local label = ("before %d"):format(number)
    local latent = melies.edit.latent(job, model, { clip = T.stack(clip, 1), free = free, texts = texts, label = label,
      stream = 1000 + number })
    local new = count - known
    table.insert(latents, 1, { latent = latent, from = math.max(0, new - rest), new = new, label = label })
    rest = rest - new
    if rest > 0 then
      local frames = melies.edit.decode(model, latent, label)
      for i = 1, known do first[i] = frames:select(1, i):clone() end
    end
  end
  local part, at, frames = 0, 0, nil
  return function()
    if not frames or at == latents[part].new then
      part = part + 1
      if not latents[part] then return nil end
      frames, at = melies.edit.decode(model, latents[part].latent, latents[part].label), latents[part].from
      latents[part].latent = nil
    end
    at = at + 1
    return fit.from(frames:select(1, at))
  end
end

return {
  kind = "recipe", name = "extend", help = "A film goes on after its end, or begins earlier.",
  params = melies.edit.params {
    prompt = { "text", required = true, help = "what happens" },
    seconds = { "seconds", default = 2, min = 0.01, max = 3600, help = "how much is added (on each side)" },
    direction = { "enum", choices = { "forward", "backward", "both" }, default = "forward", help = "after it, or before it" },
    overlap = { "integer", default = 1, min = 1, max = 100, help = "latent frames that new chunks begin or end with" },
    anchor = { "number", default = 0.5, min = 0, max = 1, help = "how much the colours of the beginning hold after it; 0: none" },
    strength = false,
  },
  order = { "video", "prompt", "seconds", "direction", unpack(melies.edit.order) },
  run = function(p, job)
    local model, source, fit = melies.edit.begin(job)
    local stride = model.stride[1]
    local texts = job:texts(model)
    local before, after
    local start, tail, keep = {}, {}, 1 + (p.overlap - 1) * stride
    if p.direction ~= "forward" then
      while #start < p.overlap * stride do
        local frame = source.next()
        if not frame then break end
        start[#start + 1] = frame
      end
      local first = {}
      for i, frame in ipairs(start) do first[i] = fit.to(frame) end
      if #first > 0 then before = backward(job, model, texts, first, fit) end
    end
    return melies.edit.write(job, function()
      local frame = before and before()
      if frame then return frame end
      before = nil
      if not after then
        frame = table.remove(start, 1) or source.next()
        if frame then
          tail[#tail + 1] = frame
          if #tail > keep then table.remove(tail, 1) end
          return video.floats(frame)
        end
        if p.direction == "backward" then return nil end
        if #tail == 0 then melies.recipe.fail(p.video .. ": there are no frames") end
        local known = {}
        for i, each in ipairs(tail) do known[i] = fit.to(each) end
        after = melies.longform.frames(job, model, { texts = texts, overlap = p.overlap, anchor = p.anchor,
          window = p.window, width = fit.width, height = fit.height, frames = frames_in(p),
          known = T.stack(#known == keep and known or { known[#known] }, 1) })
      end
      frame = after()
      return frame and fit.from(frame)
    end, p.direction == "forward" and { sound = source } or nil)
  end,
}
