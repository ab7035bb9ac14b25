-- melies-api: 1
-- What can stand in a clip, as groups of parts. A subject is drawn in its own coordinates: u to the right (it faces
-- right), v up, (0, 0) the ground below its middle, about 1 high. Groups are drawn in order; each is one material.
--   parts: ellipses { "e", u, v, ru, rv, turns } and convex quadrilaterals or triangles { "q", u1, v1, ... }
--   skin: takes the clip's colour, times `tone`; else r, g, b is the group's own colour
--   texture: takes the clip's texture
--   round = { u, v, ru, rv }: shaded as an ellipsoid; cone = { apex v,
-- half width a unit }: as a cone; flat: as a plane
local pi2 = 2 * math.pi

local function skin(parts, shading, extra)
  local g = { parts = parts, skin = true, texture = true, tone = 1, outlined = true }
  for k, v in pairs(shading or {}) do g[k] = v end
  for k, v in pairs(extra or {}) do g[k] = v end
  return g
end
local function own(r, g, b, parts, shading, extra)
  local group = { parts = parts, r = r, g = g, b = b, outlined = true }
  for k, v in pairs(shading or {}) do group[k] = v end
  for k, v in pairs(extra or {}) do group[k] = v end
  return group
end
local bare = { outlined = false }

local subjects = {}

-- middle: height of the centre it turns about. width: half its width. air: floats that high above the ground by nature.
subjects.ball = { middle = 0.46, width = 0.46, groups = {
  skin({ { "e", 0, 0.46, 0.46, 0.46 } }, { round = { 0, 0.46, 0.46, 0.46 } }),
}, plain_mark = { -- a turn would not show on a plain ball
  own(1, 1, 1, { { "e", 0.17, 0.63, 0.13, 0.09, 0.125 } }, { round = { 0, 0.46, 0.46, 0.46 } }, bare),
} }

subjects.cube = { middle = 0.45, width = 0.5, groups = {
  skin({ { "q", -0.5, 0.04, 0.2, 0, 0.2, 0.68, -0.5, 0.66 } }, { flat = 0.55 }),
  skin({ { "q", 0.2, 0, 0.5, 0.16, 0.5, 0.8, 0.2, 0.68 } }, { flat = 0.02 }, { tone = 0.8 }),
  skin({ { "q", -0.5, 0.66, 0.2, 0.68, 0.5, 0.8, -0.16, 0.8 } }, { flat = 0.95 }, { tone = 1.12, texture = false }),
} }

subjects.cone = { middle = 0.42, width = 0.42, groups = {
  skin({ { "q", -0.42, 0.08, 0.42, 0.08, 0, 1 }, { "e", 0, 0.08, 0.415, 0.08 } }, { cone = { 1.02, 0.44 } }),
} }

