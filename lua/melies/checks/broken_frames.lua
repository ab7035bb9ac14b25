-- melies-api: 1
-- Frames that are no picture: not a number, torn, or out of place.
-- not a number: any value that is NaN or infinite. torn: between two rows y, y + 1 the mean difference of luma is more than
-- `tear` times the largest of the rows around it, more than 0.04, and was not half of that there in the frame before (of
-- the same shot). out of place: a frame that differs from both neighbours by more than `alone` times what they differ from
-- each other, and by more than 0.08. value is the number of such frames.
local melies = require "melies"

-- Mean difference of each row of luma to the next, at the full height.
local function jumps(frame)
  local y = melies.video.luma(frame)
  local h = y.shape[1]
  return (y:slice(1, 2, h) - y:slice(1, 1, h - 1)):abs():mean(2):list()
end

return {
  kind = "check", name = "broken_frames",
  params = {
    threshold = { "integer", default = 0, min = 0, help = "the most frames that pass" },
    tear = { "number", default = 3, min = 1, max = 100, help = "times the rows around" },
    alone = { "number", default = 4, min = 1, max = 100, help = "times the neighbours' difference" },
  },
  new = function(p)
    local series, self = melies.check.series(), {}
    local count, rows, before, middle = 0, nil, nil, nil
    local function torn(now, last)
      for y = 4, #now - 3 do
        local around = 0
        for d = -3, 3 do
          if d ~= 0 then around = math.max(around, now[y + d]) end
        end
        if now[y] > 0.04 and now[y] > p.tear * around then
          local there = 0
          for d = -2, 2 do there = math.max(there, last[y + d]) end
          if there < 0.5 * now[y] then return true end
        end
      end
      return false
    end
    local function note(here, what)
      count = count + 1
      series:add(here, 1, what)
    end
    function self.push(_, here)
      if here.nonfinite > 0 then
        note(here, "not a number")
        rows, before, middle = nil, nil, nil
        return
      end
      local now = jumps(melies.video.floats(here.raw))
      local is_torn = rows and not here.cut and torn(now, rows)
      if is_torn then note(here, "torn") end
      rows = now
      if before and middle and not middle.torn then
        local a = (middle.frame - before.frame):abs():mean()
        local b = (middle.frame - here.frame):abs():mean()
        local ends = (here.frame - before.frame):abs():mean()
        if math.min(a, b) > 0.08 and math.min(a, b) > p.alone * ends then note(middle, "out of place") end
      end
      here.torn = is_torn
      before, middle = middle, here
    end
    function self.finish()
      return { value = count, pass = count <= p.threshold, threshold = p.threshold, better = "low", series = series,
        where = series:worst("high", 0.5), remedy = { seed = true } }
    end
    return self
  end,
}
