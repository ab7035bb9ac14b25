-- The starter's world: the same clip anywhere, what its captions and masks promise, the part held out.
local t = require "harness"
local melies = require "melies"
local root = os.getenv "MELIES_ROOT" or "."
local path = root .. "/recipes/starter/world/init.lua"
local world = dofile(path)
local words = world.words

local function same(a, b) return (a:to "f32" - b:to "f32"):abs():amax() == 0 end

t.test("a clip is its seed and number, whatever was drawn before", function()
  local a = world.clip { seed = 3, index = 41 }
  world.clip { seed = 9, index = 1, size = 32 }
  local other = dofile(path) -- as in another process
  local b = other.clip { seed = 3, index = 41 }
  t.eq(a.caption, b.caption)
  t.ok(same(a.frames, b.frames) and same(a.mask, b.mask), "other bits")
  t.ok(not same(a.frames, world.clip { seed = 4, index = 41 }.frames))
  t.eq(table.concat(a.frames.shape, "x"), "17x64x64x3")
  t.eq(a.frames.dtype .. a.mask.dtype, "u8u8")
end)

t.test("the same bits without the compiler", function()
  local names = { frames = 5, size = 32, seed = 1 }
  for i = 1, 4 do
    names.index = i
    local a = world.clip(names)
    jit.off()
    jit.flush()
    local b = dofile(path).clip(names)
    jit.on()
    t.ok(same(a.frames, b.frames), "clip " .. i)
  end
end)

t.test("any size, any count of 1 + 4 k; refusals", function()
  local c = world.clip { index = 2, width = 80, height = 48, frames = 5, boxes = true }
  t.eq(table.concat(c.frames.shape, "x"), "5x48x80x3")
  t.eq(table.concat(c.mask.shape, "x"), "5x48x80")
  t.eq(#c.boxes, 5)
  t.eq(world.clip({ size = 96, frames = 1 }).frames.shape[2], 96)
  t.raises(function() world.clip { frames = 16 } end, "1 + 4 k")
  t.raises(function() world.clip { sise = 64 } end, "unknown option 'sise'")
  t.raises(function() world.clip { split = "test" } end, "must be train or heldout")
end)

t.test("every attribute can be drawn, and the mask shows the subject", function()
  local n = 0
  for _, subject in ipairs(words.subjects) do
    for k, style in ipairs(words.styles) do
      n = n + 1
      local a = { subject = subject, style = style, colour = words.colours[n % 10 + 1], place = words.places[n % 8 + 1],
        texture = words.textures[n % 4 + 1], light = words.lights[n % 3 + 1], motion = words.motions[n % 12 + 1],
        camera = words.cameras[n % 5 + 1], size = "medium", relation = words.relations[n % 6 + 1], second = "ball",
        second_colour = "blue" }
      if a.relation == "chases" then a.motion = k % 2 == 0 and "left" or "right" end
      local frames, mask = world.render(a, { size = 48, frames = 5, index = n })
      local covered = mask:to("f32"):mean() / 255
      t.ok(covered > 0.02 and covered < 0.75, ("%s %s covers %.3f"):format(subject, style, covered))
      t.ok(frames:to("f32"):std() > 8, subject .. " " .. style .. " is empty")
    end
  end
end)

t.test("motions move, and to the side they say", function()
  local function middle(mask, f, axis)
    local m = mask:select(1, f):to "f32"
    local line = m:sum(axis == "x" and 1 or 2)
    local sum, at = line:sum(), 0
    for i, v in ipairs(line:list()) do at = at + i * v end
    return at / sum, sum
  end
  local function moved(change, axis)
    local a = { subject = "star", style = "realistic", colour = "red", place = "meadow", texture = "plain", light = "day",
      motion = "still", camera = "still", size = "small", relation = "none" }
    for key, value in pairs(change) do a[key] = value end
    local _, mask = world.render(a, { size = 64, index = 1 })
    local first, area = middle(mask, 1, axis)
    local last, area2 = middle(mask, 17, axis)
    return last - first, area2 / area
  end
  t.near(moved({ motion = "still" }, "x"), 0, 0.01)
  t.ok(moved({ motion = "right" }, "x") > 20)
  t.ok(moved({ motion = "left" }, "x") < -20)
  t.ok(moved({ motion = "up" }, "y") < -12)
  t.ok(moved({ motion = "down" }, "y") > 12)
  t.ok(moved({ camera = "pan_left" }, "x") > 10, "what stands still goes right when the camera pans left")
  t.ok(select(2, moved({ motion = "approach" }, "x")) > 2)
  t.ok(select(2, moved({ motion = "recede" }, "x")) < 0.5)
  t.ok(select(2, moved({ camera = "zoom_in" }, "x")) > 1.5)
end)

t.test("captions say what they list, and vary", function()
  local seen, count, shortest, longest = {}, 0, 99, 0
  for i = 1, 2000 do
    local a, caption, says = world.describe { seed = 5, index = i }
    t.ok(not words.held_out(a), "a held-out combination in training")
    t.ok(not caption:find "  " and not caption:find "^[ ,]" and not caption:find "[ ,]$" and not caption:find "%u", caption)
    if says.colour then t.ok(caption:find(a.colour, 1, true), caption) end
    if says.motion and a.relation == "none" and a.motion == "spin" then
      t.ok(caption:find "spin" or caption:find "turn" or caption:find "rotat", caption)
    end
    if a.second then t.ok(caption:find(a.second_colour, 1, true), caption) end
    if not seen[caption] then seen[caption], count = true, count + 1 end
    local n = select(2, caption:gsub("%S+", ""))
    shortest, longest = math.min(shortest, n), math.max(longest, n)
  end
  t.ok(count > 1700, count .. " different ones of 2000")
  t.ok(shortest <= 3 and longest >= 18 and longest <= 34, shortest .. ".." .. longest)
end)

t.test("held-out prompts: the list in the repository is the one the world makes", function()
  local list = world.heldout(300)
  local file = t.ok(io.open(root .. "/recipes/starter/heldout.txt"))
  t.eq(file:read "*a", world.heldout_text(list))
  file:close()
  local back = t.ok(world.read_heldout())
  t.eq(#back, 300)
  t.eq(back[7].prompt, list[7].prompt)
  t.eq(back[7].says.subject, list[7].says.subject)
  local trained = {}
  for i = 1, 3000 do trained[select(2, world.describe { seed = 1, index = i })] = true end
  for _, entry in ipairs(list) do
    t.ok(not trained[entry.prompt], entry.prompt)
    t.ok(entry.says.colour and entry.says.motion and entry.says.place and entry.says.style, entry.prompt)
  end
  t.eq(world.read_heldout "/nonexistent", nil)
end)

t.test("melies run make_world", function()
  local dir = t.folder()
  local sheet = t.ok(melies.run("make_world", { clips = 2, size = "32x32", frames = 5, folder = dir .. "/clips", seed = 4 }))
  t.eq(sheet.shape[3], 3)
  local clip = t.ok(melies.media.load(dir .. "/clips/000001.mp4"))
  t.eq(table.concat(clip.shape, "x"), "5x32x32x3")
  local file = t.ok(io.open(dir .. "/clips/000001.txt"))
  t.eq(file:read "*l", select(2, world.describe { seed = 4, index = 1 }))
  file:close()
  local nothing, message = melies.run("make_world", { clips = 1, frames = 6 })
  t.ok(not nothing and message:find "1 %+ 4 k", message)
end)

t.finish()
