-- melies-api: 1
-- An old home film.
return {
  kind = "style", name = "vintage",
  after = "8mm home movie, faded colours, light leaks, dust and scratches",
  negative = "digital, sharp, high definition",
  realism = { texture = "grainy" }, passes = { { "grain", amount = 0.05 } },
}
