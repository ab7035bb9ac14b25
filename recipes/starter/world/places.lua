-- melies-api: 1
-- Where a clip happens: eight places with a horizon and a ground in perspective, under three lights. A place is painted
-- once per clip, larger than the frame, and the camera moves over that picture.
-- Positions: the frame's height is 1, (0, 0) its middle, y down. The camera stands 0.42 above the ground and looks at the
-- horizon: a point of the ground at depth z lies at y = horizon + 0.42 / z, and one unit across is 1 / z wide.
local raster = ...

local places = { horizon = -0.08, camera = 0.42 }

-- Every place is met at a few sites: the numbers p1..p4 of its painter. They are few so that a small model learns them, and
-- so that two shots of one place show one place.
places.sites = { { 0.22, 0.61, 0.35, 0.8 }, { 0.74, 0.18, 0.83, 0.41 } }

-- top, low: the sky's colours. tint: of the ground and what stands there. subject: of the subjects. disc: sun or moon, x,
-- y, radius, colour. to: direction to the light (x right, y up, z to the viewer). shadow: how far the shadow of a point
-- at height 1 falls (right, up the picture), how dark, and how many pixels soft at a height of 64.
places.lights = {
  day = { top = { 0.36, 0.62, 0.94 }, low = { 0.82, 0.92, 1 }, tint = { 1, 1, 1 }, subject = { 1, 1, 1 },
    disc = { -0.36, -0.38, 0.055, 1, 0.97, 0.72 }, to = { -0.5, 0.66, 0.56 }, ambient = 0.5, diffuse = 0.56,
    shadow = { 0.42, 0.2, 0.5, 1.4 } },
  sunset = { top = { 0.42, 0.3, 0.56 }, low = { 1, 0.6, 0.3 }, tint = { 1, 0.74, 0.55 }, subject = { 1.05, 0.89, 0.76 },
    disc = { -0.3, -0.15, 0.1, 1, 0.82, 0.4 }, to = { -0.84, 0.2, 0.5 }, ambient = 0.42, diffuse = 0.66,
    shadow = { 1.25, 0.12, 0.5, 1.8 } },
  night = { top = { 0.03, 0.04, 0.14 }, low = { 0.12, 0.17, 0.36 }, tint = { 0.42, 0.48, 0.7 },
    subject = { 0.7, 0.74, 0.92 },
    disc = { 0.34, -0.37, 0.065, 0.96, 0.96, 0.86 }, to = { 0.55, 0.6, 0.58 }, ambient = 0.46, diffuse = 0.58,
    shadow = { -0.5, 0.2, 0.55, 1.4 } },
}

-- Each place: sky (text of Lua for what lies above the horizon), ground (below it). There: x, y; k = 1 / depth, z depth,
-- gx place on the ground across; r, g, b the colour so far; p1..p4 the clip's own numbers in 0..1; soft(d) is 1 inside
-- (d < 0) with an edge of a pixel; mix(r, g, b, r2, g2, b2, part). tr, tg, tb: the tint. over: r, g, b are tinted after.
local clouds = [[
  if day > 0 then
    local cx = x + 0.3 * (p1 - 0.5) - 0.16
    local c = 0
    c = max(c, 1 - ((cx) * (cx) * 34 + (y + 0.36) * (y + 0.36) * 420))
    c = max(c, 1 - ((cx - 0.12) * (cx - 0.12) * 60 + (y + 0.38) * (y + 0.38) * 500))
    c = max(c, 1 - ((cx + 0.62) * (cx + 0.62) * 30 + (y + 0.3) * (y + 0.3) * 480))
    c = max(c, 1 - ((cx - 0.72) * (cx - 0.72) * 30 + (y + 0.33) * (y + 0.33) * 420))
    r, g, b = mix(r, g, b, 1, 1, 1, min(1, max(0, c * 2)) * 0.9)
  end
]]

