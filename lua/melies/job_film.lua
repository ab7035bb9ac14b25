-- The end of a job's work: latents become frames, and frames go to the output while others are still to come.
-- Adds job:film and job:stream to the job of melies.job.
local recipe = require "melies.recipe"

-- Where a film's frames go: take(frames), and finish(), which returns all of them, or the output's path where the run
-- was told not to keep them (opts.keep = false, as the program does); then they are never all in memory.
local function outlet(job, opts)
  local writer = job:writer(opts)
  local keep, parts, count = not writer or job.opts.keep ~= false, {}, 0
  local function take(frames)
    if frames:nonfinite() > 0 then
      recipe.fail(("frames from %d on hold values that are no numbers; another sampler, shift or precision may help"):format(
        count + 1))
    end
    count = count + frames.shape[1]
    if writer then job:check(writer:write(frames)) end
    if keep then parts[#parts + 1] = frames end
  end
  return take, function()
    if writer then job:check(writer:finish()) end
    if not keep then return job.saved end
    return #parts == 1 and parts[1] or require("melies.tensor").concat(parts, 1)
  end, writer and " to " .. job.saved or ""
end

-- A latent as a film: each part of it goes to the job's output as soon as it is decoded. Returns the frames or the
-- output's path.
local function film(self, model, latent, opts)
  local streamed = self.streamed
  if streamed and rawequal(streamed.latent, latent) then return streamed.film end
  local take, finish, where = outlet(self, opts)
  local stage = self:progress("decoding" .. where, latent.shape[2])
  model:decode_stream(latent, function(frames, i)
    take(frames)
    stage:step(i)
  end, function(done, all)
    stage:step(math.floor((latent.shape[2] - 1) * done / all), ("tile %d of %d"):format(done, all))
  end)
  return finish()
end

-- The latent of a causal model (model.causal), block by block. Frames go to the output as blocks are finished, where
-- the memory plan lets transformer and decoder stay side by side: job:film then gives what came of them.
local function stream(self, model, texts, noise, sigmas)
  self:apply_loras(model)
  local tensor, text, p, plan = require "melies.tensor", texts.text, self.params, self.plan
  if not tensor.is(text) or (self.applied and self.applied.varies) then
    recipe.fail(("%s makes its frames block by block: prompts and LoRAs that change from step to step, and AND, are not "
      .. "for it"):format(model.name))
  end
  for name, idle in pairs { guidance = p.guidance ~= 1, step_cache = p.step_cache ~= nil,
    sampler = p.sampler ~= model.defaults.sampler } do
    if idle then self:notice("%s makes its frames block by block: --%s is left out", model.name, name) end
  end
  local live = not (plan and (plan.tile or plan.release))
  local take, finish, where, decoder
  if live then
    take, finish, where = outlet(self)
    decoder = model.autoencoder:decoder()
  end
  local steps = #sigmas - 1
  local blocks = math.ceil(noise.shape[2] / model.block_frames)
  local stage = self:progress(live and "sampling and decoding" .. where or "sampling", steps * blocks)
  local parts = {}
  for _, block in model:blocks(noise, sigmas, text, { seed = self.seed, step = function(number, step)
    self:check_cancel()
    stage:step((number - 1) * steps + step, ("block %d of %d"):format(number, blocks))
  end }) do
    parts[#parts + 1] = block
    for i = 1, live and block.shape[2] or 0 do
      local frames = decoder:push(block:slice(2, i, i))
      if frames.shape[1] > 0 then take(frames) end
      self:check_cancel()
    end
  end
  local latent = tensor.concat(parts, 2)
  if live then
    local rest = decoder.finish and decoder:finish()
    if rest and rest.shape[1] > 0 then take(rest) end
    self.streamed = { latent = latent, film = finish() }
  end
  return latent
end

return function(Job) Job.film, Job.stream = film, stream end
