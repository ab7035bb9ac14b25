-- melies-api: 1
-- The starter's world: captioned clips drawn from numbers. Clip i of seed s is the same on every machine, in any order.
--
--   local world = dofile("recipes/starter/world/init.lua")
--   local clip = world.clip { seed = 1, index = 7, size = 64, frames = 17 }
--   clip.frames      u8 [T, H, W, 3]
--   clip.mask        u8 [T, H, W], 255 where a subject is, soft at its edge
--   clip.caption     text;  clip.says: the attributes it mentions
--   clip.attributes  subject, colour, texture, size, motion, camera, place, light, style, relation, second,
--                    second_colour
--   clip.boxes       where asked: for each frame { x0, y0, x1, y1 } in pixels about the subjects, false where none is
local melies = require "melies"
local T = melies.tensor
local floor, min, max = math.floor, math.min, math.max

local here = debug.getinfo(1, "S").source:match "^@(.*)/[^/]*$" or "."
local function part(name, ...) return assert(loadfile(here .. "/" .. name .. ".lua"))(...) end

local raster = part "raster"
local places = part("places", raster)
local subjects = part "subjects"
local words = part "words"
local sine, cosine = raster.sine, raster.cosine

local world = { words = words, fps = 8 }

-- ---- numbers ---------------------------------------------------------------------------------------

local function times(a, b) -- 32-bit product
  local low, high = bit.band(a, 0xffff), bit.rshift(a, 16)
  b = b % 2 ^ 32
  return bit.tobit(bit.tobit(low * b) + bit.lshift(bit.tobit(high * b), 16))
end

-- A 32-bit mixer ("lowbias32", C. Wellons).
local function scramble(x)
  x = bit.bxor(x, bit.rshift(x, 16))
  x = times(x, 0x7feb352d)
  x = bit.bxor(x, bit.rshift(x, 15))
  x = times(x, 0x846ca68b)
  return bit.bxor(x, bit.rshift(x, 16))
end

-- A stream of numbers in 0..1 for (seed, index, purpose).
function world.random(seed, index, purpose)
  local key = scramble(bit.tobit(seed % 2 ^ 32) + 0x51ed)
  key = scramble(bit.bxor(key, bit.tobit(floor(seed / 2 ^ 32))))
  key = scramble(bit.bxor(key, bit.tobit(index % 2 ^ 32)))
  key = scramble(bit.bxor(key, bit.tobit(floor(index / 2 ^ 32) * 16 + purpose)))
  local n = 0
  return function()
    n = n + 1
    return scramble(bit.bxor(key, times(n, 0x9e3779b9))) % 2 ^ 32 / 2 ^ 32
  end
end
local ATTRIBUTES, CAPTION, LOOK = 1, 2, 3

-- ---- colours -----------------------------------------------------------------------------------------

local colours = {
  red = { 0.88, 0.1, 0.1 }, orange = { 1, 0.52, 0.05 }, yellow = { 1, 0.88, 0.1 }, green = { 0.08, 0.62, 0.16 },
  blue = { 0.1, 0.26, 0.92 }, purple = { 0.52, 0.14, 0.72 }, pink = { 1, 0.5, 0.72 }, white = { 0.96, 0.96, 0.96 },
  black = { 0.1, 0.1, 0.115 }, brown = { 0.47, 0.26, 0.11 },
}

-- The second colour of a pattern: lighter, or darker on what is light already.
local function pattern_colour(name)
  local c = colours[name]
  if name == "white" then return { 0.52, 0.55, 0.6 } end
  if name == "yellow" then return { 0.72, 0.54, 0.02 } end
  if name == "pink" then return { 0.78, 0.2, 0.45 } end
  local t = name == "black" and 0.5 or 0.62
  return { c[1] + (1 - c[1]) * t, c[2] + (1 - c[2]) * t, c[3] + (1 - c[3]) * t }
end

-- ---- where things are ------------------------------------------------------------------------------------

