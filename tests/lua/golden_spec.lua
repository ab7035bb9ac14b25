-- Every fixture of a whole model and of single operations, in float32 at its own tolerance, in bf16 and with
-- weights in Q8_0 at the stated ones.
local t = require "harness"
local melies = require "melies"

local dir = os.getenv("MELIES_ROOT") .. "/tests/golden"

local function run(filter, compute)
  local lines = {}
  local totals, message = melies.golden.run(dir, { filter = filter, compute = compute, verbose = false,
    write = function(line) lines[#lines + 1] = line end })
  if not totals then error(message, 2) end
  return totals, table.concat(lines, "\n")
end

for _, name in ipairs { "wan_dit", "wan_vae", "taehv", "umt5", "t5v1_1", "clip_text", "wan_clip_vision", "ltx_" } do
  for _, compute in ipairs { "f32", "bf16", "q8_0" } do
    t.test(name .. " in " .. compute, function()
      local totals, text = run(name, compute)
      t.ok(totals.failed == 0 and totals.passed > 0, text)
    end)
  end
end

t.test("single operations", function()
  local totals, text = run("ops_probes", "f32")
  t.ok(totals.failed == 0 and totals.passed == 1, text)
end)

-- What other specs check value by value, through the runner that people use.
for _, name in ipairs { "st_valid", "pth_valid", "gguf_", "tok_", "schedulers", "malformed" } do
  t.test(name, function()
    local totals, text = run(name, "f32")
    t.ok(totals.failed == 0 and totals.not_covered == 0, text)
  end)
end

t.test("fixtures that nothing here runs are named", function()
  local folder = t.folder()
  local f = assert(io.open(folder .. "/dream.json", "wb"))
  f:write('{ "fixture": "dream", "function": "DreamModel.forward", "config": {} }')
  f:close()
  local lines = {}
  local totals = melies.golden.run(folder, { write = function(line) lines[#lines + 1] = line end })
  t.eq(totals.not_covered, 1)
  t.ok(table.concat(lines, "\n"):find("dream: not covered", 1, true))
end)

t.test("a wrong value fails, and the line says where", function()
  local folder = t.folder()
  for _, file in ipairs { "json", "io.safetensors" } do
    os.execute(("cp '%s/ops_probes.%s' '%s/'"):format(dir, file, folder))
  end
  local f = assert(io.open(folder .. "/ops_probes.json", "rb"))
  local text = f:read("*a")
  f:close()
  f = assert(io.open(folder .. "/ops_probes.json", "wb"))
  f:write((text:gsub('"rtol": 2e%-05', '"rtol": 0'):gsub('"atol": 1e%-06', '"atol": 0')))
  f:close()
  local lines = {}
  local totals = melies.golden.run(folder, { write = function(line) lines[#lines + 1] = line end })
  t.eq(totals.failed, 1)
  t.ok(totals.failed_checks > 0 and totals.failed_checks < totals.checks)
  t.ok(table.concat(lines, "\n"):find("FAIL"))
end)

t.test("a folder without fixtures is an error", function()
  local totals, message = melies.golden.run(t.folder())
  t.eq(totals, nil)
  t.ok(message:find("no fixtures"))
end)

t.finish()
