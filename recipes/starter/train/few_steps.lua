-- melies-api: 1
-- The four-step variant of the starter's transformer: a student takes in one step where the teacher takes five, guidance
-- included, on the same shifted sigmas; so it needs no second pass for guidance. (Progressive distillation, Salimans and Ho
-- 2022, with the guidance of Meng et al. 2023, in one stage.)
--
-- A student's step begins, one time in two, from a noised training latent, else from where the student itself has come to:
-- it learns to correct what its own first steps did.
local melies = require "melies"
local T, grad = melies.tensor, melies.grad

local few_steps = {}
few_steps.steps, few_steps.substeps = 4, 5

-- few_steps.train(world, transformer, o) -> run, or nil and a message
--   o: weights (of the teacher, names with their prefix), store, tokenizer, folder, steps, batch, lr, seed, guidance, on_step
function few_steps.train(world, transformer, o)
  local teacher = transformer.with(world, o.weights)
  local params = {}
  for name, p in pairs(teacher.dit.params) do params[name] = grad.param(p.value:clone()) end
  local student = transformer.net(params)
  local shift, fine = transformer.shift, few_steps.steps * few_steps.substeps
  local function sigma(i)
    local u = 1 - i / fine
    return shift * u / (1 + (shift - 1) * u)
  end
  local function times(s, count)
    local list = {}
    for i = 1, count do list[i] = 1000 * s end
    return list
  end
  local function text_of(captions)
    local ids, mask = transformer.tokens(o.tokenizer, captions)
    return grad.no_grad(function() return transformer.encode(teacher, ids, mask) end).value
  end
  local function still(net, x, s, text)
    return grad.no_grad(function() return net:forward(x, times(s, x.shape[1]), text) end).value
  end
  local empty = {}
  for i = 1, o.batch do empty[i] = "" end
  local without = text_of(empty)
  local settings = { batch = o.batch, guidance = o.guidance, world_seed = 1 }
  return melies.train.new {
    params = params, steps = o.steps, lr = o.lr, schedule = "linear", warmup = 20, final = 0.05, clip = 1,
    betas = { 0.9, 0.98 }, ema = 0.99, weight_decay = 0, seed = o.seed, folder = o.folder, every = o.every or 100,
    config = settings, may_differ = { "steps", "lr" }, on_step = o.on_step,
    loss = function(step)
      local b, captions, latents = o.batch, {}, {}
      for i = 1, b do
        local index = step:random(o.store.count)
        local a = world.describe { seed = settings.world_seed, index = index }
        captions[i] = world.words.caption(a, world.random(settings.world_seed, index, 16 + step:random(64)), {})
        latents[i] = o.store:get(index):to("f32")
      end
      local text = text_of(captions)
      local both = T.concat({ text, without }, 1)
      local k = step:random(few_steps.steps) - 1
      local from = sigma(k * few_steps.substeps)
      local noise = step:noise { b, unpack(latents[1].shape) }
      local x = noise
      if k > 0 and step:random() < 0.5 then
        x = T.lincomb { 1 - from, T.stack(latents, 1), from, noise }
      else
        for i = 0, k - 1 do
          local now, after = sigma(i * few_steps.substeps), sigma((i + 1) * few_steps.substeps)
          x = T.lincomb { 1, x, after - now, still(student, x, now, text) }
        end
      end
      local y = x
      for i = k * few_steps.substeps, (k + 1) * few_steps.substeps - 1 do
        local now, after = sigma(i), sigma(i + 1)
        local v = still(teacher.dit, T.concat({ y, y }, 1), now, both)
        y = T.lincomb { 1, y, (after - now) * o.guidance, v:slice(1, 1, b), (after - now) * (1 - o.guidance),
          v:slice(1, b + 1, 2 * b) }
      end
      local to = sigma((k + 1) * few_steps.substeps)
      local wanted = (y - x) * (1 / (to - from))
      return grad.mse(student:forward(x, times(from, b), text), wanted)
    end,
  }
end

return few_steps
