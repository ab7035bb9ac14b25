-- melies-api: 1
-- Measures what a model of the starter's world learnt: films of held-out prompts, read by the probe and compared with what
-- the prompts say. Docs: docs/training.md. Ended in the middle, the same command goes on.
local melies = require "melies"

local here = debug.getinfo(1, "S").source:match "^@(.*)/[^/]*$" or "."
local function part(name) return dofile(here .. "/starter/" .. name .. ".lua") end

-- A clip as one image, frame beside frame, and back.
local function strip(frames)
  local t, h, w = frames.shape[1], frames.shape[2], frames.shape[3]
  return frames:permute(2, 1, 3, 4):contiguous():reshape(h, t * w, 3)
end
local function unstrip(image, count)
  local h, w = image.shape[1], image.shape[2] / count
  return image:reshape(h, count, w, 3):permute(2, 1, 3, 4):contiguous()
end

-- Everything that the clips in the folder depend on, as texts.
local function identity(job, model, p)
  local out = { prompts = melies.cache.hash(job:check(melies.fs.read(p.prompts))), seed = ("%.0f"):format(job.seed) }
  for _, name in ipairs { "text_encoder", "dit", "autoencoder" } do
    local files = model.sources[name].weights:files()
    out[name] = files and job:check(melies.cache.identity(files)) or "unknown"
  end
  for _, name in ipairs { "steps", "guidance", "frames", "width", "height", "few_steps", "sampler" } do
    out[name] = tostring(p[name])
  end
  return out
end

-- Refuses a folder whose clips were made otherwise.
local function agree(job, folder, now)
  local path = folder .. "/run.json"
  if melies.fs.stat(path) then
    local before, message = melies.json.read(path)
    job:check(before, message)
    local wrong = {}
    for name, value in pairs(now) do
      if before[name] ~= value then
        wrong[#wrong + 1] = #value > 40 and name or ("%s was %s, is %s"):format(name, tostring(before[name]), value)
      end
    end
    table.sort(wrong)
    job:check(#wrong == 0, ("%s: its clips were made otherwise (%s); name another folder"):format(folder,
      table.concat(wrong, ", ")))
  end
  job:check(melies.fs.write(path, melies.json.encode(now)))
end

-- Attributes that a prompt leaves open are the usual ones.
local usual = { texture = "plain", size = "medium", motion = "still", camera = "still", light = "day",
  style = "realistic", colour = "red", place = "meadow", relation = "none" }

