-- melies-api: 1
-- Clips of the starter model's world: a sheet to look at, films with their captions in a folder, or the list of held-out
-- prompts. What the world is: docs/world.md.
local melies = require "melies"

local here = debug.getinfo(1, "S").source:match "^@(.*)/[^/]*$" or "."

return {
  kind = "recipe", name = "make_world", help = "Captioned clips of the world that the starter model learns from.",
  params = {
    clips = { "integer", default = 12, min = 1, max = 1e6, help = "how many" },
    first = { "integer", default = 0, min = 0, help = "number of the first one; clip i of a seed is always the same" },
    size = { "size", default = { width = 64, height = 64 }, min = 16, max = 1024, help = "of a frame" },
    frames = { "integer", default = 17, min = 1, max = 401, help = "of a clip: 1 + 4 k" },
    split = { "enum", choices = { "train", "heldout" }, default = "train", help = "which part of the world" },
    columns = { "integer", default = 7, min = 1, max = 32, help = "frames shown of each clip on the sheet" },
    folder = { "string", help = "write every clip there, as NNNNNN.mp4 with its caption in NNNNNN.txt" },
    heldout = { "string", help = "write the 300 held-out prompts to this file" },
  },
  order = { "clips", "first", "size", "frames", "split", "columns", "folder", "heldout" },
  run = function(p, job)
    if (p.frames - 1) % 4 ~= 0 then
      return job:check(nil, ("frames is %d; it should be 1 + 4 k, such as %d"):format(p.frames,
        1 + 4 * math.max(1, math.floor((p.frames - 1) / 4 + 0.5))))
    end
    local world = dofile(here .. "/starter/world/init.lua")
    if p.heldout then
      local file = job:check(io.open(p.heldout, "w"))
      file:write(world.heldout_text(world.heldout(300)))
      file:close()
    end
    if p.folder then job:check(melies.fs.make(p.folder)) end
    local shown, labels = {}, {}
    job:progress("clips", p.clips)
    for i = 1, p.clips do
      local index = p.first + i - 1
      local clip = world.clip { seed = p.seed, index = index, width = p.size.width, height = p.size.height,
        frames = p.frames, split = p.split }
      if p.folder then
        local path = ("%s/%06d"):format(p.folder, index)
        job:check(melies.media.save(path .. ".mp4", clip.frames, { fps = world.fps, crf = 12, pad = true }))
        local file = job:check(io.open(path .. ".txt", "w"))
        file:write(clip.caption, "\n")
        file:close()
      end
      if #shown < 64 then -- as many as one can look at
        shown[#shown + 1], labels[#labels + 1] = clip.frames, clip.caption
      end
      job.stage:step(i)
    end
    job:end_stage()
    local sheet = melies.media.contact_sheet(shown, { columns = p.columns, labels = labels, gap = 2 })
    job:save(sheet)
    return sheet
  end,
}
