-- What a sound file is like: onsets, tempo and beats, loudness, brightness, energy, sections.
--
--   sound.analyse(path, opts) -> analysis | nil, message
--   sound.text(analysis) -> lines for a person      sound.data(analysis) -> a plain table for JSON
--   sound.plot(analysis) -> SVG                     sound.at(list, seconds), sound.mean(list, from, to): of curves
--
-- An analysis: path, duration (s), from (s), tempo (BPM; nil), clarity, beats (list of s), no_beat (why there are none),
-- onset (list at 100 Hz), loudness (melies.sound.loudness; integrated, range, momentary, ...), peak (dBFS of the largest
-- sample), brightness, energy (lists at 10 Hz: Hz, 0..1), sections ({ from, to, label, loudness, brightness, energy }).
-- Times count from `from`. The file is decoded once, at 48000 Hz, and is never in memory as a whole.
local ffi = require "ffi"
local lib = require "melies.ffi.lib"
local beats = require "melies.sound.beats"
local loudness = require "melies.sound.loudness"
local media = require "melies.media"
local sections = require "melies.sound.sections"
local T = require "melies.tensor"

local M = { beats = beats, loudness = loudness, sections = sections }

local RATE = 48000
local CURVE = 10          -- values of a curve a second
local CHUNK = 10 * RATE   -- samples that are worked on at once
local WINDOW = 4096       -- of the slow spectrum: 85 ms
local TIMBRE = 20         -- bands that tell sections apart
local MAX_ROWS = 1500     -- of the self-similarity matrix
local SHORTEST = 0.05     -- seconds

-- ---- spectra of a stream -----------------------------------------------------------------------------------

local Spectra = {}
Spectra.__index = Spectra

-- Calls take(power [n, window / 2 + 1]) with windows centred at 0, hop, 2 hop, ... of samples that come in parts.
local function spectra(window, hop, take)
  return setmetatable({ window = window, hop = hop, take = take, done = 0, at = 0, kept = nil }, Spectra)
end

-- part [n, 1], nil at the end. self.at: number of the first kept sample.
function Spectra:push(part)
  local all = self.kept and part and T.concat({ self.kept, part }, 1) or part or self.kept
  if not all then return end
  local ends, half = self.at + all.shape[1], self.window / 2
  -- frame k needs samples up to k hop + half; at the end, those that are centred inside
  local last = part and math.floor((ends - half) / self.hop) or math.ceil(ends / self.hop) - 1
  local count = last - self.done + 1
  if count > 0 then
    local box = lib.out "mel_tensor*"
    lib.call(lib.C.mel_power_spectrum, all.handle, self.done * self.hop - half - self.at, self.window, self.hop, count, box)
    self.take(T.wrap(box[0]))
    self.done = last + 1
  end
  local keep = math.max(self.at, self.done * self.hop - half)
  self.kept = keep < ends and all:slice(1, keep - self.at + 1, -1):clone() or nil
  self.at = self.kept and keep or ends
end

-- ---- curves --------------------------------------------------------------------------------------------------

-- Means over `reach` values on both sides.
local function smoothed(list, reach)
  local out, n = {}, #list
  for i = 1, n do
    local sum, first, last = 0, math.max(1, i - reach), math.min(n, i + reach)
    for k = first, last do sum = sum + list[k] end
    out[i] = sum / (last - first + 1)
  end
  return out
end

