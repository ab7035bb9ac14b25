-- melies-api: 1
-- Shapes on float pixels: distance fields of ellipses and convex quadrilaterals under any affine map, their shadows, and
-- fills with texture, light and outline. Positions are in pixels, y down; a pixel's centre lies at (x, y) + 0.5.
-- Everything is sums, products and square roots of doubles, so that a clip has the same bits on every machine.
local floor, min, max, sqrt, abs = math.floor, math.min, math.max, math.sqrt, math.abs

local raster = {}

-- Sine and cosine of turns (Bhaskara's approximation, error below 0.002), without a branch.
function raster.sine(x)
  local h = x - floor(x) - 0.5
  local b = 2 * h * (2 * abs(h) - 1)
  return 16 * b / (5 - 4 * abs(b))
end
local sine = raster.sine
function raster.cosine(x) return sine(x + 0.25) end

-- The matrix that takes (u, v) of a subject to pixels: x = x0 + a u + b v, y = y0 + c u + d v.
function raster.matrix(x0, y0, a, b, c, d) return { x0 = x0, y0 = y0, a = a, b = b, c = c, d = d } end

-- A box of whole pixels within the picture, or nil.
local function clip_box(w, h, x0, y0, x1, y1)
  x0, y0, x1, y1 = max(0, floor(x0)), max(0, floor(y0)), min(w - 1, floor(x1) + 1), min(h - 1, floor(y1) + 1)
  if x0 > x1 or y0 > y1 then return nil end
  return x0, y0, x1, y1
end

-- Lowers dist to the signed distance of an ellipse (to first order): centre (cx, cy), the inverse of its matrix in i11..
local function ellipse_rows(dist, w, x0, y0, x1, y1, cx, cy, i11, i12, i21, i22)
  for y = y0, y1 do
    local dy = y + 0.5 - cy
    local p, q = i12 * dy, i22 * dy
    local row = y * w
    for x = x0, x1 do
      local dx = x + 0.5 - cx
      local w1, w2 = i11 * dx + p, i21 * dx + q
      local g1, g2 = i11 * w1 + i21 * w2, i12 * w1 + i22 * w2
      local d = 0.5 * (w1 * w1 + w2 * w2 - 1) / sqrt(g1 * g1 + g2 * g2 + 1e-12)
      local at = row + x
      if d < dist[at] then dist[at] = d end
    end
  end
end

-- Lowers dist to the largest of four distances from lines a x + b y + c.
local function quad_rows(dist, w, x0, y0, x1, y1, a1, b1, c1, a2, b2, c2, a3, b3, c3, a4, b4, c4)
  for y = y0, y1 do
    local py = y + 0.5
    local e1, e2, e3, e4 = b1 * py + c1, b2 * py + c2, b3 * py + c3, b4 * py + c4
    local row = y * w
    for x = x0, x1 do
      local px = x + 0.5
      local d = max(max(a1 * px + e1, a2 * px + e2), max(a3 * px + e3, a4 * px + e4))
      local at = row + x
      if d < dist[at] then dist[at] = d end
    end
  end
end

-- A line through two corners with the inside below zero; orient is the sign of the area.
local function edge(xa, ya, xb, yb, orient)
  local nx, ny = (yb - ya) * orient, (xa - xb) * orient
  local length = sqrt(nx * nx + ny * ny)
  if length < 1e-9 then return 0, 0, -1e9 end -- two corners in one: no edge
  nx, ny = nx / length, ny / length
  return nx, ny, -(nx * xa + ny * ya)
end

local boxes = {} -- of the parts of a group, between the two passes

-- The distance field of a group of parts under matrix m, within `grow` pixels of them: its box, or nil where it is off
-- the picture. A part: { "e", u, v, ru, rv, turns } or { "q", u1, v1, u2, v2, u3, v3[, u4, v4] }, convex.
function raster.distance(dist, w, h, parts, m, grow)
  local bx0, by0, bx1, by1 = 1e9, 1e9, -1e9, -1e9
  local a, b, c, d = m.a, m.b, m.c, m.d
  for i = 1, #parts do
    local p, box = parts[i], boxes[i] or {}
    boxes[i] = box
    local x0, y0, x1, y1
    if p[1] == "e" then
      local cx, cy = m.x0 + a * p[2] + b * p[3], m.y0 + c * p[2] + d * p[3]
      local turn = p[6] or 0
      local co, si = sine(turn + 0.25), sine(turn)
      box.cx, box.cy = cx, cy
      box.m11, box.m12 = (a * co + b * si) * p[4], (b * co - a * si) * p[5]
      box.m21, box.m22 = (c * co + d * si) * p[4], (d * co - c * si) * p[5]
      local hx, hy = sqrt(box.m11 * box.m11 + box.m12 * box.m12), sqrt(box.m21 * box.m21 + box.m22 * box.m22)
      x0, y0, x1, y1 = cx - hx, cy - hy, cx + hx, cy + hy
    else
      local n = #p > 7 and 4 or 3
      x0, y0, x1, y1 = 1e9, 1e9, -1e9, -1e9
      for k = 1, 4 do
        local j = min(k, n)
        local u, v = p[2 * j], p[2 * j + 1]
        local x, y = m.x0 + a * u + b * v, m.y0 + c * u + d * v
        box[2 * k - 1], box[2 * k] = x, y
        x0, y0, x1, y1 = min(x0, x), min(y0, y), max(x1, x), max(y1, y)
      end
    end
    box.x0, box.y0, box.x1, box.y1 = clip_box(w, h, x0 - grow, y0 - grow, x1 + grow, y1 + grow)
    if box.x0 then
      bx0, by0, bx1, by1 = min(bx0, box.x0), min(by0, box.y0), max(bx1, box.x1), max(by1, box.y1)
    end
  end
  if bx0 > bx1 then return nil end
  for y = by0, by1 do
    for at = y * w + bx0, y * w + bx1 do dist[at] = 1e9 end
  end
  for i = 1, #parts do
    local box = boxes[i]
    if box.x0 and parts[i][1] == "e" then
      local det = box.m11 * box.m22 - box.m12 * box.m21
      if abs(det) > 1e-9 then
        ellipse_rows(dist, w, box.x0, box.y0, box.x1, box.y1, box.cx, box.cy, box.m22 / det, -box.m12 / det,
          -box.m21 / det, box.m11 / det)
      end
    elseif box.x0 then
      local area = 0
      for k = 1, 4 do
        local n = k % 4 + 1
        area = area + box[2 * k - 1] * box[2 * n] - box[2 * n - 1] * box[2 * k]
      end
      local o = area > 0 and 1 or -1
      local a1, b1, c1 = edge(box[1], box[2], box[3], box[4], o)
      local a2, b2, c2 = edge(box[3], box[4], box[5], box[6], o)
      local a3, b3, c3 = edge(box[5], box[6], box[7], box[8], o)
      local a4, b4, c4 = edge(box[7], box[8], box[1], box[2], o)
      quad_rows(dist, w, box.x0, box.y0, box.x1, box.y1, a1, b1, c1, a2, b2, c2, a3, b3, c3, a4, b4, c4)
    end
  end
  return bx0, by0, bx1, by1
end

-- Darkens the picture where dist is low: strength 0..1, soft is the width of the edge in pixels, tint the shadow's colour.
function raster.shadow(frame, dist, w, x0, y0, x1, y1, strength, soft, r, g, b)
  local k = 1 / soft
  for y = y0, y1 do
    for x = x0, x1 do
      local d = dist[y * w + x]
      local s = min(1, max(0, 0.5 - d * k)) * strength
      if s > 0 then
        local at = 3 * (y * w + x)
        frame[at] = frame[at] * (1 - s * (1 - r))
        frame[at + 1] = frame[at + 1] * (1 - s * (1 - g))
        frame[at + 2] = frame[at + 2] * (1 - s * (1 - b))
      end
    end
  end
end

-- ---- fills ---------------------------------------------------------------------------------------

-- A fill is one loop for one texture, one shading and one style: LuaJIT compiles a loop without such choices inside into
-- straight code. The loop's text is put together from these pieces. Inside it: u, v (the subject's own place), m (how
-- much of the second colour), l (cosine to the light), cr cg cb (the colour).
local textures = {
  plain = "",
  -- The width of the soft edge of a pattern follows the size of the subject, `tk` pixels a unit.
  striped = "m = min(1, max(0, 0.5 + sine((u * 0.35 + v) * 3.2 + 0.1) * tk * 0.055)) * 0.9",
  spotted = [[
    local su, sv = u * 3.6 + 0.5, v * 3.6 + 0.5
    sv = sv + 0.5 * (floor(su) % 2)
    su, sv = su - floor(su) - 0.5, sv - floor(sv) - 0.5
    m = min(1, max(0, 0.5 + (0.085 - su * su - sv * sv) * tk * 0.45)) * 0.95]],
  checkered = "m = min(1, max(0, 0.5 + sine(u * 2.2) * sine(v * 2.2 + 0.02) * tk * 0.09)) * 0.9",
}

