-- Jobs in folders: killed at random moments they go on to the same bits; what is wrong with a folder is told.
local t = require "harness"
local melies = require "melies"
local durable = require "melies.durable"
local fs = require "melies.fs"

local root = os.getenv "MELIES_ROOT"
local program = (os.getenv "MELIES_BUILD" or root .. "/build") .. "/melies"
local given = { prompt = "a red ball rolls", steps = 4, frames = 5, seed = 3 }

local function with(more)
  local all = {}
  for k, v in pairs(given) do all[k] = v end
  for k, v in pairs(more or {}) do all[k] = v end
  return all
end

-- A recipe's run that ends by a failure after `n` predictions.
local function broken_after(n, values, opts)
  local recipe = assert(melies.recipe.find "text_to_video")
  local calls, plugin = 0, {}
  for k, v in pairs(recipe) do plugin[k] = v end
  plugin.run = function(p, job)
    local model = job:load()
    job.model = setmetatable({ predict = function(_, ...)
      calls = calls + 1
      if calls > n then melies.recipe.fail "the power went" end
      return model:predict(...)
    end }, { __index = model })
    job.load = function() return job.model end
    return recipe.run(p, job)
  end
  local result, message = melies.recipe.run(plugin, assert(melies.recipe.check(plugin, values)), opts)
  return result, message, calls
end

t.test("killed at random moments, the same command gives the same bits", function()
  local result = require("kills").run(12, { program = program, folder = t.folder(), seed = 77 })
  t.eq(table.concat(result.differs, "\n"), "") t.eq(result.same, 12)
end)

t.test("what the model said is not asked again, whatever the sampler remembers", function()
  local before = durable.interval
  durable.interval = 0
  for _, sampler in ipairs { "euler", "dpmpp_3m_sde", "uni_pc", "dpm_2_ancestral" } do
    local folder = t.folder() .. "/job"
    local whole, _, calls = broken_after(1000, with { sampler = sampler })
    local _, message, before_end = broken_after(3, with { sampler = sampler, job = folder })
    t.eq(message, "the power went") t.eq(before_end, 4)
    t.ok(fs.stat(folder .. "/01-sampling.model-0003.safetensors"), "recorded")
    local resumed, _, rest = broken_after(1000, with { sampler = sampler, job = folder })
    t.eq(rest, calls - 3, sampler) t.close(resumed, whole, 0, 0, sampler)
    -- Finished: the latent stays, the predictions go.
    t.eq(table.concat(fs.list(folder), " "), "01-sampling.latent.safetensors bound.json job.json lock")
    local again, _, none = broken_after(1000, with { sampler = sampler, job = folder })
    t.eq(none, 0, "asked again") t.close(again, whole, 0, 0)
  end
  durable.interval = before
end)