do -- five tips about a five-sided middle
  local parts, cv, outer, inner = {}, 0.5, 0.54, 0.235
  local function at(k, r)
    local a = k / 10 * pi2
    return math.floor(math.sin(a) * r * 1e4 + 0.5) / 1e4, math.floor((cv + math.cos(a) * r) * 1e4 + 0.5) / 1e4
  end
  for k = 0, 8, 2 do
    local u1, v1 = at(k, outer)
    local u2, v2 = at(k + 1, inner)
    local u3, v3 = at(k - 1, inner)
    parts[#parts + 1] = { "q", 0, cv, u3, v3, u1, v1, u2, v2 }
  end
  subjects.star = { middle = cv, width = 0.52, groups = { skin(parts, { round = { 0, cv, 0.62, 0.62 } }) } }
end

subjects.heart = { middle = 0.46, width = 0.48, groups = {
  skin({ { "e", -0.23, 0.64, 0.25, 0.25 }, { "e", 0.23, 0.64, 0.25, 0.25 },
    { "q", 0, 0, 0.425, 0.49, 0, 0.9, -0.425, 0.49 } }, { round = { 0, 0.5, 0.6, 0.56 } }),
} }

subjects.fish = { middle = 0.4, width = 0.62, air = 0.12, groups = {
  skin({ { "q", -0.3, 0.4, -0.66, 0.72, -0.56, 0.4, -0.56, 0.4 }, { "q", -0.3, 0.4, -0.56, 0.4, -0.66, 0.08, -0.66,
    0.08 } },
    { flat = 0.35 }, { tone = 0.85, texture = false }),
  skin({ { "q", -0.14, 0.6, 0.18, 0.62, -0.1, 0.86 } }, { flat = 0.35 }, { tone = 0.85, texture = false }),
  skin({ { "e", 0.08, 0.4, 0.48, 0.28 } }, { round = { 0.08, 0.4, 0.48, 0.3 } }),
  own(1, 1, 1, { { "e", 0.34, 0.47, 0.085, 0.085 } }, { flat = 0.8 }, bare),
  own(0.05, 0.05, 0.08, { { "e", 0.36, 0.47, 0.042, 0.045 } }, { flat = 0.5 }, bare),
} }

subjects.bird = { middle = 0.45, width = 0.6, air = 0.18, flaps = 3, groups = {
  skin({ { "q", -0.28, 0.42, -0.68, 0.58, -0.62, 0.34 } }, { flat = 0.3 }, { tone = 0.8, texture = false }),
  own(0.98, 0.66, 0.1, { { "q", 0.46, 0.68, 0.72, 0.6, 0.46, 0.53 } }, { flat = 0.6 }),
  skin({ { "e", -0.02, 0.4, 0.38, 0.22, 0.03 }, { "e", 0.34, 0.6, 0.18, 0.175 } }, { round = { 0.06, 0.46, 0.5,
    0.34 } }),
  own(1, 1, 1, { { "e", 0.41, 0.64, 0.06, 0.06 } }, { flat = 0.8 }, bare),
  own(0.05, 0.05, 0.08, { { "e", 0.425, 0.64, 0.032, 0.034 } }, { flat = 0.5 }, bare),
  skin({ { "q", -0.2, 0.46, 0.16, 0.46, -0.14, 0.98, -0.3, 0.86 } }, { flat = 0.3 }, { tone = 0.78, wing = true,
    texture = false }),
} }

subjects.car = { middle = 0.34, width = 0.68, groups = {
  skin({ { "q", -0.36, 0.4, 0.34, 0.4, 0.2, 0.72, -0.24, 0.72 } }, { round = { 0, 0.36, 0.8, 0.44 } },
    { texture = false }),
  own(0.62, 0.8, 0.9, { { "q", -0.28, 0.44, -0.04, 0.44, -0.04, 0.66, -0.2, 0.66 },
    { "q", 0.02, 0.44, 0.26, 0.44, 0.17, 0.66, 0.02, 0.66 } }, { flat = 0.7 }, bare),
  skin({ { "q", -0.6, 0.14, 0.62, 0.14, 0.64, 0.4, -0.62, 0.44 }, { "e", -0.58, 0.29, 0.1, 0.15 }, { "e", 0.6, 0.27,
    0.1, 0.13 } },
    { round = { 0, 0.26, 1.1, 0.32 } }),
  own(1, 0.95, 0.6, { { "e", 0.64, 0.3, 0.05, 0.06 } }, { flat = 0.9 }, bare),
  own(0.1, 0.1, 0.12, { { "e", -0.36, 0.14, 0.15, 0.15 }, { "e", 0.38, 0.14, 0.15, 0.15 } }, { flat = 0.4 }),
  own(0.75, 0.75, 0.78, { { "e", -0.36, 0.14, 0.07, 0.07 }, { "e", 0.38, 0.14, 0.07, 0.07 } }, { flat = 0.8 }, bare),
} }

subjects.boat = { middle = 0.42, width = 0.6, groups = {
  own(0.45, 0.3, 0.18, { { "q", -0.035, 0.25, 0.035, 0.25, 0.035, 1.02, -0.035, 1.02 } }, { flat = 0.4 }),
  own(0.97, 0.96, 0.9, { { "q", 0.06, 0.36, 0.52, 0.36, 0.06, 0.98 }, { "q", -0.06, 0.36, -0.38, 0.36, -0.06,
    0.86 } }, { flat = 0.75 }),
  skin({ { "q", -0.62, 0.32, 0.64, 0.32, 0.42, 0, -0.42, 0 } }, { round = { 0, 0.3, 0.9, 0.4 } }),
} }

subjects.tree = { middle = 0.5, width = 0.45, groups = {
  own(0.43, 0.27, 0.14, { { "q", -0.1, 0, 0.1, 0, 0.065, 0.5, -0.065, 0.5 } }, { round = { 0, 0.25, 0.12, 0.6 } }),
  skin({ { "e", -0.22, 0.56, 0.25, 0.22 }, { "e", 0.22, 0.56, 0.25, 0.22 }, { "e", 0, 0.8, 0.27, 0.25 }, { "e", 0,
    0.62, 0.24, 0.2 } },
    { round = { 0, 0.68, 0.5, 0.46 } }),
} }

return subjects
