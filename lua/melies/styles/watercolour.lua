-- melies-api: 1
-- Wet colours on paper.
return {
  kind = "style", name = "watercolour",
  before = "watercolour painting of {prompt}", after = "wet edges, paper texture, soft washes",
  negative = "photo, hard outlines, 3d render",
}
