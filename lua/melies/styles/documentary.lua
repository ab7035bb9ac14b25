-- melies-api: 1
-- Filmed by hand, as it happens.
return {
  kind = "style", name = "documentary",
  after = "documentary footage, handheld camera, available light",
  negative = "staged, studio lighting, cartoon, slow motion",
  realism = { light = "natural", movement = "natural" },
}
