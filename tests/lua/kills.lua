-- Kills a short job with SIGKILL at random moments, runs the same command again, and compares what comes out with an
-- unbroken run, byte for byte (WebP: x264's bits are not the same in every run).
-- kills.run(n, opts) -> { same=, resumed=, differs = list of texts }.
local fs = require "melies.fs"

local kills = {}

-- What remembers most between steps, and what draws noise.
kills.cases = {
  "--sampler euler", "--sampler dpmpp_3m_sde", "--sampler uni_pc", "--sampler heun", "--sampler dpmpp_2m --guide apg",
  "--sampler euler_ancestral", "--sampler lms --guide cfg_zero_star", "--sampler euler --step_cache first_block",
}

local function quoted(text) return "'" .. text .. "'" end

-- opts: program=, folder=, seed=, cases=
function kills.run(n, opts)
  local out = { same = 0, resumed = 0, differs = {} }
  local cases = opts.cases or kills.cases
  local references, seconds = {}, {}
  local random = opts.seed or 1
  local function draw() -- the same moments for the same seed
    random = (random * 48271) % 2147483647
    return random / 2147483647
  end
  local function command(case, output)
    return ("MELIES_JOB_INTERVAL=0 MELIES_CACHE=off %s"):format(quoted(opts.program))
      .. (" -q run text_to_video --prompt 'a red ball rolls' --steps 6 --frames 5 --seed 3 %s -o %s"):format(case, quoted(output))
  end
  for i = 1, n do
    local case = cases[(i - 1) % #cases + 1]
    if not references[case] then
      local path = opts.folder .. "/unbroken.webp"
      local began = require("melies").seconds()
      assert(os.execute(command(case, path) .. " >/dev/null") == 0, case)
      seconds[case] = require("melies").seconds() - began
      references[case] = assert(fs.read(path))
    end
    local path = opts.folder .. "/killed.webp"
    os.remove(path)
    local before = ("timeout -s KILL %.3f sh -c %s"):format(0.02 + seconds[case] * draw(),
      '"exec env ' .. command(case, path):gsub('"', '\\"') .. '"')
    os.execute("( " .. before .. " ) >/dev/null 2>&1")
    fs.sleep(0.05) -- what was killed is gone
    local names = fs.list(path .. ".job") or {}
    local recorded = false
    for _, name in ipairs(names) do recorded = recorded or name:find "^01" ~= nil end
    local code = os.execute(command(case, path) .. " >/dev/null")
    local result = code == 0 and fs.read(path)
    if recorded then out.resumed = out.resumed + 1 end
    if result == references[case] and not fs.stat(path .. ".job") then out.same = out.same + 1
    else out.differs[#out.differs + 1] = ("kill %d (%s): exit %s, %s; %s; left: %s"):format(
      i, case, tostring(code), table.concat(names, " "), result == references[case] and "same" or "other bits",
      table.concat(fs.list(path .. ".job") or {}, " ")) end
  end
  for _, name in ipairs(fs.list(opts.folder) or {}) do
    if name:find "partial" then out.differs[#out.differs + 1] = "left behind: " .. name end
  end
  return out
end

return kills
