-- melies-api: 1
-- One prompt and one noise under many samplers: a sheet with a row for each, five frames of its film and its name.
local melies = require "melies"

return {
  kind = "recipe", name = "sampler_comparison", help = "One prompt under many samplers, as a labelled sheet.",
  params = melies.recipe.generation {
    sampler = false,
    samplers = { "list", of = "sampler", help = "names with commas between; all of them where none is given" },
    columns = { "integer", default = 5, min = 1, max = 32, help = "frames shown of each film" },
    scale = { "integer", default = 1, min = 1, max = 16, help = "size of a pixel on the sheet" },
  },
  order = { "prompt", "samplers", "columns", "scale", unpack(melies.recipe.generation_order) },
  run = function(_, job)
    local model = job:load()
    local p = job:defaults(model)
    local shape = job:shape(model)
    local names = p.samplers
    if not names then
      names = {}
      for _, entry in ipairs(melies.registry.list("sampler")) do names[#names + 1] = entry.name end
      p.samplers = names
    end
    local noise, sigmas = job:noise(shape), job:sigmas(model)
    local texts = job:texts(model)
    local films = {}
    for i, name in ipairs(names) do
      -- A guide may keep state over the steps of one film: each film gets its own.
      local latent = job:sample(name, job:guide(model, texts), noise, sigmas, { label = name, params = {} })
      films[i] = job:decode(model, latent)
    end
    local sheet = melies.media.contact_sheet(films, { columns = p.columns, labels = names, scale = p.scale })
    job:save(sheet)
    return sheet
  end,
}
