-- The model that melies ships, recipes/starter, as a user meets it: its size in git, a film at its defaults, the four-step
-- variant, and that what it was trained on steers it (the other tests use a small model of their own).
local t = require "harness"
local melies = require "melies"

local root = os.getenv "MELIES_ROOT"
local folder = root .. "/recipes/starter"
local config = assert(melies.json.read(folder .. "/config.json"))

t.test("it fits into git", function()
  local bytes = 0
  for _, name in ipairs { "dit", "dit_few", "text_encoder", "autoencoder" } do
    bytes = bytes + assert(melies.fs.stat(("%s/%s.safetensors"):format(folder, name))).size
  end
  t.ok(bytes > 5e6 and bytes < 40e6, bytes)
end)

local function mean(frames, ...)
  local part = frames
  for axis, range in pairs { ... } do part = part:slice(axis, range[1], range[2]) end
  part = part:contiguous():to("f32")
  return part:reshape(part:numel() / 3, 3):mean(1):list()
end

t.test("a film at its defaults, in its size; colours and places are those of the prompt", function()
  local function film(prompt, options)
    local p = { model = folder, prompt = prompt, seed = 1 }
    for key, value in pairs(options or {}) do p[key] = value end
    return assert(melies.run("text_to_video", p))
  end
  local meadow = film "a red ball bounces in a meadow by day"
  t.eq(table.concat(meadow.shape, " "), ("%d %d %d 3"):format(config.sample.frames, config.sample.height,
    config.sample.width))
  local h, w = meadow.shape[2], meadow.shape[3]
  local grass = mean(meadow, { 1, -1 }, { math.floor(h * 0.8), h }, { 1, w })
  t.ok(grass[2] > grass[1] and grass[2] > grass[3], table.concat(grass, " "))
  local night, day = film "a white cube in the desert at night", film "a white cube in the desert by day"
  local dark, bright = mean(night), mean(day)
  t.ok(dark[1] + dark[2] + dark[3] < bright[1] + bright[2] + bright[3])
  local fast = film("a red ball bounces in a meadow by day", { few_steps = true })
  local under = mean(fast, { 1, -1 }, { math.floor(h * 0.8), h }, { 1, w })
  t.ok(under[2] > under[1] and under[2] > under[3], table.concat(under, " "))
end)

t.finish()
