-- Plots as self-contained SVG text: lines, steps, bars and points over linear or logarithmic axes, with a legend. The
-- colours follow the reader's light or dark setting. The text can stand alone in a file or inside an HTML page.
--
--   plot.svg{ title=, x={label=, log=, min=, max=, ticks=}, y={ the same }, width=640, height=320, series={...},
--     bands={ {from=, to=, label=}, ... }, marks={ {x=, label=} or {y=, label=}, ... }, notes={ line, ... } } -> SVG text
--
-- A series: { name=, kind="line"|"steps"|"bars"|"points", points={ {x, y}, {x, y, label}, ... }, colour=1..8 (default:
-- the next one) }. Values that are not finite (and not positive, on a logarithmic axis) break a line and show nothing.
-- A step holds its y up to the next x. Bars of several series with one x stand side by side. ticks = { {value, label},
-- ... } in place of numbers. Bands are ranges of x, marks single values. Notes stand in the lower right corner.
local lib = require "melies.ffi.lib"

local plot = {}

local floor, ceil, abs, max, min, log10 = math.floor, math.ceil, math.abs, math.max, math.min, math.log10
local font, tall = 12, 15 -- pixels: size of text, height of its line

-- Colour-blind safe, readable on the backgrounds below: light, dark.
local colours = {
  { "#1f6fb4", "#6db3f2" }, { "#d95f02", "#ff9d4d" }, { "#1b8a5a", "#5fd39a" }, { "#c2307e", "#f27ab5" },
  { "#7a5cc0", "#b49cf0" }, { "#8a6d00", "#d9bf4e" }, { "#0091a8", "#4fd0e3" }, { "#666a73", "#b4b8c0" },
}
local dashes = { "", "6 3", "2 3", "8 3 2 3" } -- a round of colours each