-- The state of a subject at time t in 0..1: x across and base depth k = 1 / z, height above the ground, turn, squash.
local function ease(t) return t * t * (3 - 2 * t) end

local movers = {
  still = function() end,
  right = function(s, t, e)
    s.x = (t - 0.5) * e.reach
    if e.rolls then s.turn = s.x / (e.size * s.k) / 2.9 end
    s.lift = s.lift + (e.rolls and 0 or 0.015 * sine(t * 2))
  end,
  left = function(s, t, e)
    s.x = (0.5 - t) * e.reach
    if e.rolls then s.turn = s.x / (e.size * s.k) / 2.9 end
    s.lift = s.lift + (e.rolls and 0 or 0.015 * sine(t * 2))
    s.flip = -1
  end,
  up = function(s, t, e) s.lift = s.lift + e.rise * ease(t) end,
  down = function(s, t, e) s.lift = s.lift + e.rise * max(0, 1 - t * t * 1.25) end,
  bounce = function(s, t, e)
    local p = t * 2.5 + 0.25
    p = p - floor(p)
    s.lift = 4 * p * (1 - p) * e.rise * 0.75
    local squash = max(0, 1 - 7 * min(p, 1 - p)) * 0.22
    s.sx, s.sy = 1 + squash, 1 - squash
  end,
  jump = function(s, t, e)
    local p = min(1, max(0, (t - 0.22) / 0.56))
    s.lift = s.lift + 4 * p * (1 - p) * e.rise
    local crouch = max(0, 1 - 8 * min(math.abs(t - 0.2), math.abs(t - 0.8))) * 0.25
    s.sx, s.sy = 1 + crouch, 1 - crouch
  end,
  spin = function(s, t, e)
    s.turn = s.turn + t * 1.25
    s.lift = max(s.lift, (e.width - e.middle) * e.size) + 0.02
  end,
  approach = function(s, t) s.k = s.k * (0.36 + 0.94 * t) end,
  recede = function(s, t) s.k = s.k * (1.3 - 0.94 * t) end,
  circle = function(s, t, e)
    s.x = 0.24 * cosine(t * 1.5)
    s.lift = 0.04 + e.rise * 0.5 * (1 + sine(t * 1.5))
    s.flip = sine(t * 1.5) < 0 and 1 or -1
  end,
  sway = function(s, t, e)
    s.turn = s.turn + 0.075 * sine(t * 2.5)
    s.x = s.x + 0.05 * sine(t * 2.5) * e.size
  end,
}
local vertical = { up = true, down = true, bounce = true, jump = true, circle = true } -- these need room above
local faces = { fish = true, bird = true, car = true, boat = true } -- the others look the same from both sides
local size_factor = { small = 0.62, medium = 1, large = 1.3 }

-- The actors of a clip: what stays the same over its frames.
local function actors_of(a, random, aspect)
  local function actor(name, colour, texture, size, motion)
    local shape = subjects[name]
    local wide = max(shape.width * 2, 1)
    local e = { shape = shape, colour = colours[colour], second = pattern_colour(colour), texture = texture,
      motion = motion, size = 0.57 / wide * (wide > 1 and 1.22 or 1) * size_factor[size] * (0.98 + 0.04 * random()),
      x = (random() - 0.5) * 0.04, k = 0.9 + 0.04 * random(), turn = 0, flip = random() < 0.5 and 1 or -1,
      rolls = name == "ball", width = shape.width, middle = shape.middle }
    e.mark = texture == "plain" and shape.plain_mark or nil
    if vertical[motion] then e.size = e.size * 0.82 end
    e.reach = max(0.3, aspect - shape.width * e.size * 1.5) * 0.95
    e.rise = max(0.2, 0.86 - e.size - (shape.air or 0) * e.size)
    if not faces[name] then e.flip = 1 end
    return e
  end
  local first = actor(a.subject, a.colour, a.texture, a.size, a.motion)
  if a.relation == "none" then return { first } end
  local second = actor(a.second, a.second_colour, "plain", "medium", "still")
  local side = random() < 0.5 and 1 or -1
  first.size, second.size = first.size * 0.86, second.size * 0.86
  if a.relation == "behind" or a.relation == "front" then
    local near, far = second, first
    if a.relation == "front" then near, far = first, second end
    near.k, far.k = 1.02, 0.7
    near.x, far.x = -0.12 * side, 0.19 * side / 0.7
    near.size = near.size * 0.92
  elseif a.relation == "chases" then
    first.chase, second.chase = -0.23, 0.23
    first.k, second.k = 0.78, 0.78
    second.motion = a.motion
  else
    local s = a.relation == "left_of" and -1 or 1
    first.x, second.x, first.k, second.k = 0.245 * s * aspect / 0.85, -0.245 * s * aspect / 0.85, 0.85, 0.85
    first.size, second.size = first.size * 0.94, second.size * 0.94
  end
  return { first, second }