local shadings = {
  flat = "l = flat",
  round = [[
    local du, dv = (u - ru0) * iru, (v - rv0) * irv
    local q = du * du + dv * dv
    local nz = 0.2
    if q < 0.96 then nz = sqrt(1 - q) else
      local s = 0.98 / sqrt(q)
      du, dv = du * s, dv * s
    end
    l = du * lu + dv * lv + nz * lz]],
  cone = [[
    local du = min(1, max(-1, (u - ru0) / max(0.06, (rv0 - v) * iru)))
    l = du * lu * 0.93 + 0.3 * lv + sqrt(1 - du * du) * lz]],
}

local styles = {
  realistic = [[
    local s = ambient + diffuse * max(0, l)
    local h = max(0, l)
    h = h * h
    h = h * h
    h = h * h * h
    h = h * gloss
    local t = 1 - m
    cr = (cr0 * t + cr1 * m) * s * tr + h * tr
    cg = (cg0 * t + cg1 * m) * s * tg + h * tg
    cb = (cb0 * t + cb1 * m) * s * tb + h * tb]],
  cartoon = [[
    local s = l > 0.28 and 1 or 0.7
    local t = 1 - m
    cr, cg, cb = (cr0 * t + cr1 * m) * s * tr, (cg0 * t + cg1 * m) * s * tg, (cb0 * t + cb1 * m) * s * tb]],
  pencil = [[
    local s = 0.62 + 0.38 * max(0, l)
    local hatch = max(0, sine((x + y) * hk)) * (1.02 - max(0, l)) * 0.4
    local t = 1 - m
    local wash = 0.3 + 0.36 * hatch
    cr = ((cr0 * t + cr1 * m) * s * (1 - wash) + 0.96 * wash * (1 - hatch)) * tr
    cg = ((cg0 * t + cg1 * m) * s * (1 - wash) + 0.95 * wash * (1 - hatch)) * tg
    cb = ((cb0 * t + cb1 * m) * s * (1 - wash) + 0.91 * wash * (1 - hatch)) * tb]],
  pixel = [[
    local s = l > 0.62 and 1.12 or (l > 0.2 and 0.9 or 0.62)
    local t = m > 0.45 and 0 or 1
    cr = (cr0 * t + cr1 * (1 - t)) * s * tr
    cg = (cg0 * t + cg1 * (1 - t)) * s * tg
    cb = (cb0 * t + cb1 * (1 - t)) * s * tb]],
}

