-- Onsets, tempo and beats. An onset envelope is a list of numbers at RATE values a second; value i belongs to the time
-- (i - 1) / RATE seconds.
--
--   beats.onsets() -> object: :push(power) for rows of power spectra as they come; .list is the envelope, .ranges those
--     of four ranges of frequency, the lowest first, whose mean it is
--   beats.tempo(onset, opts, ranges) -> bpm, clarity | nil, reason
--   beats.track(onset, bpm, opts) -> times, in seconds      beats.find(onset, opts, ranges) -> times, bpm,
--     clarity | nil, reason
local lib = require "melies.ffi.lib"
local T = require "melies.tensor"

local M = {}

M.RATE = 100      -- values of the envelope a second
M.WINDOW = 1024   -- samples at 48000 Hz: 21 ms
local BANDS = 40
local LAG = 2     -- frames between which energy grows: windows that do not overlap
local MIN_ONSET = 0.03 -- one band that begins at -60 dB; a tone that glides stays below

-- ---- bands ---------------------------------------------------------------------------------------------

local function mel(hz) return 2595 * math.log10(1 + hz / 700) end
local function hertz(m) return 700 * (10 ^ (m / 2595) - 1) end

-- Triangles of equal height, evenly spaced on the mel scale (O'Shaughnessy 1987): [window / 2 + 1, bands].
function M.mel_bank(bands, window, rate, low, high)
  local bins, points = window / 2 + 1, {}
  for i = 0, bands + 1 do points[i] = hertz(mel(low) + (mel(high) - mel(low)) * i / (bands + 1)) * window / rate end
  local bank = T.zeros { bins, bands }
  local p = bank:ptr()
  for b = 1, bands do
    local left, middle, right = points[b - 1], points[b], points[b + 1]
    for k = math.ceil(left), math.min(bins - 1, math.floor(right)) do
      local w = k <= middle and (k - left) / (middle - left) or (right - k) / (right - middle)
      if w > 0 then p[k * bands + b - 1] = w end
    end
  end
  return bank
end

-- log10(1 + 1000 |X|): amplitudes from -60 dB up are heard.
function M.log_bands(power, bank) return ((power:matmul(bank):sqrt() * 1000) + 1):log() * (1 / math.log(10)) end

-- Four ranges that count alike, since cymbals fill many bands and drums few: [bands, 4], the sum of a column is 1.
local RANGES = { 250, 1000, 4000, math.huge } -- up to Hz
local function weights(bands, low, high)
  local range, counts, out = {}, {}, {}
  for b = 1, bands do
    local centre, k = hertz(mel(low) + (mel(high) - mel(low)) * b / (bands + 1)), 1
    while centre >= RANGES[k] do k = k + 1 end
    range[b], counts[k] = k, (counts[k] or 0) + 1
  end
  for b = 1, bands do
    for k = 1, #RANGES do out[#out + 1] = range[b] == k and 1 / counts[k] or 0 end
  end
  return T.of(out, { bands, #RANGES })
end

-- ---- onsets ---------------------------------------------------------------------------------------------

local Onsets = {}
Onsets.__index = Onsets

function M.onsets()
  return setmetatable({ list = {}, ranges = { {}, {}, {}, {} }, bank = M.mel_bank(BANDS, M.WINDOW, 48000, 30, 16000),
    weights = weights(BANDS, 30, 16000) }, Onsets)
end

-- Spectral flux on log-mel bands with a maximum over neighbouring bands, so that a tone that glides is no onset (Böck and
-- Widmer 2013, SuperFlux): weighted mean over b of max(0, X[t, b] - max(X[t - LAG, b - 1], X[t - LAG, b], X[t - LAG, b + 1])).
function Onsets:push(power)
  local now = M.log_bands(power, self.bank)
  if not self.last then self.last = now:slice(1, 1, 1):expand { LAG, BANDS }:contiguous() end
  local all = T.concat({ self.last, now }, 1)
  local n = now.shape[1]
  local before = all:slice(1, 1, n)
  local left = before:pad(2, 1, 0, 0):slice(2, 1, BANDS)
  local right = before:pad(2, 0, 1, 0):slice(2, 2, BANDS + 1)
  local highest = T.maximum(T.maximum(before, left), right)
  local flux = (now - highest):relu():matmul(self.weights):list()
  local count = #self.ranges
  for i = 0, n - 1 do
    local sum = 0
    for k, list in ipairs(self.ranges) do
      list[#list + 1] = flux[i * count + k]
      sum = sum + flux[i * count + k]
    end
    self.list[#self.list + 1] = sum / count
  end
  self.last = all:slice(1, n + 1, n + LAG):clone()
end

-- ---- tempo -----------------------------------------------------------------------------------------------

-- The envelope less its mean over a second around, and its standard deviation.
local function centred(onset)
  local n, half, out = #onset, math.floor(M.RATE / 2), {}
  local sum, first, last, squares = 0, 1, 0, 0
  for i = 1, n do
    while last < math.min(n, i + half) do
      last = last + 1
      sum = sum + onset[last]
    end
    while first < i - half do
      sum = sum - onset[first]
      first = first + 1
    end
    out[i] = onset[i] - sum / (last - first + 1)
    squares = squares + out[i] ^ 2
  end
  return out, math.sqrt(squares / math.max(1, n))
end

-- Adds what one list gives to the sums; returns its power.
local function add_products(x, size, lags, sums)
  local weight = 0
  for at = 1, math.max(1, #x - size / 2), size / 2 do
    local last = math.min(#x, at + size - 1)
    local zero = 0
    for i = at, last do zero = zero + x[i] * x[i] end
    if zero > 0 then
      for lag = 0, lags do
        local sum = 0
        for i = at, last - lag do sum = sum + x[i] * x[i + lag] end
        -- unbiased where at least half the window takes part
        local count = math.max(last - at + 1 - lag, (last - at + 1) / 2)
        sums[lag + 1] = sums[lag + 1] + sum * (last - at + 1) / count
      end
      weight = weight + zero
    end
  end
  return weight
end

-- Mean autocorrelation of windows of `size` values of the lists, over their power: list from lag 0 (index 1) to `lags`.
local function autocorrelation(lists, size, lags)
  local sums, weight = {}, 0
  for lag = 0, lags do sums[lag + 1] = 0 end
  for _, x in ipairs(lists) do
    weight = weight + add_products(x, size, lags, sums)
  end
  for lag = 0, lags do sums[lag + 1] = weight > 0 and sums[lag + 1] / weight or 0 end
  return sums
end

local function magnitudes(x, size)
  local samples = T.of(x, { #x, 1 })
  local count = math.max(1, math.floor(2 * #x / size) - 1)
  local first = #x < size and -math.floor((size - #x) / 2) or 0
  local box = lib.out "mel_tensor*"
  lib.call(lib.C.mel_power_spectrum, samples.handle, first, size, size / 2, count, box)
  return T.wrap(box[0]):sqrt():mean(1)
end

-- Mean magnitude of the spectra of windows of `size` values of the lists, list from frequency 0.
local function periodicity(lists, size)
  local sums
  for _, x in ipairs(lists) do
    local more = magnitudes(x, size)
    sums = sums and sums + more or more
  end
  return sums:list()
end

local function between(list, at) -- 0-based, linear
  local i = math.floor(at)
  local a, b = list[i + 1] or 0, list[i + 2] or 0
  return a + (b - a) * (at - i)
end

-- The lag near `at` where the list is highest, by a parabola through three points.
local function peak_near(list, at, reach)
  local best
  for i = math.max(2, math.floor(at - reach + 0.5)), math.min(#list - 2, math.floor(at + reach + 0.5)) do
    if not best or list[i + 1] > list[best + 1] then best = i end
  end
  if not best then return at end
  local a, b, c = list[best], list[best + 1], list[best + 2]
  local bend = a - 2 * b + c
  local shift = bend < 0 and 0.5 * (a - c) / bend or 0
  return best + math.max(-0.5, math.min(0.5, shift))
end

local TEMPO = { low = true, high = true, centre = true, width = true, clarity = true }

-- The tempo whose period tau has the largest A(tau) * sqrt(F(1 / tau)) * W(tau). A, the autocorrelation, also has peaks at whole
-- multiples of the period, F, the magnitude of the spectrum, at whole parts of it: only the period itself is in both
-- (Peeters 2007). W = exp(-(log2(bpm / centre) / width)^2 / 2) is how people tap (Ellis 2007).
-- Both are taken in each of the ranges, where there are some: a drum and a cymbal by turns are no tempo twice as high
-- (Scheirer 1998).
-- opts: low, high (30, 300 BPM), centre (120), width (0.8 octaves), clarity (0.1: the least A that is a beat; never less than
-- four standard deviations of A for noise, 4 / sqrt(n)). Returns BPM and A, or nil and the reason.
function M.tempo(onset, opts, ranges)
  opts = opts or {}
  lib.check_options("sound.tempo", opts, TEMPO)
  local low, high = opts.low or 30, opts.high or 300
  local n = #onset
  if n < 3 * M.RATE then return nil, ("%.1f s are too short; 3 s at least are wanted"):format(n / M.RATE) end
  local highest = 0
  for i = 1, n do highest = math.max(highest, onset[i]) end
  if highest < MIN_ONSET then return nil, "nothing begins in it: no onsets" end
  local x = {}
  for k, list in ipairs(ranges or { onset }) do x[k] = centred(list) end
  local lags = math.min(math.floor(60 / low * M.RATE) + 2, math.floor(n / 2))
  local size = 1024
  local a = autocorrelation(x, math.max(size, 4 * lags), lags)
  local f = periodicity(x, size)
  local best, bpm, clarity = 0, nil, 0
  for k = 0, math.floor(100 * math.log(high / low, 2) / math.log(2, 2)) do
    local tempo = low * 2 ^ (k / 100)
    local lag = 60 * M.RATE / tempo
    if lag <= lags - 1 then
      local here = between(a, lag)
      local w = math.exp(-0.5 * (math.log(tempo / (opts.centre or 120)) / math.log(2) / (opts.width or 0.8)) ^ 2)
      local score = math.max(0, here) * math.sqrt(between(f, tempo / 60 * size / M.RATE)) * w
      if score > best then best, bpm, clarity = score, tempo, here end
    end
  end
  if not bpm then return nil, "its onsets repeat at no tempo" end
  local lag = peak_near(a, 60 * M.RATE / bpm, 2)
  clarity = math.max(clarity, between(a, lag))
  local least = math.max(opts.clarity or 0.1, 4 / math.sqrt(n))
  if clarity < least then
    return nil, ("its onsets repeat at no tempo (clarity %.2f, a beat has %.2f)"):format(clarity, least)
  end
  return 60 * M.RATE / lag, clarity
end

-- ---- beats -------------------------------------------------------------------------------------------------

local TRACK = { tightness = true }

-- Ellis 2007: the times t_i with the largest sum of O(t_i) + alpha F(t_i - t_(i-1)), F(d) = -(log(d / period))^2, by
-- dynamic programming. O is the envelope over its standard deviation, smoothed by a Gaussian of period / 32.
-- opts: tightness (alpha, 100).
function M.track(onset, bpm, opts)
  opts = opts or {}
  lib.check_options("sound.track", opts, TRACK)
  local alpha, period = opts.tightness or 100, 60 * M.RATE / bpm
  local x, deviation = centred(onset)
  local n = #x
  if deviation == 0 then return {} end
  local kernel, reach = {}, math.ceil(period / 8)
  for k = -reach, reach do kernel[k] = math.exp(-0.5 * (k * 32 / period) ^ 2) end
  local o = {}
  for i = 1, n do
    local sum = 0
    for k = math.max(-reach, 1 - i), math.min(reach, n - i) do sum = sum + kernel[k] * x[i + k] end
    o[i] = sum / deviation
  end
  local costs, shortest, longest = {}, math.max(1, math.floor(period / 2 + 0.5)), math.floor(2 * period + 0.5)
  for d = shortest, longest do costs[d] = -alpha * math.log(d / period) ^ 2 end
  local score, back = {}, {}
  for i = 1, n do
    local best, from = -math.huge, nil
    for d = shortest, math.min(longest, i - 1) do
      local s = score[i - d] + costs[d]
      if s > best then best, from = s, i - d end
    end
    -- a beat may be the first
    if best < 0 then best, from = 0, nil end
    score[i], back[i] = o[i] + best, from
  end
  local last = n
  for i = math.max(1, n - math.floor(period)), n do
    if score[i] > score[last] then last = i end
  end
  local frames, i = {}, last
  while i do
    table.insert(frames, 1, i)
    i = back[i]
  end
  -- Beats at the ends that nothing marks are dropped.
  local strengths = {}
  for k, frame in ipairs(frames) do strengths[k] = o[frame] end
  table.sort(strengths)
  local least = 0.3 * (strengths[math.ceil(#strengths / 2)] or 0)
  while #frames > 0 and o[frames[1]] < least do table.remove(frames, 1) end
  while #frames > 0 and o[frames[#frames]] < least do table.remove(frames) end
  local times = {}
  for k, frame in ipairs(frames) do
    local at = frame - 1
    if frame > 1 and frame < n and o[frame] >= o[frame - 1] and o[frame] >= o[frame + 1] then
      at = peak_near(o, frame - 1, 0)
    end
    times[k] = at / M.RATE
  end
  return times
end

-- The slope of beat times over their numbers, in seconds a beat; beats that are missing or odd do not count.
local function slope(times)
  local steps = {}
  for i = 2, #times do steps[i - 1] = times[i] - times[i - 1] end
  table.sort(steps)
  local middle = steps[math.ceil(#steps / 2)]
  local sum, count = 0, 0
  for _, step in ipairs(steps) do
    if math.abs(step - middle) < 0.1 * middle then sum, count = sum + step, count + 1 end
  end
  return sum / count
end

-- Mean of the highest values near each time.
local function strength(list, times)
  local sum = 0
  for _, at in ipairs(times) do
    local i, best = math.floor(at * M.RATE + 0.5) + 1, 0
    for k = math.max(1, i - 3), math.min(#list, i + 3) do best = math.max(best, list[k]) end
    sum = sum + best
  end
  return sum / math.max(1, #times)
end

-- Cymbals halfway between the beats may be the stronger onsets; drums that carry the beat are low. Where twice as much low
-- sound begins halfway as on the beats, the beats are there.
local function on_drums(times, low)
  local halfway = {}
  for i = 1, #times - 1 do
    local middle = (times[i] + times[i + 1]) / 2
    local at, reach = math.floor(middle * M.RATE + 0.5) + 1, math.floor((times[i + 1] - times[i]) * M.RATE / 16)
    local best = at
    for k = math.max(1, at - reach), math.min(#low, at + reach) do
      if low[k] > (low[best] or 0) then best = k end
    end
    halfway[i] = (best - 1) / M.RATE
  end
  local there = strength(low, halfway)
  return there > 0.3 and there > 2 * strength(low, times) and halfway or times
end

-- opts: those of tempo and track. ranges: as onsets() gives them, where there are some.
function M.find(onset, opts, ranges)
  local tempo, track = {}, {}
  for key, value in pairs(opts or {}) do
    if TRACK[key] then track[key] = value else tempo[key] = value end
  end
  local bpm, clarity = M.tempo(onset, tempo, ranges)
  if not bpm then return nil, clarity end
  local times = M.track(onset, bpm, track)
  if ranges and #times > 4 then times = on_drums(times, ranges[1]) end
  if #times < 4 then return nil, ("only %d beats are in it"):format(#times) end
  return times, 60 / slope(times), clarity
end

return M