end

local state = {}

-- The state of an actor at time t; one table, used again.
local function pose(e, t, aspect)
  local s = state
  s.x, s.k, s.lift, s.turn, s.flip, s.sx, s.sy = e.x, e.k, (e.shape.air or 0) * e.size, e.turn, e.flip, 1, 1
  if e.chase then
    local dir = e.motion == "right" and 1 or -1
    s.x = ((t - 0.5) * 0.42 * aspect + e.chase) * dir / e.k
    s.flip = dir
    if e.rolls then s.turn = s.x / (e.size * s.k) / 2.9 end
    s.lift = s.lift + math.abs(sine(t * 2 + (e.chase > 0 and 0.2 or 0))) * 0.02
  else
    s.flip = (e.motion == "right") and 1 or s.flip
    movers[e.motion](s, t, e)
  end
  return s
end

local function camera_of(name, t)
  if name == "pan_left" then return 0.3 * (0.5 - t), 0, 1 end
  if name == "pan_right" then return 0.3 * (t - 0.5), 0, 1 end
  if name == "zoom_in" then return 0, 0.09 * t, 1 + 0.62 * ease(t) end
  if name == "zoom_out" then return 0, 0.09 * (1 - t), 1.62 - 0.62 * ease(t) end
  return 0, 0, 1
end

-- ---- drawing ---------------------------------------------------------------------------------------------

-- Scratch memory of a size, kept between clips.
local rooms = {}
local function room(w, h, pw, ph)
  local key = w .. "x" .. h .. ":" .. pw .. "x" .. ph
  if not rooms[key] then
    local r = { tensors = {} }
    for name, shape in pairs { frame = { h, w, 3 }, ground = { h, w, 3 }, dist = { h, w }, picture = { ph, pw, 3 },
      copy = { ph, pw, 3 } } do
      r.tensors[name] = T.empty(shape)
    end
    r.tensors.mask = T.empty({ h, w }, "u8")
    for name, x in pairs(r.tensors) do r[name] = x:ptr() end
    rooms = { [key] = r }
  end
  return rooms[key]
end

local g = {} -- the numbers of a fill, used again
local wing = {}

-- The parts of a wing at flap f (-1..1): its far corners go up and down.
local function flapped(parts, f)
  local p = parts[1]
  wing[1] = wing[1] or {}
  local q = wing[1]
  for i = 1, #p do q[i] = p[i] end
  local base = p[3]
  q[7], q[9] = base + (p[7] - base) * f, base + (p[9] - base) * f
  return wing
end