local function style()
  local out = {}
  for mode = 1, 2 do
    local paper, ink, soft, faint = "#ffffff", "#22262e", "#5b616c", "#e3e6ea"
    if mode == 2 then paper, ink, soft, faint = "#171a1f", "#e8eaee", "#a6acb7", "#343a44" end
    local rules = { (".paper{fill:%s}.ink{fill:%s}.soft{fill:%s}.grid{stroke:%s}.axis{stroke:%s}.band{fill:%s}"
      .. ".halo{stroke:%s;stroke-width:4px;stroke-linejoin:round;paint-order:stroke}"):format(
      paper, ink, soft, faint, soft, faint, paper) }
    for i, colour in ipairs(colours) do
      rules[#rules + 1] = (".l%d{stroke:%s}.f%d{fill:%s}"):format(i, colour[mode], i, colour[mode])
    end
    local text = table.concat(rules):gsub("%.(%l%w*{)", ".melies-plot .%1")
    out[mode] = mode == 2 and "@media (prefers-color-scheme:dark){" .. text .. "}" or text
  end
  return (".melies-plot{font:%dpx system-ui,'DejaVu Sans',sans-serif}%s"):format(font, table.concat(out))
end

local entities = { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;", ['"'] = "&quot;", ["'"] = "&#39;" }

-- plot.escape(value): text for XML or HTML. Control characters, which XML has no way to say, become spaces.
function plot.escape(value)
  return (tostring(value):gsub("[&<>\"']", entities):gsub("[%z\1-\8\11\12\14-\31\127]", " "))
end
local escape = plot.escape

-- Width of text in pixels, about: letters of a sans-serif font; bytes that continue a UTF-8 letter count nothing.
local function text_width(text) return #text:gsub("[\128-\191]", "") * font * 0.58 end

local function finite(v) return type(v) == "number" and v == v and abs(v) < 1e300 end

-- A coordinate, short.
local function px(v) return (("%.1f"):format(v):gsub("%.0$", "")) end

-- ---- axes --------------------------------------------------------------------------------------------

local function grouped(text)
  local sign, whole, rest = text:match "^(%-?)(%d+)(.*)$"
  return sign .. whole:reverse():gsub("(%d%d%d)", "%1,"):reverse():gsub("^,", "") .. rest
end

-- v as it is written at a tick whose neighbour is step away.
local function number_text(v, step)
  if v == 0 or abs(v) < step * 1e-6 then return "0" end
  if abs(v) >= 1e7 or step < 1e-5 then
    local digits = max(1, floor(log10(abs(v)) + 1e-9) - floor(log10(step) + 1e-9) + 1)
    return (("%%.%dg"):format(min(digits, 15)):format(v):gsub("e([+-])0*", "e%1"):gsub("e%+", "e"))
  end
  return grouped(("%%.%df"):format(max(0, -floor(log10(step) + 1e-9))):format(v))
end

-- A step of 1, 2 or 5 times a power of ten that divides span into about count.
local function nice_step(span, count)
  local raw = span / count
  local unit = 10 ^ floor(log10(raw))
  local r = raw / unit
  return unit * (r <= 1.0001 and 1 or r <= 2.0001 and 2 or r <= 5.0001 and 5 or 10)
end

local function linear_ticks(lo, hi, count)
  local step, out = nice_step(hi - lo, count), {}
  for i = ceil(lo / step - 1e-6), floor(hi / step + 1e-6) do
    out[#out + 1] = { i * step, number_text(i * step, step) }
  end
  return out, step
end

local function log_ticks(lo, hi, count)
  local a, b, out = log10(lo), log10(hi), {}
  local decades = b - a
  if decades < 0.8 then return linear_ticks(lo, hi, count) end
  local every = max(1, ceil(decades / count))
  local factors = decades * 2 <= count and { 1, 2, 5 } or { 1 }
  for k = floor(a), ceil(b) do
    for _, factor in ipairs(k % every == 0 and factors or {}) do
      local v = factor * 10 ^ k
      if v >= lo * 0.999999 and v <= hi * 1.000001 then out[#out + 1] = { v, number_text(v, 10 ^ k) } end
    end
  end
  return out
end

-- An axis over values: lo, hi, ticks and at(v) in 0..1. `snug` ends at the values, else at round numbers; pad is a
-- share of the span that is left free at both ends.
local function make_axis(options, values, count, snug, pad)
  local axis = { log = options.log, label = options.label }
  local function known(v) return finite(v) and (not axis.log or v > 0) end
  axis.known = known
  local f = axis.log and log10 or function(v) return v end
  local inverse = axis.log and function(v) return 10 ^ v end or f
  local lo, hi = math.huge, -math.huge
  for _, v in ipairs(values) do
    if known(v) then lo, hi = min(lo, v), max(hi, v) end
  end
  if lo > hi then lo, hi = options.min or axis.log and 1 or 0, options.max or axis.log and 10 or 1 end
  lo, hi = options.min or lo, options.max or hi
  if not snug and not axis.log and not options.min and lo > 0 and lo < 0.4 * hi then lo = 0 end
  lo, hi = f(lo), f(hi)
  if hi - lo <= 1e-9 * max(abs(lo), abs(hi)) then
    local room = axis.log and 0.5 or max(abs(lo), abs(hi)) * 0.5
    lo, hi = lo - (options.min and 0 or room), hi + (room > 0 and room or 1)
  end
  local room = (hi - lo) * pad
  if not options.min then lo = lo - room end
  if not options.max then hi = hi + room end
  if not snug then
    local step = axis.log and hi - lo > 0.8 and 1 or not axis.log and nice_step(hi - lo, count)
    if step and axis.log then -- to the next of 1, 2, 5
      local function nice(v, up)
        local unit = 10 ^ floor(v + (up and -1e-9 or 1e-9))
        local r, best = 10 ^ v / unit, up and 10 or 1
        for _, factor in ipairs { 2, 5 } do
          if up and r <= factor * 1.0001 and factor < best or not up and r >= factor * 0.9999 then best = factor end
        end
        return log10(best * unit)
      end
      lo, hi = options.min and lo or nice(lo, false), options.max and hi or nice(hi, true)
    elseif step then
      lo = options.min and lo or floor(lo / step + 1e-6) * step
      hi = options.max and hi or ceil(hi / step - 1e-6) * step
    end
  end
  axis.lo, axis.hi = inverse(lo), inverse(hi)
  axis.ticks = options.ticks or (axis.log and log_ticks or linear_ticks)(axis.lo, axis.hi, count)
  function axis.at(v) return (f(v) - lo) / (hi - lo) end
  function axis.inside(v) return known(v) and axis.at(v) >= -1e-6 and axis.at(v) <= 1 + 1e-6 end
  return axis
end

-- ---- shapes ------------------------------------------------------------------------------------------

-- Runs of pixels between breaks. Where many points fall on one column of pixels, the first, the last and the extremes
-- of the column are kept. step: a corner before every point.
local function runs(points, x, y, step)
  local out, run, column, seen, previous = {}, nil, nil, nil, nil
  local function finish_column()
    for _, p in ipairs(seen) do
      if p.i > run[#run].i then run[#run + 1] = p end
    end
  end
  local function put(p, i)
    p.i = i
    local here = floor(p[1])
    if here ~= column then
      if column then finish_column() end
      column, run[#run + 1] = here, p
      seen = { p, p, p } -- two extremes in their order, the last
      run.low, run.high = p, p
    end
    if p[2] < run.low[2] then run.low = p end
    if p[2] > run.high[2] then run.high = p end
    local low_first = run.low.i < run.high.i
    seen[1], seen[2], seen[3] = low_first and run.low or run.high, low_first and run.high or run.low, p
  end
  for i, point in ipairs(points) do
    if x.known(point[1]) and y.known(point[2]) then
      local p = { x.px(point[1]), y.px(point[2]) }
      if not run then
        run, column = {}, nil
        out[#out + 1] = run
      elseif step then put({ p[1], previous[2] }, i - 0.5) end
      put(p, i)
      previous = p
    elseif run then
      finish_column()
      run = nil
    end
  end
  if run then finish_column() end
  return out
end

-- The smallest distance between two x of the series of bars; the axis' whole span where there is one bar.
local function bar_gap(series)
  local all, gap = {}, math.huge
  for _, s in ipairs(series) do
    for _, p in ipairs(s.kind == "bars" and s.points or {}) do
      if finite(p[1]) then all[#all + 1] = p[1] end
    end
  end
  table.sort(all)
  for i = 2, #all do
    if all[i] > all[i - 1] then gap = min(gap, all[i] - all[i - 1]) end
  end
  return gap < math.huge and gap or 1
end

-- Where a label of w pixels stands beside (cx, cy) without lying on what is there; taken = rectangles {x1, y1, x2, y2}.
local function place(taken, cx, cy, w, frame)
  local best, least
  for _, far in ipairs { 7, 20, 34, 48 } do
    for _, d in ipairs { { 1, 0 }, { -1, 0 }, { 0, -1 }, { 0, 1 }, { 1, -1 }, { -1, -1 }, { 1, 1 }, { -1, 1 } } do
      local x1 = d[1] > 0 and cx + far or d[1] < 0 and cx - far - w or cx - w / 2
      local y1 = cy - tall / 2 + d[2] * (far + tall / 2 - 3)
      local r = { x1, y1, x1 + w, y1 + tall }
        local cost = far / 4
      if r[1] < frame[1] or r[3] > frame[3] or r[2] < frame[2] or r[4] > frame[4] then cost = cost + 1e4 end
      for _, o in ipairs(taken) do
        local over = max(0, min(r[3], o[3]) - max(r[1], o[1])) * max(0, min(r[4], o[4]) - max(r[2], o[2]))
        cost = cost + over
      end
      if not least or cost < least then best, least = r, cost end
    end
  end
  taken[#taken + 1] = best
  return best
end

-- ---- the picture -------------------------------------------------------------------------------------

local allowed = { title = true, x = true, y = true, width = true, height = true, series = true, bands = true,
  marks = true, notes = true }
local axis_allowed = { label = true, log = true, min = true, max = true, ticks = true }
local series_allowed = { name = true, kind = true, points = true, colour = true }
local kinds = { line = true, steps = true, bars = true, points = true }

local function checked(o)
  if type(o) ~= "table" then error("plot.svg takes a table", 3) end
  lib.check_options("plot.svg", o, allowed, 3)
  for _, name in ipairs { "x", "y" } do
    local axis = o[name] or {}
    lib.check_options("plot.svg: " .. name, axis, axis_allowed, 3)
    for _, key in ipairs { "min", "max" } do
      local v = axis[key]
      if v ~= nil and (not finite(v) or axis.log and v <= 0) then
        error(("plot.svg: %s.%s is %s"):format(name, key, tostring(v)), 3)
      end
    end
    if axis.min and axis.max and axis.min >= axis.max then
      error(("plot.svg: %s.min is %g, %s.max is %g"):format(name, axis.min, name, axis.max), 3)
    end
  end
  local series = {}
  for i, s in ipairs(o.series or {}) do
    lib.check_options("plot.svg: series " .. i, s, series_allowed, 3)
    if s.kind and not kinds[s.kind] then
      error(("plot.svg: unknown kind '%s'%s"):format(tostring(s.kind), lib.suggest(tostring(s.kind), kinds)), 3)
    end
    series[i] = { name = s.name, kind = s.kind or "line", points = s.points or {},
      colour = ((s.colour or i) - 1) % #colours + 1,
      dash = s.colour and "" or dashes[floor((i - 1) / #colours) % #dashes + 1] }
  end
  return series
end

-- plot.svg(options): SVG text, see the top of this file. Raises for options that are not known.
function plot.svg(o)
  local series = checked(o)
  local width, height = o.width or 640, o.height or 320
  local out = {}
  local function add(format, ...) out[#out + 1] = format:format(...) end
  local function text(x, y, words, class, more)
    add('<text x="%s" y="%s" class="%s"%s>%s</text>', px(x), px(y), class, more and " " .. more or "", escape(words))
  end

  -- Values of both axes, and what kinds there are.
  local xs, ys, has = {}, {}, {}
  for _, s in ipairs(series) do
    has[s.kind] = (has[s.kind] or 0) + 1
    for _, p in ipairs(s.points) do
      if finite(p[1]) and finite(p[2]) then xs[#xs + 1], ys[#ys + 1] = p[1], p[2] end
      has.labels = has.labels or p[3] ~= nil
    end
  end
  for _, band in ipairs(o.bands or {}) do xs[#xs + 1], xs[#xs + 2] = band.from, band.to end
  for _, mark in ipairs(o.marks or {}) do xs[#xs + 1], ys[#ys + 1] = mark.x or nil, mark.y or nil end
  local xo, yo = o.x or {}, o.y or {}
  if has.bars and not yo.log then ys[#ys + 1] = 0 end
  local gap = has.bars and bar_gap(series)
  if gap and not xo.log then
    local lo, hi = math.huge, -math.huge
    for _, v in ipairs(xs) do lo, hi = min(lo, v), max(hi, v) end
    if lo <= hi then xs[#xs + 1], xs[#xs + 2] = lo - gap / 2, hi + gap / 2 end
  end

  -- Heights above and below the frame, widths beside it.
  local rows, entries = 0, {}
  local row_width = math.huge
  for _, s in ipairs(series) do
    if s.name then
      local w = 22 + text_width(tostring(s.name)) + 12
      if row_width + w > width - 24 then rows, row_width = rows + 1, 0 end
      entries[#entries + 1] = { series = s, x = 12 + row_width, row = rows }
      row_width = row_width + w
    end
  end
  local top = 12 + (o.title and tall + 8 or 0) + rows * (tall + 3) + (rows > 0 and 6 or 0)
  local slanted, bottom = false, 12 + tall + (xo.label and tall + 6 or 0)
  if xo.ticks then
    local widest = 0
    for _, tick in ipairs(xo.ticks) do widest = max(widest, text_width(tostring(tick[2]))) end
    if widest * #xo.ticks > (width - 80) * 0.95 then
      slanted, bottom = true, bottom + min(widest, 160) * 0.5
    end
  end
  local plot_height = max(40, height - top - bottom)
  local y = make_axis(yo, ys, max(2, floor(plot_height / 38)), false, 0)
  local widest = 0
  for _, tick in ipairs(y.ticks) do widest = max(widest, text_width(tostring(tick[2]))) end
  local left = 10 + widest + (yo.label and tall + 6 or 0)
  local pad = has.points and not has.bars and 0.03 or 0
  local plot_width = max(40, width - left - 18)
  local x = make_axis(xo, xs, max(2, floor(plot_width / 72)), true, pad)
  local last = x.ticks[#x.ticks]
  if last and not slanted then -- half of the last number stands right of the frame
    local room = text_width(tostring(last[2])) / 2 + 6 - (1 - x.at(last[1])) * plot_width
    plot_width = max(40, width - left - max(18, room))
  end
  function x.px(v) return left + x.at(v) * plot_width end
  function y.px(v) return top + (1 - y.at(v)) * plot_height end
  local right, base = left + plot_width, top + plot_height

  add('<svg xmlns="http://www.w3.org/2000/svg" class="melies-plot" width="%d" height="%d" viewBox="0 0 %d %d" '
    .. 'role="img" aria-label="%s">', width, height, width, height, escape(o.title or yo.label or "plot"))
  add("<style>%s</style>", style())
  add('<rect class="paper" width="%d" height="%d"/>', width, height)
  if o.title then text(12, 12 + font, o.title, "ink", 'font-weight="600"') end
  for _, entry in ipairs(entries) do
    local s, cy = entry.series, top - 6 - (rows - entry.row + 1) * (tall + 3) + tall / 2 + 3
    if s.kind == "points" then add('<circle class="f%d" cx="%s" cy="%s" r="4"/>', s.colour, px(entry.x + 8), px(cy))
    elseif s.kind == "bars" then
      add('<rect class="f%d" x="%s" y="%s" width="12" height="10"/>', s.colour, px(entry.x + 2), px(cy - 5))
    else
      add('<path class="l%d" d="M%s %sh16" stroke-width="2"%s/>', s.colour, px(entry.x), px(cy),
        s.dash ~= "" and (' stroke-dasharray="%s"'):format(s.dash) or "")
    end
    text(entry.x + 21, cy + 4, s.name, "ink")
  end

  for _, band in ipairs(o.bands or {}) do
    local a, b = max(0, min(1, x.at(band.from))), max(0, min(1, x.at(band.to)))
    add('<rect class="band" x="%s" y="%s" width="%s" height="%s"/>', px(left + a * plot_width), px(top),
      px(max(1, (b - a) * plot_width)), px(plot_height))
    if band.label then text(left + a * plot_width + 4, top + 12, band.label, "soft") end
  end
  for _, tick in ipairs(y.ticks) do
    if y.inside(tick[1]) then
      local at = y.px(tick[1])
      add('<path class="grid" d="M%s %sH%s"/>', px(left), px(at), px(right))
      text(left - 6, at + 4, tick[2], "soft", 'text-anchor="end"')
    end
  end
  for _, tick in ipairs(x.ticks) do
    if x.inside(tick[1]) then
      local at = x.px(tick[1])
      if not has.bars then add('<path class="grid" d="M%s %sV%s"/>', px(at), px(top), px(base)) end
      add('<path class="axis" d="M%s %sv4"/>', px(at), px(base))
      local turn = slanted and (' transform="rotate(-30 %s %s)"'):format(px(at), px(base + 14)) or ""
      text(at, base + 17, tick[2], "soft", ('text-anchor="%s"%s'):format(slanted and "end" or "middle", turn))
    end
  end
  add('<path class="axis" d="M%s %sV%sH%s" fill="none"/>', px(left), px(top), px(base), px(right))
  if xo.label then text((left + right) / 2, height - 9, xo.label, "ink", 'text-anchor="middle"') end
  if yo.label then
    local cy = (top + base) / 2
    text(16, cy, yo.label, "ink", ('text-anchor="middle" transform="rotate(-90 16 %s)"'):format(px(cy)))
  end

  -- What is drawn with the frame as its window: a nested svg cuts what reaches over it.
  add('<svg x="%s" y="%s" width="%s" height="%s" viewBox="%s %s %s %s">', px(left), px(top - 1), px(plot_width),
    px(plot_height + 1), px(left), px(top - 1), px(plot_width), px(plot_height + 1))
  local taken, labelled = {}, {} -- what labels should not lie on; the labels
  local floor_px = y.px(yo.log and y.lo or max(y.lo, min(y.hi, 0)))
  local bar_index = 0
  for _, s in ipairs(series) do
    if s.kind == "bars" then
      bar_index = bar_index + 1
      for _, p in ipairs(s.points) do
        if x.known(p[1]) and y.known(p[2]) then
          local slot = xo.log and plot_width / max(1, #s.points) or gap / (x.hi - x.lo) * plot_width
          local w = max(1, slot * 0.8 / has.bars)
          local x1 = x.px(p[1]) + (bar_index - 1 - has.bars / 2) * w
          local y1 = max(top - 5, min(base + 5, y.px(p[2])))
          add('<rect class="f%d" x="%s" y="%s" width="%s" height="%s"/>', s.colour, px(x1), px(min(y1, floor_px)),
            px(max(1, w - (has.bars > 1 and 1 or 0))), px(max(0.5, abs(floor_px - y1))))
        end
      end
    elseif s.kind ~= "points" then
      for _, run in ipairs(runs(s.points, x, y, s.kind == "steps")) do
        local d = {}
        for i, p in ipairs(run) do
          d[i] = ("%s%s %s"):format(i == 1 and "M" or "L", px(p[1]), px(max(-1e5, min(1e5, p[2]))))
        end
        for i = 2, has.labels and #run or 1 do
          local a, b = run[i - 1], run[i]
          local n = ceil(max(abs(a[1] - b[1]), abs(a[2] - b[2])) / 6)
          for k = 0, min(n, 400) do
            local cx, cy = a[1] + (b[1] - a[1]) * k / n, a[2] + (b[2] - a[2]) * k / n
            taken[#taken + 1] = { cx - 3, cy - 3, cx + 3, cy + 3 }
          end
        end
        if #run == 1 then d[2] = "h0.1" end -- one point alone is a dot
        add('<path class="l%d" d="%s" fill="none" stroke-width="%s" stroke-linejoin="round" stroke-linecap="%s"%s/>',
          s.colour, table.concat(d), #run == 1 and "4" or "1.8", #run == 1 and "round" or "butt",
          s.dash ~= "" and (' stroke-dasharray="%s"'):format(s.dash) or "")
      end
    end
  end
  add "</svg>"

  for _, mark in ipairs(o.marks or {}) do
    if mark.x and x.inside(mark.x) then
      add('<path class="axis" d="M%s %sV%s" stroke-dasharray="4 3"/>', px(x.px(mark.x)), px(top), px(base))
      local flip = mark.label and x.px(mark.x) + 4 + text_width(tostring(mark.label)) > right
      if mark.label then
        text(x.px(mark.x) + (flip and -4 or 4), top + 12, mark.label, "soft", flip and 'text-anchor="end"')
      end
    elseif mark.y and y.inside(mark.y) then
      add('<path class="axis" d="M%s %sH%s" stroke-dasharray="4 3"/>', px(left), px(y.px(mark.y)), px(right))
      if mark.label then text(right - 4, y.px(mark.y) - 4, mark.label, "soft halo", 'text-anchor="end"') end
    end
  end

  -- Dots, then labels where they lie on nothing.
  for _, s in ipairs(series) do
    for _, p in ipairs(s.points) do
      if x.inside(p[1]) and y.inside(p[2]) then
        local cx, cy = x.px(p[1]), y.px(p[2])
        if s.kind == "points" then
          add('<circle class="f%d" cx="%s" cy="%s" r="4"/>', s.colour, px(cx), px(cy))
          if #series * #s.points < 2000 then taken[#taken + 1] = { cx - 4, cy - 4, cx + 4, cy + 4 } end
        end
        if p[3] then labelled[#labelled + 1] = { cx, cy, tostring(p[3]), s } end
      end
    end
  end
  local note_width = 0
  for _, line in ipairs(o.notes or {}) do note_width = max(note_width, text_width(tostring(line))) end
  if note_width > 0 then
    add('<rect class="paper" x="%s" y="%s" width="%s" height="%s"/>', px(right - note_width - 14),
      px(base - 8 - #o.notes * tall), px(note_width + 13), px(#o.notes * tall + 7))
  end
  for i, line in ipairs(o.notes or {}) do
    text(right - note_width - 10, base - 8 - (#o.notes - i) * tall, line, "soft")
  end
  for _, l in ipairs(labelled) do
    local r = place(taken, l[1], l[2], text_width(l[3]), { left, top, right, base })
    local ex, ey = max(r[1], min(r[3], l[1])), max(r[2], min(r[4], l[2]))
    if (ex - l[1]) ^ 2 + (ey - l[2]) ^ 2 > 14 ^ 2 then
      add('<path class="l%d" d="M%s %sL%s %s" stroke-width="0.7"/>', l[4].colour, px(l[1]), px(l[2]), px(ex), px(ey))
    end
    text(r[1], r[2] + 11, l[3], "ink")
  end
  add "</svg>"
  return table.concat(out, "\n") .. "\n"
end

return plot
