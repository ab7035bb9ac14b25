-- Where a job's time went: by stage and by operation, with the share in which no operation ran, and a trace that Chrome's
-- about:tracing and Perfetto open.
local ffi = require "ffi"
local lib = require "melies.ffi.lib"
local C = lib.C

local profile = {}

-- profile.start(): records from now on. profile.stop(): the spans { name, start, seconds, flop }, stages among them.
function profile.start()
  C.mel_profile_start()
  profile.began = C.mel_seconds()
end

function profile.stop()
  C.mel_profile_stop()
  local spans, s = {}, ffi.new("mel_span")
  for i = 0, tonumber(C.mel_profile_count()) - 1 do
    if C.mel_profile_span(i, s) then
      spans[#spans + 1] = { name = ffi.string(s.name), start = s.start, seconds = s.seconds, flop = s.flop }
    end
  end
  spans.began, spans.ended = profile.began, C.mel_seconds()
  return spans
end

-- profile.stage(label, start): records the stage that began at `start` (mel_seconds) and ends now.
function profile.stage(label, start)
  C.mel_profile_add("stage " .. label, start, C.mel_seconds() - start, 0)
end

-- Sums by name. Operations may hold others (a norm casts its input): what is inside another counts for that one only.
local function sums(spans)
  local operations, stages, ends = {}, {}, -math.huge
  local ordered = {}
  for i, s in ipairs(spans) do ordered[i] = s end
  table.sort(ordered, function(a, b)
    if a.start ~= b.start then return a.start < b.start end
    return a.seconds > b.seconds
  end)
  local busy = 0
  for _, s in ipairs(ordered) do
    local stage = s.name:match "^stage (.*)"
    local into = stage and stages or operations
    if stage or s.start >= ends then
      local row = into[stage or s.name]
      if not row then
        row = { name = stage or s.name, seconds = 0, count = 0, flop = 0 }
        into[row.name] = row
        into[#into + 1] = row
      end
      row.seconds, row.count, row.flop = row.seconds + s.seconds, row.count + 1, row.flop + s.flop
      if not stage then busy, ends = busy + s.seconds, s.start + s.seconds end
    end
  end
  table.sort(operations, function(a, b) return a.seconds > b.seconds end)
  return operations, stages, busy
end

-- profile.report(spans): the table as text.
function profile.report(spans)
  local operations, stages, busy = sums(spans)
  local wall = spans.ended - spans.began
  local out = {}
  local function add(...) out[#out + 1] = string.format(...) end
  add("%-24s %9s %7s %9s %9s", "stage", "seconds", "share", "", "")
  for _, row in ipairs(stages) do add("%-24s %9.3f %6.1f%%", row.name, row.seconds, 100 * row.seconds / wall) end
  add("%-24s %9s %7s %9s %9s", "operation", "seconds", "share", "calls", "GFLOP/s")
  for _, row in ipairs(operations) do
    add("%-24s %9.3f %6.1f%% %9d %9s", row.name, row.seconds, 100 * row.seconds / wall, row.count,
      row.flop > 0 and ("%.0f"):format(row.flop / row.seconds / 1e9) or "")
  end
  add("%-24s %9.3f %6.1f%%", "outside of operations", wall - busy, 100 * (wall - busy) / wall)
  add("%-24s %9.3f", "all", wall)
  -- The highest resident size counts pages of mapped files that are in memory anyway.
  local f = io.open("/proc/self/status")
  local resident = f and tonumber(f:read("*a"):match "VmHWM:%s*(%d+)")
  if f then f:close() end
  add("peak memory: %.2f GiB of tensors and packed weights%s", tonumber(C.mel_mem_peak()) / 2 ^ 30,
    resident and (", %.2f GiB resident"):format(resident / 2 ^ 20) or "")
  return table.concat(out, "\n")
end

-- profile.trace(spans, path): writes the spans in Chrome's trace format. true, or nil and a message.
function profile.trace(spans, path)
  local json = require "melies.json"
  local events = {}
  for i, s in ipairs(spans) do
    local stage = s.name:match "^stage (.*)"
    events[i] = { name = stage or s.name, ph = "X", pid = 1, tid = stage and 1 or 2, ts = (s.start - spans.began) * 1e6,
      dur = s.seconds * 1e6, args = { gflops = s.flop > 0 and s.flop / s.seconds / 1e9 or nil } }
  end
  return json.write(path, { traceEvents = json.array(events), displayTimeUnit = "ms" })
end

return profile
