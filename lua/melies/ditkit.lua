-- What the diffusion transformers in models/ share: time embeddings, modulation by groups of tokens, given first frames,
-- samples side by side.
--
-- A group is a run of tokens with one timestep: a sample, a frame or a single token. Activations [B, L, dim] are viewed
-- as [B, G, L / G, dim], so that a shift, scale or gate of [B, G, 1, dim] meets them without copies.
local melies = require "melies"
local kit = require "melies.modelkit"
local T = melies.tensor

local ditkit = {}

-- [#t, width] f32: cosines, then sines, of t * 10000^(-i / half), in double.
function ditkit.sinusoid(t, width)
  local half = width / 2
  local out = T.empty({ #t, width })
  local p = out:ptr()
  for row, value in ipairs(t) do
    for i = 0, half - 1 do
      local angle = value * 10000 ^ (-i / half)
      p[(row - 1) * width + i] = math.cos(angle)
      p[(row - 1) * width + half + i] = math.sin(angle)
    end
  end
  return out
end

-- The same with every step rounded to float32, as diffusers' get_timestep_embedding does it: at 1000 its arguments are
-- off by 3e-5.
function ditkit.sinusoid_f32(t, width)
  local half, f32 = width / 2, kit.f32
  local out = T.empty({ #t, width })
  local p = out:ptr()
  for i = 0, half - 1 do
    local omega = f32(math.exp(f32(f32(f32(-math.log(10000)) * i) / half)))
    for row, value in ipairs(t) do
      local angle = f32(f32(value) * omega)
      p[(row - 1) * width + i] = math.cos(angle)
      p[(row - 1) * width + half + i] = math.sin(angle)
    end
  end
  return out
end

-- table [1, n, dim] + e [B, G, n or 1, dim], as n tensors [B, G, 1, dim].
function ditkit.modulation(values, e)
  local sum, out = values + e, {}
  for i = 1, values.shape[2] do out[i] = sum:slice(3, i, i):contiguous() end
  return out
end

-- A number or a list as a list with an entry a sample: one stands for all.
function ditkit.times_of_samples(t, batch)
  if type(t) == "number" then t = { t } end
  if #t ~= 1 or (batch or 1) == 1 then return t end
  local all = {}
  for i = 1, batch do all[i] = t[1] end
  return all
end

-- An entry of t is a sample's timestep or a list of its groups'. Returns all of them in a row and the number of groups:
-- `groups` where a sample has a list or where `zero` leading groups are given (their time is 0), else 1.
function ditkit.times(t, groups, zero)
  local split, out = zero > 0, {}
  for _, one in ipairs(t) do split = split or type(one) == "table" end
  if not split then return t, 1 end
  for i, one in ipairs(t) do
    for g = 1, groups do
      out[(i - 1) * groups + g] = g <= zero and 0 or (type(one) == "table" and one[g] or one)
    end
  end
  return out, groups
end

-- x [1 or batch, ...] with as many samples as asked for: itself or a view.
function ditkit.batched(x, batch)
  if x.shape[1] == batch then return x end
  local s = { unpack(x.shape) }
  s[1] = batch
  return x:expand(s)
end
local batched = ditkit.batched

-- What all contexts of a join share, or the samples of each one after the other: [1 or batch, ...] or nil.
function ditkit.side_by_side(contexts, pick, model, what)
  local one, same, parts = pick(contexts[1]), true, {}
  for i, c in ipairs(contexts) do
    local x = pick(c)
    if (x == nil) ~= (one == nil) then error(("%s: join: not all contexts have %s"):format(model, what), 3) end
    same = same and rawequal(x, one)
    parts[i] = x and batched(x, c.batch)
  end
  if one == nil or (same and one.shape[1] == 1) then return one end
  return T.concat(parts, 1)
end

-- The texts of several contexts side by side: { net, batch, rows, key_bias [batch, rows], blocks = { { k =, v = }, .. } },
-- shorter ones with masked rows behind. kind: the metatable of this model's contexts. A context without key_bias masks
-- nothing.
function ditkit.join(contexts, kind, net, model)
  if type(contexts) ~= "table" or #contexts == 0 then error(model .. ": join wants a list of contexts", 3) end
  local out = { net = net, batch = 0, rows = 0, blocks = {} }
  for i, c in ipairs(contexts) do
    if getmetatable(c) ~= kind or c.net ~= net then
      error(("%s: join: entry %d is not a context of this model"):format(model, i), 3)
    end
    out.rows, out.batch = math.max(out.rows, c.rows), out.batch + c.batch
  end
  local function padded(c, x, value) return c.rows < out.rows and x:pad(2, 0, out.rows - c.rows, value) or x end
  local biases = {}
  for i, c in ipairs(contexts) do biases[i] = padded(c, c.key_bias or T.zeros { c.batch, c.rows }, -math.huge) end
  out.key_bias = T.concat(biases, 1)
  for b = 1, #net.blocks do
    local ks, vs = {}, {}
    for i, c in ipairs(contexts) do ks[i], vs[i] = padded(c, c.blocks[b].k, 0), padded(c, c.blocks[b].v, 0) end
    out.blocks[b] = { k = T.concat(ks, 1), v = T.concat(vs, 1) }
  end
  return out
end

-- ---- given first frames -------------------------------------------------------------------------------------------

-- Latent frames [C, n, H, W] checked, as [1, C, n, H, W] f32; n is a multiple of `step`.
function ditkit.given(model, first, channels, step)
  if first.ndim ~= 4 or first.shape[1] ~= channels or first.shape[2] % step ~= 0 then
    error(("%s: the first frames are %s, wanted [%d, n, H, W]"):format(model, kit.shape_text(first.shape), channels), 3)
  end
  return first:to("f32"):unsqueeze(1)
end

-- x [B, C, T, H, W] with `first` [1 or B, C, n, H, W] in the place of its first frames.
function ditkit.put_first(x, first)
  if not first then return x end
  x = batched(x, math.max(x.shape[1], first.shape[1]))
  local given, n = batched(first, x.shape[1]), first.shape[3]
  return n < x.shape[3] and T.concat({ given, x:slice(3, n + 1) }, 3) or given:contiguous()
end

-- Preconditioning of a flow, for latents of unit variance: with d = (1 - s)^2 + s^2 at s = t / 1000, velocity =
-- (2 s - 1) / d latent + network / sqrt(d). What is left for the network to say has unit variance and does not correlate
-- with its input, at any noise: Karras et al. 2022 (arXiv 2206.00364), table 1, for x = (1 - s) x0 + s noise.
-- t: one timestep a sample, or a list of one a frame -> skip, gain, each [B, 1, T or 1, 1, 1]
function ditkit.preconditioning(t)
  local skip, gain, frames = {}, {}, 1
  for _, one in ipairs(t) do frames = type(one) == "table" and math.max(frames, #one) or frames end
  for _, one in ipairs(t) do
    for f = 1, frames do
      local s = (type(one) == "table" and one[f] or one) / 1000
      local d = (1 - s) ^ 2 + s ^ 2
      skip[#skip + 1], gain[#gain + 1] = (2 * s - 1) / d, 1 / math.sqrt(d)
    end
  end
  local shape = { #t, 1, frames, 1, 1 }
  return T.of(skip, shape), T.of(gain, shape)
end

-- Where each token stands, as sines and cosines [1, frames * rows * columns, dim]: a quarter of the channels for the frame,
-- the rest for row and column, pairs of wavelengths 2 pi 100^(2i / n). grid { frames, rows, columns } is what the model was
-- trained on: rows and columns are scaled to it, frames where there are more. first: number of the first frame, from 0.
-- Made once for what is in use; nobody writes to it.
local made, made_count = {}, 0
function ditkit.positions(dim, frames, rows, columns, grid, first)
  local key = table.concat({ dim, frames, rows, columns, grid[1], grid[2], grid[3], first or 0 }, ",")
  if made[key] then return made[key] end
  if made_count >= 32 then made, made_count = {}, 0 end
  local out = T.zeros { 1, frames * rows * columns, dim }
  local p, at, nt = out:ptr(), 0, 2 * math.floor(dim / 8)
  local n = 2 * math.floor((dim - nt) / 4)
  local function fill(width, position)
    for i = 0, width / 2 - 1 do
      local angle = position * 100 ^ (-2 * i / width)
      p[at], p[at + 1] = math.sin(angle), math.cos(angle)
      at = at + 2
    end
  end
  local by_frame = math.min(1, grid[1] / frames)
  for t = 0, frames - 1 do
    for y = 0, rows - 1 do
      for x = 0, columns - 1 do
        at = ((t * rows + y) * columns + x) * dim
        fill(nt, ((first or 0) + t) * by_frame)
        fill(n, y * grid[2] / rows)
        fill(n, x * grid[3] / columns)
      end
    end
  end
  made[key], made_count = out, made_count + 1
  return out
end

-- Gives the given frames of a velocity [B, C, T, H, W] the values that lead from the latent to them at t = 1000 * sigma:
-- (x - first) / sigma, 0 at sigma 0.
function ditkit.aim_first(velocity, latent, first, t)
  if not first then return velocity end
  local n, batch = first.shape[3], velocity.shape[1]
  local way = batched(latent:to("f32"), batch):slice(3, 1, n) - batched(first, batch)
  for i, one in ipairs(t) do
    local late = type(one) == "table" and one[#one] or one
    velocity:slice(1, i, i):slice(3, 1, n):copy_(way:slice(1, i, i) * (late > 0 and 1000 / late or 0))
  end
  return velocity
end

return ditkit
