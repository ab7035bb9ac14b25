-- melies-api: 1
-- A cut at the pair of frames whose pictures and motions fit best.
-- Of the last frames a_i of the first shot and the first b_j of the next, the pair with the least
--   d = |a_i - b_j| / 0.25 + motion |m(a_i) - m(b_j)| / (|m(a_i)| + |m(b_j)| + 0.5)
-- on thumbnails: |a - b| the mean difference of brightness, m the mean flow into the frame (pixels of a 64-pixel thumbnail).
-- Frames after a_i and before b_j are dropped. `blend` frames are then dissolved over the cut.
local melies = require "melies"

local function look(frames)
  local list = {}
  for i, frame in ipairs(frames) do
    local small = melies.video.reduce(frame, 64)
    list[i] = { small = small, luma = melies.video.luma(small), x = 0, y = 0 }
  end
  for i = 1, #list - 1 do
    local flow = melies.video.flow(list[i].small, list[i + 1].small, { finest = 1 }):mean(1):mean(1):list()
    list[i].x, list[i].y = flow[1], flow[2]
  end
  if #list > 1 then list[#list].x, list[#list].y = list[#list - 1].x, list[#list - 1].y end
  return list
end

return {
  kind = "transition", name = "match_cut",
  params = {
    seconds = { "number", default = 0.5, min = 0, max = 5, help = "how far from the ends the pair is looked for" },
    motion = { "number", default = 0.5, min = 0, max = 10, help = "weight of motion against the picture" },
    blend = { "integer", default = 0, min = 0, max = 12, help = "frames to dissolve over the cut" },
  },
  frames = function(p, info) return math.max(2, math.floor(p.seconds * info.fps + 0.5)) end,
  run = function(tail, head, p)
    local a, b = look(tail), look(head)
    local best, at_a, at_b = math.huge, #tail, 1
    for i = #a, 1, -1 do
      for j = 1, #b do
        local apart = math.sqrt((a[i].x - b[j].x) ^ 2 + (a[i].y - b[j].y) ^ 2)
        local size = math.sqrt(a[i].x ^ 2 + a[i].y ^ 2) + math.sqrt(b[j].x ^ 2 + b[j].y ^ 2)
        local d = (a[i].luma - b[j].luma):abs():mean() / 0.25 + p.motion * apart / (size + 0.5)
        if d < best - 1e-9 then best, at_a, at_b = d, i, j end
      end
    end
    local frames = {}
    for i = 1, at_a do frames[i] = tail[i] end
    local n = math.min(p.blend, at_a, #head - at_b + 1)
    for k = 1, n do -- the last n before the cut turn into what comes n frames later
      local x = k / (n + 1)
      frames[at_a - n + k] = melies.tensor.lincomb { 1 - x, tail[at_a - n + k]:contiguous(), x,
        head[at_b + k - 1]:contiguous() }
    end
    for j = at_b + n, #head do frames[#frames + 1] = head[j] end
    return frames, at_a + 1 - math.floor(n / 2)
  end,
}
