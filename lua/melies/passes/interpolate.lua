-- melies-api: 1
-- Another frame rate, with frames made along the motion in between.
-- Output k lies at k / fps. Between frames i and i + 1 it is video.between of both by flows in either direction; over a cut
-- and after the last frame the frame before is repeated. A rate below the input's drops and makes frames likewise.
-- Keeps one frame.
local melies = require "melies"

return {
  kind = "pass", name = "interpolate",
  params = {
    fps = { "number", min = 0.1, max = 1000, help = "rate of the output" },
    factor = { "number", default = 2, min = 0.01, max = 64, help = "times the input's rate, where fps is not given" },
  },
  new = function(p, info)
    local video = melies.video
    local rate = p.fps or info.fps * p.factor
    local step = info.fps / rate -- input frames for each output
    local last, index, given = nil, 0, 0
    local pass = { info = { fps = rate, frames = info.frames and math.ceil(info.frames * rate / info.fps - 1e-6) or false } }
    -- Outputs before input time `limit` (in frames); from `last` on, toward `after` where there is one.
    local function upto(limit, after)
      local ready, forward, backward = {}, nil, nil
      while given * step < limit - 1e-6 do
        local at = given * step - (limit - 1)
        given = given + 1
        if not after or at < 1e-3 then ready[#ready + 1] = last
        else
          forward = forward or video.flow(last, after)
          backward = backward or video.flow(after, last)
          ready[#ready + 1] = video.between(last, after, math.min(1, at), forward, backward)
        end
      end
      return ready
    end
    function pass.push(_, frame)
      local ready = last and upto(index, frame) or {}
      last = frame
      index = index + 1
      return ready
    end
    function pass.cut()
      local ready = last and upto(index) or {}
      last = nil
      return ready
    end
    pass.finish = pass.cut
    return pass
  end,
}
