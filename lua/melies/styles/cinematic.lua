-- melies-api: 1
-- As in the cinema.
return {
  kind = "style", name = "cinematic",
  after = "cinematic, anamorphic lens, colour graded, 35mm film",
  negative = "amateur video, flat lighting, oversaturated",
  realism = { texture = "grainy", movement = "natural" }, passes = { { "grain", amount = 0.02 } },
}
