-- melies-api: 1
-- The last part of the starter's training: a transformer of Wan's layout and, with it, a text encoder of UMT5's layout, on
-- latents of the world's clips.
--
-- Rectified flow: x = (1 - sigma) latent + sigma noise, the network gives noise - latent. Sigma is drawn logit-normal and
-- shifted to the noisy side, as sampling will be; the squared error counts more where a subject is. A classifier on the
-- mean of the text's rows, which is thrown away afterwards, has to tell what a caption says: the text encoder learns the
-- words from it in a few hundred steps, and the transformer does not have to wait for that.
local melies = require "melies"
local muon = melies.muon
local t5, wan = melies["grad.t5"], melies["grad.wan_dit"]
local T, grad = melies.tensor, melies.grad

local transformer = {}

transformer.text = { vocabulary = 800, dim = 192, heads = 4, ffn = 384, layers = 2 }
transformer.dit = { dim = 256, heads = 4, ffn = 1024, layers = 6, channels = 48, text_dim = 192, freq_dim = 256,
  patch = { 1, 2, 2 } }
transformer.text_len = 32
-- What the layout lacks for so small a model (models/wan_dit.lua). positions: the tokens of a clip, frames, rows, columns.
transformer.additions = { preconditioned = true, positions = { 5, 6, 6 }, pooled = true }
transformer.shift = 3

