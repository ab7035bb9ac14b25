-- What looks on while a network is trained: the log is whole after a resume, the plot and samples are drawn, the best
-- weights are kept, a held-out loss that no longer falls ends the run, a full disk does not.
local t = require "harness"
local melies = require "melies"
local T, grad, train = melies.tensor, melies.grad, melies.train
local watching = require "melies.train_watch"

require("melies.log").quiet = true

-- A run whose loss is |w - 3|^2, with a held-out loss that the test names.
local function watched(folder, o, run_options)
  local p = { w = grad.param(T.of({ 1, -2 }, { 2 })) }
  local options = { folder = folder, steps = 40, bar = false, plot_s = 0 }
  for key, value in pairs(o or {}) do options[key] = value end
  local watch = t.ok(watching.new(options))
  local settings = { params = p, steps = 40, lr = 0.1, folder = folder, every = 10, on_step = watch.on_step,
    loss = function(step) return grad.mse(grad.add(p.w, step:noise({ 2 }) * 0.1), T.full({ 2 }, 3)), { seen = 2 } end }
  for key, value in pairs(run_options or {}) do settings[key] = value end
  local run = t.ok(train.new(settings))
  t.ok(watch:follow(run))
  return watch, run
end

t.test("every step is logged; a resumed run cuts off what it makes again", function()
  local folder, whole = t.folder(), t.folder()
  local watch, run = watched(whole)
  t.ok(run:run())
  watch:finish()
  run = select(2, watched(folder))
  t.ok(run:run(27)) -- the newest checkpoint is that of step 20
  local f = assert(io.open(folder .. "/log.jsonl", "ab"))
  f:write('{"step": 28, "lo') -- a line that was cut off
  f:close()
  watch, run = watched(folder)
  t.eq(run.step, 20)
  t.eq(#watch.records, 20)
  t.ok(run:run())
  watch:finish()
  local a, b = t.ok(watching.read(folder .. "/log.jsonl")), t.ok(watching.read(whole .. "/log.jsonl"))
  t.eq(#a, 40)
  for i = 1, 40 do
    t.eq(a[i].step, i)
    t.eq(a[i].loss, b[i].loss)
    t.eq(a[i].seen, 2)
    t.ok(a[i].lr == 0.1 and a[i].seconds >= 0 and a[i].norm > 0)
  end
end)

t.test("the held-out loss keeps the best weights and ends the run", function()
  local folder = t.folder()
  local falls = { [5] = 0.5, [10] = 0.4, [15] = 0.45, [20] = 0.41, [25] = 0.43, [30] = 0.1 }
  local seen = {}
  local options = { heldout = function(step)
    seen[#seen + 1] = step
    return falls[step]
  end, heldout_every = 5, patience = 3, best_metadata = { who = "test" } }
  local watch, run = watched(folder, options)
  local kept
  local old = watch.on_step
  run.o.on_step = function(record)
    old(record)
    if record.step == 10 then kept = run:weights().w:list() end
  end
  local ok, reason = run:run()
  t.eq(ok, true)
  t.ok(reason:find("lowest at step 10 (0.4)", 1, true), reason)
  t.eq(run.step, 25)
  t.eq(table.concat(seen, " "), "5 10 15 20 25")
  t.eq(train.checkpoints(folder)[1].step, 25)
  local file = t.ok(melies.weights.open(folder .. "/best.safetensors"))
  local metadata = file.metadata
  t.eq(metadata["melies.step"], "10")
  t.eq(metadata.who, "test")
  t.eq(table.concat(file:get("w"):list(), " "), table.concat(kept, " "))
  file:close()
  -- A run that has ended so ends at once when it is called again.
  watch, run = watched(folder, options)
  ok, reason = run:run()
  t.eq(ok, true)
  t.ok(reason, "stopped")
  t.eq(run.step, 25)
  t.eq(watch.best_step, 10)
  -- With more patience it goes on.
  options.patience = 4
  watch, run = watched(folder, options)
  t.ok(run:run(30))
  t.eq(watch.best_step, 30)
end)

t.test("samples are written every so many steps, and after the last", function()
  local folder = t.folder()
  local watch, run = watched(folder, { sample_every = 15, sample = function(step)
    return step == 15 and T.full({ 16, 16, 3 }, 0.5) or T.full({ 3, 16, 16, 3 }, 0.25)
  end })
  t.ok(run:run())
  watch:finish()
  t.eq(table.concat(melies.fs.list(folder .. "/samples"), " "),
    "step-00000015.png step-00000030.png step-00000040.png")
  t.ok(melies.media.load(folder .. "/samples/step-00000040.png"))
  t.eq(watching.read(folder .. "/log.jsonl")[30].sample, "samples/step-00000030.png")
end)

t.test("the plot shows the loss and what was held out", function()
  local folder = t.folder()
  local watch, run = watched(folder, { title = "Style loss", heldout = function(step) return 5 / step end,
    heldout_every = 4 })
  t.ok(run:run())
  t.ok(watch:finish())
  local svg = t.ok(melies.fs.read(folder .. "/loss.svg"))
  t.ok(svg:find("^<svg") and svg:find("Style loss", 1, true) and svg:find("held-out loss", 1, true))
  -- A long log is drawn as means.
  local many = {}
  for i = 1, 5000 do many[i] = { step = i, loss = 1000 / i } end
  local long = watching.svg({ many, { { step = 1, loss = 2 } } }, { names = { "one", "two" } })
  t.ok(#long < 60000 and long:find("two: loss", 1, true), #long)
end)

t.test("what cannot be written does not end the training", function()
  local folder = t.folder()
  local watch, run = watched(folder, { sample = function() return T.full({ 8, 8, 3 }, 0) end, sample_every = 10 })
  assert(os.execute(("mkdir '%s/loss.svg.new' '%s/log.jsonl' && touch '%s/samples'"):format(folder, folder, folder)))
  t.ok(run:run())
  watch:finish()
  t.eq(run.step, 40)
  t.eq(#watch.records, 40)
  local none, message = watching.new { folder = "/proc/none/here", steps = 3 }
  t.eq(none, nil)
  t.ok(message:find("/proc/none", 1, true), message)
end)

t.test("what a sample raises loses nothing; misuse is named", function()
  local folder = t.folder()
  local _, run = watched(folder, { sample = function() return "x" end, sample_every = 7 })
  t.raises(function() run:run() end, "sample must return a tensor")
  t.eq(train.checkpoints(folder)[1].step, 7)
  _, run = watched(folder, { sample = function() error(require("melies.ffi.lib").canceled, 0) end, sample_every = 7 })
  local ok, message = run:run(20)
  t.eq(ok, nil)
  t.ok(message:find("canceled (the state of step 14 is kept", 1, true), message)
  t.raises(function() watching.new { folder = folder, steps = 1, heldout_evry = 3 } end, "did you mean 'heldout_every'?")
  t.raises(function() watching.new { steps = 1 } end, "folder and steps are wanted")
end)

t.finish()