-- What the prompts ask for as the world draws it, and the same through the model's autoencoder.
local function ceilings(job, model, world, measure, score, entries, p)
  local count = math.min(p.ceiling, #entries)
  local drawn, coded = {}, {}
  local stage = count > 0 and job:progress("reading what the world draws", count)
  for i = 1, count do
    local a = setmetatable({}, { __index = usual })
    for name, value in pairs(entries[i].says) do a[name] = value end
    local frames = world.render(a, { seed = 77, index = i, width = p.width, height = p.height, frames = p.frames })
    drawn[i] = measure({ says = entries[i].says }, frames)
    local latent = model.autoencoder:encode(melies.media.to_f32(frames))
    coded[i] = measure({ says = entries[i].says }, model:decode(latent))
    stage:step(i)
    job:check_cancel()
  end
  job:end_stage()
  if count == 0 then return {} end
  return { { name = "as drawn", figures = score.figures(drawn) },
    { name = "drawn, through the autoencoder", figures = score.figures(coded) } }
end

return {
  kind = "recipe", name = "starter_report", help = "Films of held-out prompts, and how many of them show what was asked.",
  params = {
    model = { "model", default = "starter", help = "a model of the starter's world: its name or folder" },
    output = { "string", required = true, short = "o", help = "folder of the report; clips there are not made again" },
    prompts = { "file", default = here .. "/starter/heldout.txt", help = "a prompt a line, a tab, name=value ..." },
    count = { "integer", default = 300, min = 1, max = 1e5, help = "how many of the prompts" },
    steps = { "integer", from_model = true, min = 1, max = 1000, help = "sampling steps" },
    few_steps = { "boolean", default = false, help = "the model's variant for few steps" },
    guidance = { "number", from_model = true, min = 0, max = 100, help = "how strongly the prompt steers" },
    sampler = { "sampler", from_model = true, help = "melies list samplers" },
    probe = { "file", default = here .. "/starter/probe.safetensors", help = "what melies run train_probe wrote" },
    ceiling = { "integer", default = 100, min = 0, max = 1e5,
      help = "so many prompts are also drawn by the world itself and read, with and without the autoencoder" },
  },
  order = { "model", "output", "count", "steps", "few_steps", "guidance", "sampler", "prompts", "probe", "ceiling" },
  run = function(p, job)
    local world, probe = part "world/init", part "report/probe"
    local score, page = part "report/score", part "report/page"
    local net = job:check(probe.load(p.probe, world.words))
    local pixels = part("report/pixels").new(world, probe)
    local function measure(clip, frames)
      local reads, where = net:read(frames)
      clip.read = {}
      for name, read in pairs(reads) do clip.read[name] = { value = read.value, p = read.p } end
      clip.second = pixels:measure(frames, where, clip.says, reads.light.value)
      return clip
    end
    local entries = job:check(world.read_heldout(p.prompts))
    job:check(#entries > 0, p.prompts .. ": no prompts with a tab and what they say")
    for i = #entries, p.count + 1, -1 do entries[i] = nil end
    local maker = job:check(melies.recipe.find "text_to_video")
    local model = job:load()
    local d = model.defaults
    job:defaults(model)
    p.frames, p.width, p.height = d.frames, d.width, d.height
    job:check(melies.fs.make(p.output .. "/clips"))
    agree(job, p.output, identity(job, model, p))

    local report = { model = model.name, steps = p.steps, few_steps = p.few_steps, guidance = p.guidance, seed = job.seed,
      frames = p.frames, width = p.width, height = p.height, clips = {} }
    local stage, begun, made = job:progress("films", #entries), melies.seconds(), 0
    for i, entry in ipairs(entries) do
      local clip = { number = i, prompt = entry.prompt, says = entry.says, file = ("clips/%04d.png"):format(i) }
      local path = p.output .. "/" .. clip.file
      local image = melies.fs.stat(path) and melies.media.image(path)
      if not image then
        local frames, message, code = melies.recipe.call(maker, { prompt = entry.prompt, model = p.model, seed = job.seed + i,
          steps = p.steps, guidance = p.guidance, sampler = p.sampler, few_steps = p.few_steps, truncate = true },
          { progress = false, notice = function() end })
        if not frames then melies.recipe.fail(message, code) end
        image = strip(frames.dtype == "u8" and frames or melies.media.to_u8(frames))
        job:check(melies.media.save_image(path, image))
        made = made + 1
      end
      measure(clip, unstrip(image, p.frames))
      report.clips[i] = clip
      stage:step(i)
    end
    job:end_stage()
    if made > 0 then report.seconds_a_film = (melies.seconds() - begun) / made end
    report.figures = score.figures(report.clips)
    report.ceilings = ceilings(job, model, world, measure, score, entries, p)
    report.bars = score.bars

    local function list_of(name) return probe.names(world.words, name) end
    local text = page.markdown(report, score, list_of)
    job:check(melies.fs.write(p.output .. "/report.md", text))
    job:check(melies.fs.write(p.output .. "/report.html", page.html(report, score, list_of)))
    job:check(melies.fs.write(p.output .. "/report.json", melies.json.encode(report)))
    for first = 1, #report.clips, 30 do
      local some = {}
      for i = first, math.min(first + 29, #report.clips) do
        local clip = setmetatable({}, { __index = report.clips[i] })
        clip.frames = unstrip(job:check(melies.media.image(p.output .. "/" .. clip.file)), p.frames)
        some[#some + 1] = clip
      end
      job:check(melies.media.save_image(("%s/sheet-%02d.jpg"):format(p.output, (first + 29) / 30),
        page.sheet(some, score), { quality = 90 }))
    end
    print(text:match "\n(|.-)\n\n" or text)
    return report
  end,
}
