-- Captioned clips as a LoRA is trained on them: latents of a model, computed once and kept beside the training.
--
--   clips.open(folder, { model =, work =, ... }) -> set | nil, message
--     folder   what `melies data ingest` wrote, or a folder of films with captions, which are ingested into
--              work/clips-WIDTHxHEIGHTxFRAMES: all of them, end to end: a folder that was picked by hand wants no filters
--     model    a pipeline's model; its autoencoder makes the latents, its defaults say size, length and rate
--     work     a folder for clips and latents
--     width, height, frames, fps, captions (FILE.jsonl)   of films that are ingested
--     caption  of clips that have none; trigger: words put before every caption
--     progress function(done, all), notice: function(text)
--   set.count, set.captions[i], set.sources[i], set.identity, set.frames, set.size
--   set:latent(i)                  f32 [C, T, H, W]
--   set:split(part, seed)          -> { numbers to train on }, { numbers held out }: whole films where there are several
local cache = require "melies.cache"
local data = require "melies.data"
local fs = require "melies.fs"
local lib = require "melies.ffi.lib"
local media = require "melies.media"
local tensor = require "melies.tensor"
local weights = require "melies.weights"

local M = {}
local Set = {}
Set.__index = Set

local CHUNK = 32 -- latents of a file

local known = { model = true, work = true, width = true, height = true, frames = true, fps = true, captions = true,
  caption = true, trigger = true, progress = true, notice = true }

-- The folder of clips that is meant, made from films where it is none yet.
local function ingested(folder, o)
  if fs.stat(folder .. "/settings.json") then
    for _, name in ipairs { "width", "height", "frames", "fps", "captions" } do
      if o[name] then
        return nil, ("%s: holds clips that are ingested; --%s is for a folder of films"):format(folder, name)
      end
    end
    return folder
  end
  local d = o.model.defaults
  local p = { width = o.width or d.width, height = o.height or d.height, frames = o.frames or d.frames,
    fps = o.fps or d.fps }
  local out = ("%s/clips-%dx%dx%d-%g"):format(o.work, p.width, p.height, p.frames, p.fps)
  local report, message = data.ingest(folder, out, { width = p.width, height = p.height, frames = p.frames, fps = p.fps,
    captions = o.captions, uncaptioned = o.caption ~= nil, min_motion = 0, max_motion = 1, min_sharpness = 0,
    min_light = 0, duplicates = -1, cut = 1 })
  if not report then
    return nil, (message:gsub("%-%-caption%-command or %-%-uncaptioned", "--caption TEXT for all that have none"))
  end
  local lost = report.dropped["no caption"]
  if lost and o.notice then
    o.notice(("%d clip%s without a caption left out (--caption TEXT is for these)"):format(lost, lost == 1 and "" or "s"))
  end
  return out
end

