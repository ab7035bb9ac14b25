-- melies-api: 1
-- A part of the picture made anew: where a mask is white, or inside boxes, for all of the film or a time. All other pixels
-- stay as they are.
local melies = require "melies"

return {
  kind = "recipe", name = "inpaint", help = "A part of the picture is made anew; all other pixels stay.",
  params = melies.edit.params {
    mask = { "image", help = "an image of the film's size: white changes, black stays" },
    box = { "string", help = "x,y,w,h in pixels, or x,y,w,h@t0-t1 from second t0 to t1; several with ; between" },
    invert = { "boolean", default = false, help = "what is marked stays, and the rest changes" },
    feather = { "number", default = 4, min = 0, max = 256, help = "pixels inside the mask over which the new comes in" },
  },
  order = { "video", "prompt", "mask", "box", "invert", "feather", unpack(melies.edit.order) },
  run = function(p, job)
    local edit, fail = melies.edit, melies.recipe.fail
    if (p.mask ~= nil) == (p.box ~= nil) then
      fail("inpaint: give either --mask IMAGE or --box x,y,w,h, to say what changes", melies.recipe.USAGE)
    end
    local model, source, fit = edit.begin(job)
    local region_at
    if p.mask then
      local region = job:check(edit.image_region(p.mask, source.width, source.height, p))
      region_at = function() return region end
    else
      local boxes = job:check(edit.boxes(p.box, source.width, source.height))
      for _, box in ipairs(boxes) do
        if box.from and source.duration and box.from >= source.duration then
          fail(("box '%s': the film is %.2f s long"):format(box.text, source.duration))
        end
      end
      region_at = edit.box_regions(boxes, source.width, source.height, p)
    end
    return edit.write(job, edit.frames(job, model, source, { texts = job:texts(model), fit = fit,
      strength = p.strength, window = p.window, overlap = p.overlap,
      change = function(i) return region_at((i - 1) / source.fps) or false end }), { sound = source })
  end,
}
