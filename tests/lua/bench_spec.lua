-- The bench measures, and draws what it measured.
local t = require "harness"
local melies = require "melies"
local fs = require "melies.fs"

local folder = t.folder()
local said = {}
local function quietly(fn, ...)
  local before = print
  _G.print = function(line) said[#said + 1] = line end -- luacheck: ignore
  local ok, result, message = pcall(fn, ...)
  _G.print = before -- luacheck: ignore
  if not ok then error(result, 0) end
  return result, message
end

t.test("a part is measured; JSON and the roofline are written, a previous run is compared with", function()
  local json, svg = folder .. "/bench.json", folder .. "/roofline.svg"
  local out = assert(quietly(melies.bench.run, { filter = "norm", rounds = 1, json = json, roofline = svg }))
  t.eq(#out.parts, 2)
  for _, row in ipairs(out.parts) do
    t.ok(row.seconds > 0 and row.gbs > 0 and row.of_peak > 0 and row.intensity > 0.5 and row.work > 0, row.name)
  end
  for _, name in ipairs { "bf16", "f32", "s8", "bandwidth" } do t.ok(out.peaks[name] > 0, name) end
  t.eq(melies.json.read(json).parts[1].name, out.parts[1].name)
  local text = assert(fs.read(svg))
  t.ok(text:find("<svg", 1, true) and text:find("layer norm", 1, true) and text:find("int8", 1, true))
  said = {}
  assert(quietly(melies.bench.run, { filter = "rms_norm", rounds = 1, compare = json }))
  t.ok(said[#said]:find "%d%.%d%dx$", said[#said])
end)

t.test("what cannot be is told", function()
  local code, message = melies.bench.main { "--rooflin", "x" }
  t.eq(code, 2)
  t.ok(message:find("did you mean 'roofline'", 1, true), message)
  t.eq(melies.bench.main { "--rounds", "0" }, 2)
  local result
  result, message = quietly(melies.bench.run, { filter = "no such part", rounds = 1, compare = folder .. "/none.json" })
  t.eq(result, nil)
  t.ok(message:find("none.json", 1, true), message)
end)

t.finish()
