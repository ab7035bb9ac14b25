-- melies-api: 1
-- A larger picture: the film stands in it as it is, and what is around is made.
local melies = require "melies"
local T = melies.tensor

return {
  kind = "recipe", name = "outpaint", help = "A film gets a larger picture; what was there stays as it is.",
  params = melies.edit.params {
    size = { "size", required = true, min = 8, max = 8192, help = "of the new picture" },
    offset = { "string", help = "x,y of the film's upper left corner in it (default: in the middle)" },
    feather = { "number", default = 4, min = 0, max = 256, help = "pixels around the film over which the new comes in" },
  },
  order = { "video", "prompt", "size", "offset", "feather", unpack(melies.edit.order) },
  run = function(p, job)
    local edit, fail, size = melies.edit, melies.recipe.fail, p.size
    p.size = nil
    local model, source = edit.begin(job)
    local w, h = source.width, source.height
    if size.width < w or size.height < h then
      fail(("outpaint: %dx%d does not hold the film, which is %dx%d"):format(size.width, size.height, w, h))
    end
    if size.width == w and size.height == h then fail(("outpaint: the film is %dx%d already"):format(w, h)) end
    local x, y = math.floor((size.width - w) / 2), math.floor((size.height - h) / 2)
    if p.offset then
      x, y = p.offset:match "^%s*(%d+)%s*,%s*(%d+)%s*$"
      x, y = tonumber(x), tonumber(y)
      if not x then fail(("offset '%s': wanted is x,y in pixels"):format(p.offset), melies.recipe.USAGE) end
      if x + w > size.width or y + h > size.height then
        fail(("outpaint: at %d,%d a film of %dx%d reaches outside %dx%d"):format(x, y, w, h, size.width, size.height))
      end
    end
    p.width, p.height, p.offset = size.width, size.height, ("%d,%d"):format(x, y)
    local fit = job:check(edit.fit(model, size.width, size.height, p.work))
    local free = T.full({ size.height, size.width }, 1)
    free:slice(1, y + 1, y + h):slice(2, x + 1, x + w):fill_(0)
    local region = edit.region(free, p.feather)
    -- The film's borders repeated outwards are what stands there before anything is made.
    local canvas = { fps = source.fps, next = function()
      local frame = source.next()
      return frame and frame:pad(1, y, size.height - h - y, "edge"):pad(2, x, size.width - w - x, "edge")
    end }
    return edit.write(job, edit.frames(job, model, canvas, { texts = job:texts(model), fit = fit,
      strength = p.strength, window = p.window, overlap = p.overlap, change = function() return region end }), { sound = source })
  end,
}
