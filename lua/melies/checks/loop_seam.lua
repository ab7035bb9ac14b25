-- melies-api: 1
-- A film that is played in a loop: its step from the last frame to the first.
-- The mean difference of these two over the largest one between neighbours among the first and last `beside` frames. Only
-- judged with `judge`, since most films are no loops.
local melies = require "melies"

return {
  kind = "check", name = "loop_seam",
  params = {
    threshold = { "number", default = 1, min = 0, max = 100, help = "the most that passes" },
    beside = { "integer", default = 8, min = 1, max = 100, help = "pairs at either end that it is held against" },
    judge = { "boolean", default = false, help = "whether the film should be a loop" },
  },
  new = function(p, info)
    local self, first, last, count = {}, {}, {}, 0
    function self.push(_, here)
      count = count + 1
      if count <= p.beside + 1 then first[count] = here.frame end
      last[#last + 1] = here.frame
      if #last > p.beside + 1 then table.remove(last, 1) end
    end
    function self.finish(_, shots)
      if count < 3 then return { note = "too short", threshold = p.threshold, better = "low" } end
      local frames, joints = { unpack(last) }, { [#last] = true }
      for i = 1, math.min(#first, count) do frames[#frames + 1] = first[i] end
      local value, seam, other = melies.edit.seam(frames, joints)
      local ok, pass = value <= p.threshold, nil
      if p.judge then pass = ok end
      return { value = value, pass = pass, threshold = p.threshold, better = "low",
        where = p.judge and not ok and { { frame = count, time = (count - 1) / info.fps, shot = #shots, value = value,
          what = "the step back to the first frame" } } or nil,
        remedy = { seed = true }, note = ("%.4f, beside it up to %.4f%s"):format(seam, other,
          p.judge and "" or "; judged with judge=true") }
    end
    return self
  end,
}
