-- melies-api: 1
-- Flat colours, thick outlines.
return {
  kind = "style", name = "cartoon",
  after = "cartoon style, bold outlines, flat colours",
  negative = "photorealistic, noise, film grain",
}
