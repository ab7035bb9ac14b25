-- The roofline (Williams, Waterman and Patterson 2009): what the machine can do at most with each number of operations
-- a byte, and where each part of melies stands under it. The roofs are this machine's own measured peaks. A part's
-- bytes are those that have to move at least once: weights, input and output.
local plot = require "melies.plot"

local names = { bf16 = "bf16", f32 = "f32", s8 = "int8" }
local order = { "s8", "bf16", "f32" }
local LEFT, RIGHT = 0.1, 3e4 -- operations a byte

-- peaks: { bf16, f32, s8 in GFLOP/s, bandwidth in GB/s }; rows: { intensity =, work = GFLOP/s, roof =, label = }. Rows
-- without a label are dots without a number.
return function(peaks, rows)
  local series, notes, count = {}, { "share of the roof above:" }, 0
  local highest, lowest = 0, peaks.bandwidth * LEFT
  for _, dtype in ipairs(order) do highest = math.max(highest, peaks[dtype]) end
  for i, dtype in ipairs(order) do
    local peak = peaks[dtype]
    series[i] = { name = ("%s, %.0f GFLOP/s"):format(names[dtype], peak), colour = i,
      points = { { peak / peaks.bandwidth, peak }, { RIGHT, peak } } }
  end
  series[#series + 1] = { name = ("memory, %.0f GB/s"):format(peaks.bandwidth), colour = 8,
    points = { { LEFT, lowest }, { highest / peaks.bandwidth, highest } } }
  for i, dtype in ipairs(order) do
    local points = {}
    for _, row in ipairs(rows) do
      if row.roof == dtype and row.intensity then
        if row.label then
          count = count + 1
          notes[#notes + 1] = ("%d  %s, %s: %.0f%%"):format(count, row.label, names[dtype],
            100 * row.work / math.min(peaks[dtype], row.intensity * peaks.bandwidth))
        end
        points[#points + 1] = { row.intensity, row.work, row.label and count or nil }
        lowest = math.min(lowest, row.work)
      end
    end
    series[#series + 1] = { kind = "points", colour = i, points = points }
  end
  return plot.svg { title = "What the parts reach, under this machine's roofs", width = 860, height = 620,
    x = { label = "operations a byte (weights, input and output once)", log = true, min = LEFT, max = RIGHT },
    y = { label = "GFLOP/s", log = true, min = lowest * 0.5, max = highest * 1.4 }, series = series, notes = notes }
end
