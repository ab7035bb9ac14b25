-- melies-api: 1
-- Trains the probe that starter_report reads clips with, on rendered clips alone: docs/training.md. A run that was ended in
-- the middle goes on from its folder.
local melies = require "melies"
local grad = melies.grad

local here = debug.getinfo(1, "S").source:match "^@(.*)/[^/]*$" or "."
local TRAINED, CHECKED = 9001, 9002 -- seeds of clips; the starter's own are others
local MASK_SHARE = 0.3 -- of the loss for showing where the subject is

-- How often each attribute of `count` clips that were not trained on is read rightly; and the mean loss.
local function accuracy(job, probe, net, examples, world, count, spoil)
  local right, done = {}, 0
  for _, attribute in ipairs(probe.attributes) do right[attribute] = 0 end
  while done < count do
    job:check_cancel()
    local clips, wanted = {}, {}
    for i = 1, math.min(16, count - done) do
      local frames, _, attributes = examples.example(world, probe, CHECKED, done + i, { spoil = spoil })
      clips[i], wanted[i] = frames, attributes
    end
    for i, read in ipairs(net:read_all(clips)) do
      for _, attribute in ipairs(probe.attributes) do
        if read[attribute].value == wanted[i][attribute] then right[attribute] = right[attribute] + 1 end
      end
    end
    done = done + #clips
  end
  for attribute, n in pairs(right) do right[attribute] = n / count end
  return right
end

local function line_of(probe, right)
  local out = {}
  for _, attribute in ipairs(probe.attributes) do
    out[#out + 1] = ("%s %.1f%%"):format(attribute, 100 * right[attribute])
  end
  return table.concat(out, ", ")
end

-- Trains one part of the network, "moves" or "looks"; its weights, a moving average, as they will be on disk, and records.
local function train_part(job, p, part, probe, examples, world, params)
  local own, folder, steps, batch = {}, p.folder .. "/" .. part, p[part .. "_steps"], p[part .. "_batch"]
  for name, param in pairs(params) do
    if probe.part_of(name) == part then own[name] = param end
  end
  local net = probe.net(own, world.words)
  local watch = job:check(melies.train_watch.new { folder = folder, steps = steps, title = "Probe, " .. part,
    bar = job:progress("training the " .. part, steps) })
  local run, message = melies.train.new {
    params = own, steps = steps, lr = p.lr, schedule = "cosine", warmup = math.min(30, steps / 4), clip = 1,
    optimiser = melies.muon.new, weight_decay = 0.02, ema = 0.99, seed = TRAINED, folder = folder, every = p.every,
    config = { batch = batch, labels = probe.labels(world.words) },
    loss = function(step)
      local b = examples[part](world, probe, TRAINED, (step.index - 1) * batch, batch)
      local logits, map
      if part == "moves" then logits, map = net:read_moves(b.clips)
      else logits, map = net:read_looks(b.images, b.cuts, b.images.shape[1] / batch) end
      local total, numbers = grad.sum(grad.mul(grad.log(map + 1e-5), b.where)) * (-MASK_SHARE / map.shape[1]), {}
      for _, attribute in ipairs(probe[part]) do
        local loss = grad.cross_entropy(logits[attribute], b.labels[attribute])
        numbers[attribute] = loss:item()
        total = total + loss
      end
      return total, numbers
    end,
    on_step = watch.on_step,
  }
  job:check(run, message)
  job:check(watch:follow(run))
  job.stage:step(run.step)
  job:check(run:run())
  watch:finish()
  job:end_stage()
  local out = {}
  for name, x in pairs(run:weights(true)) do out[name] = x:to("bf16"):to("f32") end
  return out, job:check(melies.train_watch.read(folder .. "/log.jsonl"))
end

-- About a hundred points of a log, and its seconds.
local function curve_of(records)
  local curve, seconds, each = {}, 0, math.max(1, math.floor(#records / 100))
  for i, r in ipairs(records) do
    seconds = seconds + r.seconds
    if i % each == 0 then curve[#curve + 1] = { r.step, tonumber(("%.4g"):format(r.loss)) } end
  end
  return curve, math.floor(seconds)
end

return {
  kind = "recipe", name = "train_probe", help = "Trains the probe of starter_report on rendered clips.",
  params = {
    file = { "string", default = here .. "/starter/probe.safetensors", help = "what is written, with a log in .json" },
    folder = { "string", default = "out/probe", help = "of the unfinished run" },
    moves_steps = { "integer", default = 1500, min = 1, max = 1e6, help = "of the part that follows the subject" },
    moves_batch = { "integer", default = 16, min = 1, max = 512, help = "its clips a step" },
    looks_steps = { "integer", default = 2600, min = 1, max = 1e6, help = "of the part that looks at single frames" },
    looks_batch = { "integer", default = 16, min = 1, max = 512, help = "its clips a step, three frames of each" },
    lr = { "number", default = 6e-3, min = 1e-6, max = 1, help = "the highest learning rate" },
    every = { "integer", default = 50, min = 1, max = 1e6, help = "steps between two checkpoints" },
    checks = { "integer", default = 600, min = 1, max = 1e5, help = "clips that it reads at the end" },
  },
  order = { "file", "folder", "moves_steps", "moves_batch", "looks_steps", "looks_batch", "lr", "every", "checks" },
  run = function(p, job)
    local world = dofile(here .. "/starter/world/init.lua")
    local probe = dofile(here .. "/starter/report/probe.lua")
    local examples = dofile(here .. "/starter/report/examples.lua")
    local params = probe.init(world.words, TRAINED)
    local weights, log = {}, { command = "melies run train_probe", threads = melies.threads(), compute = melies.compute(),
      lr = p.lr, checks = p.checks }
    for _, part in ipairs { "looks", "moves" } do
      local some, records = train_part(job, p, part, probe, examples, world, params)
      for name, x in pairs(some) do weights[name] = x end
      local curve, seconds = curve_of(records)
      log[part] = { steps = p[part .. "_steps"], batch = p[part .. "_batch"], seconds = seconds, curve = curve }
    end
    local net = probe.net(weights, world.words)
    log.accuracy = accuracy(job, probe, net, examples, world, p.checks, false)
    log.accuracy_made_worse = accuracy(job, probe, net, examples, world, p.checks)
    print("rendered clips: " .. line_of(probe, log.accuracy))
    print("made worse:     " .. line_of(probe, log.accuracy_made_worse))
    job:check(probe.save(p.file, weights, world.words))
    job:check(melies.fs.write((p.file:gsub("%.safetensors$", "") .. ".json"), melies.json.encode(log)))
    return log
  end,
}
