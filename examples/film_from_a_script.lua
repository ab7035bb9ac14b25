-- Makes one film a colour from a script: recipes are called as functions, and the model stays loaded between them.
-- Usage: film_from_a_script.lua [FOLDER] [STEPS]
local melies = require "melies"

local folder, steps = arg and arg[1] or ".", tonumber(arg and arg[2])

for i, colour in ipairs { "red", "blue" } do
  local path = ("%s/%s-ball.mp4"):format(folder, colour)
  local frames, message = melies.run("text_to_video", {
    prompt = ("a big %s ball bounces over the grass, cartoon style"):format(colour),
    negative = "night",
    steps = steps, seed = i, output = path,
  })
  if not frames then error(message, 0) end
  print(("%s: %d frames of %dx%d"):format(path, frames.shape[1], frames.shape[3], frames.shape[2]))
end
