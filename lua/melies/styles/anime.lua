-- melies-api: 1
-- Drawn frames, painted backgrounds.
return {
  kind = "style", name = "anime",
  after = "anime style, cel shading, painted background",
  negative = "photorealistic, 3d render, live action",
}