-- Every clip has a caption, or all that have none get one.
local function captioned(self, clips, o)
  local without = {}
  for i = 1, clips.count do
    local line = clips.clips[i]
    local caption = line.caption or ""
    if not caption:find "%S" then
      without[#without + 1] = ("%s at %.1f s"):format(line.file or line.name, line.start or 0)
      caption = o.caption or ""
    end
    if o.trigger and o.trigger ~= "" then caption = o.trigger .. (caption ~= "" and ", " .. caption or "") end
    self.captions[i], self.sources[i] = caption, line.source or i
  end
  if #without > 0 and not o.caption then
    return nil, ("%s: %d of %d clips have no caption (%s%s); --caption TEXT is for these"):format(clips.folder, #without,
      clips.count, without[1], #without > 1 and " ..." or "")
  end
  return true
end

-- The latent of clip i, from its frames where the folder holds these.
local function encode(o, clips, i)
  local x, line = clips:get(i)
  if not x then return nil, line end
  if line.kind == "latent" then return x:to("f32"):contiguous() end
  local frames = x.shape[1]
  if (frames - 1) % o.model.stride[1] ~= 0 then
    return nil, ("%s: clip %d has %d frames; %s makes %s"):format(clips.folder, i, frames, o.model.name, o.model.frame_grid)
  end
  local fits, message = o.model:latent_shape { frames = frames, height = x.shape[2], width = x.shape[3] }
  if not fits then return nil, ("%s: clip %d: %s"):format(clips.folder, i, message) end
  return o.model.autoencoder:encode(media.to_f32(x)):to("f32"):contiguous()
end

function M.open(folder, o)
  lib.check_options("lora.clips", o, known, 2)
  folder = folder:gsub("(.)/+$", "%1")
  local where, message = ingested(folder, o)
  if not where then return nil, message end
  local clips
  clips, message = data.open(where)
  if not clips then return nil, message end
  if clips.count == 0 then return nil, where .. ": holds no clips" end
  local self = setmetatable({ folder = where, count = clips.count, captions = {}, sources = {}, latents = {} }, Set)
  local ok
  ok, message = captioned(self, clips, o)
  if not ok then return nil, message end
  local files, from = o.model.sources.autoencoder.weights:files(), clips.settings.model
  local who = { model = files and cache.identity(files) or o.model.name, config = o.model.config.autoencoder, lines = {} }
  for i, line in ipairs(clips.clips) do
    if line.kind == "latent" and from and from ~= o.model.name and from ~= o.model.folder then
      return nil, ("%s: holds latents of %s; for %s ingest the films without --model"):format(where, tostring(from),
        o.model.name)
    end
    who.lines[i] = { line.source, line.start, line.frames, line.width, line.height, line.kind }
  end
  self.identity = cache.hash { who.lines, self.captions, who.model }
  local key = cache.hash { who.lines, who.model, who.config }
  for first = 1, clips.count, CHUNK do
    local last = math.min(first + CHUNK - 1, clips.count)
    local path = ("%s/latents-%04d.safetensors"):format(o.work, math.ceil(first / CHUNK))
    local file = fs.stat(path) and weights.open(path)
    if not (file and file.metadata["melies.clips"] == key and file:has(tostring(last))) then
      local made = {}
      for i = first, last do
        if lib.C.mel_canceled() then lib.raise(lib.ECANCELED) end
        made[tostring(i)], message = encode(o, clips, i)
        if not made[tostring(i)] then return nil, message end
        if o.progress then o.progress(i, clips.count) end
      end
      ok, message = weights.save(path, made, { ["melies.clips"] = key })
      if not ok then return nil, message end
      file, message = weights.open(path)
      if not file then return nil, message end
    end
    for i = first, last do self.latents[i] = file:get(tostring(i)) end
  end
  local shape = self.latents[1].shape
  for i = 2, self.count do
    for axis = 1, 4 do
      if self.latents[i].shape[axis] ~= shape[axis] then
        return nil, ("%s: clip %d is %s, the first %s; clips of one size are wanted"):format(where, i,
          self.latents[i]:shape_text(), self.latents[1]:shape_text())
      end
    end
  end
  if shape[1] ~= o.model.latent_channels then
    return nil, ("%s: the latents have %d channels, %s takes %d"):format(where, shape[1], o.model.name,
      o.model.latent_channels)
  end
  self.shape = shape
  return self
end

function Set:latent(i) return self.latents[i] end

-- A permutation of 1 to n.
function M.shuffled(n, seed, stream)
  local order, u = {}, tensor.uniform({ n }, { seed = seed, stream = stream })
  for i = 1, n do order[i] = i end
  for i = n, 2, -1 do
    local j = 1 + math.floor(u:get(i) * i)
    order[i], order[j] = order[j], order[i]
  end
  return order
end

local SPLIT_STREAM = 2 ^ 42

function Set:split(part, seed)
  local wanted = math.floor(self.count * part + 0.5)
  if part > 0 and self.count >= 4 then wanted = math.max(1, wanted) end
  wanted = math.min(wanted, self.count - 1)
  local groups, by_source = {}, {}
  for i = 1, self.count do
    local source = self.sources[i]
    if not by_source[source] then
      by_source[source] = {}
      groups[#groups + 1] = by_source[source]
    end
    table.insert(by_source[source], i)
  end
  if #groups < 4 then
    groups = {}
    for i = 1, self.count do groups[i] = { i } end
  end
  local held, taken = {}, {}
  for _, g in ipairs(M.shuffled(#groups, seed or 0, SPLIT_STREAM)) do
    if #held + #groups[g] <= wanted then
      for _, i in ipairs(groups[g]) do
        held[#held + 1] = i
        taken[i] = true
      end
    end
  end
  table.sort(held)
  local rest = {}
  for i = 1, self.count do
    if not taken[i] then rest[#rest + 1] = i end
  end
  return rest, held
end

return M
