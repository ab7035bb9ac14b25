-- melies-api: 1
-- Black and white, hard light, night.
return {
  kind = "style", name = "film_noir",
  after = "film noir, black and white, venetian blind shadows, 1940s",
  negative = "colour, bright daylight, cartoon",
  realism = { light = "low", texture = "grainy" }, passes = { { "grain", amount = 0.05 } },
}
