-- Guidance rules against naive formulas in Lua numbers, and how guides call the model.
local t = require "harness"
local melies = require "melies"
local T, guide = melies.tensor, melies.guide

local SHAPE = { 2, 3, 4, 5 }
local function random(stream) return T.noise(SHAPE, { seed = 3, stream = stream }) end
local c, u = random(1), random(2)
local cl, ul = c:list(), u:list()

local function mean(list)
  local sum = 0
  for _, v in ipairs(list) do sum = sum + v end
  return sum / #list
end
local function std(list)
  local m, sum = mean(list), 0
  for _, v in ipairs(list) do sum = sum + (v - m) ^ 2 end
  return math.sqrt(sum / #list)
end
local function dot(a, b)
  local sum = 0
  for i, v in ipairs(a) do sum = sum + v * b[i] end
  return sum
end
local function each(fn)
  local out = {}
  for i = 1, #cl do out[i] = fn(cl[i], ul[i], i) end
  return out
end

-- A flow model whose predictions are c for the text "c" and u for "u"; it keeps its calls.
local function model_of(table_of)
  local model = { space = "flow", calls = {} }
  function model.encode(_, prompt)
    if prompt == "" then model.encoded = true end
    return prompt == "" and "u" or prompt
  end
  function model.predict(_, x, sigma, texts)
    model.calls[#model.calls + 1] = table.concat(texts, "+")
    local out = {}
    for i, text in ipairs(texts) do out[i] = (table_of or { c = c, u = u })[text] end
    return out
  end
  function model.to_x0(_, x, sigma, prediction) return T.lincomb { 1, x, -sigma, prediction } end
  return model
end

local x = random(7)
local function velocity(denoise, sigma) -- what the guide made of the prediction
  return T.lincomb { 1 / sigma, x, -1 / sigma, denoise(x, sigma) }
end

t.test("cfg", function()
  local denoise = guide.cfg(model_of(), { text = "c", negative = "u", scale = 3.5 })
  t.close(velocity(denoise, 0.8), T.of(each(function(a, b) return b + 3.5 * (a - b) end), SHAPE), 1e-5, 1e-5)
end)

t.test("cfg_rescale", function()
  local w, phi = 4, 0.6
  local g = each(function(a, b) return b + w * (a - b) end)
  local ratio = std(cl) / std(g)
  local want = each(function(_, _, i) return phi * g[i] * ratio + (1 - phi) * g[i] end)
  local denoise = guide.cfg_rescale(model_of(), { text = "c", negative = "u", scale = w, phi = phi })
  t.close(velocity(denoise, 0.8), T.of(want, SHAPE), 1e-5, 1e-5)
  denoise = guide.cfg_rescale(model_of(), { text = "c", negative = "u", scale = w, phi = 1 })
  t.near(std(velocity(denoise, 0.8):list()), std(cl), 1e-4, "phi 1 keeps the deviation")
end)

t.test("cfg_zero_star", function()
  local w, a = 4, dot(cl, ul) / dot(ul, ul)
  local want = T.of(each(function(p, q) return a * q + w * (p - a * q) end), SHAPE)
  local denoise = guide.cfg_zero_star(model_of(), { text = "c", negative = "u", scale = w, zero_steps = 2 })
  t.close(denoise(x, 0.9), x, 0, 0, "stands still at the first level")
  t.close(denoise(x, 0.8), x, 0, 0, "and at the second")
  t.close(velocity(denoise, 0.7), want, 1e-5, 1e-5)
  t.close(denoise(x, 0.9), x, 0, 0, "a new run stands still again")
end)

t.test("apg", function()
  local w, eta, beta, limit = 5, 0.3, -0.5, 6
  local denoise = guide.apg(model_of(),
    { text = "c", negative = "u", scale = w, eta = eta, momentum = beta, norm_threshold = limit })
  local running
  for _, sigma in ipairs { 0.9, 0.6, 0.3 } do
    local xl = x:list()
    local x0c = each(function(a, _, i) return xl[i] - sigma * a end)
    local x0u = each(function(_, b, i) return xl[i] - sigma * b end)
    local d = each(function(_, _, i) return x0c[i] - x0u[i] + (running and beta * running[i] or 0) end)
    running = d
    local clip = math.min(1, limit / math.sqrt(dot(d, d)))
    local along = dot(d, x0c) / dot(x0c, x0c)
    local want = each(function(_, _, i)
      local parallel = along * x0c[i] * clip
      return x0c[i] + (w - 1) * (d[i] * clip - parallel + eta * parallel)
    end)
    t.close(denoise(x, sigma), T.of(want, SHAPE), 2e-5, 2e-5, "sigma " .. sigma)
  end
  denoise = guide.apg(model_of(), { text = "c", negative = "u", scale = w, eta = 1, momentum = 0 })
  local plain = guide.cfg(model_of(), { text = "c", negative = "u", scale = w })
  t.close(denoise(x, 0.5), plain(x, 0.5), 2e-5, 2e-5, "eta 1 without momentum is cfg")
end)

t.test("both texts go in one call; scale 1 and the outside of the interval ask for one", function()
  local model = model_of()
  guide.cfg(model, { text = "c", negative = "u", scale = 2 })(x, 0.5)
  t.eq(model.calls[1], "c+u")
  guide.cfg(model, { text = "c", scale = 1 })(x, 0.5)
  t.eq(model.calls[2], "c")
  t.eq(model.encoded, nil, "no empty prompt where it is not used")
  local denoise = guide.cfg(model, { text = "c", scale = 2, interval = { 0.2, 0.6 } })
  t.eq(model.encoded, true, "the empty prompt stands for the negative")
  denoise(x, 0.8)
  denoise(x, 0.4)
  denoise(x, 0.1)
  t.eq(table.concat(model.calls, " ", 3), "c c+u c")
end)

t.test("first frames are held, by latent, image or frames", function()
  local first = T.noise({ 2, 1, 4, 5 }, { seed = 8 })
  local denoise = guide.cfg(model_of(), { text = "c", scale = 1, first = first })
  local x0 = denoise(x, 0.5)
  t.close(x0:slice(2, 1, 1), first, 0, 0)
  t.close(x0:slice(2, 2), T.lincomb { 1, x, -0.5, c }:slice(2, 2), 1e-6, 0)
  local out = melies.sampling.run("dpmpp_2m", denoise, x, { 1, 0.7, 0.3, 0 })
  t.close(out:slice(2, 1, 1), first, 1e-6, 0, "the sampler ends there")
  local model = model_of()
  function model.encode_video(_, frames)
    model.seen = frames:shape_text()
    return first
  end
  guide.cfg(model, { text = "c", scale = 1, first = T.zeros({ 8, 6, 3 }, "u8") })
  t.eq(model.seen, "[1, 8, 6, 3]")
end)

t.test("a guide from a table", function()
  local mine = { kind = "guide", name = "mine", params = { scale = { "number", default = 2 } },
    combine = function(cond, uncond, params, state)
      t.eq(state.sigma, 0.5)
      return T.lincomb { params.scale, cond, 0, uncond }
    end }
  t.close(velocity(guide.make(mine, model_of(), { text = "c" }), 0.5), T.lincomb { 2, c }, 1e-5, 1e-5)
end)

t.test("misuse is named", function()
  local model = model_of()
  t.raises(function() guide.make("cgf", model, { text = "c" }) end, "did you mean 'cfg'")
  t.raises(function() guide.cfg(model, { text = "c", scael = 3 }) end, "did you mean 'scale'")
  t.raises(function() guide.cfg(model, { text = "c", scale = -1 }) end, "scale is -1, must be 0 to 100")
  t.raises(function() guide.cfg(model, { scale = 3 }) end, "text is missing")
  t.raises(function() guide.cfg(model, { text = "c", interval = { 0.5 } }) end, "interval must be")
  function model.encode() return nil, "the prompt is 900 tokens" end
  t.raises(function() guide.cfg(model, { text = "c" }) end, "the prompt is 900 tokens")
end)

t.finish()
