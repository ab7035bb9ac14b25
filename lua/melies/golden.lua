-- Runs fixtures: small models with random weights whose inputs, outputs and intermediates were taken from the original
-- implementations, and files of other kinds with the values that must come out of them.
--
-- A fixture is NAME.json with a "fixture" field; beside it lie NAME.io.safetensors, NAME.weights.safetensors or the
-- files that the json names. What a fixture exercises is told by its "function" and "config", not by its name or sizes, so
-- that sets with other sizes run as well. In float32 a value passes where |got - want| <= atol + rtol * |want| with the
-- fixture's own tolerance; in bf16, and in float32 with weights that went through Q8_0, where the relative L2 error
-- |got - want| / |want| is within the limit stated in golden/models.lua for that model (docs/models.md has the measured
-- errors).
local melies = require "melies"

local golden = {}

local Fixture = {}
Fixture.__index = Fixture

-- ---- reporting --------------------------------------------------------------------------------------------------

function Fixture:line(ok, name, format, ...)
  local totals = self.totals
  totals.checks = totals.checks + 1
  if not ok then self.failures, totals.failed_checks = self.failures + 1, totals.failed_checks + 1 end
  self.checks = self.checks + 1
  if self.verbose or not ok then
    self.write(("  %s %-44s %s"):format(ok and "pass" or "FAIL", name, format:format(...)))
  end
  return ok
end

-- A statement that holds or not.
function Fixture:ok(name, value, detail) return self:line(value and true or false, name, "%s", detail or "") end

local function shape_text(s)
  local out = {}
  for i = 1, #s do out[i] = tostring(tonumber(s[i])) end
  return "[" .. table.concat(out, ", ") .. "]"
end

-- Largest |got - want|, the largest excess over atol + rtol * |want|, the relative L2 error. NaN counts as infinite.
local function compare(got, want, atol, rtol)
  got, want = got:to("f32"):contiguous(), want:to("f32"):contiguous()
  local g, w = got:ptr(), want:ptr()
  local worst, over, difference, size = 0, 0, 0, 0
  for i = 0, got:numel() - 1 do
    local a, b = g[i], w[i]
    local e = math.abs(a - b)
    if a == b then e = 0 elseif e ~= e then e = math.huge end
    if e > worst then worst = e end
    local limit = e - (atol + rtol * math.abs(b))
    if limit > over then over = limit end
    difference, size = difference + e * e, size + b * b
  end
  local relative = size > 0 and math.sqrt(difference / size) or (difference > 0 and math.huge or 0)
  return worst, over, relative
end
golden.compare = compare

-- A tensor against the stored one. tolerance { atol, rtol } or { relative } instead of the fixture's.
function Fixture:close(name, got, want, tolerance)
  tolerance = tolerance or self.tolerance
  local gs, ws = shape_text(got.shape), shape_text(want.shape)
  if gs ~= ws then return self:line(false, name, "shape %s, wanted %s", gs, ws) end
  if self.relative then
    local _, _, relative = compare(got, want, 0, 0)
    return self:line(relative <= self.relative, name, "relative L2 error %.2e, limit %.1e", relative, self.relative)
  end
  local worst, over = compare(got, want, tolerance.atol, tolerance.rtol)
  return self:line(over <= 0, name, "max error %.2e, tolerance %.0e + %.0e|x|", worst, tolerance.atol, tolerance.rtol)
end

