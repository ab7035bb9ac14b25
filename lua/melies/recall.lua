-- What the shots of a film get from the project's memory and from each other: canonical descriptions, the same rows of text
-- for the same words, a picture of the place that the sampler leans on, the colours of a look.
--
--   recall.apply(job, board) -> notes             descriptions and pictures of the memory into the board; changes are told
--   recall.of(job, model, board, opts) -> recall  opts: shots (of melies.plan), work (the job's folder or nil), notes, likeness,
--                                                    casting: how much characters are drawn to their pictures
--     recall:rows(i, rows)            the shot's rows of text, those of remembered descriptions drawn to the memory's
--     recall:noise(i)                 { seed =, share = }: what shot i shares of its noise with the first of its place, or nil
--     recall:around(i)                function(denoise, shape) for melies.longform, or nil
--     recall:first(i)                 [1, H, W, 3] that shot i goes on from, for models with an input for an image; or nil
--     recall:look()                   { mean =, deviation = } in Lab of the remembered look, or nil
--   recall.fill(job, board, i, frames, source)    the memory gets what a finished shot shows
--
-- What comes from the memory is kept in the job's folder (memory.safetensors), so that a job that goes on later, or in
-- another process, sees what it saw at its beginning.
local fs = require "melies.fs"
local json = require "melies.json"
local T = require "melies.tensor"

local M = {}
local Recall = {}
Recall.__index = Recall

local WORDS = 0.5 -- how far rows of text are drawn to the remembered ones
local SHARE = 0.12 -- of the frame: a character of whom nothing else is known

-- ---- the board -------------------------------------------------------------------------------------

function M.apply(job, board)
  local bank, marked = require "melies.memory_bank", require("melies.plan.compose").marked
  local notes = bank.apply(board)
  for _, note in ipairs(notes) do
    local change = note.before ~= note.after and marked(note.before, note.after) or note.after
    job:notice("memory: %s is %s: %s", note.name, note.entry, change:sub(1, 160))
  end
  return notes
end

-- ---- what is taken along ----------------------------------------------------------------------------

local function picture(path, p)
  local image, message = require("melies.media").load(path, { width = p.width, height = p.height, frames = 1 })
  if not image then return nil, message end
  return image:select(1, 1):contiguous()
end

-- Tensors "place.NAME", "who.NAME" and "look" (u8 frames of the film's size), "words.NAME" (rows) and "share.NAME" (of the
-- frame, one number), and the words themselves.
local function gather(job, model, board, notes, casting)
  local bank, tensors, words = require "melies.memory_bank", {}, {}
  for name, who in pairs(casting > 0 and board.characters or {}) do
    if who.image then
      tensors["who." .. name] = job:check(picture(who.image, job.params))
      tensors["share." .. name] = T.full({ 1 }, SHARE)
    end
  end
  for name, place in pairs(board.places or {}) do
    if place.image then tensors["place." .. name] = job:check(picture(place.image, job.params)) end
  end
  for _, note in ipairs(notes or {}) do
    if note.kind == "look" then
      if note.image then tensors.look = job:check(picture(note.image, job.params)) end
    else
      local entry = bank.get(note.entry)
      local share = tensors["share." .. note.name]
      if share and entry and entry.size then share:fill_(entry.size.width * entry.size.height) end
      local rows = entry and entry.description == note.after and entry:embedding(model)
      if rows then tensors["words." .. note.name], words[note.name] = rows:contiguous(), note.after end
    end
  end
  return tensors, words
end

function M.of(job, model, board, opts)
  local self = setmetatable({ job = job, model = model, board = board, shots = opts.shots, likeness = opts.likeness,
    casting = opts.casting or 0, tensors = {}, words = {}, latents = {}, seen = {} }, Recall)
  local path = opts.work and opts.work.folder and opts.work.folder .. "/memory.safetensors"
  local file = path and fs.stat(path) and require("melies.weights").open(path)
  if file then
    for _, name in ipairs(file:names()) do self.tensors[name] = file:get(name):clone() end
    self.words = json.decode(file.metadata.words or "{}")
    file:close()
  elseif not job.opts.worker then
    self.tensors, self.words = gather(job, model, board, opts.notes, self.casting)
    if path and next(self.tensors) then
      job:check(require("melies.weights").save(path, self.tensors, { words = json.encode(self.words) }))
    end
  end
  for i, shot in ipairs(self.shots) do
    if shot.where and not self.seen[shot.where] then self.seen[shot.where] = i end
  end
  return self
end

-- ---- text ------------------------------------------------------------------------------------------

-- Where the ids of `part` begin in those of `whole`; nil where they do not stand in it in one piece.
local function span(whole, part)
  for at = 1, #whole - #part + 1 do
    local same = true
    for k = 1, #part do
      if whole[at + k - 1] ~= part[k] then same = false break end
    end
    if same then return at end
  end
end

function Recall:rows(i, rows)
  local model = self.model
  if not T.is(rows) or not model.tokenizer then return rows end
  local shot = self.shots[i]
  local ids = model:tokens(shot.text, { truncate = true })
  if not ids or #ids ~= rows.shape[1] then return rows end
  local names, out = { unpack(shot.who or {}) }, nil
  names[#names + 1] = shot.where
  for _, name in ipairs(names) do
    local kept = self.tensors["words." .. name]
    local part = kept and model.tokenizer:encode(self.words[name])
    if part and part[#part] == model.eos then part[#part] = nil end
    local at = part and #part > 0 and #part <= kept.shape[1] and span(ids, part)
    if at and kept.shape[2] == rows.shape[2] then
      out = out or rows:to("f32"):clone()
      local there = out:slice(1, at, at + #part - 1)
      there:copy_(there * (1 - WORDS) + kept:slice(1, 1, #part):to("f32") * WORDS)
    end
  end
  return out and out:to(rows.dtype) or rows
end

-- ---- places and looks --------------------------------------------------------------------------------

-- Shots of one place share a part of their noise, and so the layout of what is drawn from it. The first shot of a place has
-- its own noise, and one that goes on from the shot before needs no other's.
function Recall:noise(i)
  local shot = self.shots[i]
  local first = shot.where and self.seen[shot.where]
  if self.likeness == 0 or not first or first == i or shot.overlap then return nil end
  return { seed = self.shots[first].seed, share = self.likeness }
end

-- The latent of a still of two latent frames: causal autoencoders make the first frame another way than all others.
local function still(model, frame)
  local count = 1 + model.stride[1]
  local clip = require("melies.video").floats(frame):unsqueeze(1):expand { count, unpack(frame.shape) }
  return model:encode_video(clip:contiguous()):to("f32")
end

function Recall:first(i)
  local shot = self.shots[i]
  local kept = shot.where and not shot.overlap and self.tensors["place." .. shot.where]
  return self.model.image_input and kept and require("melies.media").to_f32(kept):unsqueeze(1) or nil
end

-- The latent of a picture of the memory, made once for all shots; nil where it has not the film's size.
local function latent_of(self, name, shape)
  local latent = self.latents[name] or still(self.model, self.tensors[name])
  self.latents[name] = latent
  return latent.shape[3] == shape[3] and latent.shape[4] == shape[4] and latent or nil
end

function Recall:around(i)
  local shot, list = self.shots[i], {}
  local place = shot.where and "place." .. shot.where
  if self.likeness > 0 and not shot.overlap and self.tensors[place] and not self:first(i) then
    list[1] = function(denoise, shape)
      local latent = latent_of(self, place, shape)
      return latent and require("melies.consistency").draw_to(denoise, latent, self.likeness) or denoise
    end
  end
  for _, name in ipairs(self.casting > 0 and shot.who or {}) do
    if self.tensors["who." .. name] then
      list[#list + 1] = function(denoise, shape)
        local latent = latent_of(self, "who." .. name, shape)
        return latent and require("melies.consistency").draw_subject(denoise, latent,
          self.tensors["share." .. name]:item(), self.casting) or denoise
      end
    end
  end
  return #list > 0 and function(denoise, shape)
    for _, fn in ipairs(list) do denoise = fn(denoise, shape) end
    return denoise
  end or nil
end

function Recall:look()
  if not self.tensors.look then return nil end
  local mean, deviation = require("melies.video").lab_stats(self.tensors.look)
  return { mean = mean, deviation = deviation }
end

-- ---- filling ---------------------------------------------------------------------------------------

function M.fill(job, board, i, frames, source)
  local names, message = require("melies.memory_bank").fill(board, i, frames, { source = source })
  if not names then
    job:notice("memory: shot %d is not remembered: %s", i, message)
    return
  end
  return names
end

return M
