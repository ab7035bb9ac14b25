-- melies-api: 1
-- Any video filter of FFmpeg by its string.
-- Filters with one input and one output: "eq=contrast=1.1:saturation=1.2", "hqdn3d", "vignette,noise=alls=8", "fps=12".
-- Those that open files or addresses are refused. Frames go through as 8 bits.
local melies = require "melies"

return {
  kind = "pass", name = "filter",
  params = { graph = { "string", required = true, help = "FFmpeg's words, as after ffmpeg -vf" } },
  new = function(p, info)
    local video = melies.video
    local stream, message = video.filter(p.graph, info)
    if not stream then return nil, message end
    local pass = { info = { width = stream.width, height = stream.height, fps = stream.fps or info.fps } }
    if stream.fps ~= info.fps then pass.info.frames = false end
    local function floats(list)
      for i, frame in ipairs(list) do list[i] = video.floats(frame) end
      return list
    end
    function pass.push(_, frame) return floats(stream:push(frame)) end
    function pass.finish()
      local rest = floats(stream:push(nil))
      stream:close()
      return rest
    end
    return pass
  end,
}
