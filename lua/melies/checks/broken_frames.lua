-- melies-api: 1
-- Frames that are no picture: not a number, torn, out of place, or damaged.
-- not a number: any value that is NaN or infinite. The others compare a frame t with both neighbours.
-- damaged: blocks that neither neighbour explains, wherever they may have moved (formula: melies/misfit.lua); their sum is
-- more than `damage`. One in which the frames around differ as much themselves tells nothing, nor does what only jumped.
-- torn: rows from some row on are displaced sideways. n(r) = min(|t - before|, |t - after|) - |before - after|, the mean over
-- row r of luma, is at most 0 where motion goes on evenly; s(r) is the share of columns whose step from row r to the next is
-- more than `tear` times the steps around it, less what either neighbour has within an eighth of the height; f is the
-- difference of the rows beside r to the neighbours' mean after the best shift along the rows, against that without one.
-- Where n is above 0.01 in the eighth of the height on one side of r and below a third of that on the other, the frame is
-- torn if s > `wide`, or s > 0.05 and f < 0.4; at the row where the two sides differ most, f < 0.18 says enough. All of this
-- counts only where some block is damaged.
-- out of place: a frame that differs from both neighbours by more than `alone` times what they differ from each other, and by
-- more than 0.08. value is the number of such frames.
local melies = require "melies"
local misfit = require "melies.misfit"

-- For each row but the first and last three, the share of columns with a step down that stands out; h numbers.
local function steps(y, tear)
  local h, w, p, out = y.shape[1], y.shape[2], y:ptr(), {}
  for r = 1, h do out[r] = 0 end
  for r = 3, h - 5 do
    local count = 0
    for x = 0, w - 1 do
      local at = r * w + x
      local here = math.abs(p[at + w] - p[at])
      if here > 0.02 then
        local around = 0
        for d = -3, 3 do
          local step = math.abs(p[at + (d + 1) * w] - p[at + d * w])
          if d ~= 0 and step > around then around = step end
        end
        if here > tear * around then count = count + 1 end
      end
    end
    out[r + 1] = count / w
  end
  return out
end

local function apart(a, b) return (a - b):abs():mean(2):list() end

-- How much nearer rows first .. last of y are to those of `other` after the best shift along them: 0 to about 1.
local function shifted(y, other, first, last)
  local w, p, q = y.shape[2], y:ptr(), other:ptr()
  local function distance(shift)
    local sum, from, to = 0, math.max(0, -shift), math.min(w, w - shift) - 1
    for r = first - 1, last - 1 do
      for x = from, to do sum = sum + math.abs(p[r * w + x] - q[r * w + x + shift]) end
    end
    return sum / ((to - from + 1) * (last - first + 1))
  end
  local whole, best = distance(0), math.huge
  for shift = 2, math.floor(w / 2) do best = math.min(best, distance(shift), distance(-shift)) end
  return best / math.max(whole, 1e-9)
end

-- before, now, after: { y = luma, steps = }.
local function torn(before, now, after, wide)
  local h = now.y.shape[1]
  local e1, e2, e0 = apart(now.y, before.y), apart(now.y, after.y), apart(before.y, after.y)
  local sums = { [0] = 0 } -- of n over the rows
  for r = 1, h do sums[r] = sums[r - 1] + math.min(e1[r], e2[r]) - e0[r] end
  local reach = math.max(3, math.floor(h / 8))
  local between
  local function fit(r, below)
    between = between or (before.y + after.y) * 0.5
    return shifted(now.y, between, below and r + 1 or r - reach + 1, below and r + reach or r)
  end
  local most, at, side = 0, nil, nil
  for r = reach, h - reach do
    local up, down = (sums[r] - sums[r - reach]) / reach, (sums[r + reach] - sums[r]) / reach
    local high, low = math.max(up, down), math.min(up, down)
    if high > 0.01 and low < 0.3 * high then
      if high - low > most then most, at, side = high - low, r, down > up end
      local there = 0
      for d = math.max(1, r - reach), math.min(h, r + reach) do
        there = math.max(there, before.steps[d], after.steps[d])
      end
      local share = now.steps[r] - there
      if share > wide or share > 0.05 and fit(r, down > up) < 0.4 then return true end
    end
  end
  return at ~= nil and fit(at, side) < 0.18
end

return {
  kind = "check", name = "broken_frames",
  params = {
    threshold = { "integer", default = 0, min = 0, help = "the most frames that pass" },
    tear = { "number", default = 2, min = 1, max = 100, help = "times the steps between the rows around" },
    wide = { "number", default = 0.5, min = 0.1, max = 1, help = "share of the width that is torn whatever it shows" },
    damage = { "number", default = 0.3, min = 0, max = 1000, help = "the sum of what neither neighbour explains" },
    alone = { "number", default = 4, min = 1, max = 100, help = "times the neighbours' difference" },
  },
  new = function(p)
    local series, self = melies.check.series(), {}
    local count, kept = 0, {} -- the last frames, from two before the one that is judged to two behind it
    local function note(here, what)
      count = count + 1
      series:add(here, 1, what)
    end
    local function judge(i)
      local before, now, after = kept[i - 1], kept[i], kept[i + 1]
      if not (before and now and after) then return end
      local around = {}
      for d = -2, 2 do around[d] = kept[i + d] and kept[i + d].planes end
      local sum = misfit.measure(now.planes, around)
      if sum > 0 and torn(before, now, after, p.wide) then return note(now.here, "torn") end
      local a, b = (now.frame - before.frame):abs():mean(), (now.frame - after.frame):abs():mean()
      local ends = (after.frame - before.frame):abs():mean()
      if math.min(a, b) > 0.08 and math.min(a, b) > p.alone * ends then note(now.here, "out of place")
      elseif sum > p.damage then note(now.here, "damaged") end
    end
    function self.push(_, here)
      if here.nonfinite > 0 then
        judge(#kept - 1)
        note(here, "not a number")
        kept = {}
        return
      end
      local luma = melies.video.luma(melies.video.floats(here.raw)):contiguous()
      kept[#kept + 1] = { here = here, frame = here.frame, y = luma, steps = steps(luma, p.tear),
        planes = misfit.planes(here.frame) }
      judge(#kept - 2)
      if #kept == 5 then table.remove(kept, 1) end
    end
    function self.finish()
      judge(#kept - 1)
      return { value = count, pass = count <= p.threshold, threshold = p.threshold, better = "low", series = series,
        where = series:worst("high", 0.5), remedy = { seed = true } }
    end
    return self
  end,
}