-- Integers: every one equal.
function Fixture:equal(name, got, want)
  local gs, ws = shape_text(got.shape), shape_text(want.shape)
  if gs ~= ws then return self:line(false, name, "shape %s, wanted %s", gs, ws) end
  local g, w = got:list(), want:list()
  for i = 1, #g do
    if g[i] ~= w[i] then
      return self:line(false, name, "at %d got %s, wanted %s", i, tostring(g[i]), tostring(w[i]))
    end
  end
  return self:line(true, name, "%d values equal", #g)
end

-- fn must fail in the way expected failures do: return nil and a message, or raise one. The message must hold `text`.
function Fixture:refuses(name, fn, text)
  local ok, value, message = pcall(fn)
  if ok and value ~= nil then return self:line(false, name, "was accepted") end
  message = tostring(ok and message or value)
  local one_line = not message:find("\n", 1, true) and #message > 0
  local fits = one_line and (not text or message:find(text, 1, true))
  return self:line(fits, name, "%s", message)
end

-- ---- files ------------------------------------------------------------------------------------------------------

function Fixture:path(name) return self.dir .. "/" .. name end

local function open(path)
  local file, message = melies.weights.open(path)
  if not file then error(message, 0) end
  return file
end

function Fixture:weights() return open(self:path(self.name .. ".weights.safetensors")) end

-- A stored input or output, or nil.
function Fixture:get(name)
  self.io = self.io or open(self:path(self.name .. ".io.safetensors"))
  return self.io:has(name) and self.io:get(name) or nil
end

-- Calls fn with a table of every tensor that a net traces meanwhile: name -> list of copies, one a call.
function Fixture.traced(net, fn)
  local seen = {}
  net.trace = function(name, tensor)
    seen[name] = seen[name] or {}
    table.insert(seen[name], tensor:clone())
  end
  local ok, a, b = pcall(fn)
  net.trace = nil
  if not ok then error(a, 0) end
  return seen, a, b
end

local function list_json(dir)
  local names = {}
  local p = io.popen("ls -1 -- '" .. dir:gsub("'", "'\\''") .. "' 2>/dev/null")
  if p then
    for name in p:lines() do
      if name:find("%.json$") then names[#names + 1] = name end
    end
    p:close()
  end
  table.sort(names)
  return names
end

local function read_json(path)
  local f, message = io.open(path, "rb")
  if not f then return nil, message end
  local text = f:read("*a")
  f:close()
  -- The JSON reader takes integers of 63 bits; longer ones (u64 metadata of a GGUF file) are compared as doubles.
  text = text:gsub("%f[%w%.](%d+)%f[^%w%.]", function(digits) return #digits > 18 and digits .. ".0" or nil end)
  local value, why = melies.json.decode(text)
  -- Other JSON files lie between the fixtures; only what looks like one is an error.
  if value == nil and text:find('"fixture"', 1, true) then return nil, why end
  return value
end

-- ---- running ----------------------------------------------------------------------------------------------------

-- Each part lists kinds: { name, applies(json), run(fixture), bf16 =, q8_0 = relative L2 limits where there are some }.
local PARTS = { "models", "ops", "files", "tokenizers", "samplers" }

local function find_kind(json)
  for _, part in ipairs(PARTS) do
    local ok, kinds = pcall(require, "melies.golden." .. part)
    if ok then
      for _, kind in ipairs(kinds) do
        if kind.applies(json) then return kind end
      end
    elseif not tostring(kinds):find("melies.golden." .. part .. "' not found", 1, true) then
      error(kinds, 0)
    end
  end
end

local function run_one(fixture, kind)
  fixture.write(("%s (%s)"):format(fixture.name, fixture.compute))
  local ok, message = pcall(kind.run, fixture)
  if not ok then fixture:line(false, "run", "%s", tostring(message)) end
  if ok and fixture.checks == 0 then fixture:line(false, "run", "nothing was compared") end
  local good = fixture.failures == 0
  local totals = fixture.totals
  totals[good and "passed" or "failed"] = totals[good and "passed" or "failed"] + 1
  fixture.write(("  %s: %d of %d checks pass"):format(good and "pass" or "FAIL", fixture.checks - fixture.failures,
    fixture.checks))
end

-- Runs every fixture in the folder. options: filter (part of a name), compute ("f32", "bf16", "q8_0" or, by default, all of
-- them where the fixture holds matrix work), verbose (false: failures and totals only), write(line) (by default to stdout).
-- Returns { passed, failed, not_covered, checks, failed_checks }, counting a fixture once for each compute; or nil and
-- a message where the folder holds no fixture.
function golden.run(dir, options)
  options = options or {}
  local write = options.write or function(line) io.stdout:write(line, "\n") end
  local totals = { passed = 0, failed = 0, not_covered = 0, checks = 0, failed_checks = 0 }
  local found = 0
  for _, file in ipairs(list_json(dir)) do
    local name = file:gsub("%.json$", "")
    local json, message
    if not options.filter or name:find(options.filter, 1, true) then json, message = read_json(dir .. "/" .. file) end
    if message then
      found, totals.failed = found + 1, totals.failed + 1
      write(("%s: FAIL: %s"):format(file, message))
    elseif type(json) == "table" and type(json.fixture) == "string" then
      found = found + 1
      local kind = find_kind(json)
      if not kind then
        totals.not_covered = totals.not_covered + 1
        write(name .. ": not covered")
      else
        for _, compute in ipairs { "f32", "bf16", "q8_0" } do
          if (compute == "f32" or kind[compute]) and (not options.compute or options.compute == compute) then
            run_one(setmetatable({ name = name, dir = dir, json = json, compute = compute, relative = kind[compute],
              tolerance = json.tolerance or { atol = 0, rtol = 0 }, totals = totals, write = write,
              verbose = options.verbose ~= false, checks = 0, failures = 0 }, Fixture), kind)
          end
        end
      end
    end
    collectgarbage()
  end
  if found == 0 then return nil, ("no fixtures%s in %s"):format(options.filter and " of that name" or "", dir) end
  write(("%d passed, %d failed, %d not covered (%d checks, %d failed)"):format(totals.passed, totals.failed,
    totals.not_covered, totals.checks, totals.failed_checks))
  return totals
end

return golden
