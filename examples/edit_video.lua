-- Reads a film, edits its frames as a tensor, and writes it again: mirrored, darker towards the end, half the length.
-- Usage: edit_video.lua INPUT OUTPUT (without INPUT, a film is generated first)
local melies = require "melies"
local T = melies.tensor

local input, output = arg and arg[1], arg and arg[2] or "edited.mp4"
if not input then
  input = "input.mp4"
  assert(melies.run("text_to_video", { prompt = "a small red star falls into the ocean", steps = 8, output = input }))
end

local frames = assert(melies.media.load(input)):to("f32") / 255 -- [T, H, W, 3]
local n = frames.shape[1]

-- Every second frame.
local kept = {}
for i = 1, n, 2 do kept[#kept + 1] = frames:select(1, i) end
local film = T.stack(kept, 1)

-- Mirror: columns in the opposite order.
local width, columns = film.shape[3], {}
for i = 1, width do columns[i] = film:slice(3, width + 1 - i, width + 1 - i) end
film = T.concat(columns, 3)

-- One factor a frame, broadcast over the picture.
local fade = {}
for i = 1, #kept do fade[i] = 1 - 0.5 * (i - 1) / #kept end
film = film * T.of(fade, { #kept, 1, 1, 1 })

assert(melies.media.save(output, film, { fps = 8 }))
print(("%s: %d of %d frames"):format(output, film.shape[1], n))
