-- melies-api: 1
-- Two shots that share a look: both start from the same noise, mixed with some of their own, and the second one
-- begins with the last frame of the first.
local melies = require "melies"

return {
  kind = "recipe", name = "two_shots", help = "Two prompts, two shots that share a look.",
  params = melies.recipe.generation {
    prompt = { "text", required = true, help = "the first shot" },
    second = { "text", required = true, help = "the second shot" },
    shared = { "number", default = 0.8, min = 0, max = 1, help = "how much of the noise the shots share" },
    link = { "boolean", default = true, help = "begin the second shot with the last frame of the first" },
  },
  order = { "prompt", "second", "shared", "link", unpack(melies.recipe.generation_order) },
  run = function(_, job)
    local model = job:load()
    local p = job:defaults(model)
    local shape = job:shape(model)
    job:encode_ahead(model, { p.prompt, p.second })
    local negative = job:encode(model, p.negative, { negative = true })
    local base, films = job:noise(shape), {}
    for i, prompt in ipairs { p.prompt, p.second } do
      -- The squares of the two weights add up to 1: the mix is standard normal again.
      local noise = melies.tensor.lincomb { math.sqrt(p.shared), base, math.sqrt(1 - p.shared), job:noise(shape, i) }
      local texts, opts = { text = job:encode(model, prompt), negative = negative }, { label = "shot " .. i, stream = i }
      local latent
      if i == 2 and p.link then
        latent = job:sample_from_image(model, texts, noise, films[1]:slice(1, -1), opts)
      else
        latent = job:sample(p.sampler, job:guide(model, texts), noise, job:sigmas(model), opts)
      end
      films[i] = job:decode(model, latent)
    end
    -- The second shot's first frame is the first shot's last: it is shown once.
    if p.link and films[2].shape[1] > 1 then films[2] = films[2]:slice(1, 2) end
    local film = melies.tensor.concat(films, 1)
    job:save(film)
    return film
  end,
}
