-- One shot of ten seconds: what the memory of the film of twelve is compared with.
return {
  title = "One shot", seed = 11,
  characters = { ball = "a big red ball" }, places = { meadow = "the meadow" },
  shots = { { text = "the ball rolls to the right", who = { "ball" }, where = "meadow", seconds = 10.125 } },
}
