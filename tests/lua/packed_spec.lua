-- Packed layers kept in the cache: the same bits, no memory, and what is damaged is packed again.
local t = require "harness"
local melies = require "melies"
local C = require("melies.ffi.lib").C
local T, nn, budget = melies.tensor, melies.nn, melies.budget

local MIB = 2 ^ 20
local folder = t.folder() .. "/cache"
local cache = melies.cache.at(folder)

t.test("a layer from its packed form: the same bits, in place; what does not fit is packed", function()
  local w, bias, x = T.noise { 150, 70 }, T.noise({ 150 }, { seed = 1 }), T.noise({ 9, 70 }, { seed = 2 })
  local smooth = T.uniform({ 70 }, { seed = 3 }) + 0.5
  for _, case in ipairs { { "f32" }, { "bf16" }, { "s8" }, { "s8", smooth } } do
    local function lazy(other)
      return nn.linear(nn.source(other or w), not other and bias or nil, { compute = case[1], lazy = true,
        smooth = not other and case[2] or nil })
    end
    local first = lazy()
    first:pack()
    local want, form = first(x), first:packed()
    t.eq(form.shape[1], first:packed_bytes())
    local second = lazy()
    t.eq(second:pack(form), true, case[1])
    t.close(second(x), want, 0, 0, case[1]) t.eq(second:bytes(), 150 * 4)
    local kept = form:clone()
    form:free()
    first, form = nil, nil -- luacheck: ignore
    collectgarbage() collectgarbage()
    t.close(second(x), want, 0, 0, "the layer keeps what it reads") t.eq(second:pack(kept), false, "packed already")
    t.close(second:packed(), kept, 0, 0)

    for _, at in ipairs { 1, 12, 20, 30, 62, 65, 900, kept:numel() } do
      local damaged, other = kept:clone(), lazy()
      damaged:set(at, (damaged:get(at) + 1) % 256)
      t.eq(other:pack(damaged), false, "byte " .. at)
      t.close(other(x), want, 0, 0, "byte " .. at)
    end
    t.eq(lazy():pack(kept:slice(1, 1, 640):clone()), false) t.eq(lazy(T.noise { 150, 71 }):pack(kept), false)
    t.eq(lazy():pack(T.zeros({ 32 }, "u8")), false) t.eq(lazy():pack(T.zeros { 320 }), false)
  end
  t.raises(function() nn.linear(w, nil, { compute = "f32", lazy = true }):packed() end, "no packed form")
end)

-- The starter, of which little is small for that memory, with its layers packed; what they take, and a prediction.
local x
local function starter()
  melies.pipeline.forget()
  budget.set(180 * MIB)
  local model = assert(melies.pipeline.load "starter")
  x = x or T.noise(assert(model:latent_shape { frames = 5 }), { seed = 2 })
  local plan = assert(model:plan(x.shape, 1))
  t.eq(plan.resident, plan.of)
  local before = tonumber(C.mel_mem_live())
  budget.apply(model, plan)
  local bytes = tonumber(C.mel_mem_live()) - before
  return model:predict(x, 0.7, { model:encode "a red ball" })[1], bytes, model
end
local function entries()
  local n = 0
  for _, e in ipairs(cache:list()) do n = n + (e.kind == "packed" and 1 or 0) end
  return n
end
local function change(at, text)
  for _, e in ipairs(cache:list()) do
    if e.kind == "packed" then
      local f = assert(io.open(e.path, "r+b"))
      f:seek("set", at < 0 and e.size + at or at)
      f:write(text)
      f:close()
    end
  end
end

for _, compute in ipairs { "f32", "s8" } do
  t.test("a transformer's layers from the cache, " .. compute, function()
    local said = 0
    local log, warn = require "melies.log", require("melies.log").warn
    log.warn = function() said = said + 1 end
    local before = melies.cache.use(nil)
    melies.set_compute(compute)
    local want, bytes = starter()
    melies.cache.use(cache)
    local got, packed = starter()
    t.close(got, want, 0, 0) t.eq(packed, bytes) t.eq(entries(), 1)
    got, packed = starter()
    t.close(got, want, 0, 0, "from the cache") t.ok(packed < bytes / 20, packed .. " of " .. bytes)
    t.eq(select(2, cache:verify())[1], nil) t.eq(entries(), 1) t.eq(said, 0)

    change(-200, "damage") -- one layer
    got, packed = starter()
    t.close(got, want, 0, 0) t.ok(packed > 0 and packed < bytes / 2) t.eq(said, 1)
    got, packed = starter()
    t.close(got, want, 0, 0, "written again") t.ok(packed < bytes / 20) t.eq(said, 1)
    change(-200, "damage")
    melies.pipeline.forget()
    local _, bad = cache:verify()
    t.eq(#bad, 1) t.ok(bad[1][2]:find("damaged", 1, true), bad[1][2]) t.eq(entries(), 0)
    starter()
    change(0, "\255\255\255\255\255") -- the header
    t.close(starter(), want, 0, 0) t.eq(entries(), 1)

    cache:clear()
    cache.limit = bytes -- one entry may not take all of it
    starter()
    t.eq(entries(), 0)
    cache.limit = 2 ^ 32
    local model = select(3, starter())
    cache:clear()
    model.lora_key, model.planned, model.packed = "some", nil, nil
    t.eq(require("melies.packed").of(model, assert(model:plan(x.shape, 1))), nil, "not with LoRAs")
    melies.cache.use(before)
    log.warn = warn
    melies.set_compute "f32"
    melies.pipeline.forget()
    budget.set(nil)
  end)
end

t.finish()