local template = [[
local floor, min, max, sqrt, sine = ...
return function(frame, mask, dist, w, x0, y0, x1, y1, g)
  local sharp, ow, reach, oa = g.sharp, g.outline, g.outline + 0.5 / g.sharp, g.outline_alpha
  local ia, ib, ic, id, px, py = g.ia, g.ib, g.ic, g.id, g.px, g.py
  local cr0, cg0, cb0, cr1, cg1, cb1 = g.r, g.g, g.b, g.r2, g.g2, g.b2
  local tr, tg, tb, orr, og, ob = g.tr, g.tg, g.tb, g.outline_r, g.outline_g, g.outline_b
  local flat, ru0, rv0, iru, irv = g.flat, g.ru0, g.rv0, g.iru, g.irv
  local lu, lv, lz, ambient, diffuse, gloss = g.lu, g.lv, g.lz, g.ambient, g.diffuse, g.gloss
  local tk, hk = g.scale, g.hatch
  for y = y0, y1 do
    local dy = y + 0.5 - py
    local ub, vb = ib * dy, id * dy
    for x = x0, x1 do
      local at = y * w + x
      local d = dist[at]
      if d < reach then
        local dx = x + 0.5 - px
        local u, v = ia * dx + ub, ic * dx + vb
        local m, l, cr, cg, cb = 0
        TEXTURE
        SHADING
        STYLE
        local fill = min(1, max(0, 0.5 - d * sharp))
        local cover = min(1, max(0, 0.5 - (d - ow) * sharp))
        local o = (1 - fill) * oa * cover
        local rest = 1 - fill - o
        local p = 3 * at
        frame[p] = frame[p] * rest + cr * fill + orr * o
        frame[p + 1] = frame[p + 1] * rest + cg * fill + og * o
        frame[p + 2] = frame[p + 2] * rest + cb * fill + ob * o
        local k = floor(cover * 255 + 0.5)
        if k > mask[at] then mask[at] = k end
      end
    end
  end
end
]]

local fills = {}

-- raster.fill(texture, shading, style): the loop for these names, fill(frame, mask, dist, w, x0, y0, x1, y1, g) with the
-- numbers of the group in g. Made once.
function raster.fill(texture, shading, style)
  local key = texture .. "|" .. shading .. "|" .. style
  if not fills[key] then
    local pieces = { TEXTURE = textures[texture], SHADING = shadings[shading], STYLE = styles[style] }
    local text = template:gsub("%u%u%u%u%u%u?%u?", pieces)
    fills[key] = assert(loadstring(text, "=raster.fill " .. key))(floor, min, max, sqrt, sine)
  end
  return fills[key]
end

-- ---- whole pictures --------------------------------------------------------------------------------

