-- Two minutes in twelve shots: four characters, four places, each place seen three times.
local function shot(text, who, where, transition)
  return { text = text, who = { who }, where = where, seconds = 10.125, transition = transition or "cut" }
end
return {
  title = "Twelve shots", seed = 11,
  characters = { ball = "a big red ball", cube = "a large yellow cube", star = "a blue star", car = "a green car" },
  places = { meadow = "the meadow", desert = "the desert", snow = "the snow", city = "the city" },
  shots = {
    shot("the ball rolls to the right", "ball", "meadow", "none"),
    shot("the cube bounces", "cube", "desert"),
    shot("the ball bounces", "ball", "meadow"),
    shot("the star spins", "star", "snow"),
    shot("the car drives to the left", "car", "city"),
    shot("the cube moves to the right", "cube", "desert", "dissolve"),
    shot("the ball moves to the left", "ball", "snow"),
    shot("the star sways", "star", "meadow"),
    shot("the car drives to the right", "car", "desert"),
    shot("the cube jumps", "cube", "city"),
    shot("the star circles", "star", "snow"),
    shot("the ball rolls to the left", "ball", "city", "fade"),
  },
}
