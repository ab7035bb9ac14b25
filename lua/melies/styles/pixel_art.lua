-- melies-api: 1
-- Few pixels, few colours.
return {
  kind = "style", name = "pixel_art",
  before = "pixel art of {prompt}", after = "16-bit game sprite, limited palette, sharp square pixels",
  negative = "photo, smooth gradients, blur, antialiasing",
}
