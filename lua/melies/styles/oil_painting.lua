-- melies-api: 1
-- Thick paint.
return {
  kind = "style", name = "oil_painting",
  before = "oil painting of {prompt}", after = "visible brush strokes, canvas texture, impasto",
  negative = "photo, smooth, 3d render",
}
