-- melies-api: 1
-- What the world can say: its attributes, how often they occur, and the sentences for them. A closed grammar: every
-- caption is one of finitely many, and some combinations and some orders of words are held out from training.
local words = {}

words.subjects = { "ball", "cube", "cone", "star", "heart", "fish", "bird", "car", "boat", "tree" }
words.colours = { "red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black", "brown" }
words.textures = { "plain", "striped", "spotted", "checkered" }
words.sizes = { "small", "medium", "large" }
words.motions = { "still", "right", "left", "up", "down", "bounce", "spin", "approach", "recede", "circle", "sway",
  "jump" }
words.cameras = { "still", "pan_left", "pan_right", "zoom_in", "zoom_out" }
words.places = { "meadow", "sea", "desert", "snow", "forest", "room", "city", "moon" }
words.lights = { "day", "sunset", "night" }
words.styles = { "realistic", "cartoon", "pencil", "pixel" }
words.relations = { "none", "behind", "front", "chases", "left_of", "right_of" }

-- How often, as whole-number weights; what is not here is as often as its neighbours.
local weights = {
  texture = { plain = 12, striped = 3, spotted = 3, checkered = 3 },
  size = { small = 2, medium = 9, large = 2 },
  light = { day = 2, sunset = 1, night = 1 },
  style = { realistic = 2, cartoon = 1, pencil = 1, pixel = 1 },
  relation = { none = 20, behind = 1, front = 1, chases = 1, left_of = 1, right_of = 1 },
}

local place_of = {} -- position of a word in its list
for _, list in pairs { words.subjects, words.colours, words.motions, words.places, words.styles } do
  for i, name in ipairs(list) do place_of[list] = place_of[list] or {} place_of[list][name] = i end
end

-- Whether a combination is kept from training: about one in eleven of (subject, colour, place), and about one in
-- thirteen of (subject, motion, style). Every pair of the three is trained.
function words.held_out(a)
  local s = place_of[words.subjects][a.subject]
  local c, p = place_of[words.colours][a.colour], place_of[words.places][a.place]
  if (s * 7 + c * 3 + p * 5) % 11 == 0 then return true end
  local m, y = place_of[words.motions][a.motion], place_of[words.styles][a.style]
  return (s * 5 + m * 3 + y * 7) % 13 == 0
end

