-- melies-api: 1
-- Finds how a model is best computed in 8 bits: a few films show what its matrices see; columns are smoothed and rotated
-- where that helps, and matrices that lose too much stay in bf16. The file serves --compute s8 --quantization FILE.
local melies = require "melies"

local prompts = {
  "a big red ball rolls to the right over the grass, cartoon style", "a small blue star spins in the night sky, realistic",
  "a large yellow cube bounces in the desert, 3d render", "a green triangle rises in a white room, cartoon",
}

return {
  kind = "recipe", name = "quantize", help = "Calibrates a model for 8 bits: melies run quantize -o FILE.safetensors",
  params = {
    model = { "model", default = "starter", help = "a model's name, its folder, or a checkpoint" },
    text_encoder = { "model", help = "file or folder of the text encoder, in place of the model's" },
    vae = { "model", help = "file or folder of the autoencoder, in place of the model's" },
    tokenizer = { "file", help = "spiece.model or tokenizer.json, in place of the model's" },
    file = { "string", required = true, help = "what is written" },
    prompts = { "file", help = "a text file with a prompt a line, in place of four built-in ones" },
    steps = { "integer", default = 6, min = 1, max = 100, help = "steps of each film" },
    frames = { "integer", from_model = true, min = 1, max = 1000, help = "length of each film" },
    width = { "integer", from_model = true, min = 8, max = 8192, help = "pixels" },
    height = { "integer", from_model = true, min = 8, max = 8192, help = "pixels" },
    threshold = { "number", default = 0.03, min = 0, max = 1, help = "relative error above which a matrix stays in bf16" },
    rotate = { "boolean", default = true, help = "rotations are tried as well as smoothing" },
  },
  run = function(p, job)
    if melies.compute() == "s8" then melies.set_compute "bf16" end
    local model = job:load()
    local list = prompts
    if p.prompts then
      list = {}
      for line in io.lines(p.prompts) do
        if line:find "%S" then list[#list + 1] = line end
      end
    end
    local stage
    local result = job:check(melies.quantize.calibrate(model, list, { steps = p.steps, frames = p.frames, width = p.width,
      height = p.height, threshold = p.threshold, rotate = p.rotate, on_step = function(i, n)
        job:check_cancel()
        stage = stage or job:progress("calibrating", n)
        stage:step(i)
      end }))
    local plain, smoothed, best, kept, n = 0, 0, 0, 0, #result.layers
    print(("%-34s %10s %10s %10s %6s %6s"):format("matrix", "8 bits", "smoothed", "rotated", "alpha", "block"))
    for _, row in ipairs(result.layers) do
      plain, smoothed, best = plain + row.plain / n, smoothed + row.smoothed / n, best + row.best / n
      kept = kept + (row.kept and 1 or 0)
      print(("%-34s %9.2f%% %9.2f%% %10s %6s %6s%s"):format(row.name, row.plain * 100, row.smoothed * 100,
        row.rotated and ("%.2f%%"):format(row.rotated * 100) or "-", row.alpha and tostring(row.alpha) or "-",
        row.block and tostring(row.block) or "-", row.kept and "  stays in bf16" or ""))
    end
    print(("mean of %d matrices: %.2f%% plain, %.2f%% smoothed, %.2f%% with the best of each; %d stay in bf16"):format(n,
      plain * 100, smoothed * 100, best * 100, kept))
    job:check(melies.quantize.write(p.file, result, { model = model.name, threshold = p.threshold, steps = p.steps }))
    return result
  end,
}
