-- melies-api: 1
-- Several processes train one network: rounds of steps from one checkpoint, each process with draws of its own, then the
-- mean of all (local SGD: Stich 2018, arXiv 1805.09767; with an optimiser inside: Douillard et al. 2023, arXiv 2311.08105).
-- Two processes of one thread do twice the samples of one; two threads of one process wait for each other at every small
-- operation.
local melies = require "melies"
local train = melies.train

local together = {}
together.round = 250 -- steps between two means

-- Where the round that a run stands in ends.
function together.last(run)
  return math.min((math.floor(run.step / together.round) + 1) * together.round, run.o.steps)
end

local function quoted(text) return "'" .. tostring(text):gsub("'", "'\\''") .. "'" end

-- Starts the program again: a process that does a round into `folder`. arguments: of the command line.
local function start(arguments, folder)
  local words = {}
  for i, word in ipairs(arguments) do words[i] = quoted(word) end
  local pipe = io.popen(("echo $$; exec %s %s 2>%s"):format(quoted(melies.fs.program()), table.concat(words, " "),
    quoted(folder .. "/log")), "r")
  return { pipe = pipe, pid = pipe:read "*l", folder = folder }
end

-- Writes the state where it is not on disk yet; true, or nil and a message.
local function keep(run)
  if run.saved == run.step then return true end
  return run:save()
end

-- together.run(run, count, arguments) -> true, or nil and a message: to the last step. arguments(k) is what process k of 2
-- .. count is told; it trains in run.o.folder/worker-k.
function together.run(run, count, arguments)
  if not melies.fs.program() then return nil, "workers: only the melies program can start more of itself" end
  local folder = run.o.folder
  while run.step < run.o.steps do
    local done, message = keep(run)
    if not done then return nil, message end
    local last, others, paths = together.last(run), {}, {}
    for k = 2, count do
      local own = ("%s/worker-%d"):format(folder, k)
      done, message = melies.fs.make(own)
      if not done then return nil, message end
      for _, old in ipairs(train.checkpoints(own) or {}) do os.remove(old.path) end
      others[#others + 1] = start(arguments(k), own)
    end
    for _, other in ipairs(others) do other.pipe:read "*l" end -- it has read the checkpoint: a newer one may be written
    done, message = run:run(last)
    if not done then
      for _, other in ipairs(others) do os.execute("kill " .. other.pid) end
    end
    for i, other in ipairs(others) do
      other.pipe:close()
      paths[i] = ("%s/step-%08d.safetensors"):format(other.folder, last)
    end
    if done then done, message = keep(run) end
    if not done then return nil, message end
    table.insert(paths, 1, ("%s/step-%08d.safetensors"):format(folder, last))
    for i = 2, #paths do
      if not melies.fs.stat(paths[i]) then
        return nil, ("worker %d did not come to step %d: see %s/log"):format(i, last, others[i - 1].folder)
      end
    end
    done, message = train.average(paths, paths[1])
    if done then done, message = run:resume() end
    if not done then return nil, message end
  end
  return true
end

return together