local function pick(random, list, weight)
  if not weight then return list[1 + math.floor(random() * #list)] end
  local sum = 0
  for _, name in ipairs(list) do sum = sum + (weight[name] or 1) end
  local at = random() * sum
  for _, name in ipairs(list) do
    at = at - (weight[name] or 1)
    if at < 0 then return name end
  end
  return list[#list]
end

local function one_clip(random)
  local a = {
    subject = pick(random, words.subjects), colour = pick(random, words.colours),
    texture = pick(random, words.textures, weights.texture), size = pick(random, words.sizes, weights.size),
    place = pick(random, words.places), light = pick(random, words.lights, weights.light),
    style = pick(random, words.styles, weights.style), relation = pick(random, words.relations, weights.relation),
    motion = pick(random, words.motions), camera = "still",
  }
  if a.relation == "none" then
    -- One clip in five is about the camera: the subject then mostly stands still.
    if random() < 0.26 then
      a.camera = words.cameras[2 + math.floor(random() * 4)]
      local r = random()
      a.motion = r < 0.7 and "still" or r < 0.8 and "spin" or r < 0.9 and "sway" or "bounce"
    end
  else
    a.size = "medium"
    repeat a.second = pick(random, words.subjects) until a.second ~= a.subject
    repeat a.second_colour = pick(random, words.colours) until a.second_colour ~= a.colour
    if a.relation == "chases" then a.motion = random() < 0.5 and "right" or "left"
    else
      local r = random()
      a.motion = r < 0.6 and "still" or r < 0.75 and "bounce" or r < 0.9 and "spin" or "sway"
    end
  end
  return a
end

-- Attributes from a stream of numbers in 0..1: of the training part, or held out (those with one subject only).
function words.sample(random, held)
  while true do
    local a = one_clip(random)
    if words.held_out(a) == (held or false) and not (held and a.relation ~= "none") then return a end
  end
end

-- ---- phrases -------------------------------------------------------------------------------------

local says = {
  subject = {
    ball = { "ball", "ball", "sphere" }, cube = { "cube", "cube", "box" }, cone = { "cone" }, star = { "star" },
    heart = { "heart" }, fish = { "fish" }, bird = { "bird" }, car = { "car", "car", "automobile" },
    boat = { "boat", "boat", "sailboat" }, tree = { "tree" },
  },
  texture = {
    striped = { "striped", "stripy" }, spotted = { "spotted", "dotted" }, checkered = { "checkered", "chequered" },
    plain = { "plain" },
  },
  with = { striped = "with stripes", spotted = "with dots", checkered = "with a checkered pattern",
    plain = "in one colour" },
  size = { small = { "small", "little", "tiny" }, large = { "large", "big", "huge" }, medium = { "medium sized" } },
  place = {
    meadow = { "in a meadow", "on the grass", "on a green field", "in the grass" },
    sea = { "on the sea", "on the ocean", "on the water", "at sea" },
    desert = { "in the desert", "on the sand", "near the pyramids", "in a sandy desert" },
    snow = { "in the snow", "on a snowy field", "in a winter landscape", "on snow" },
    forest = { "in a forest", "in the woods", "between the trees", "in the forest" },
    room = { "in a room", "indoors", "on the wooden floor", "in a living room" },
    city = { "in the city", "on a street", "on the road", "in a town" },
    moon = { "on the moon", "on the surface of the moon", "in space on the moon" },
  },
  place_short = { meadow = "meadow", sea = "sea", desert = "desert", snow = "snow", forest = "forest", room = "room",
    city = "city", moon = "moon" },
  light = {
    day = { "by day", "in bright daylight", "at noon", "on a sunny day" },
    sunset = { "at sunset", "in the evening light", "at dusk", "in the light of the setting sun" },
    night = { "at night", "by moonlight", "in the dark", "in the night" },
  },
  light_short = { day = "daylight", sunset = "sunset", night = "night" },
  camera = {
    pan_left = { "the camera pans left", "camera panning to the left", "pan left" },
    pan_right = { "the camera pans right", "camera panning to the right", "pan right" },
    zoom_in = { "the camera zooms in", "camera zooming in", "zoom in" },
    zoom_out = { "the camera zooms out", "camera zooming out", "zoom out" },
    still = { "static camera", "the camera does not move" },
  },
  style_before = {
    realistic = { "a realistic video of", "a photo realistic clip of", "a rendering of" },
    cartoon = { "a cartoon of", "a flat cartoon of", "an animated cartoon of" },
    pencil = { "a pencil drawing of", "a pencil sketch of", "a hand drawn sketch of" },
    pixel = { "pixel art of", "a pixel art animation of", "an 8 bit game with" },
  },
  style_after = {
    realistic = { "realistic", "photo realistic", "realistic style" },
    cartoon = { "cartoon", "cartoon style", "flat colours with outlines" },
    pencil = { "pencil drawing", "pencil sketch", "drawn with a pencil" },
    pixel = { "pixel art", "pixel art style", "8 bit pixels" },
  },
  -- verb, its -ing form, and what follows
  motion = {
    still = { { "stands still", "standing still" }, { "does not move", "not moving" }, { "rests", "resting" } },
    right = { { "moves to the right", "moving to the right" }, { "goes right", "going right" },
      { "MOVES from left to right", "MOVING from left to right" }, { "MOVES right", "MOVING right" } },
    left = { { "moves to the left", "moving to the left" }, { "goes left", "going left" },
      { "MOVES from right to left", "MOVING from right to left" }, { "MOVES left", "MOVING left" } },
    up = { { "rises", "rising" }, { "moves up", "moving up" }, { "floats up into the air",
      "floating up into the air" } },
    down = { { "falls down", "falling down" }, { "drops from the sky", "dropping from the sky" }, { "comes down",
      "coming down" } },
    bounce = { { "bounces", "bouncing" }, { "bounces up and down", "bouncing up and down" },
      { "hops again and again", "hopping again and again" } },
    spin = { { "spins", "spinning" }, { "turns around itself", "turning around itself" }, { "rotates", "rotating" } },
    approach = { { "comes closer", "coming closer" }, { "approaches", "approaching" }, { "MOVES towards the camera",
      "MOVING towards the camera" } },
    recede = { { "goes away", "going away" }, { "MOVES away from the camera", "MOVING away from the camera" },
      { "gets smaller in the distance", "getting smaller in the distance" } },
    circle = { { "moves in a circle", "moving in a circle" }, { "circles in the air", "circling in the air" },
      { "flies in circles", "flying in circles" } },
    sway = { { "sways from side to side", "swaying from side to side" }, { "rocks", "rocking" }, { "wobbles",
      "wobbling" } },
    jump = { { "jumps once", "jumping once" }, { "makes one big jump", "making one big jump" },
      { "leaps into the air", "leaping into the air" } },
  },
  motion_short = { still = "still", right = "moving right", left = "moving left", up = "rising", down = "falling",
    bounce = "bouncing", spin = "spinning", approach = "coming closer", recede = "going away", circle = "circling",
    sway = "swaying", jump = "jumping" },
  moves = { ball = { "rolls", "rolling" }, car = { "drives", "driving" }, bird = { "flies", "flying" },
    fish = { "swims", "swimming" }, boat = { "sails", "sailing" } },
  relation = { behind = { "behind", "in back of" }, front = { "in front of", "before" },
    left_of = { "to the left of", "left of" }, right_of = { "to the right of", "right of" } },
}

local function article(phrase, random)
  if random() < 0.12 then return "the " .. phrase end
  return (phrase:find "^[aeiou8]" and "an " or "a ") .. phrase
end

-- What a caption says of each attribute; what is usual is said less often.
local function mentions(a, random, all)
  local function chance(p) return all or random() < p end
  return {
    colour = chance(0.93), texture = a.texture ~= "plain" and chance(0.92) or not all and random() < 0.05,
    size = a.size ~= "medium" and chance(0.9), motion = chance(a.motion == "still" and 0.55 or 0.93),
    camera = a.camera ~= "still" and chance(0.95) or not all and random() < 0.04, place = chance(0.9),
    light = all and random() < 0.8 or not all and random() < (a.light == "day" and 0.4 or 0.88),
    style = chance(a.style == "realistic" and 0.5 or 0.94),
  }
end

local function noun(a, random, m, bare)
  local list, after = {}, nil
  if m.size then list[#list + 1] = pick(random, says.size[a.size]) end
  if m.texture then
    if random() < 0.25 and not bare then after = says.with[a.texture]
    else list[#list + 1] = pick(random, says.texture[a.texture]) end
  end
  if m.colour then
    if #list > 0 and random() < 0.25 then table.insert(list, #list, a.colour) else list[#list + 1] = a.colour end
  end
  list[#list + 1] = pick(random, says.subject[a.subject])
  local text = table.concat(list, " ")
  if not bare then text = article(text, random) end
  return after and text .. " " .. after or text
end

local function second_noun(a, random)
  return article(a.second_colour .. " " .. pick(random, says.subject[a.second]), random)
end

-- form 1: "rolls to the right"; 2: "rolling to the right".
local function action(a, random, form)
  local text = pick(random, says.motion[a.motion])[form]
  local own = says.moves[a.subject] or { "moves", "moving" }
  text = text:gsub("MOVES", own[1]):gsub("MOVING", own[2])
  if random() < 0.5 then text = text:gsub("^moves to", own[1] .. " to"):gsub("^moving to", own[2] .. " to") end
  return text
end

local function join(list, mark)
  local kept = {}
  for _, text in ipairs(list) do
    if text and text ~= "" then kept[#kept + 1] = text end
  end
  return table.concat(kept, mark or " ")
end

-- Orders of words. Each has the phrases at hand in p: np, bare, verb, ing, place, light, camera, before,
-- after (styles).
local orders = {
  function(p) return join({ join { p.before, p.np, p.before and p.ing or p.verb, p.place, p.light }, p.camera },
    ", ") end,
  function(p) return join({ join { p.np, p.verb, p.place, p.light }, p.camera, p.after }, ", ") end,
  function(p) return join({ join { p.np, p.ing, p.place }, p.light, p.after, p.camera }, ", ") end,
  function(p) return join({ p.place or p.light, join { p.np, p.verb }, p.place and p.light, p.camera, p.after },
    ", ") end,
  function(p) return join({ p.light or p.place, join { p.np, p.verb, p.light and p.place }, p.after, p.camera },
    ", ") end,
  function(p) return join({ p.after, join { p.np, p.ing, p.place, p.light }, p.camera }, ", ") end,
  function(p) return join({ p.camera, join { p.np, p.verb, p.place, p.light }, p.after }, ", ") end,
}
-- Orders that only held-out captions have.
local held_orders = {
  function(p) return join({ p.after, p.light, p.place, join { p.np, p.verb }, p.camera }, ", ") end,
  function(p) return join({ join { p.np, p.place, p.light }, p.ing, p.camera, p.after }, ", ") end,
  function(p) return join({ p.camera, p.place, join { p.before, p.np, p.ing, p.light } }, ", ") end,
}

local function tags(a, random, m)
  local list = {}
  local function add(text) table.insert(list, 1 + math.floor(random() * (#list + 1)), text) end
  if m.motion then add(says.motion_short[a.motion]) end
  if m.place then add(says.place_short[a.place]) end
  if m.light then add(says.light_short[a.light]) end
  if m.camera then add(pick(random, says.camera[a.camera])) end
  if m.style then add(pick(random, says.style_after[a.style])) end
  local subject = noun(a, random, m, true)
  if random() < 0.7 then table.insert(list, 1, subject) else add(subject) end
  return table.concat(list, ", ")
end

-- Two or three words, and what they leave out.
local function short(a, random, m)
  local what = a.colour .. " " .. a.subject
  local r = random()
  for key in pairs(m) do m[key] = false end
  m.colour = true
  if r < 0.35 then return what end
  if r < 0.55 then m.motion = true return what .. " " .. says.motion_short[a.motion] end
  if r < 0.7 then m.style = true return what .. ", " .. says.style_after[a.style][1] end
  if r < 0.85 then m.place = true return what .. " " .. says.place[a.place][1] end
  m.colour, m.motion = false, true
  return a.subject .. " " .. says.motion_short[a.motion]
end

-- A caption of the attributes,
-- and a table of which of them it says. options: held (true: an order of words that training
-- does not have), all (says every attribute but the usual ones).
function words.caption(a, random, options)
  options = options or {}
  local m = mentions(a, random, options.all)
  local kind = random()
  if a.relation ~= "none" then
    m.second, m.relation = true, true
    local np, other = noun(a, random, m), second_noun(a, random)
    local place = m.place and pick(random, says.place[a.place])
    local light = m.light and pick(random, says.light[a.light])
    local text
    if a.relation == "chases" then
      local side = m.motion and "to the " .. a.motion
      if random() < 0.7 then text = join { np, random() < 0.6 and "chases" or "follows", other, side }
      else text = join { other, "is chased by", np, side } end
    else
      local how = pick(random, says.relation[a.relation])
      if a.motion == "still" then m.motion = false end
      if m.motion then text = join { np, action(a, random, 1), how, other }
      else text = join { np, random() < 0.5 and "is" or "stands", how, other } end
    end
    local style = m.style and pick(random, says.style_after[a.style])
    m.texture, m.size = m.texture or false, m.size or false
    if kind < 0.3 then return join({ place, text, light, style }, ", "), m end
    return join({ join { text, place, light }, style }, ", "), m
  end
  if not options.held and not options.all then
    if kind < 0.07 then return short(a, random, m), m end
    if kind < 0.22 then return tags(a, random, m), m end
  end
  local p = {
    np = noun(a, random, m), verb = m.motion and action(a, random, 1), ing = m.motion and action(a, random, 2),
    place = m.place and pick(random, says.place[a.place]), light = m.light and pick(random, says.light[a.light]),
    camera = m.camera and pick(random, says.camera[a.camera]), before = m.style and pick(random,
      says.style_before[a.style]),
    after = m.style and pick(random, says.style_after[a.style]),
  }
  return pick(random, options.held and held_orders or orders)(p), m
end

return words
