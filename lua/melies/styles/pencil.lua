-- melies-api: 1
-- A drawing in graphite.
return {
  kind = "style", name = "pencil",
  before = "pencil drawing of {prompt}", after = "graphite on paper, cross-hatching, sketch lines",
  negative = "photo, saturated colours, 3d render",
}
