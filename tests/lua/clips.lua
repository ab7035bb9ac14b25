-- Made films for the specs of passes and checks: a textured ground, a ball over it, and faults to plant.
local melies = require "melies"
local T, video = melies.tensor, melies.video

local clips = { h = 96, w = 128 }

-- Colour of the ground at a real place, three numbers; `look` chooses the scene.
local function ground(x, y, look)
  local k = 0.11 + 0.023 * (look % 5)
  local a = math.sin(k * x + 0.3 * look) * math.cos(0.9 * k * y + look)
  local b = math.sin(2.3 * k * (0.8 * x + 0.6 * y) + 2 * look)
  local c = math.sin(4.1 * k * (0.5 * x - 0.87 * y))
  local base = 0.45 + 0.14 * a + 0.08 * b + 0.05 * c
  local warm = 0.12 * math.sin(1.9 * look + 0.4) + 0.04 * a
  return base + warm, base + 0.25 * warm + 0.03 * b, base - warm
end

-- clips.frame{ x=, y= (of the ground), turn=, ball = {x, y}, look=, h=, w= }: f32 [h, w, 3].
function clips.frame(o)
  local h, w = o.h or clips.h, o.w or clips.w
  local frame = T.empty({ h, w, 3 })
  local p, i = frame:ptr(), 0
  local c, s = math.cos(o.turn or 0), math.sin(o.turn or 0)
  local zoom = o.zoom or 1
  for y = 0, h - 1 do
    for x = 0, w - 1 do
      local dx, dy = (x - w / 2) / zoom, (y - h / 2) / zoom
      local r, g, b = ground(c * dx - s * dy + (o.x or 0) + 64, s * dx + c * dy + (o.y or 0) + 64, o.look or 1)
      if o.ball then
        local ex, ey = x - o.ball[1], y - o.ball[2]
        local d = math.sqrt(ex * ex + ey * ey)
        local k = math.max(0, math.min(1, (o.radius or 14) + 0.5 - d))
        local stripe = 0.12 * math.sin(0.3 * ex + 0.8) * math.cos(0.25 * ey) + 0.05 * math.sin(0.4 * ey)
        r, g, b = r + k * (0.85 + stripe - r), g + k * (0.25 + stripe - g), b + k * (0.15 + stripe - b)
      end
      p[i], p[i + 1], p[i + 2] = r, g, b
      i = i + 3
    end
  end
  return frame:clamp(0, 1)
end

-- clips.film(count, function(i) -> options of clips.frame): a list of frames.
function clips.film(count, at)
  local frames = {}
  for i = 1, count do frames[i] = clips.frame(at(i)) end
  return frames
end

-- A ball that rolls to the right while the camera pans slowly.
function clips.rolling(count, look)
  return clips.film(count, function(i) return { x = 0.6 * i, look = look, ball = { 20 + 2.2 * i, 60 } } end)
end

-- Numbers between -1 and 1 that are the same every time.
function clips.random(seed)
  local state = seed
  return function()
    state = (state * 16807) % 2147483647
    return 2 * state / 2147483647 - 1
  end
end

-- Every frame made lighter or darker by up to `amount`.
function clips.flickering(frames, amount, seed)
  local random, out = clips.random(seed or 7), {}
  for i, frame in ipairs(frames) do out[i] = (frame * (1 + amount * random())):clamp(0, 1) end
  return out
end

-- Colours that drift: by `red` a frame more red, less blue.
function clips.drifting(frames, red)
  local out = {}
  for i, frame in ipairs(frames) do
    out[i] = (frame + T.of({ red * i, 0, -red * i }, { 1, 1, 3 })):clamp(0, 1)
  end
  return out
end

function clips.joined(...)
  local out = {}
  for _, list in ipairs { ... } do
    for _, frame in ipairs(list) do out[#out + 1] = frame end
  end
  return out
end

function clips.apart(a, b) return (video.floats(a) - video.floats(b)):abs():mean() end

-- MELIES_LOOK=folder: what the specs make is kept there as contact sheets.
function clips.look(name, rows, labels)
  local folder = os.getenv "MELIES_LOOK"
  if not folder then return end
  local list = {}
  for i, row in ipairs(rows) do list[i] = T.is(row) and row or T.stack(row, 1) end
  assert(melies.media.save(folder .. "/" .. name .. ".png",
    melies.media.contact_sheet(list, { labels = labels, columns = 6, scale = 1 })))
end

return clips