places.painters = {
  meadow = { sky = clouds .. [[
    local hill = 0.07 + 0.035 * sine(x * 0.7 + p2) + 0.02 * sine(x * 1.3 + p3)
    r, g, b = mix(r, g, b, 0.36 * tr, 0.55 * tg, 0.42 * tb, soft(horizon - hill - y, 1))
    local near = 0.03 + 0.025 * sine(x * 1.1 + p4)
    r, g, b = mix(r, g, b, 0.33 * tr, 0.56 * tg, 0.24 * tb, soft(horizon - near - y, 1))]],
    ground = [[
    local s = sine(gx * 0.8 + p1) * 0.5 * min(1, k * 2)
    r, g, b = (0.48 + 0.05 * s) * tr, (0.7 + 0.09 * s) * tg, (0.26 + 0.03 * s) * tb]] },
  sea = { sky = clouds, ground = [[
    local wave = sine(z * 1.7 + 0.12 * sine(gx * 0.5 + p2) + p1)
    local fade = min(1, max(0, k * 2.2 - 0.35))
    local s = (0.5 + 0.5 * wave) * fade
    r, g, b = (0.07 + 0.16 * s) * tr, (0.38 + 0.2 * s) * tg, (0.66 + 0.16 * s) * tb
    r, g, b = mix(r, g, b, 0.5 * tr, 0.75 * tg, 0.9 * tb, max(0, 1 - k * 2.6) * 0.6)]] },
  desert = { sky = [[
    r, g, b = mix(r, g, b, 0.98 * tr, 0.86 * tg, 0.62 * tb, min(1, max(0, (y + 0.4) * 2.4)) * 0.55 * day)
    local px = x + 0.2 * (p1 - 0.5)
    local d = abs(px - 0.22) * 0.85 - (y - horizon + 0.2)
    local face = px > 0.25 and 0.72 or 1
    r, g, b = mix(r, g, b, 0.88 * tr * face, 0.68 * tg * face, 0.36 * tb * face, soft(d, 0.8))
    d = abs(px + 0.34) * 0.85 - (y - horizon + 0.13)
    face = px > -0.32 and 0.7 or 0.95
    r, g, b = mix(r, g, b, 0.86 * tr * face, 0.66 * tg * face, 0.36 * tb * face, soft(d, 0.8))
    local dune = 0.015 + 0.014 * sine(x * 1.2 + p2)
    r, g, b = mix(r, g, b, 0.93 * tr, 0.75 * tg, 0.42 * tb, soft(horizon - dune - y, 1))]],
    ground = [[
    local s = sine(z * 0.9 + 0.22 * sine(gx * 0.35 + p3) + p2) * min(1, max(0, k * 2 - 0.3))
    r, g, b = (0.92 + 0.05 * s) * tr, (0.75 + 0.06 * s) * tg, (0.43 + 0.06 * s) * tb]] },
  snow = { sky = [[
    r, g, b = mix(r, g, b, 0.8, 0.86, 0.92, 0.45 * day)
    local m = x * 2.2 + p1
    m = abs(m - floor(m) - 0.5)
    local top = horizon - 0.1 - 0.2 * m - 0.03 * sine(x * 0.9 + p2)
    local cap = top + 0.06 + 0.025 * sine(x * 5)
    r, g, b = mix(r, g, b, 0.5 * tr, 0.58 * tg, 0.7 * tb, soft(top - y, 1))
    r, g, b = mix(r, g, b, 0.97 * tr, 0.98 * tg, 1 * tb, soft(top - y, 1) * soft(y - cap, 1))
    local t = x * 4.6 + p3 * 3
    local n = floor(t)
    local size = 0.1 + 0.05 * sine(n * 0.37 + p2)
    local d = abs(t - n - 0.5) * 0.42 - (y - (horizon - size)) * 0.62
    r, g, b = mix(r, g, b, 0.12 * tr, 0.32 * tg, 0.27 * tb, soft(d, 1))]],
    ground = [[
    local s = sine(gx * 0.3 + 0.3 * z + p2) * min(1, max(0, k * 2 - 0.2))
    r, g, b = (0.9 + 0.035 * s) * tr, (0.94 + 0.025 * s) * tg, (0.99 + 0.01 * s) * tb]] },
  forest = { sky = [[
    r, g, b = mix(r, g, b, 0.2 * tr, 0.36 * tg, 0.2 * tb, 0.82)
    local leaf = -0.3 + 0.05 * sine(x * 1.6 + p1) + 0.025 * sine(x * 3.7 + p2)
    local t = x * 4.4 + p3
    local n = floor(t)
    local d = abs(t - n - 0.5 - 0.2 * sine(n * 0.41 + p4)) / 4.4 - 0.026
    r, g, b = mix(r, g, b, 0.24 * tr, 0.2 * tg, 0.13 * tb, soft(d, 1) * 0.8)
    t = x * 2.1 + p4
    n = floor(t)
    d = t - n - 0.5 - 0.22 * sine(n * 0.29 + p1)
    local side = d > 0.03 and 0.72 or 1
    r, g, b = mix(r, g, b, 0.42 * tr * side, 0.28 * tg * side, 0.16 * tb * side, soft(abs(d) / 2.1 - 0.05, 1))
    r, g, b = mix(r, g, b, 0.1 * tr, 0.27 * tg, 0.1 * tb, soft(y - leaf, 1))]],
    ground = [[
    local s = sine(gx * 0.55 + p1) * sine(z * 0.5 + p2) * min(1, max(0, k * 2 - 0.2))
    r, g, b = (0.36 + 0.06 * s) * tr, (0.45 + 0.06 * s) * tg, (0.2 + 0.03 * s) * tb]] },
  room = { horizon_y = 0.05, sky = [[
    r, g, b = 0.9 * tr, 0.82 * tg, 0.68 * tb
    local stripe = sine(x * 3 + p1)
    r, g, b = r + 0.02 * stripe * tr, g + 0.02 * stripe * tg, b + 0.015 * stripe * tb
    local wx, wy = abs(x + 0.27 - 0.1 * p2), abs(y + 0.27)
    local frame_d = max(wx - 0.17, wy - 0.15)
    r, g, b = mix(r, g, b, 0.98 * tr, 0.97 * tg, 0.94 * tb, soft(frame_d, 1))
    local pane = max(max(wx - 0.145, wy - 0.125), max(0.012 - wx, 0.012 - wy))
    local q = min(1, max(0, (y + 0.4) * 3.6))
    r, g, b = mix(r, g, b, sr0 + (sr1 - sr0) * q, sg0 + (sg1 - sg0) * q, sb0 + (sb1 - sb0) * q, soft(pane, 1))
    local pict = max(abs(x - 0.3) - 0.12, abs(y + 0.27) - 0.09)
    r, g, b = mix(r, g, b, 0.4 * tr, 0.24 * tg, 0.12 * tb, soft(pict, 1))
    r, g, b = mix(r, g, b, 0.55 * tr, 0.7 * tg, 0.72 * tb, soft(pict + 0.022, 1))
    r, g, b = mix(r, g, b, 0.96 * tr, 0.93 * tg, 0.86 * tb, soft(horizon - 0.045 - y, 1))]],
    ground = [[
    local t = gx * 2.4
    local n = floor(t)
    local board = sine(n * 0.37 + p1) * 0.05
    local gap = soft((0.035 - min(t - n, n + 1 - t)) * -0.42 * k, 1)
    local line = (1 - gap) * min(1, max(0, k * 1.6 - 0.3)) * 0.24
    r, g, b = (0.66 + board) * (1 - line) * tr, (0.44 + board) * (1 - line) * tg, (0.25 + board * 0.6) * (1 - line) * tb]] },
  city = { sky = clouds .. [[
    local t = x * 3.1 + p1 * 2
    local n = floor(t)
    local tall = 0.2 + 0.1 * sine(n * 0.37 + p2)
    r, g, b = mix(r, g, b, 0.5 * tr, 0.56 * tg, 0.66 * tb, soft(horizon - tall - y, 1) * 0.9)
    t = x * 4.3 + p3 * 2
    n = floor(t)
    local f = t - n
    tall = 0.11 + 0.09 * sine(n * 0.61 + p4)
    local house = soft(horizon - tall - y, 1) * soft(abs(f - 0.5) / 4.3 - 0.105, 1)
    local hue = sine(n * 0.23 + p1) * 0.12
    r, g, b = mix(r, g, b, (0.52 + hue) * tr, 0.42 * tg, (0.44 - hue) * tb, house)
    local wy = (y - horizon) * 12
    wy = abs(wy - floor(wy) - 0.5)
    local wx = abs(f * 2.2 - 0.1 - floor(f * 2.2 - 0.1) - 0.5)
    local win = house * soft((max(wx / 9.5, wy / 12) - 0.024), 0.7) * (y < horizon - 0.03 and 1 or 0)
    r, g, b = mix(r, g, b, 0.98, 0.88, 0.5, win * (0.45 + 0.4 * (1 - day)))]],
    ground = [[
    local lane = abs(gx)
    r, g, b = 0.62 * tr, 0.6 * tg, 0.58 * tb
    r, g, b = mix(r, g, b, 0.33 * tr, 0.34 * tg, 0.37 * tb, soft((lane - 1.25) * k, 1))
    local edge_line = soft((abs(lane - 1.12) - 0.035) * k, 1)
    local dash = sine(z * 1.5 + p1)
    local middle = soft((lane - 0.06) * k, 1) * min(1, max(0, dash * 4 + 0.5))
    r, g, b = mix(r, g, b, 0.95 * tr, 0.93 * tg, 0.85 * tb, max(edge_line, middle) * min(1, k * 2))]] },
  moon = { sky = [[
    r, g, b = 0.02 + 0.05 * dusk, 0.02, 0.05
    local sx, sy = x * 3.4 + p1, y * 3.4 + p2
    local nx, ny = floor(sx), floor(sy)
    local ox, oy = sx - nx - 0.5 - 0.3 * sine(nx * 0.37 + ny * 0.71), sy - ny - 0.5 - 0.3 * sine(nx * 0.53 + ny * 0.29)
    local star = max(0, 1 - (ox * ox + oy * oy) * 75)
    r, g, b = mix(r, g, b, 1, 1, 0.95, star * 0.9)
    local ex, ey = x - 0.27 + 0.1 * p3, y + 0.31
    local e = sqrt(ex * ex + ey * ey)
    local land = sine(ex * 5 + 0.3 * sine(ey * 7) + p4)
    local lit = min(1, max(0.25, 0.7 - (ex + ey) * 3.2))
    local dry = land > 0.3
    r, g, b = mix(r, g, b, (dry and 0.3 or 0.14) * lit, (dry and 0.6 or 0.4) * lit, (dry and 0.3 or 0.9) * lit, soft(e - 0.11, 1))
    r, g, b = mix(r, g, b, 0.56 * tr, 0.56 * tg, 0.57 * tb, soft(horizon - 0.03 - 0.025 * sine(x * 0.8 + p2) - y, 1))]],
    ground = [[
    local a, c = gx * 0.75 + p3, z * 0.6 + p4
    local na, nc = floor(a), floor(c)
    local da, dc = a - na - 0.5 - 0.14 * sine(na * 0.3 + nc * 0.7), c - nc - 0.5
    local q = sqrt(da * da + dc * dc)
    local inside = min(1, max(0, (0.3 - q) * 14)) * min(1, k * 1.6)
    local rim = max(0, 1 - abs(q - 0.33) * 16) * min(1, k * 1.6)
    local s = 0.62 - 0.2 * inside + 0.13 * rim
    r, g, b = s * tr, s * tg, s * 1.01 * tb]] },
}

