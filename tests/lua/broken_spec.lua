-- broken_frames on flat and textured clips, still and moving: clean ones pass, planted damage of six kinds is found.
local t = require "harness"
local melies = require "melies"
local clips = require "clips"
local T, media = melies.tensor, melies.media

local world = dofile((os.getenv "MELIES_ROOT" or ".") .. "/recipes/starter/world/init.lua")

local function drawn(i)
  local clip, list = media.to_f32(world.clip({ seed = 5, index = i, size = 64, frames = 9 }).frames), {}
  for k = 1, 9 do list[k] = clip:select(1, k):contiguous() end
  return list
end

-- Flat discs and squares over two flat fields, without outlines; they stand still, move, or bounce.
local function flat(seed)
  local next_value = clips.random(1000 + seed)
  for _ = 1, 3 do next_value() end
  local function share() return 0.5 + 0.5 * next_value() end
  local function colour() return T.of({ share(), share(), share() }, { 1, 1, 3 }) end
  local n, sky, ground, things = 64, colour(), colour(), {}
  local rows = T.empty { n, 1 }
  local columns = T.empty { 1, n }
  for k = 1, n do
    rows:set(k, k - 1)
    columns:set(k, k - 1)
  end
  local horizon = (rows - (24 + 24 * share())):clamp(0, 1):unsqueeze(3)
  local speed = ({ 0, 2, 4 })[seed % 3 + 1]
  for k = 1, 5 do
    things[k] = { x = n * share(), y = n * share(), radius = 4 + 8 * share(), colour = colour(), square = share() < 0.5,
      vx = speed * next_value(), vy = speed * next_value() }
  end
  local frames = {}
  for i = 1, 9 do
    local frame = sky + (ground - sky) * horizon:expand { n, n, 1 }
    for k, o in ipairs(things) do
      local x, y = o.x + o.vx * i, o.y + (k % 2 == 0 and 3 * speed * math.abs(math.sin(0.4 * i + k)) or o.vy * i)
      local inside
      if o.square then
        inside = T.minimum((columns - x):abs() * -1 + o.radius, (rows - y):abs() * -1 + o.radius)
      else
        inside = ((columns - x):square() + (rows - y):square()):sqrt() * -1 + o.radius
      end
      frame = frame + (o.colour - frame) * inside:clamp(0, 1):unsqueeze(3)
    end
    frames[i] = frame:contiguous()
  end
  return frames
end

local textured = {
  function(i) return { x = 0.6 * i, look = 1, ball = { 20 + 2.2 * i, 60 } } end,
  function(i) return { look = 2, ball = { 15 + 2.4 * i, 58 } } end,
  function(i) return { x = 4 * i, look = 4 } end,
  function(i) return { zoom = 1 + 0.04 * i, look = 7, ball = { 64, 48 } } end,
  function(i) return { turn = 0.06 * i, look = 8 } end,
  function(i) return { look = 12, x = 2 * math.sin(3 * i), y = 1.5 * math.cos(5 * i) } end, -- a hand that shakes
}

-- Each gives a damaged copy; share() is between 0 and 1.
local function paste(frame, y, x, what)
  frame:slice(1, y, y + what.shape[1] - 1):slice(2, x, x + what.shape[2] - 1):copy_(what)
end
local function corner(frame, side, share) -- of a block of the grid
  local function at(n) return 1 + side * math.floor(share() * (n / side - 1)) end
  return at(frame.shape[1]), at(frame.shape[2])
end