local function draw_shadow(r, w, h, e, s, m, light, res, style)
  local sh = light.shadow
  local scale = e.size * s.k * res
  local lift = s.lift * s.k * res + e.middle * scale * s.sy
  -- (u, v) is at the height lift - (c u + d v) above the ground: its shadow lies that far along the shadow's direction
  local cast = raster.matrix(m.x0 + sh[1] * lift, g.ground_y - sh[2] * lift, m.a - sh[1] * m.c, m.b - sh[1] * m.d,
    sh[2] * m.c, sh[2] * m.d)
  local soft = sh[4] * res / 64 * (1 + 1.2 * s.lift)
  local dark = sh[3] * (style == "pixel" and 0.9 or 1) / (1 + 0.8 * s.lift)
  local parts = {}
  for _, group in ipairs(e.shape.groups) do
    if not group.wing and group.outlined then
      for _, p in ipairs(group.parts) do parts[#parts + 1] = p end
    end
  end
  local x0, y0, x1, y1 = raster.distance(r.dist, w, h, parts, cast, soft + 1)
  if x0 then raster.shadow(r.frame, r.dist, w, x0, y0, x1, y1, dark, soft, 0.05, 0.05, 0.16) end
end

local looks = {
  realistic = { sharp = 1, outline = 0.012, alpha = 0.45, r = 0.08, g = 0.07, b = 0.08 },
  cartoon = { sharp = 1, outline = 0.03, alpha = 1, r = 0.04, g = 0.03, b = 0.06 },
  pencil = { sharp = 1, outline = 0.02, alpha = 0.85, r = 0.2, g = 0.19, b = 0.2 },
  pixel = { sharp = 8, outline = 0.03, alpha = 1, r = 0.05, g = 0.04, b = 0.09 },
}

local function draw_subject(r, w, h, e, s, m, light, style, res)
  local look = looks[style]
  local det = m.a * m.d - m.b * m.c
  if math.abs(det) < 1e-6 then return end
  g.sharp, g.outline, g.outline_alpha = look.sharp, max(look.outline * res, style == "pixel" and 0.9 or 0.8), look.alpha
  local tint = light.subject
  g.outline_r, g.outline_g, g.outline_b = look.r * tint[1], look.g * tint[2], look.b * tint[3]
  g.ia, g.ib, g.ic, g.id, g.px, g.py = m.d / det, -m.b / det, -m.c / det, m.a / det, m.x0, m.y0
  g.tr, g.tg, g.tb = tint[1], tint[2], tint[3]
  g.ambient, g.diffuse, g.scale, g.hatch = light.ambient, light.diffuse, math.sqrt(math.abs(det)), 64 / res / 7.5
  -- the light in the subject's own directions: lu = (dir . column of u) over its length
  local nu, nv = math.sqrt(m.a * m.a + m.c * m.c), math.sqrt(m.b * m.b + m.d * m.d)
  local lx, ly = light.to[1], -light.to[2]
  g.lu, g.lv, g.lz = (lx * m.a + ly * m.c) / nu, (lx * m.b + ly * m.d) / nv, light.to[3]
  local function groups(list)
    for _, group in ipairs(list) do
      local parts = group.parts
      if group.wing then parts = flapped(parts, s.flap) end
      local x0, y0, x1, y1 = raster.distance(r.dist, w, h, parts, m, g.outline + 1)
      if x0 then
        local c, d, tone = group.skin and e.colour or group, group.skin and e.second or group, group.tone or 1
        g.r, g.g, g.b = (c[1] or c.r) * tone, (c[2] or c.g) * tone, (c[3] or c.b) * tone
        g.r2, g.g2, g.b2 = (d[1] or d.r) * tone, (d[2] or d.g) * tone, (d[3] or d.b) * tone
        g.gloss = group.skin and 0.3 or 0.1
        g.flat = group.flat or 0.5
        local shading = "flat"
        if group.round then
          shading = "round"
          g.ru0, g.rv0, g.iru, g.irv = group.round[1], group.round[2] - e.middle, 1 / group.round[3], 1 / group.round[4]
        elseif group.cone then
          shading = "cone"
          g.ru0, g.rv0, g.iru, g.irv = 0, group.cone[1] - e.middle, group.cone[2], 1
        end
        local ow = g.outline
        if not group.outlined then g.outline = 0 end
        local fill = raster.fill(group.texture and e.texture or "plain", shading, style)
        fill(r.frame, r.mask, r.dist, w, x0, y0, x1, y1, g)
        g.outline = ow
      end
    end
  end
  groups(e.shape.groups)
  if e.mark then groups(e.mark) end
end

local function box_of(mask, w, h)
  local x0, y0, x1, y1 = w, h, -1, -1
  for y = 0, h - 1 do
    for x = 0, w - 1 do
      if mask[y * w + x] > 127 then x0, y0, x1, y1 = min(x0, x), min(y0, y), max(x1, x), max(y1, y) end
    end
  end
  if x1 >= 0 then return { x0, y0, x1 + 1, y1 + 1 } end
end

-- Parts are given about the ground; drawing turns them about the middle: shifted once.
for _, shape in pairs(subjects) do
  local function shift(groups)
    for _, group in ipairs(groups or {}) do
      for _, p in ipairs(group.parts) do
        if p[1] == "e" then p[3] = p[3] - shape.middle
        else for i = 3, #p, 2 do p[i] = p[i] - shape.middle end end
      end
    end
  end
  shift(shape.groups)
  shift(shape.plain_mark)
end

local function pixel_block(height) return max(2, floor(height / 25 + 0.5)) end

-- world.render(attributes, { seed, index, size | width, height, frames, boxes }): frames u8 [T, H, W, 3], mask u8
-- [T, H, W], and where boxes is true the boxes. The pictures of one (seed, index) differ by their attributes only.
function world.render(a, o)
  local width, height, count = o.width or o.size or 64, o.height or o.size or 64, o.frames or 17
  local random = world.random(o.seed or 0, o.index or 0, LOOK)
  local style, light = a.style, places.lights[a.light]
  local block = style == "pixel" and pixel_block(height) or 1
  local w, h = floor((width + block - 1) / block), floor((height + block - 1) / block)
  local res, aspect = height / block, width / height
  local horizon = places.horizon_of(a.place)
  local zooms, pans = a.camera:find "zoom" and true, a.camera:find "pan" and true
  local margin_x, margin_y = (pans and 0.17 or 0) + 1 / res, (zooms and 0.06 or 0) + 1 / res
  local hw, hh = aspect / 2 + margin_x, 0.5 + margin_y
  local pw, ph = floor(2 * hw * res + 0.5), floor(2 * hh * res + 0.5)
  local r = room(w, h, pw, ph)
  places.paint(a.place, r.picture, pw, ph, res, hw, hh, a.light, places.sites[1 + floor(random() * #places.sites)])
  raster.stylise(r.picture, r.copy, pw, ph, style, 64 / res / 7.5)
  local actors = actors_of(a, random, aspect)
  if style == "pixel" then for _, e in ipairs(actors) do e.size = e.size * 1.1 end end
  table.sort(actors, function(p, q) return p.k < q.k end)

  local frames, masks = T.empty({ count, height, width, 3 }, "u8"), T.empty({ count, height, width }, "u8")
  local out, mask_out, boxes = frames:ptr(), masks:ptr(), o.boxes and {} or nil
  for f = 0, count - 1 do
    local t = count > 1 and f / (count - 1) or 0.5
    local px, py, zoom = camera_of(a.camera, t)
    local shown = res * zoom
    local ground = r.ground
    if f == 0 or pans or zooms then
      raster.resample(ground, w, h, r.picture, pw, ph, (px + hw) * res - 0.5 * aspect * res / zoom,
        (py + hh) * res - 0.5 * res / zoom, 1 / zoom)
    end
    r.tensors.frame:copy_(r.tensors.ground)
    r.tensors.mask:fill_(0)
    for pass = 1, 2 do -- all shadows lie below all subjects
      for _, e in ipairs(actors) do
        local s = pose(e, t, aspect)
        s.flap = e.shape.flaps and cosine(t * e.shape.flaps) * 0.85 or 1
        local scale = e.size * s.k * shown
        local co, si = cosine(s.turn), sine(s.turn)
        local fx, fy = scale * s.sx * s.flip, scale * s.sy
        local x = w / 2 + (s.x * s.k - px) * shown
        g.ground_y = h / 2 + (horizon + places.camera * s.k - py) * shown
        local y = g.ground_y - s.lift * s.k * shown - e.middle * scale * s.sy
        local m = raster.matrix(x, y, fx * co, fy * si, fx * si, -fy * co)
        if pass == 1 then draw_shadow(r, w, h, e, s, m, light, shown, style)
        else draw_subject(r, w, h, e, s, m, light, style, shown) end
      end
    end
    raster.store(out + f * width * height * 3, width, height, r.frame, block)
    raster.store_mask(mask_out + f * width * height, width, height, r.mask, block)
    if boxes then boxes[f + 1] = box_of(mask_out + f * width * height, width, height) or false end
  end
  return frames, masks, boxes
end

-- ---- clips -----------------------------------------------------------------------------------------------

local clip_options = { seed = true, index = true, size = true, width = true, height = true, frames = true,
  split = true, boxes = true }

-- world.describe { seed, index, split }: attributes, caption, says; without drawing. split: "train" or "heldout".
function world.describe(o)
  local held = o.split == "heldout"
  local seed, index = o.seed or 0, o.index or 0
  local a = words.sample(world.random(seed, index, ATTRIBUTES + (held and 8 or 0)), held)
  local caption, says = words.caption(a, world.random(seed, index, CAPTION + (held and 8 or 0)),
    { held = held and index % 2 == 0, all = held })
  return a, caption, says
end

-- world.clip { seed=0, index=0, size=64 | width=, height=, frames=17, split="train", boxes=false }: a clip, see above.
function world.clip(o)
  for key in pairs(o) do
    if not clip_options[key] then error(("world.clip: unknown option '%s'"):format(tostring(key)), 2) end
  end
  local count = o.frames or 17
  if count < 1 or (count - 1) % 4 ~= 0 then
    error(("world.clip: frames is %s, must be 1 + 4 k"):format(tostring(count)), 2)
  end
  if o.split and o.split ~= "train" and o.split ~= "heldout" then
    error(("world.clip: split is '%s', must be train or heldout"):format(tostring(o.split)), 2)
  end
  local clip = {}
  clip.attributes, clip.caption, clip.says = world.describe(o)
  clip.frames, clip.mask, clip.boxes = world.render(clip.attributes, o)
  return clip
end

-- world.heldout(count): prompts that training never has, as a list of { prompt=, says= attributes by name }. Every one is
-- a held-out combination; every second one also has an order of words that is held out.
function world.heldout(count)
  local list, seen, index = {}, {}, 0
  while #list < count do
    local a, caption, says = world.describe { seed = 2, index = index, split = "heldout" }
    index = index + 1
    if not seen[caption] then
      seen[caption] = true
      local said = { subject = a.subject }
      for name, yes in pairs(says) do
        if yes then said[name] = a[name] end
      end
      list[#list + 1] = { prompt = caption, says = said }
    end
  end
  return list
end

local written = { "subject", "colour", "texture", "size", "motion", "camera", "place", "light", "style" }

-- The list as the text of heldout.txt: prompt, a tab, name=value with spaces between. And back.
function world.heldout_text(list)
  local lines = { "# Held-out prompts of the starter's world: a prompt, a tab, the attributes it says.",
    "# melies run make_world --heldout FILE writes this list." }
  for _, entry in ipairs(list) do
    local said = {}
    for _, name in ipairs(written) do
      if entry.says[name] then said[#said + 1] = name .. "=" .. entry.says[name] end
    end
    lines[#lines + 1] = entry.prompt .. "\t" .. table.concat(said, " ")
  end
  return table.concat(lines, "\n") .. "\n"
end
function world.read_heldout(path)
  local file, message = io.open(path or here:match "^(.*)/[^/]*$" .. "/heldout.txt")
  if not file then return nil, message end
  local list = {}
  for line in file:lines() do
    local prompt, said = line:match "^([^#\t][^\t]*)\t(.*)$"
    if prompt then
      local says = {}
      for name, value in said:gmatch "(%w+)=([%w_]+)" do says[name] = value end
      list[#list + 1] = { prompt = prompt, says = says }
    end
  end
  file:close()
  return list
end

return world
