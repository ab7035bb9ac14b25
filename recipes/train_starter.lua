-- melies-api: 1
-- Trains the starter model from nothing: see recipes/starter/README.md and docs/training.md. Every part goes on where it
-- was stopped.
local melies = require "melies"

local here = debug.getinfo(1, "S").source:match "^@(.*)/[^/]*$" or "."

local stages = { "autoencoder" }

return {
  kind = "recipe", name = "train_starter", help = "Train the starter model: autoencoder, text encoder, transformer.",
  params = {
    stage = { "enum", choices = stages, default = "autoencoder", help = "which part to train" },
    folder = { "string", default = "out/starter", help = "of the checkpoints and logs" },
    size = { "integer", default = 96, min = 32, max = 256, help = "pixels of a side" },
    autoencoder_steps = { "integer", default = 6000, min = 1, max = 1e7, help = "steps of the autoencoder" },
    threads = { "integer", default = 1, min = 1, max = 256, help = "threads" },
  },
  order = { "stage", "folder", "size", "autoencoder_steps", "threads" },
  run = function(p, job)
    local world = dofile(here .. "/starter/world/init.lua")
    local function part(name) return dofile(("%s/starter/train/%s.lua"):format(here, name)) end
    melies.threads(p.threads)
    local folder = p.folder .. "/" .. p.stage
    job:check(melies.fs.make(folder))
    local log = job:check(io.open(folder .. "/log.jsonl", "a"))
    job:progress(p.stage, p[p.stage .. "_steps"])
    local run = job:check(part(p.stage).train(world, { folder = folder, size = p.size, seed = p.seed, batch = 4,
      lr = 2e-3, steps = p.autoencoder_steps, check = 250, on_step = function(record)
        log:write(melies.json.encode(record), "\n")
        log:flush()
        job.stage:step(record.step)
      end }))
    job:check(run:run())
    job:end_stage()
    job:check(melies.weights.save(("%s/%s.safetensors"):format(p.folder, p.stage), run:weights(true)))
  end,
}