t.test("a damaged record is told and computed again", function()
  local before, quiet = durable.interval, melies.log.quiet
  durable.interval = 0
  local whole = broken_after(1000, with {})
  local folder = t.folder() .. "/job"
  broken_after(3, with { job = folder })
  local path = folder .. "/01-sampling.model-0002.safetensors"
  local f = io.open(path, "wb")
  f:write("cut off")
  f:close()
  local said, warn = {}, melies.log.warn
  melies.log.warn = function(...) said[#said + 1] = string.format(...) end
  local resumed = broken_after(1000, with { job = folder })
  melies.log.warn, melies.log.quiet, durable.interval = warn, quiet, before
  t.close(resumed, whole, 0, 0)
  t.ok(table.concat(said, " "):find("model-0002.safetensors: damaged", 1, true), table.concat(said, " "))
end)

t.test("another job in the folder is told, with what differs; fresh begins anew", function()
  local folder = t.folder() .. "/job"
  local before = durable.interval
  durable.interval = 0
  broken_after(0, with { job = folder, steps = 7 })
  t.eq(fs.stat(folder), nil, "nothing was done: nothing stays")
  broken_after(1, with { job = folder })
  local _, message = broken_after(9, with { job = folder, steps = 6 })
  durable.interval = before
  t.ok(message:find("steps is 4 there and 6 now", 1, true), message)
  t.ok(message:find("--fresh", 1, true), message)
  t.ok(broken_after(1000, with { job = folder, steps = 6, fresh = true }))
end)

t.test("a folder of something else, a damaged one and a half-written one", function()
  local folder = t.folder()
  fs.write(folder .. "/diary.txt", "mine")
  local _, message = broken_after(1, with { job = folder })
  t.ok(message:find("it is no job folder", 1, true) and message:find("diary.txt", 1, true), message)
  t.eq(fs.read(folder .. "/diary.txt"), "mine")
  folder = t.folder() .. "/job"
  fs.make(folder)
  fs.write(folder .. "/01-sampling.latent.safetensors", "x")
  local f = io.open(folder .. "/job.json", "wb")
  f:write('{ "format": 1, "rec')
  f:close()
  _, message = broken_after(1, with { job = folder })
  t.ok(message:find("job.json: damaged", 1, true), message)
  -- Only the folder and its lock, as a kill right at the beginning leaves them: the job begins.
  folder = t.folder() .. "/job"
  fs.make(folder)
  fs.write(folder .. "/lock", "")
  t.ok(broken_after(1000, with { job = folder }))
  _, message = durable.read(t.folder())
  t.ok(message:find("no job was begun there", 1, true), message)
end)

t.test("two processes on one job: the second says who holds it", function()
  local folder = t.folder() .. "/job"
  assert(broken_after(1000, with { job = folder }))
  local release = assert(fs.lock(folder .. "/lock"))
  fs.write(folder .. "/pid", "") os.remove(folder .. "/pid")
  local f = io.open(folder .. "/lock", "wb")
  f:write("4321\n")
  f:close()
  local pipe = io.popen(("'%s' run --resume '%s' 2>&1; echo \"code $?\""):format(program, folder))
  local text = pipe:read "*a"
  pipe:close()
  release()
  t.ok(text:find("process 4321 works on this job", 1, true) and text:find "code 1", text)
end)

t.test("the program: OUTPUT.job by itself, --resume, watch", function()
  local folder = t.folder()
  local function sh(words)
    local pipe = io.popen(("cd '%s' && MELIES_JOB_INTERVAL=0 '%s' %s 2>&1; echo \"code $?\""):format(folder, program, words))
    local text = pipe:read "*a"
    pipe:close()
    return text
  end
  local words = "run text_to_video --prompt 'a red ball rolls' --steps 40 --frames 5 -o %s"
  t.ok(sh(words:format "whole.webp"):find "code 0")
  t.eq(fs.stat(folder .. "/whole.webp.job"), nil)
  local k = 0
  while not fs.stat(folder .. "/a.webp.job/01-sampling.preview.safetensors") and k < 40 do
    k = k + 1
    os.remove(folder .. "/a.webp")
    os.execute(("cd '%s' && MELIES_JOB_INTERVAL=0 timeout -s KILL %.2f '%s' -q %s >/dev/null 2>&1"):format(folder, 0.1 + 0.05 * k,
      program, words:format "a.webp"))
  end
  local seen = sh "watch a.webp.job --once"
  t.ok(seen:find "code 0" and seen:find "u8 %[", seen)
  local text = sh "run --resume a.webp.job"
  t.ok(text:find "code 0" and text:find("going on with the job", 1, true), text)
  t.eq(fs.read(folder .. "/a.webp"), fs.read(folder .. "/whole.webp"))
  t.eq(fs.stat(folder .. "/a.webp.job"), nil)
  text = sh "run --resume a.webp.job"
  t.ok(text:find("No such file", 1, true) and text:find "code 1", text)
  t.ok(sh("watch"):find("which job", 1, true))
end)

t.finish()
