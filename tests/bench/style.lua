-- A style that the starter model does not know, and whether it was learnt.
--   melies run make_world --clips 20 --folder plain -o sheet.png
--   melies run tests/bench/style.lua make plain print        the films of plain as prints in two inks, captions with them
--   melies run train_lora --data print -o print.safetensors
--   melies run tests/bench/style.lua measure print print.safetensors [FILMS [STEPS [MODEL]]]
-- measure generates films of the first captions of the folder with and without the LoRA, and says how far each are from the
-- films of the folder: colour is the share of pixels in other colours, texture the logarithm of the ratio of mean differences
-- of neighbouring pixels. style.png is a sheet: the folder's films, then each prompt without and with the LoRA.
local melies = require "melies"
local here = debug.getinfo(1, "S").source:match "^@(.*)/[^/]*$" or "."
local style = dofile(here .. "/../lua/style_look.lua")

local function films_of(folder)
  local out = {}
  for _, name in ipairs(assert(melies.fs.list(folder))) do
    local stem = name:match "^(.*)%.mp4$"
    if stem then out[#out + 1] = { path = folder .. "/" .. name, stem = stem,
      caption = (melies.fs.read(folder .. "/" .. stem .. ".txt") or ""):match "^%s*(.-)%s*$" } end
  end
  return out
end

local function make(from, to)
  assert(melies.fs.make(to))
  for _, film in ipairs(films_of(from)) do
    local video = assert(melies.media.load(film.path))
    local info = assert(melies.media.info(film.path))
    assert(melies.media.save(("%s/%s.mp4"):format(to, film.stem), style.print(video), { fps = info.fps, crf = 12,
      pad = true }))
    assert(melies.fs.write(("%s/%s.txt"):format(to, film.stem), film.caption .. "\n"))
  end
end

local function generate(prompts, lora, steps, model)
  local out = {}
  for i, prompt in ipairs(prompts) do
    local frames = assert(melies.run("text_to_video", { prompt = prompt, seed = i, truncate = true, steps = steps,
      model = model, lora = lora and { lora } or nil }))
    out[i] = frames.dtype == "u8" and melies.media.to_f32(frames) or frames
  end
  return out
end

local function measure(folder, lora, count, steps, model)
  local shown, prompts, wanted = {}, {}, {}
  for i, film in ipairs(films_of(folder)) do
    wanted[i] = melies.media.to_f32(assert(melies.media.load(film.path)))
    if #prompts < (tonumber(count) or 6) then prompts[#prompts + 1] = film.caption end
  end
  local target = style.look(wanted)
  local before, after = generate(prompts, nil, tonumber(steps), model),
    generate(prompts, lora, tonumber(steps), model)
  print(("%-10s %8s %8s"):format("", "colour", "texture"))
  for _, row in ipairs { { "without", before }, { "with", after } } do
    local d = style.distance(style.look(row[2]), target)
    print(("%-10s %8.3f %8.3f"):format(row[1], d.colour, d.texture))
  end
  local labels = {}
  for i = 1, math.min(3, #wanted) do shown[i], labels[i] = wanted[i], "of the folder" end
  for i, prompt in ipairs(prompts) do
    shown[#shown + 1], labels[#labels + 1] = before[i], "without: " .. prompt
    shown[#shown + 1], labels[#labels + 1] = after[i], "with: " .. prompt
  end
  assert(melies.media.save("style.png", melies.media.contact_sheet(shown, { labels = labels, gap = 2 })))
end

local words = { ... }
if words[1] == "make" and words[3] then make(words[2], words[3])
elseif words[1] == "measure" and words[3] then measure(words[2], words[3], words[4], words[5], words[6])
else error("usage: style.lua make FILMS OUT, or style.lua measure FOLDER LORA", 0) end