local template = [[
local raster = ...
local floor, min, max, sqrt, abs, sine = math.floor, math.min, math.max, math.sqrt, math.abs, raster.sine
local function mix(r, g, b, r2, g2, b2, a)
  return r + (r2 - r) * a, g + (g2 - g) * a, b + (b2 - b) * a
end
return function(picture, pw, ph, res, hw, hh, n)
  local day, dusk, horizon, hazy = n.day, n.dusk, n.horizon, n.haze
  local sr0, sg0, sb0, sr1, sg1, sb1 = n.top[1], n.top[2], n.top[3], n.low[1], n.low[2], n.low[3]
  local tr, tg, tb, p1, p2, p3, p4 = n.tint[1], n.tint[2], n.tint[3], n.p1, n.p2, n.p3, n.p4
  local dx, dy, dr, dcr, dcg, dcb = n.disc[1], n.disc[2], n.disc[3], n.disc[4], n.disc[5], n.disc[6]
  local function soft(d, wide) return min(1, max(0, 0.5 - d * res * wide)) end
  for iy = 0, ph - 1 do
    local y = (iy + 0.5) / res - hh
    if y < horizon then
      local q = min(1, max(0, (y + 0.5) / (horizon + 0.5)))
      for ix = 0, pw - 1 do
        local x = (ix + 0.5) / res - hw
        local r, g, b = sr0 + (sr1 - sr0) * q, sg0 + (sg1 - sg0) * q, sb0 + (sb1 - sb0) * q
        local ddx, ddy = x - dx, y - dy
        r, g, b = mix(r, g, b, dcr, dcg, dcb, soft(sqrt(ddx * ddx + ddy * ddy) - dr, 1))
        SKY
        local at = 3 * (iy * pw + ix)
        picture[at], picture[at + 1], picture[at + 2] = r, g, b
      end
    else
      local k = (y - horizon) / 0.42 + 0.01
      local z = 1 / k
      for ix = 0, pw - 1 do
        local x = (ix + 0.5) / res - hw
        local gx = x * z
        local r, g, b
        GROUND
        local haze = max(0, 1 - k * 6) * 0.4
        r, g, b = mix(r, g, b, sr1, sg1, sb1, haze * hazy)
        local at = 3 * (iy * pw + ix)
        picture[at], picture[at + 1], picture[at + 2] = r, g, b
      end
    end
  end
end
]]

local made = {}

-- places.paint(name, picture, pw, ph, res, hw, hh, light, numbers): paints float RGB [ph, pw]; res pixels are 1, and
-- (hw, hh) is the middle. numbers: four in 0..1.
function places.paint(name, picture, pw, ph, res, hw, hh, light, numbers)
  local painter = places.painters[name]
  if not made[name] then
    local text = template:gsub("SKY", function() return painter.sky end, 1)
    text = text:gsub("GROUND", function() return painter.ground end, 1)
    made[name] = assert(loadstring(text, "=places." .. name))(raster)
  end
  local l = places.lights[light]
  made[name](picture, pw, ph, res, hw, hh, { day = light == "day" and 1 or 0, dusk = light == "sunset" and 1 or 0,
    horizon = places.horizon_of(name), top = l.top, low = l.low, tint = l.tint, disc = l.disc,
    haze = (name == "room" or name == "moon" or name == "forest") and 0 or 1,
    p1 = numbers[1], p2 = numbers[2], p3 = numbers[3], p4 = numbers[4] })
end

function places.horizon_of(name) return places.painters[name].horizon_y or places.horizon end

return places
