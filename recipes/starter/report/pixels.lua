-- melies-api: 1
-- Direct measures, a second opinion on the probe: the colour of the pixels where the subject is, and the path of that
-- place. Both are compared with what the world draws, by nearest neighbours; nothing is learned.
--
--   local pixels = dofile("recipes/starter/report/pixels.lua").new(world, probe)
--   pixels:colour(frames, where, light)       a name of words.colours and its share of the votes
--   pixels:motion(where)                      a name of words.motions, or "in place" for those that stay where they are
--
-- where: [9, 12, 12], shares of each moment (probe:read_all gives it); frames: any clip; light: a name of words.lights.

local M = {}
local Pixels = {}
Pixels.__index = Pixels

M.in_place = { still = true, spin = true, sway = true }
local CELLS, MOMENTS, NEIGHBOURS = 12, 9, 5
local SMALL = 48 -- pixels a side, of what is compared

-- ---- colour ----------------------------------------------------------------------------------------------------

local function linear(c) return c <= 0.04045 and c / 12.92 or ((c + 0.055) / 1.055) ^ 2.4 end
local function root(t) return t > 0.008856 and t ^ (1 / 3) or 7.787 * t + 16 / 116 end
-- CIE Lab (D65) of sRGB in 0..1.
function M.lab(r, g, b)
  r, g, b = linear(r), linear(g), linear(b)
  local x = root((0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.95047)
  local y = root(0.2126 * r + 0.7152 * g + 0.0722 * b)
  local z = root((0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.08883)
  return 116 * y - 16, 500 * (x - y), 200 * (y - z)
end

local function attributes(values)
  return setmetatable(values, { __index = { subject = "ball", colour = "red", texture = "plain", size = "medium",
    motion = "still", camera = "still", place = "room", light = "day", style = "realistic", relation = "none" } })
end

-- For each light a list of { colour, L, a, b }: means of the darker and the lighter half of a subject, plain and with a
-- pattern, in each style.
local function references(world)
  local out = {}
  local function add(list, colour, pixels, first, last)
    local l, a, b, n = 0, 0, 0, math.max(1, last - first + 1)
    for i = first, last do l, a, b = l + pixels[i][1] / n, a + pixels[i][2] / n, b + pixels[i][3] / n end
    list[#list + 1] = { colour, l, a, b }
  end
  for _, light in ipairs(world.words.lights) do
    out[light] = {}
    for _, colour in ipairs(world.words.colours) do
      for _, style in ipairs(world.words.styles) do
        for _, texture in ipairs { "plain", "checkered" } do
          local frames, mask = world.render(attributes { subject = "heart", colour = colour, light = light, style = style,
            texture = texture }, { size = SMALL, frames = 1 })
          local p, m, pixels = frames:ptr(), mask:ptr(), {}
          for i = 0, SMALL * SMALL - 1 do
            if m[i] == 255 then pixels[#pixels + 1] = { M.lab(p[3 * i] / 255, p[3 * i + 1] / 255, p[3 * i + 2] / 255) } end
          end
          table.sort(pixels, function(u, v) return u[1] < v[1] end)
          local half = math.floor(#pixels / 2)
          add(out[light], colour, pixels, math.floor(#pixels / 5), half) -- the darkest are outlines
          add(out[light], colour, pixels, half + 1, #pixels)
        end
      end
    end
  end
  return out
end

function Pixels:colour(frames, where, light)
  local x = self.probe.pooled(self.probe.prepared(frames), self.probe.SIZE / SMALL):ptr()
  local maps, votes, sum = where:ptr(), {}, 0
  local per = SMALL / CELLS
  for moment = 0, MOMENTS - 1 do
    local top = 0
    for i = 0, CELLS * CELLS - 1 do top = math.max(top, maps[moment * CELLS * CELLS + i]) end
    for i = 0, CELLS * CELLS - 1 do
      local weight = maps[moment * CELLS * CELLS + i] / top
      if weight > 0.6 then
        local y0, x0 = math.floor(i / CELLS) * per, i % CELLS * per
        for y = y0, y0 + per - 1 do
          for column = x0, x0 + per - 1 do
            local at = ((2 * moment * SMALL + y) * SMALL + column) * 3
            local l, a, b = M.lab(x[at], x[at + 1], x[at + 2])
            local best, name = math.huge, nil
            for _, r in ipairs(self.colours[light]) do
              local d = 0.5 * (l - r[2]) ^ 2 + (a - r[3]) ^ 2 + (b - r[4]) ^ 2
              if d < best then best, name = d, r[1] end
            end
            votes[name], sum = (votes[name] or 0) + weight, sum + weight
          end
        end
      end
    end
  end
  local found
  for _, name in ipairs(self.words.colours) do
    if votes[name] and (not found or votes[name] > votes[found]) then found = name end
  end
  return found, votes[found] / sum
end

-- ---- motion ----------------------------------------------------------------------------------------------------

-- The path of maps [9, 12, 12]: 27 numbers, of each moment its place from the middle of the path and its log size.
local function path(maps)
  local p, xs, ys, ss = maps:ptr(), {}, {}, {}
  for t = 0, MOMENTS - 1 do
    local n, x, y, xx, yy = 1e-9, 0, 0, 0, 0
    for i = 0, CELLS * CELLS - 1 do
      local w = p[t * CELLS * CELLS + i]
      local u, v = (i % CELLS + 0.5) / CELLS, (math.floor(i / CELLS) + 0.5) / CELLS
      n, x, y, xx, yy = n + w, x + w * u, y + w * v, xx + w * u * u, yy + w * v * v
    end
    x, y = x / n, y / n
    xs[t + 1], ys[t + 1] = x, y
    ss[t + 1] = 0.5 * math.log(math.max(1e-3, xx / n - x * x + yy / n - y * y))
  end
  local out = {}
  for k, list in ipairs { xs, ys, ss } do
    local mean = 0
    for _, v in ipairs(list) do mean = mean + v / MOMENTS end
    for _, v in ipairs(list) do out[#out + 1] = (v - mean) * (k == 3 and 0.7 or 1) end
  end
  return out
end

-- Paths of clips that the world draws, with the camera standing still.
local function paths(world, probe)
  local out = {}
  for m, motion in ipairs(world.words.motions) do
    for i = 1, 16 do
      local subject = world.words.subjects[1 + (i + m) % #world.words.subjects]
      local a = attributes { subject = subject, motion = motion, size = world.words.sizes[1 + i % 3] }
      local _, mask = world.render(a, { seed = 9003, index = i, size = SMALL, frames = probe.FRAMES })
      local cells = probe.pooled(mask:to("f32"):reshape(probe.FRAMES, SMALL, SMALL, 1), SMALL / CELLS)
      cells = cells:reshape(probe.FRAMES, CELLS * CELLS):pad(1, 0, 1, 0):reshape(MOMENTS, 2, CELLS * CELLS)
      out[#out + 1] = { M.in_place[motion] and "in place" or motion, path(cells:select(2, 1):contiguous()) }
    end
  end
  return out
end

function Pixels:motion(where)
  local mine, list = path(where), {}
  for i, known in ipairs(self.paths) do
    local d = 0
    for j, v in ipairs(mine) do d = d + (v - known[2][j]) ^ 2 end
    list[i] = { d, known[1] }
  end
  table.sort(list, function(a, b) return a[1] < b[1] end)
  local votes, found = {}, list[1][2]
  for i = 1, NEIGHBOURS do
    local name = list[i][2]
    votes[name] = (votes[name] or 0) + 1 / (list[i][1] + 1e-3)
  end
  for name, n in pairs(votes) do
    if n > votes[found] then found = name end
  end
  return found
end

-- What a prompt says against what is measured: { colour = { said =, read = }, motion = ... }, without what it leaves open.
-- A path means little under a camera that moves.
function Pixels:measure(frames, where, says, light)
  local out = {}
  if says.colour then out.colour = { said = says.colour, read = (self:colour(frames, where, light)) } end
  if says.motion and (says.camera or "still") == "still" then
    out.motion = { said = M.in_place[says.motion] and "in place" or says.motion, read = self:motion(where) }
  end
  return out
end

function M.new(world, probe)
  return setmetatable({ words = world.words, probe = probe, colours = references(world), paths = paths(world, probe) },
    Pixels)
end

return M
