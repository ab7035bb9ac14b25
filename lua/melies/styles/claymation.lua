-- melies-api: 1
-- Figures of clay, frame by frame.
return {
  kind = "style", name = "claymation",
  after = "claymation, stop motion, fingerprints in clay, miniature set",
  negative = "photo, smooth motion, flat drawing",
  realism = { light = "soft", perspective = "macro" },
}