local faults = {
  { "torn rows", function(f, share)
    local h, w = f.shape[1], f.shape[2]
    local first = 1 + math.floor(h * (0.2 + 0.5 * share()))
    local last = share() < 0.5 and h or math.min(h, first + math.floor(h * (0.15 + 0.3 * share())))
    local by, rows = math.floor(w * (0.1 + 0.35 * share())), f:slice(1, first, last)
    paste(f, first, 1, T.concat({ rows:slice(2, by + 1, w), rows:slice(2, 1, by) }, 2))
  end },
  { "torn columns", function(f, share)
    local h, w = f.shape[1], f.shape[2]
    local first = 1 + math.floor(w * (0.2 + 0.5 * share()))
    local last, by = first + math.floor(w * (0.15 + 0.14 * share())), math.floor(h * (0.1 + 0.35 * share()))
    local columns = f:slice(2, first, last)
    paste(f, 1, first, T.concat({ columns:slice(1, by + 1, h), columns:slice(1, 1, by) }, 1))
  end },
  { "swapped blocks", function(f, share)
    local side = f.shape[1] / 8
    for _ = 1, 4 do
      local y1, x1 = corner(f, side, share)
      local y2, x2 = corner(f, side, share)
      local one = f:slice(1, y1, y1 + side - 1):slice(2, x1, x1 + side - 1):clone()
      paste(f, y1, x1, f:slice(1, y2, y2 + side - 1):slice(2, x2, x2 + side - 1):clone())
      paste(f, y2, x2, one)
    end
  end },
  { "blocks of noise", function(f, share)
    local side = f.shape[1] / 8
    for k = 1, 3 do
      local y, x = corner(f, side, share)
      paste(f, y, x, T.uniform({ side, side, 3 }, { seed = k }))
    end
  end },
  { "green blocks", function(f, share)
    local side = f.shape[1] / 8
    for _ = 1, 4 do
      local y, x = corner(f, side, share)
      paste(f, y, x, T.of({ 0, 0.53, 0 }, { 1, 1, 3 }):expand { side, side, 3 }) -- Y = Cb = Cr = 77, about
    end
  end },
  { "smeared rows", function(f, share)
    local h, w = f.shape[1], f.shape[2]
    local first = 1 + math.floor(h * (0.2 + 0.5 * share()))
    paste(f, first, 1, f:slice(1, first, first):expand({ h - first + 1, w, 3 }):clone())
  end },
}

local function broken(list)
  return assert(melies.check.run(list, { "broken_frames" }, { cuts = false, fps = 8 })).results[1]
end

local function seen(a, b) -- the share of pixels that a fault changes by more than 0.08
  return (((a - b):abs():amax(3) - 0.08) * 1e6):clamp(0, 1):mean()
end

-- make(i): a list of nine frames. least: the shares of each kind that have to be found.
local function judge(name, count, make, least)
  t.test(("%s: clean clips pass, planted faults are found"):format(name), function()
    local planted, found = {}, {}
    for i = 1, count do
      local list = make(i)
      local clean = broken(list)
      t.eq(clean.value, 0, ("clip %d is clean (frame %s)"):format(i, clean.where[1] and clean.where[1].frame or ""))
      for k, fault in ipairs(faults) do
        local damaged, next_value = list[5]:clone(), clips.random(31 * i + k)
        for _ = 1, 3 do next_value() end
        fault[2](damaged, function() return 0.5 + 0.5 * next_value() end)
        if seen(damaged, list[5]) > 0.03 then
          local bad = broken { list[3], list[4], damaged, list[6], list[7] }
          planted[k] = (planted[k] or 0) + 1
          for _, place in ipairs(bad.where) do
            if place.frame == 3 then found[k] = (found[k] or 0) + 1 end
          end
        end
      end
    end
    local all, of = 0, 0
    for k, fault in ipairs(faults) do
      all, of = all + (found[k] or 0), of + (planted[k] or 0)
      print(("     %-16s %d of %d"):format(fault[1], found[k] or 0, planted[k] or 0))
    end
    print(("     together %d of %d"):format(all, of))
    t.ok(of > 3 * count and all >= least * of, ("%d of %d found"):format(all, of))
  end)
end

judge("drawn worlds", 16, drawn, 0.6)
judge("flat art", 16, flat, 0.7)
judge("textures", #textured, function(i) return clips.film(9, textured[i]) end, 0.5)

t.test("a change of the picture that lasts, and a cut, are no damage", function()
  local one = clips.film(4, function(i) return { look = 1, x = i } end)
  local two = clips.film(4, function(i) return { look = 3, x = i } end)
  t.eq(broken(clips.joined(one, two)).value, 0)
  local lit = {}
  for i = 1, 8 do lit[i] = (clips.frame { look = 2 } * (i < 5 and 1 or 0.6)):contiguous() end
  t.eq(broken(lit).value, 0)
end)

t.test("damage is held against the parameter; damaged frames side by side", function()
  local list = flat(2)
  paste(list[5], 17, 17, T.uniform({ 16, 16, 3 }, { seed = 4 }))
  t.eq(broken(list).value, 1)
  t.eq(broken(list).where[1].what, "damaged")
  local entry = { "broken_frames", damage = 1000, alone = 100 }
  t.eq(assert(melies.check.run(list, { entry }, { cuts = false, fps = 8 })).results[1].value, 0)
  paste(list[6], 49, 49, T.uniform({ 16, 16, 3 }, { seed = 5 }))
  t.eq(broken(list).value, 2)
  local small = {}
  for i = 1, 5 do small[i] = T.full({ 4, 6, 3 }, 0.1 * i) end
  t.eq(broken(small).value, 0, "frames that are smaller than a block")
end)

t.finish()
