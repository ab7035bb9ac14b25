-- Loudness of Rec. ITU-R BS.1770-4 and EBU R 128 from the K-weighted power of blocks of 100 ms (mel_k_power).
--   loudness.measure(blocks) -> { integrated =, range =, momentary = { LUFS at 10 Hz }, short_term = { ... },
--                                 momentary_max =, short_term_max = }     LUFS; range in LU; SILENCE where there is nothing
local M = {}

M.RATE = 10       -- blocks a second
M.SILENCE = -70   -- LUFS: the absolute gate; lists do not go below it

local function lufs(power) return power > 0 and -0.691 + 10 * math.log10(power) or -math.huge end
local function power_of(value) return 10 ^ ((value + 0.691) / 10) end

-- Means of `count` blocks that end with each block; those before the beginning are silence.
local function sliding(blocks, count)
  local out = {}
  for i = 1, #blocks do
    -- summed anew, so that no rounding error of loud blocks stays behind in quiet ones
    local sum = 0
    for k = math.max(1, i - count + 1), i do sum = sum + blocks[k] end
    out[i] = sum / count
  end
  return out
end

-- Mean power of what is above the gate: absolute, then `below` LU under the mean of what passed it. nil: nothing is.
local function gated(powers, first, below)
  local function mean_above(least)
    local sum, count = 0, 0
    for i = first, #powers do
      if powers[i] > least then sum, count = sum + powers[i], count + 1 end
    end
    return count > 0 and sum / count or nil
  end
  local mean = mean_above(power_of(M.SILENCE))
  if not mean then return nil end
  local gate = math.max(power_of(M.SILENCE), mean * 10 ^ (-below / 10))
  return mean_above(gate), gate
end

function M.measure(blocks)
  local momentary, short = sliding(blocks, 4), sliding(blocks, 30)
  -- Windows that begin before the beginning do not count.
  local mean = gated(momentary, math.min(4, math.max(1, #blocks)), 10)
  local _, gate = gated(short, math.min(30, math.max(1, #blocks)), 20)
  local out = { integrated = mean and lufs(mean) or M.SILENCE, range = 0, momentary = {}, short_term = {},
    momentary_max = M.SILENCE, short_term_max = M.SILENCE }
  local counted = {}
  for i = 1, #blocks do
    out.momentary[i] = math.max(M.SILENCE, lufs(momentary[i]))
    out.short_term[i] = math.max(M.SILENCE, lufs(short[i]))
    out.momentary_max = math.max(out.momentary_max, out.momentary[i])
    out.short_term_max = math.max(out.short_term_max, out.short_term[i])
    if gate and i >= 30 and short[i] > gate then counted[#counted + 1] = out.short_term[i] end
  end
  -- EBU Tech 3342: from the 10th to the 95th percentile.
  table.sort(counted)
  if #counted > 1 then
    local function percentile(q) return counted[1 + math.floor((#counted - 1) * q + 0.5)] end
    out.range = percentile(0.95) - percentile(0.1)
  end
  return out
end

return M