-- What the classifier tells: the attributes of the world, each with one more class for "not said".
local function questions(world)
  local w = world.words
  local list = {}
  for _, entry in ipairs { { "subject", w.subjects }, { "colour", w.colours }, { "texture", w.textures },
    { "size", w.sizes }, { "motion", w.motions }, { "camera", w.cameras }, { "place", w.places }, { "light", w.lights },
    { "style", w.styles }, { "relation", w.relations }, { "second", w.subjects }, { "second_colour", w.colours } } do
    local q = { name = entry[1], class = {}, classes = #entry[2] + 1 }
    for i, value in ipairs(entry[2]) do q.class[value] = i end
    list[#list + 1] = q
  end
  return list
end

local PREFIX = { text = "text_encoder/", dit = "dit/", reader = "reader/" }

function transformer.net(params)
  local o = { heads = transformer.dit.heads, text_len = transformer.text_len }
  for key, value in pairs(transformer.additions) do o[key] = value end
  return wan.net(params, o)
end

-- Everything that is trained, under one roof: parameters with prefixed names, and the nets over them.
function transformer.build(world, seed)
  local params = {}
  local function add(prefix, part)
    for name, p in pairs(part) do params[prefix .. name] = p end
    return part
  end
  local text = add(PREFIX.text, t5.init(transformer.text, seed + 1))
  local dit = add(PREFIX.dit, wan.init(transformer.dit, seed + 2))
  local asked, total = questions(world), 0
  for _, q in ipairs(asked) do total = total + q.classes end
  local reader = add(PREFIX.reader, {
    weight = grad.param(T.noise({ total, transformer.text.dim }, { seed = seed + 3 }) * transformer.text.dim ^ -0.5),
    bias = grad.param(T.zeros { total }),
  })
  return { params = params, text = t5.net(text), reader = reader, questions = asked,
    dit = transformer.net(dit) }
end

-- Token ids [B, text_len] with the end mark and zeros behind, and which of them are there [B, text_len].
function transformer.tokens(tokenizer, captions)
  local ids, mask, length = {}, {}, transformer.text_len
  for _, caption in ipairs(captions) do
    local list = caption == "" and {} or tokenizer:encode(caption)
    if list[#list] ~= 1 then list[#list + 1] = 1 end
    for i = 1, length do
      ids[#ids + 1] = list[i] or 0
      mask[#mask + 1] = list[i] and 1 or 0
    end
  end
  return T.of(ids, { #captions, length }, "i64"), T.of(mask, { #captions, length })
end

-- Rows of text [B, text_len, dim], zero behind the end mark: what the transformer sees.
function transformer.encode(nets, ids, mask)
  return grad.mul(nets.text:forward(ids, mask), mask:unsqueeze(-1))
end

local function reading_loss(nets, text, mask, labels)
  local count = mask:sum(2, true)
  local pooled = grad.mul(grad.sum(text, 2), 1 / count)
  local logits = grad.linear(pooled, nets.reader.weight, nets.reader.bias, { compute = "f32" })
  local total, at = nil, 0
  for i, q in ipairs(nets.questions) do
    local part = grad.cross_entropy(grad.slice(logits, 2, at + 1, at + q.classes):contiguous(), labels[i])
    total = total and grad.add(total, part) or part
    at = at + q.classes
  end
  return grad.mul(total, 1 / #nets.questions)
end

-- How often a clip is drawn: what is learnt late more, two things less.
local late = { up = 4, approach = 4, sway = 4, jump = 4, zoom_in = 3, zoom_out = 3, pan_left = 8, pan_right = 8 }
local function times(a)
  if a.relation ~= "none" then return 1 end
  return late[a.camera] or late[a.motion] or 2
end

-- Numbers of the store's clips to draw from, those of a clip as often as it is to be drawn.
local function fill(pool, world, store, seed)
  for index = pool.clips + 1, store.count do
    for _ = 1, times(world.describe { seed = seed, index = index }) do pool[#pool + 1] = index end
  end
  pool.clips = store.count
end

-- A batch: latents, weights, captions and labels. Every clip has many captions; now and then it has none. stills: so many
-- single frames instead of o.batch clips, and their numbers from 0. weights: how much of a latent value is a subject, and
-- at least o.scene where the camera moves, so that what passes by counts.
local function batch(world, store, pool, nets, step, o, stills)
  local latents, weights, captions, labels, first = {}, {}, {}, {}, stills and {} or nil
  for i in ipairs(nets.questions) do labels[i] = {} end
  for i = 1, stills or o.batch do
    local index = pool[step:random(#pool)]
    local a, latent, mask = world.describe { seed = o.world_seed, index = index }, store:get(index)
    if stills then
      local frame = step:random(latent.shape[2])
      latent, mask, first[i] = latent:slice(2, frame, frame), mask:slice(1, frame, frame), frame - 1
    elseif a.camera ~= "still" then
      mask = mask:clamp(o.scene, 1)
    end
    latents[i], weights[i] = latent:to("f32"), mask
    local caption, says = world.words.caption(a, world.random(o.world_seed, index, 16 + step:random(64)), {})
    local dropped = step:random() < o.dropout
    captions[i] = dropped and "" or caption
    for j, q in ipairs(nets.questions) do
      local said = not dropped and (says[q.name] or q.name == "subject" or
        (q.name == "second" or q.name == "second_colour") and says.second)
      labels[j][i] = said and a[q.name] and q.class[a[q.name]] or 0
    end
  end
  for j in ipairs(labels) do labels[j] = T.of(labels[j], { #captions }, "i64") end
  return T.stack(latents, 1), T.stack(weights, 1):unsqueeze(2), captions, labels, first
end

-- Sigmas [B] of a step: one draw for each of B equal parts of (0, 1), so that a batch has all levels of noise.
local function levels(step, count, shift)
  local list, offset = {}, step:random()
  for i = 1, count do
    local u = ((i - 1 + offset) / count - 0.5) * 0.998 + 0.5
    local sigma = u -- half uniform, half logit-normal
    if i % 2 == 0 then
      local p = math.log(u / (1 - u)) * 0.5513 -- a logistic of the normal's variance
      sigma = 1 / (1 + math.exp(-p))
    end
    list[i] = shift * sigma / (1 + (shift - 1) * sigma)
  end
  return list
end

-- One step of flow matching over a batch: the loss, and numbers for the log. A part of the steps, o.stills, looks at four
-- times as many clips, one latent frame of each, for the same work: what stands where at which moment is learnt from these.
function transformer.loss(world, store, pool, nets, tokenizer, step, o)
  local stills = step:random() < o.stills and 4 * o.batch or nil
  local clean, weight, captions, labels, first = batch(world, store, pool, nets, step, o, stills)
  local sigma, t = levels(step, #captions, stills and 1.5 * o.shift or o.shift), {}
  for i, s in ipairs(sigma) do t[i] = 1000 * s end
  local s = T.of(sigma, { #captions, 1, 1, 1, 1 })
  local noise = step:noise(clean.shape)
  local ids, mask = transformer.tokens(tokenizer, captions)
  local text = transformer.encode(nets, ids, mask)
  local velocity = nets.dit:forward(clean * (1 - s) + noise * s, t, text, nil, first)
  local flow = grad.mse(velocity, noise - clean, weight * o.emphasis + 1)
  local reading = reading_loss(nets, text, mask, labels)
  return grad.add(flow, grad.mul(reading, o.reading)),
    { [stills and "stills" or "flow"] = flow:item(), reading = reading:item() }
end

-- transformer.sample(nets, tokenizer, prompts, o) -> latents [B, C, t, h, w]: Euler over `steps` shifted sigmas with
-- guidance. o: shape { C, t, h, w }, steps, guidance, seed, shift
function transformer.sample(nets, tokenizer, prompts, o)
  local b = #prompts
  local function text_of(list)
    return grad.no_grad(function() return transformer.encode(nets, transformer.tokens(tokenizer, list)) end).value
  end
  local empty = {}
  for i = 1, b do empty[i] = "" end
  local guided = o.guidance ~= 1
  local text = guided and T.concat({ text_of(prompts), text_of(empty) }, 1) or text_of(prompts)
  local x = T.noise({ b, unpack(o.shape) }, { seed = o.seed or 7 })
  local shift = o.shift or transformer.shift
  local function sigma(i) local u = 1 - i / o.steps return shift * u / (1 + (shift - 1) * u) end
  for i = 0, o.steps - 1 do
    local now, after, t = sigma(i), sigma(i + 1), {}
    for j = 1, guided and 2 * b or b do t[j] = 1000 * now end
    local v = grad.no_grad(function()
      return nets.dit:forward(guided and T.concat({ x, x }, 1) or x, t, text)
    end).value
    if guided then
      local with, without = v:slice(1, 1, b), v:slice(1, b + 1, 2 * b)
      v = T.lincomb { o.guidance, with, 1 - o.guidance, without }
    end
    x = T.lincomb { 1, x, after - now, v }
  end
  return x
end

-- The moving averages as nets, or what a checkpoint's weights are.
function transformer.with(world, weights, seed)
  local nets = transformer.build(world, seed or 0)
  for name, p in pairs(nets.params) do p.value:copy_(weights[name]) end
  return nets
end

-- transformer.train(world, o) -> run or nil and a message; o: folder, latents (store), tokenizer, steps, batch, stills, lr,
-- seed, on_step, every (steps between checkpoints), from (folder of the checkpoint to begin with, instead of its own), initial
-- (weights by name to begin with, where there is no checkpoint).
-- Where latents are still being made, those that are there are used.
function transformer.train(world, o)
  local nets = transformer.build(world, o.seed)
  local store = o.latents
  local settings = { batch = o.batch, dropout = 0.1, emphasis = 8, scene = 0.5, reading = 0.1, shift = 2, world_seed = 1,
    stills = o.stills }
  local pool = { clips = 0 }
  fill(pool, world, store, settings.world_seed)
  local run, message = melies.train.new {
    params = nets.params, steps = o.steps, lr = o.lr, schedule = "linear", warmup = 100, final = 0.02, clip = 1,
    optimiser = muon.new, betas = { 0.9, 0.98 }, ema = 0.999, weight_decay = 0.02, seed = o.seed, folder = o.folder,
    every = o.every or 250, resume = not o.from, may_differ = { "steps", "lr", "seed", "config.settings.stills",
      "config.settings.emphasis", "config.settings.scene" },
    config = { text = transformer.text, dit = transformer.dit, additions = transformer.additions, settings = settings },
    data = { state = function() return { clips = store.count } end, restore = function() end },
    loss = function(step)
      if step.index % 50 == 0 then
        store:look()
        fill(pool, world, store, settings.world_seed)
      end
      return transformer.loss(world, store, pool, nets, o.tokenizer, step, settings)
    end,
    on_step = o.on_step,
  }
  if run and o.from then
    local ok
    ok, message = run:resume(o.from)
    if not ok then return nil, message end
  end
  if run and run.step == 0 and o.initial then
    nets.params[PREFIX.reader .. "weight"].value:fill_(0) -- what it gets wrong at first must not change the text encoder
    for name, value in pairs(o.initial) do
      if not nets.params[name] then return nil, name .. ": the model to begin with has it, this one has not" end
      nets.params[name].value:copy_(value)
      run.optimiser.ema[name]:copy_(value)
    end
  end
  return run, run and nets or message
end

return transformer
