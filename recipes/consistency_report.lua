-- melies-api: 1
-- What all checks say of a film, one made here or any other: a table to read, and the numbers frame by frame as JSON
-- or as a page with plots.
local melies = require "melies"

return {
  kind = "recipe", name = "consistency_report", help = "All checks over a whole film, as a table and as JSON.",
  params = {
    video = { "video", required = true, help = "the film" },
    checks = { "string", help = "which, such as \"flicker; cuts: shortest=1\" (default: all; melies list checks)" },
    prompt = { "text", help = "what it should show (default: what the file says)" },
    output = { "string", short = "o", help = "a .json file for the numbers, or an .html page with plots" },
  },
  order = { "video", "checks", "prompt", "output" },
  run = function(p, job)
    if p.output then
      if not (p.output:lower():find "%.json$" or p.output:lower():find "%.html$") then
        melies.recipe.fail(("%s: the report is written as .json or .html"):format(p.output), melies.recipe.USAGE)
      end
      local temporary = p.output .. ".new" -- told before the work, where it cannot be written
      local file = job:check(io.open(temporary, "wb"))
      file:close()
      os.remove(temporary)
    end
    local info = job:check(melies.media.info(p.video))
    local stage = job:progress("measuring", info.frames or 1)
    local report, raw = melies.consistency.report(p.video, { checks = p.checks, prompt = p.prompt, progress = function(i)
      job:check_cancel()
      stage:step(math.min(i, info.frames or 1))
    end })
    job:check(report, raw)
    job:end_stage()
    print(melies.check.text(raw))
    if p.output then
      local text = p.output:lower():find "%.html$" and melies.report.video(report) or melies.json.encode(report) .. "\n"
      job:check(melies.fs.write(p.output, text))
    end
    return report
  end,
}
