-- What a profile records, and its trace.
local t = require "harness"
local melies = require "melies"
local T, profile = melies.tensor, melies.profile

t.test("operations are counted with their arithmetic; inner ones belong to the outer", function()
  local x = T.noise({ 64, 32 }, { seed = 1 })
  local layer = melies.nn.linear(T.noise({ 16, 32 }, { seed = 2 }), nil, { compute = "f32" })
  layer(x)
  profile.start()
  local start = melies.seconds()
  for _ = 1, 3 do layer(x) end
  x:to("bf16"):layer_norm()
  profile.stage("sampling", start)
  local spans = profile.stop()
  layer(x) -- no longer recorded
  local seen, flop = {}, 0
  for _, s in ipairs(spans) do
    seen[s.name] = (seen[s.name] or 0) + 1
    flop = flop + s.flop
    t.ok(s.seconds >= 0 and s.start >= spans.began and s.start <= spans.ended)
  end
  t.eq(seen.linear, 3)
  t.eq(seen.layer_norm, 1)
  t.eq(seen["stage sampling"], 1)
  t.eq(flop, 3 * 2 * 64 * 32 * 16)
  local report = profile.report(spans)
  for _, word in ipairs { "sampling", "linear", "outside of operations" } do t.ok(report:find(word, 1, true), report) end
end)

t.test("the trace is what Chrome reads", function()
  profile.start()
  T.noise({ 8, 8 }):softmax()
  local spans = profile.stop()
  local path = t.folder() .. "/trace.json"
  t.ok(profile.trace(spans, path))
  local events = melies.json.read(path).traceEvents
  t.eq(#events, #spans)
  t.eq(events[1].ph, "X")
  t.ok(events[1].dur >= 0 and events[1].ts >= 0)
  t.eq(profile.trace(spans, "/nonexistent/trace.json"), nil)
end)

t.finish()
