-- melies-api: 1
-- Teaches a model a style or a subject from a few clips: a LoRA, for text_to_video --lora FILE. See docs/training.md.
local melies = require "melies"

-- Two captions of the clips, or the prompts that were given.
local function prompts(p, clips)
  local out = {}
  for prompt in (p.samples or ""):gmatch "[^|]+" do
    if prompt:find "%S" then out[#out + 1] = prompt:match "^%s*(.-)%s*$" end
  end
  if p.samples then return out end
  for _, i in ipairs { 1, math.ceil(clips.count / 2) + 1 } do
    if clips.captions[i] and clips.captions[i] ~= out[1] then out[#out + 1] = clips.captions[i] end
  end
  return out
end

-- What a run of this folder left behind.
local function clear(folder)
  for _, part in ipairs { "", "/samples" } do
    for _, name in ipairs(melies.fs.list(folder .. part) or {}) do
      if name:find "^step%-%d+%." or name == "log.jsonl" or name == "best.safetensors" or name == "loss.svg" then
        os.remove(folder .. part .. "/" .. name)
      end
    end
  end
end

return {
  kind = "recipe", name = "train_lora", help = "Teach a model a style from a few clips: a LoRA.",
  params = {
    model = { "model", default = "starter", help = "a model's name, its folder, or a checkpoint of Wan's layout" },
    text_encoder = { "model", help = "file or folder of the text encoder, in place of the model's" },
    vae = { "model", help = "file or folder of the autoencoder, in place of the model's" },
    tokenizer = { "file", help = "spiece.model or tokenizer.json, in place of the model's" },
    data = { "string", required = true, help = "a folder of films with captions, or what melies data ingest wrote" },
    output = { "string", short = "o", help = "the file to write, .safetensors" },
    captions = { "file", help = "FILE.jsonl with the captions of the films" },
    caption = { "text", help = "of clips that have none" },
    trigger = { "text", default = "", help = "words put before every caption" },
    size = { "size", min = 8, max = 8192, help = "of clips made from films (the model's own)" },
    frames = { "integer", min = 1, max = 1025, help = "of such a clip" },
    fps = { "number", min = 0.1, max = 240, help = "of such a clip" },
    rank = { "integer", default = 16, min = 1, max = 1024, help = "of the change of each layer" },
    alpha = { "number", min = 0.001, max = 4096, help = "strength: alpha / rank (default: the rank)" },
    targets = { "list", of = "string", default = { "all" },
      help = "layers: all, attention, self_attention, cross_attention, ffn, or ends of their names, such as to_q" },
    steps = { "integer", default = 400, min = 1, max = 1e7, help = "steps of training" },
    batch = { "integer", default = 4, min = 1, max = 256, help = "clips of a step" },
    accumulate = { "integer", default = 1, min = 1, max = 1024, help = "batches of a step" },
    lr = { "number", default = 1e-3, min = 1e-9, max = 1, help = "learning rate" },
    warmup = { "integer", default = 10, min = 0, max = 1e6, help = "steps in which it rises" },
    schedule = { "enum", choices = { "constant", "cosine", "linear" }, default = "constant", help = "of the learning rate" },
    timesteps = { "enum", choices = { "logit_normal", "uniform" }, default = "logit_normal", help = "noise levels" },
    shift = { "number", from_model = true, min = 0.01, max = 100, help = "of the noise levels" },
    dropout = { "number", default = 0.1, min = 0, max = 1, help = "part of the captions that is left out" },
    holdout = { "number", default = 0.1, min = 0, max = 0.5, help = "part of the clips that is not trained on" },
    heldout_every = { "integer", default = 50, min = 1, max = 1e6, help = "steps between looks at the held-out loss" },
    patience = { "integer", default = 0, min = 0, max = 1e4,
      help = "stop after so many looks without a lower held-out loss; 0: never" },
    last = { "boolean", default = false, help = "write the last state, not that of the lowest held-out loss" },
    sample_every = { "integer", default = 100, min = 0, max = 1e6, help = "steps between samples; 0: none" },
    samples = { "text", help = "prompts of the samples, with | between (default: two captions)" },
    sample_steps = { "integer", from_model = true, min = 1, max = 1000, help = "sampling steps of the samples" },
    save_every = { "integer", default = 50, min = 1, max = 1e6, help = "steps between checkpoints" },
    save_memory = { "boolean", help = "compute blocks twice instead of keeping them (default: where they are large)" },
    format = { "enum", choices = { "peft", "kohya" }, default = "peft", help = "names of the file's tensors" },
    precision = { "enum", choices = { "bf16", "f16", "f32" }, default = "bf16", help = "of the file" },
    folder = { "string", help = "of checkpoints, log, plot and samples (default: OUTPUT.train)" },
    fresh = { "boolean", default = false, help = "begin anew where the folder holds another training" },
    seed = { "integer", default = 0, min = 0, help = "the same seed gives the same LoRA" },
  },
  order = { "model", "trigger", "caption", "captions", "rank", "alpha", "targets", "steps", "batch", "lr", "sample_every",
    "samples", "patience", "format" },
  run = function(p, job)
    if not p.output then melies.recipe.fail("train_lora: where to? -o style.safetensors", melies.recipe.USAGE) end
    job:check(melies.train_lora.writable(p.output))
    local folder = p.folder or p.output .. ".train"
    job:check(melies.fs.make(folder))
    local model = job:load()
    if p.fresh then clear(folder) end
    local stage
    local size = p.size or {}
    local clips = job:check(melies.train_lora.clips(p.data, { model = model, work = folder,
      width = size.width, height = size.height, frames = p.frames, fps = p.fps, captions = p.captions,
      caption = p.caption, trigger = p.trigger, notice = function(text) job:notice("%s", text) end,
      progress = function(i, n)
        stage = stage or job:progress("encoding clips", n)
        stage:step(i)
      end }))
    local tuning = job:check(melies.train_lora.new { model = model, clips = clips, folder = folder, rank = p.rank,
      alpha = p.alpha, targets = p.targets, steps = p.steps, batch = p.batch, accumulate = p.accumulate, lr = p.lr,
      warmup = p.warmup, schedule = p.schedule, timesteps = p.timesteps, shift = p.shift, dropout = p.dropout,
      holdout = p.holdout, heldout_every = p.heldout_every, patience = p.patience > 0 and p.patience or nil,
      sample_every = p.sample_every, samples = prompts(p, clips), sample_steps = p.sample_steps, seed = p.seed,
      save_every = p.save_every, save_memory = p.save_memory, bar = job:progress("training", p.steps) })
    local at = tuning.training_run.step
    if at > 0 then job:notice("going on at step %d of %d in %s", at, p.steps, folder) end
    local ok, reason = tuning:run()
    job:end_stage()
    if not ok then
      melies.recipe.fail(reason, reason:find "^canceled" and melies.recipe.CANCELED or nil)
    elseif type(reason) == "string" then
      job:notice("stopped at step %d: %s", tuning.training_run.step, reason)
    end
    local step = job:check(tuning:save(p.output, { format = p.format, dtype = p.precision, best = not p.last }))
    job:notice("%s is of step %d; loss and samples are in %s", p.output, step, folder)
    return tuning
  end,
}
