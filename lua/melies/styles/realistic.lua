-- melies-api: 1
-- As a good camera sees it.
return {
  kind = "style", name = "realistic",
  after = "photorealistic, natural colours",
  negative = "cartoon, drawing, painting, 3d render, oversaturated",
  realism = { light = "natural", texture = "fine", movement = "natural", perspective = "natural" },
}
