-- Speed of optical flow beside FFmpeg's own motion estimation (the filters mestimate and minterpolate), and end-point errors
-- on motion that is known. Both get the same frames with the same number of threads.
-- usage: luajit tests/bench/flow.lua [WIDTH=640] [HEIGHT=360] [FRAMES=12]
local melies = require "melies"
local T, video, media = melies.tensor, melies.video, melies.media

local w, h, count = tonumber(arg[1] or 640), tonumber(arg[2] or 360), tonumber(arg[3] or 12)

-- A window that moves over a large picture by whole pixels: the flow is known to be (-3, -2) everywhere but at the border.
local function film()
  local wide, high = w + 3 * count, h + 2 * count
  local x = T.empty { high, wide, 3 }
  local p, i = x:ptr(), 0
  for y = 0, high - 1 do
    for c = 0, wide - 1 do
      p[i] = 0.5 + 0.2 * math.sin(c / 7 + y / 31) * math.cos(y / 9) + 0.1 * math.sin((c - y) / 4.3)
      p[i + 1], p[i + 2] = p[i], 1 - p[i]
      i = i + 3
    end
  end
  x = media.to_u8((x + video.blur(T.noise({ high, wide, 3 }, { seed = 3 }), 1.2) * 0.15):clamp(0, 1))
  local frames = {}
  for k = 1, count do
    frames[k] = x:slice(1, 2 * k - 1, 2 * k - 2 + h):slice(2, 3 * k - 2, 3 * k - 3 + w):clone()
  end
  return frames
end

local frames = film()

local function say(name, seconds, n, extra)
  print(("%-34s %8.1f ms a pair  %7.1f Mpixel/s%s"):format(name, 1e3 * seconds / n, w * h * n / seconds / 1e6, extra or ""))
end

local function ours(name, options)
  local flow
  local start = melies.seconds()
  for k = 1, count - 1 do flow = video.flow(frames[k], frames[k + 1], options) end
  local spent = melies.seconds() - start
  local inner = flow:slice(1, 17, h - 16):slice(2, 17, w - 16)
  local error_px = (inner + T.of({ 3, 2 }, { 1, 1, 2 })):square():sum(3):sqrt():mean()
  say(name, spent, count - 1, ("  end-point error %.3f px"):format(error_px))
end

local function theirs(name, graph)
  local stream = assert(video.filter(graph, { width = w, height = h, fps = 24 }))
  local start = melies.seconds()
  for k = 1, count do stream:push(frames[k]) end
  stream:push(nil)
  say(name, melies.seconds() - start, count - 1)
  stream:close()
end

local function plain()
  local stream = assert(video.filter("null", { width = w, height = h, fps = 24 }))
  local start = melies.seconds()
  for k = 1, count do stream:push(frames[k]) end
  say("(frames through FFmpeg alone)", melies.seconds() - start, count - 1)
end

print(("%d x %d, %d frames, %d threads"):format(w, h, count, melies.threads()))
ours("flow, every pixel", { finest = 1 })
ours("flow, every second pixel", { finest = 2 })
ours("flow, every fourth pixel", { finest = 3 })
ours("flow, every second, no refinement", { finest = 2, refine = 0 })
plain()
theirs("mestimate (epzs, 16 x 16 blocks)", "format=yuv420p,mestimate=method=epzs:mb_size=16:search_param=7")
theirs("mestimate (epzs, 8 x 8 blocks)", "format=yuv420p,mestimate=method=epzs:mb_size=8:search_param=7")
theirs("mestimate (esa, 16 x 16 blocks)", "format=yuv420p,mestimate=method=esa:mb_size=16:search_param=7")
local start = melies.seconds()
for k = 1, count - 1 do
  video.between(frames[k], frames[k + 1], 0.5, video.flow(frames[k], frames[k + 1]), video.flow(frames[k + 1], frames[k]))
end
say("between (both flows and the frame)", melies.seconds() - start, count - 1)
theirs("minterpolate to twice the rate", "minterpolate=fps=48:mi_mode=mci:mc_mode=obmc:me=epzs")
