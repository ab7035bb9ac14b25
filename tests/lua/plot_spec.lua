local t = require "harness"
local plot = require "melies.plot"

-- Well-formed enough: every tag closed in order, no raw "<" or "&" in texts and attributes, no "nan" or "inf".
local function check(svg)
  local open = {}
  local rest = svg
  for text, slash, name, attributes, closed in svg:gmatch "([^<]*)<(/?)(%a+)([^<>]-)(/?)>" do
    local plain = (text .. attributes):gsub("&%a+;", ""):gsub("&#%d+;", "")
    if open[#open] ~= "style" then t.ok(not plain:find("&", 1, true), plain) end
    t.ok(not (" " .. attributes):find "[%s\"MLHV-]nan" and not (" " .. attributes):find "[%s\"MLHV-]inf", attributes)
    if slash == "/" then
      t.eq(open[#open], name)
      open[#open] = nil
    elseif closed == "" then open[#open + 1] = name end
    rest = rest:sub(#text + #slash + #name + #attributes + #closed + 3)
  end
  t.eq(#open, 0, "tags left open")
  t.eq((rest:gsub("%s", "")), "")
  return svg
end
local function count(svg, what) return select(2, svg:gsub(what, "")) end
-- Path data of the drawn series, one a run.
local function lines(svg)
  local out = {}
  for d in svg:gmatch '<path class="l%d" d="([^"]*)" fill="none"' do out[#out + 1] = d end
  return out
end

t.test("a line: its ends are at the frame's, y is turned up", function()
  local svg = check(plot.svg { title = "A", x = { label = "s" }, y = { label = "v", min = 0, max = 1 },
    series = { { name = "a", points = { { 0, 0 }, { 1, 0.5 }, { 4, 1 } } } } })
  local d = lines(svg)
  t.eq(#d, 1)
  local p = {}
  for v in d[1]:gmatch "[%d.]+" do p[#p + 1] = tonumber(v) end
  t.eq(#p, 6)
  t.near(p[3], p[1] + (p[5] - p[1]) / 4, 0.11)
  t.near(p[4], (p[2] + p[6]) / 2, 0.11)
  t.ok(p[6] < p[2])
  t.ok(svg:find(">A</text>", 1, true) and svg:find(">a</text>", 1, true) and svg:find(">v</text>", 1, true))
  t.ok(svg:find("prefers-color-scheme:dark", 1, true))
end)

t.test("ticks are round numbers", function()
  local function ticks(points, axis)
    local svg, out = check(plot.svg { y = axis, x = { ticks = {} }, series = { { points = points } } }), {}
    for word in svg:gmatch 'text%-anchor="end">([^<]*)' do out[#out + 1] = word end
    return table.concat(out, " ")
  end
  t.eq(ticks({ { 0, 0 }, { 1, 9.3 } }), "0 2 4 6 8 10")
  t.eq(ticks({ { 0, -0.02 }, { 1, 0.013 } }), "-0.020 -0.015 -0.010 -0.005 0 0.005 0.010 0.015")
  t.eq(ticks({ { 0, 12000 }, { 1, 39000 } }), "0 10,000 20,000 30,000 40,000")
  t.eq(ticks({ { 0, 1e-7 }, { 1, 3e-7 } }), "0 5e-8 1e-7 1.5e-7 2e-7 2.5e-7 3e-7")
  t.eq(ticks({ { 0, 0.3 }, { 1, 4000 } }, { log = true }), "1 10 100 1,000")
  t.eq(ticks({ { 0, 20 }, { 1, 95 } }, { log = true }), "20 40 60 80")
  t.eq(ticks({ { 0, 1e-9 }, { 1, 1e9 } }, { log = true }):match "^%S+ %S+", "1e-9 1e-6")
end)

t.test("what is not finite, or not positive on a logarithmic axis, breaks a line", function()
  local points = { { 0, 1 }, { 1, 2 }, { 2, 0 / 0 }, { 3, 1 }, { 4, 2 }, { 5, 1 / 0 }, { 6, -1 }, { 7, 3 } }
  t.eq(#lines(check(plot.svg { series = { { points = points } } })), 3)
  local log = lines(check(plot.svg { y = { log = true }, series = { { points = points } } }))
  t.eq(#log, 3)
  t.ok(log[3]:find("h0.1", 1, true), "a point alone is a dot")
  check(plot.svg { series = { { kind = "bars", points = points }, { kind = "points", points = points } } })
end)

t.test("empty, constant, one point, huge and tiny", function()
  check(plot.svg {})
  check(plot.svg { x = { log = true }, y = { log = true }, series = { { points = {} } } })
  for _, v in ipairs { 0, 5, -3, 1e-30, 1e200, 1e16 } do
    for _, kind in ipairs { "line", "points", "bars", "steps" } do
      check(plot.svg { series = { { kind = kind, points = { { v, v } } } } })
      check(plot.svg { series = { { kind = kind, points = { { 1, v }, { 2, v } } } }, y = { log = v > 0 } })
    end
  end
  check(plot.svg { series = { { points = { { 1, 1e308 }, { 2, 1 }, { 3, 4 } } } } })
  check(plot.svg { width = 60, height = 40, title = "small", series = { { name = "n", points = { { 1, 1 } } } } })
end)

t.test("text is escaped", function()
  local evil = [[<script>"&'</script>]]
  local svg = check(plot.svg { title = evil, x = { label = evil, ticks = { { 1, evil } } }, y = { label = evil },
    series = { { name = evil, kind = "points", points = { { 1, 1, evil } } } },
    bands = { { from = 0, to = 1, label = evil } }, marks = { { x = 1, label = evil }, { y = 1, label = evil } } })
  t.ok(not svg:find("<script", 1, true))
  t.eq(count(svg, "&lt;script&gt;"), 10) -- nine texts, and the title once more as aria-label
  t.eq(plot.escape "a\0b\1c\td", "a b c\td")
end)

t.test("kinds: bars side by side, steps with corners, points with labels", function()
  local svg = check(plot.svg { series = {
    { name = "a", kind = "bars", points = { { 1, 2 }, { 2, -1 } } },
    { name = "b", kind = "bars", points = { { 1, 1 }, { 2, 3 } } } } })
  local bars = {}
  for x, y, w, h in svg:gmatch '<rect class="f%d" x="([%d.-]+)" y="([%d.-]+)" width="([%d.]+)" height="([%d.]+)"' do
    if h ~= "10" then bars[#bars + 1] = { x = tonumber(x), y = tonumber(y), w = tonumber(w), h = tonumber(h) } end
  end
  t.eq(#bars, 4)
  t.ok(bars[3].x >= bars[1].x + bars[1].w and bars[3].x < bars[2].x, "side by side")
  t.near(bars[1].h, 2 * bars[3].h, 0.2)
  t.near(bars[2].y, bars[1].y + bars[1].h, 0.2, "a negative bar hangs from zero")
  local steps = lines(check(plot.svg { series = { { kind = "steps", points = { { 0, 0 }, { 1, 1 }, { 2, 0 } } } } }))
  t.eq(count(steps[1], "[ML]"), 5)
  local dots = check(plot.svg { series = { { kind = "points", points = { { 1, 1, "one" }, { 1, 1, "two" } } } } })
  t.eq(count(dots, "<circle"), 2)
  local at = {}
  for x, y in dots:gmatch '<text x="([%d.]+)" y="([%d.]+)" class="ink">' do at[#at + 1] = x .. "," .. y end
  t.eq(#at, 2)
  t.ok(at[1] ~= at[2], "labels lie apart")
end)

t.test("many points stay small, their extremes stay", function()
  local points = {}
  for i = 1, 100000 do points[i] = { i, i == 54321 and 5 or math.sin(i) } end
  for _, kind in ipairs { "line", "steps" } do
    local svg = check(plot.svg { y = { min = 0, max = 5 }, series = { { kind = kind, points = points } } })
    t.ok(#svg < 120000, #svg)
    local highest = math.huge
    for y in lines(svg)[1]:gmatch "[ML][%d.-]+ ([%d.-]+)" do highest = math.min(highest, tonumber(y)) end
    t.near(highest, tonumber(svg:match '<path class="axis" d="M[%d.]+ ([%d.]+)V'), 0.11)
  end
end)

t.test("misuse is told", function()
  t.raises(function() plot.svg { serie = {} } end, "did you mean 'series'")
  t.raises(function() plot.svg { series = { { kind = "lines" } } } end, "did you mean 'line'")
  t.raises(function() plot.svg { y = { lable = "a" } } end, "did you mean 'label'")
  t.raises(function() plot.svg { y = { log = true, min = 0 } } end, "y.min is 0")
  t.raises(function() plot.svg { x = { min = 2, max = 1 } } end, "x.min is 2, x.max is 1")
end)

t.finish()
