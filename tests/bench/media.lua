-- Memory and speed of decoding and encoding: makes a clip of 480p (854x480, 24 frames a second), then reads it frame by
-- frame and writes it again, and prints the resident memory on the way.
-- usage: luajit tests/bench/media.lua [SECONDS=600] [PRESET=medium] [EXTENSION=mp4]
local melies = require "melies"
local T, media = melies.tensor, melies.media

local seconds, preset, extension = tonumber(arg[1] or 600), arg[2] or "medium", arg[3] or "mp4"
local w, h, fps = 854, 480, 24
local count = math.floor(seconds * fps)
local limit_mib = 300
local h264 = extension == "mp4"

local function resident_mib()
  local f = assert(io.open("/proc/self/statm"))
  local pages = tonumber(f:read("*a"):match("^%d+ (%d+)"))
  f:close()
  return pages * 4096 / 2 ^ 20
end

-- A picture wider than the frame, with some noise in it: the frames are windows that move over it.
local function ground()
  local wide = w + 512
  local x = T.zeros({ h, wide, 3 })
  local p, i = x:ptr(), 0
  for y = 0, h - 1 do
    for c = 0, wide - 1 do
      p[i] = 0.5 + 0.4 * math.sin(c / 23) * math.cos(y / 31)
      p[i + 1] = 0.5 + 0.4 * math.sin((c + y) / 47)
      p[i + 2] = 0.5 + 0.4 * math.cos((c - y) / 17) * math.sin(c / 97)
      i = i + 3
    end
  end
  return media.to_u8(x + T.noise({ h, wide, 3 }, { seed = 1 }) * 0.02)
end

local start = resident_mib()
local highest = start
local function look(what, frames, since)
  local now = resident_mib()
  highest = math.max(highest, now)
  print(("%-8s %6d frames  %7.1f s  %6.1f frames/s  resident %6.1f MiB  tensors %6.1f MiB"):format(what, frames,
    melies.seconds() - since, frames / math.max(1e-9, melies.seconds() - since), now, melies.memory().live / 2 ^ 20))
end

local dir = os.getenv("TMPDIR") or "/tmp"
local source, copy = ("%s/melies-bench-%d.mp4"):format(dir, count), ("%s/melies-bench-%d-copy.%s"):format(dir, count, extension)
local picture = ground()
local t0 = melies.seconds()
local writer = assert(media.writer(source, { fps = fps, preset = "ultrafast" }))
for i = 0, count - 1 do
  local at = math.floor(256 + 255 * math.sin(i / 40))
  local frame = picture:slice(2, at + 1, at + w)
  assert(writer:write(frame))
  frame:free()
  if i > 0 and i % math.floor(count / 4) == 0 then look("make", i, t0) end
end
assert(writer:finish())
picture:free()

local early, late
t0 = melies.seconds()
local reader = assert(media.reader(source))
writer = assert(media.writer(copy, { fps = fps, preset = h264 and preset or nil }))
local done = 0
for frame in reader:frames() do
  assert(writer:write(frame))
  frame:free()
  done = done + 1
  if done % math.floor(count / 12) == 0 then look("copy", done, t0) end
  if done == math.floor(count / 12) then early = resident_mib() end
end
late = resident_mib()
reader:close()
assert(writer:finish())
look("finish", done, t0)

t0 = melies.seconds()
done = 0
for frame in assert(media.reader(copy)):frames() do
  done = done + 1
  frame:free()
end
look("decode", done, t0)
os.remove(source)
os.remove(copy)
print(("%d s of %dx%d: resident memory at most %.1f MiB, %.1f MiB over the start; %+.1f MiB from the first twelfth to the last")
  :format(seconds, w, h, highest, highest - start, late - early))
if highest > limit_mib then
  print(("FAIL: more than %d MiB"):format(limit_mib))
  os.exit(1)
end