local function percentiles(list, ...)
  local sorted, out = { unpack(list) }, {}
  if #list > 7000 then
    sorted = {}
    for i = 1, #list do sorted[i] = list[i] end
  end
  table.sort(sorted)
  for k, q in ipairs { ... } do out[k] = sorted[1 + math.floor((#sorted - 1) * q + 0.5)] or 0 end
  return unpack(out)
end

-- Value of a curve at a time in seconds; the mean from one time to another.
function M.at(list, seconds) return list[math.max(1, math.min(#list, math.floor(seconds * CURVE) + 1))] end
function M.mean(list, from, to)
  local first = math.max(1, math.min(#list, math.floor(from * CURVE) + 1))
  local last = math.max(first, math.min(#list, math.ceil(to * CURVE)))
  local sum = 0
  for i = first, last do sum = sum + list[i] end
  return sum / (last - first + 1)
end

-- How much there is going on, 0..1: seven parts loudness (mean over 1.6 s; 9 LU, or from the 10th to the 90th percentile
-- where that is more, are the whole range), three parts onsets (the same, over their own range). 0.5: as on average.
local function energy_of(momentary, onset)
  local loud = smoothed(momentary, 8)
  local low, high = percentiles(loud, 0.1, 0.9)
  low, high = math.max(low, -60), math.max(high, -60)
  local middle, range = (low + high) / 2, math.max(9, high - low)
  local busy = {}
  for i = 1, #loud do
    local sum, first = 0, (i - 1) * beats.RATE / CURVE
    for k = first + 1, math.min(#onset, first + beats.RATE / CURVE) do sum = sum + onset[k] end
    busy[i] = sum
  end
  busy = smoothed(busy, 8)
  local few, many = percentiles(busy, 0.1, 0.9)
  local spread = math.max(many - few, 0.5 * many, 1e-9)
  local out = {}
  for i = 1, #loud do
    local a = 0.5 + (loud[i] - middle) / range
    local b = 0.5 + (busy[i] - (few + many) / 2) / spread
    out[i] = math.max(0, math.min(1, 0.7 * math.max(0, math.min(1, a)) + 0.3 * math.max(0, math.min(1, b))))
    if momentary[i] <= loudness.SILENCE and loud[i] <= loudness.SILENCE then out[i] = 0 end
  end
  return out
end

-- ---- the analysis -----------------------------------------------------------------------------------------------

-- What the slow spectrum gives for each tenth of a second: centroid in Hz, and a row of timbre and pitch classes.
local function slow_features(rate, window)
  local bins = window / 2 + 1
  local hz, chroma = T.zeros { bins, 1 }, T.zeros { bins, 12 }
  local h, c = hz:ptr(), chroma:ptr()
  for k = 0, bins - 1 do
    local f = k * rate / window
    h[k] = f
    -- pitch classes of 130 Hz to 4 kHz, where bins are closer than semitones at the upper end
    if f > 130 and f < 4000 then c[k * 12 + math.floor(12 * math.log(f / 440) / math.log(2) + 0.5) % 12] = 1 end
  end
  local bank = beats.mel_bank(TIMBRE, window, rate, 50, 16000)
  local out = { centroid = {}, rows = {} }
  function out.take(power)
    local sum = power:sum(2, true)
    local centre = power:matmul(hz) / (sum + 1e-12)
    for _, v in ipairs(centre:list()) do out.centroid[#out.centroid + 1] = v end
    local classes = power:matmul(chroma)
    local most = classes:amax(2, true)
    out.rows[#out.rows + 1] = T.concat({ beats.log_bands(power, bank), classes / (most + 1e-9) }, 2)
  end
  return out
end

-- Sections of the whole from rows at 10 Hz: means over half a second, or more where the file is long.
local function sections_of(rows, duration, opts)
  local per = math.max(CURVE / 2, math.ceil(rows.shape[1] / MAX_ROWS))
  local n = math.floor(rows.shape[1] / per)
  if n < 4 then return { { from = 0, to = duration, label = "A" } } end
  local means = rows:slice(1, 1, n * per):reshape(n, per, rows.shape[2]):mean(2)
  local seconds, out = per / CURVE, {}
  local settings = { half = math.max(4, math.floor(8 / seconds + 0.5)), least = math.max(2, math.floor(6 / seconds + 0.5)) }
  for key, value in pairs(opts or {}) do settings[key] = value end
  for i, s in ipairs(sections.find(means, settings)) do
    out[i] = { from = (s.first - 1) * seconds, to = s.last * seconds, label = s.label }
  end
  out[#out].to = duration
  return out
end

local function snap(section_list, times)
  for i = 2, #section_list do
    local at, best = section_list[i].from, nil
    for k, t in ipairs(times) do
      local step = times[k + 1] and times[k + 1] - t or t - (times[k - 1] or 0)
      if math.abs(t - at) <= step and (not best or math.abs(t - at) < math.abs(best - at)) then best = t end
    end
    if best and best > section_list[i - 1].from then section_list[i].from, section_list[i - 1].to = best, best end
  end
end

local ANALYSE = { from = true, seconds = true, beats = true, sections = true }

-- opts: from, seconds (the part that counts), beats (options of beats.find), sections (of sections.find).
function M.analyse(path, opts)
  opts = opts or {}
  lib.check_options("sound.analyse", opts, ANALYSE)
  local reader, message = media.audio_reader(path, { rate = RATE, start = opts.from, seconds = opts.seconds })
  if not reader then return nil, message end
  local info = reader:info()
  local onsets, slow = beats.onsets(), slow_features(RATE, WINDOW)
  local fast = spectra(beats.WINDOW, RATE / beats.RATE, function(power) onsets:push(power) end)
  local wide = spectra(WINDOW, RATE / CURVE, slow.take)
  local blocks, state, peak, count = {}, ffi.new "mel_k_state", 0, 0
  local block = RATE / loudness.RATE
  while true do
    local part
    part, message = reader:read(CHUNK)
    if not part then break end
    local n = part.shape[1]
    count = count + n
    peak = math.max(peak, part:amax(), -part:amin())
    -- The last block is filled up with silence.
    local whole = n % block == 0 and part or part:pad(1, 0, block - n % block, 0):contiguous()
    local box = lib.out "mel_tensor*"
    lib.call(lib.C.mel_k_power, whole.handle, block, state, box)
    for _, v in ipairs(T.wrap(box[0]):list()) do blocks[#blocks + 1] = v end
    local mono = part.shape[2] == 1 and part or part:mean(2, true)
    fast:push(mono)
    wide:push(mono)
    collectgarbage() -- it does not see the bytes of tensors
  end
  reader:close()
  if message then return nil, message end
  local duration = count / RATE
  if duration < SHORTEST then
    return nil, ("%s: %.3f s of sound%s; %g s at least are wanted"):format(path, duration,
      (opts.from or 0) > 0 and (" from %g s on"):format(opts.from) or "", SHORTEST)
  end
  fast:push(nil)
  wide:push(nil)

  local out = { path = path, duration = duration, from = opts.from or 0, source = info, onset = onsets.list,
    loudness = loudness.measure(blocks), peak = peak > 0 and 20 * math.log10(peak) or -math.huge, beats = {} }
  out.brightness = slow.centroid
  out.energy = energy_of(out.loudness.momentary, onsets.list)
  if out.loudness.momentary_max <= loudness.SILENCE then out.no_beat = "no beat found: it is silent"
  else
    local times, bpm, clarity = beats.find(onsets.list, opts.beats, onsets.ranges)
    if times then out.beats, out.tempo, out.clarity = times, bpm, clarity
    else out.no_beat = "no beat found: " .. bpm end
  end
  local rows = #slow.rows == 1 and slow.rows[1] or T.concat(slow.rows, 1)
  out.sections = sections_of(rows, duration, opts.sections)
  snap(out.sections, out.beats)
  for _, s in ipairs(out.sections) do
    s.energy, s.brightness = M.mean(out.energy, s.from, s.to), M.mean(out.brightness, s.from, s.to)
    local sum, n = 0, 0
    for i = math.floor(s.from * CURVE) + 1, math.min(#blocks, math.ceil(s.to * CURVE)) do sum, n = sum + blocks[i], n + 1 end
    s.loudness = sum > 0 and math.max(loudness.SILENCE, -0.691 + 10 * math.log10(sum / n)) or loudness.SILENCE
  end
  return out
end

-- ---- for people -------------------------------------------------------------------------------------------------

function M.clock(seconds) return ("%d:%05.2f"):format(math.floor(seconds / 60), seconds % 60) end

function M.text(a)
  local lines = {}
  local function add(name, format, ...) lines[#lines + 1] = ("%-12s"):format(name) .. format:format(...) end
  local s = a.source
  add("file", "%s (%s, %d Hz, %d channel%s)", a.path, s.codec, s.source_rate, s.source_channels,
    s.source_channels == 1 and "" or "s")
  add("length", "%s", M.clock(a.duration))
  if a.tempo then
    add("tempo", "%.1f BPM (clarity %.2f)", a.tempo, a.clarity)
    local shown = {}
    for i = 1, math.min(8, #a.beats) do shown[i] = ("%.2f"):format(a.beats[i]) end
    add("beats", "%d: %s%s s", #a.beats, table.concat(shown, " "), #a.beats > 8 and " ..." or "")
  else lines[#lines + 1] = a.no_beat end
  add("loudness", "%.1f LUFS, range %.1f LU, loudest %.1f LUFS over 0.4 s, %.1f over 3 s, peak %.1f dBFS", a.loudness.integrated,
    a.loudness.range, a.loudness.momentary_max, a.loudness.short_term_max, a.peak)
  add("brightness", "%.0f Hz", M.mean(a.brightness, 0, a.duration))
  lines[#lines + 1] = "sections    from       to         energy  loudness  brightness"
  for _, c in ipairs(a.sections) do
    lines[#lines + 1] = ("  %-9s %-10s %-10s %-7.2f %-9.1f %.0f"):format(c.label, M.clock(c.from), M.clock(c.to), c.energy,
      c.loudness, c.brightness)
  end
  return table.concat(lines, "\n")
end

local function rounded(list, per)
  local out = {}
  for i = 1, #list do out[i] = math.floor(list[i] * per + 0.5) / per end
  return require("melies.json").array(out)
end

-- Curves have `rate` values a second; times are whole milliseconds.
function M.data(a)
  local json, parts = require "melies.json", {}
  for i, s in ipairs(a.sections) do
    parts[i] = { from = s.from, to = s.to, label = s.label, energy = s.energy, loudness = s.loudness,
      brightness = s.brightness }
  end
  local l = a.loudness
  return { file = a.path, from = a.from, duration = a.duration, tempo = a.tempo, clarity = a.clarity, no_beat = a.no_beat,
    beats = rounded(a.beats, 1000), rate = CURVE, energy = rounded(a.energy, 1000), brightness = rounded(a.brightness, 1),
    momentary = rounded(l.momentary, 100), short_term = rounded(l.short_term, 100), integrated = l.integrated,
    loudness_range = l.range, momentary_max = l.momentary_max, short_term_max = l.short_term_max,
    peak = math.max(-200, a.peak), sections = json.array(parts) }
end

-- Loudness and energy over time, with sections and beats.
function M.plot(a)
  local function points(list, scale, offset)
    local out, step = {}, math.max(1, math.floor(#list / 600))
    for i = 1, #list, step do
      local sum, n = 0, 0
      for k = i, math.min(#list, i + step - 1) do sum, n = sum + list[k], n + 1 end
      out[#out + 1] = { (i - 0.5) / CURVE, sum / n * scale + offset }
    end
    return out
  end
  -- every other section is shaded; beats are shown where they do not run together
  local bands, marks = {}, {}
  for i, section in ipairs(a.sections) do
    if i % 2 == 0 then bands[#bands + 1] = { from = section.from, to = section.to, label = section.label }
    else marks[#marks + 1] = { x = section.from, label = section.label } end
  end
  for i = 1, #a.beats <= 64 and #a.beats or 0 do marks[#marks + 1] = { x = a.beats[i] } end
  local title = a.path:match "[^/]*$"
  if a.tempo then title = ("%s, %.1f BPM"):format(title, a.tempo) end
  return require("melies.plot").svg { title = title, width = 960, height = 320, x = { label = "seconds" },
    y = { label = "LUFS", min = -60, max = 0 }, bands = bands, marks = marks,
    series = { { name = "loudness, 3 s", points = points(a.loudness.short_term, 1, 0), kind = "line" },
      { name = "energy, 0 to 1 over the height", points = points(a.energy, 60, -60), kind = "line" } } }
end

return M