-- frame(x, y) = picture(ax + s x, ay + s y), bilinear; both float RGB, positions of pixel centres.
function raster.resample(frame, w, h, picture, pw, ph, ax, ay, s)
  local xmax, ymax = pw - 1.001, ph - 1.001
  for y = 0, h - 1 do
    local sy = min(ymax, max(0, ay + s * (y + 0.5) - 0.5))
    local iy = floor(sy)
    local fy = sy - iy
    local top, out = 3 * iy * pw, 3 * y * w
    for x = 0, w - 1 do
      local sx = min(xmax, max(0, ax + s * (x + 0.5) - 0.5))
      local ix = floor(sx)
      local fx = sx - ix
      local p = top + 3 * ix
      local q = p + 3 * pw
      local w00, w01, w10, w11 = (1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy
      local o = out + 3 * x
      frame[o] = picture[p] * w00 + picture[p + 3] * w01 + picture[q] * w10 + picture[q + 3] * w11
      frame[o + 1] = picture[p + 1] * w00 + picture[p + 4] * w01 + picture[q + 1] * w10 + picture[q + 4] * w11
      frame[o + 2] = picture[p + 2] * w00 + picture[p + 5] * w01 + picture[q + 2] * w10 + picture[q + 5] * w11
    end
  end
end

-- Floats in 0..1 to bytes; each value repeated over blocks of n x n where n > 1 (w, h: of the output).
function raster.store(out, w, h, frame, n)
  if n == 1 then
    for i = 0, 3 * w * h - 1 do out[i] = min(255, max(0, frame[i] * 255 + 0.5)) end
    return
  end
  local small = floor((w + n - 1) / n)
  for y = 0, h - 1 do
    local row = floor(y / n) * small
    for x = 0, w - 1 do
      local p, o = 3 * (row + floor(x / n)), 3 * (y * w + x)
      out[o] = min(255, max(0, frame[p] * 255 + 0.5))
      out[o + 1] = min(255, max(0, frame[p + 1] * 255 + 0.5))
      out[o + 2] = min(255, max(0, frame[p + 2] * 255 + 0.5))
    end
  end
end
function raster.store_mask(out, w, h, mask, n)
  if n == 1 then
    for i = 0, w * h - 1 do out[i] = mask[i] end
    return
  end
  local small = floor((w + n - 1) / n)
  for y = 0, h - 1 do
    local row = floor(y / n) * small
    for x = 0, w - 1 do out[y * w + x] = mask[row + floor(x / n)] end
  end
end

-- A picture in another style, in place; `copy` is room of the same size. hatch: turns a pixel.
function raster.stylise(picture, copy, w, h, style, hatch)
  if style == "realistic" then return end
  if style == "pixel" then
    for i = 0, 3 * w * h - 1 do picture[i] = floor(picture[i] * 10 + 0.5) / 10 end
    return
  end
  for i = 0, 3 * w * h - 1 do copy[i] = picture[i] end
  local pencil = style == "pencil"
  for y = 0, h - 1 do
    local up, down = max(0, y - 1) * w, min(h - 1, y + 1) * w
    for x = 0, w - 1 do
      local p = 3 * (y * w + x)
      local left, right = 3 * (y * w + max(0, x - 1)), 3 * (y * w + min(w - 1, x + 1))
      local above, below = 3 * (up + x), 3 * (down + x)
      local r, g, b = copy[p], copy[p + 1], copy[p + 2]
      local gx = abs(copy[right] - copy[left]) + abs(copy[right + 1] - copy[left + 1])
        + abs(copy[right + 2] - copy[left + 2])
      local gy = abs(copy[below] - copy[above]) + abs(copy[below + 1] - copy[above + 1])
        + abs(copy[below + 2] - copy[above + 2])
      local line = min(1, max(0, (gx + gy) * 1.6 - 0.3))
      local light = 0.3 * r + 0.59 * g + 0.11 * b
      if pencil then
        local shade = 1 - light
        local t = max(0, sine((x + y) * hatch)) * shade * 0.22
        local wash = 0.52
        local k = (1 - 0.75 * line) * (1 - t)
        picture[p] = (r * (1 - wash) + 0.96 * wash) * k
        picture[p + 1] = (g * (1 - wash) + 0.95 * wash) * k
        picture[p + 2] = (b * (1 - wash) + 0.9 * wash) * k
      else -- cartoon: few levels of light, stronger colour
        local level = (floor(light * 5) + 0.5) / 5
        local k = (0.35 + 0.65 * level / max(0.05, light)) * (1 - 0.5 * line)
        local s = 1.35
        picture[p] = min(1, max(0, (light + (r - light) * s) * k))
        picture[p + 1] = min(1, max(0, (light + (g - light) * s) * k))
        picture[p + 2] = min(1, max(0, (light + (b - light) * s) * k))
      end
    end
  end
end

return raster
