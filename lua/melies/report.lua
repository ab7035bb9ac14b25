-- Pages about films: one HTML file with everything in it, which needs no scripts and follows the reader's light or dark
-- setting.
--
--   report.film(data) -> html      a film made here: storyboard, prompts, checks over time, repairs, timing, how to do it again
--   report.video(data) -> html     any film: what melies.consistency.report says of it, as a table and as plots
--   report.picture(frame, width) -> data URI of a JPEG
--
-- data of report.film: title, prompt, board, width, height, fps, frames, model, versions, seed, command, params (name ->
-- text), memory (notes of memory_bank.apply), said (lines), timing ({ { what, seconds } }), peak_bytes, before and after (checks
-- of melies.consistency.report, before and after the passes; cuts and fps in them), passes (text), shots: { text, prompt,
-- dropped, who, where, camera, light, seed, transition, from, to (seconds), pictures (data URIs), attempts, kept }.
local ffi = require "ffi"
local compose = require "melies.plan.compose"
local json = require "melies.json"
local plot = require "melies.plot"

local M = {}
local escape = plot.escape

local STYLE = [[
:root{color-scheme:light dark;--paper:#fff;--card:#f6f7f9;--ink:#22262e;--soft:#5b616c;--line:#dfe3e8;--good:#12703f;
--bad:#b3261e;--add:#d9f2e2;--cut:#fbe0de;--link:#1457a8}
@media (prefers-color-scheme:dark){:root{--paper:#171a1f;--card:#20242b;--ink:#e8eaee;--soft:#a6acb7;--line:#343a44;
--good:#6fd39c;--bad:#ff9a91;--add:#1d4030;--cut:#4d2624;--link:#8dbcf5}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1080px;padding:24px 20px 64px;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,"DejaVu Sans",sans-serif}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 8px}
h2{font-size:1.35rem;margin:48px 0 12px;padding-top:12px;
border-top:1px solid var(--line)}h3{font-size:1.05rem;margin:0}
p{margin:8px 0;max-width:75ch}a{color:var(--link)}.soft,figcaption,caption{color:var(--soft)}.small{font-size:.875rem}
nav ul{display:flex;flex-wrap:wrap;gap:4px 20px;list-style:none;padding:0;margin:16px 0 0}
dl.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(140px,1fr));gap:12px;margin:16px 0}
dl.facts div{background:var(--card);border-radius:8px;padding:8px 12px}
dt{color:var(--soft);font-size:.8rem}dd{margin:0;overflow-wrap:anywhere}
.shots{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,480px),1fr));gap:20px}
article{background:var(--card);border-radius:10px;padding:14px;min-width:0}
article header{display:flex;justify-content:space-between;gap:12px;align-items:baseline;margin-bottom:10px}
.frames{display:grid;grid-template-columns:repeat(3,1fr);gap:6px}
.frames img{width:100%;height:auto;border-radius:4px;display:block}
article dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 12px;margin:10px 0 0;font-size:.9rem}
ins{background:var(--add);text-decoration:none;border-radius:3px;padding:0 2px;border-bottom:2px solid var(--good)}
del{background:var(--cut);border-radius:3px;padding:0 2px}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.92rem}
caption{text-align:left;padding-bottom:6px}th,td{text-align:left;padding:6px 12px 6px 0;border-bottom:1px solid var(--line);
vertical-align:top}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.pass{color:var(--good);font-weight:600}.fail{color:var(--bad);font-weight:600}
.plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,480px),1fr));gap:20px;margin-top:20px}
figure{margin:0;min-width:0}figure svg{max-width:100%;height:auto}figcaption{font-size:.875rem;margin-top:4px}
pre{background:var(--card);padding:12px 14px;border-radius:8px;white-space:pre-wrap;overflow-wrap:anywhere;font-size:.9rem}
@media print{nav{display:none}article,figure{break-inside:avoid}}
]]

-- ---- pieces ----------------------------------------------------------------------------------------

local function number(value)
  if value == nil then return "–" end
  if value % 1 == 0 and math.abs(value) < 1e6 then return ("%d"):format(value) end
  return math.abs(value) < 0.01 and ("%.2e"):format(value) or ("%.4g"):format(value)
end

local function clock(seconds)
  return ("%d:%04.1f"):format(math.floor(seconds / 60), math.floor(seconds % 60 * 10) / 10)
end

local function page(title, body, data)
  return table.concat { '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>', escape(title), "</title>\n<style>\n", STYLE,
    "</style>\n</head>\n<body>\n", table.concat(body, "\n"), "\n",
    data and '<script type="application/json" id="data">' .. json.encode(data):gsub("<", "\\u003c") .. "</script>\n" or "",
    "</body>\n</html>\n" }
end

local function facts(list)
  local out = { '<dl class="facts">' }
  for _, pair in ipairs(list) do
    if pair[2] then out[#out + 1] = ("<div><dt>%s</dt><dd>%s</dd></div>"):format(escape(pair[1]), escape(pair[2])) end
  end
  out[#out + 1] = "</dl>"
  return table.concat(out)
end

-- rows of cells; a cell is text (escaped) or { html = }; columns: names, those that end in "#" hold numbers.
local function table_of(caption, columns, rows)
  local out = { '<div class="scroll" tabindex="0" role="group" aria-label="', escape(caption),
    '"><table><caption>', escape(caption), "</caption><thead><tr>" }
  local numbers = {}
  for i, name in ipairs(columns) do
    numbers[i] = name:sub(-1) == "#" and ' class="n"' or ""
    out[#out + 1] = ('<th scope="col"%s>%s</th>'):format(numbers[i], escape((name:gsub("#$", ""))))
  end
  out[#out + 1] = "</tr></thead><tbody>"
  for _, row in ipairs(rows) do
    out[#out + 1] = "<tr>"
    for i in ipairs(columns) do
      local cell = row[i]
      local text = type(cell) == "table" and cell.html or escape(cell == nil and "" or cell)
      out[#out + 1] = i == 1 and ('<th scope="row">%s</th>'):format(text) or ("<td%s>%s</td>"):format(numbers[i], text)
    end
    out[#out + 1] = "</tr>"
  end
  out[#out + 1] = "</tbody></table></div>"
  return table.concat(out)
end

local function verdict(pass)
  if pass == nil then return { html = '<span class="soft">not judged</span>' } end
  return { html = pass and '<span class="pass">passes</span>' or '<span class="fail">fails</span>' }
end

-- Old words to new ones, with <ins> and <del>.
local function difference(old, new)
  local out = {}
  for _, run in ipairs(compose.changes(old, new)) do
    local text = escape(run[2])
    out[#out + 1] = run[1] == "+" and "<ins>" .. text .. "</ins>" or run[1] == "-" and "<del>" .. text .. "</del>" or text
  end
  return table.concat(out, " ")
end

function M.picture(frame, width)
  local media, show, video = require "melies.media", require "melies.show", require "melies.video"
  local h, w = frame.shape[1], frame.shape[2]
  if w > width then frame = video.resize(frame, math.floor(h * width / w / 2 + 0.5) * 2, width) end
  if frame.dtype ~= "u8" then frame = media.to_u8(frame:contiguous()) end
  local name = os.tmpname()
  local path = name .. ".jpg"
  local ok, message = media.save_image(path, frame:contiguous(), { quality = 82 })
  local bytes = ok and require("melies.fs").read(path)
  os.remove(path)
  os.remove(name)
  if not bytes then return nil, message end
  return "data:image/jpeg;base64," .. show.base64(ffi.cast("const uint8_t*", bytes), #bytes)
end

-- ---- checks ----------------------------------------------------------------------------------------

-- Checks whose series are on another scale than their value and threshold.
local other_scale = { dynamic_degree = true, black_frames = true, broken_frames = true, cuts = true, loop_seam = true }

local function points_of(check, fps)
  local points, least, most = {}, math.huge, -math.huge
  local series = check and check.series
  for i, frame in ipairs(series and series.frames or {}) do
    local value = series.values[i]
    points[i] = { (frame - 1) / fps, value }
    least, most = math.min(least, value), math.max(most, value)
  end
  return #points > 1 and most > least and points or nil
end

-- A plot of a check's series; `before` is that of the film before its passes, or nil.
local function plot_of(check, fps, cuts, before, before_fps)
  local points = points_of(check, fps)
  local old = points_of(before, before_fps or fps)
  if not points and not old then return nil end
  local marks, series = {}, {}
  if check.threshold and not other_scale[check.name] then
    marks[1] = { y = check.threshold, label = (check.better == "high" and "at least " or "at most ") .. number(check.threshold) }
  end
  for _, frame in ipairs(cuts or {}) do marks[#marks + 1] = { x = (frame - 1) / fps } end
  local kind = #(points or old) < 10 and "points" or "line"
  if old then series[1] = { name = "before passes", points = old, colour = 8, kind = kind } end
  if points then series[#series + 1] = { name = old and "after" or check.name, points = points, colour = 1, kind = kind } end
  local words = check.help or ""
  return ('<figure><h3>%s</h3>%s<figcaption>%s</figcaption></figure>'):format(escape((check.name:gsub("_", " "))),
    plot.svg { x = { label = "seconds" }, y = { label = "" }, width = 480, height = 240, series = series, marks = marks },
    escape(words .. (check.note and " " .. check.note:gsub("^%l", string.upper) .. "." or "")))
end

local function limit_of(check)
  return check.threshold and (check.better == "high" and "≥ " or "≤ ") .. number(check.threshold) or ""
end

local function places(check)
  local out = {}
  for i = 1, math.min(3, check.pass == false and #check.where or 0) do
    local w = check.where[i]
    out[i] = ("%s s%s"):format(number(math.floor(w.time * 100 + 0.5) / 100), w.what and " " .. w.what or "")
  end
  return table.concat(out, ", ")
end

local function plots(data, before)
  local out, old = {}, {}
  for _, check in ipairs(before and before.checks or {}) do old[check.name] = check end
  for _, check in ipairs(data.checks) do
    out[#out + 1] = plot_of(check, data.fps, data.cuts, old[check.name], before and before.fps)
  end
  if #out == 0 then return "" end
  return '<p class="soft small">Upright lines are cuts.</p><div class="plots">' .. table.concat(out, "\n") .. "</div>"
end

function M.video(data)
  local name = data.title or data.video and tostring(data.video):match "[^/]+$" or "A film"
  local body = { "<header><h1>" .. escape(name) .. "</h1>" }
  if data.prompt then body[#body + 1] = "<p>" .. escape(data.prompt) .. "</p>" end
  body[#body + 1] = facts { { "Length", clock(data.seconds) }, { "Frames", ("%d at %.4g a second"):format(data.frames,
    data.fps) }, { "Size", ("%d × %d"):format(data.width, data.height) }, { "Shots", tostring(#data.shots) },
    { "Checks", data.passed and "all pass" or #data.failed .. " fail" }, { "Made by", data.recipe } }
  body[#body + 1] = "</header><main>"
  local rows = {}
  for i, c in ipairs(data.checks) do
    rows[i] = { c.name, number(c.value), limit_of(c), verdict(c.pass), places(c) .. (c.note and (places(c) ~= "" and "; " or "")
      .. c.note or "") }
  end
  body[#body + 1] = '<section id="checks"><h2>Checks</h2>' .. table_of("What was measured, and what it was held against",
    { "check", "value#", "limit#", "verdict", "where, and notes" }, rows) .. plots(data) .. "</section>"
  rows = {}
  for i, shot in ipairs(data.shots) do
    rows[i] = { tostring(i), clock(shot.from), clock(shot.to), ("%d to %d"):format(shot.first, shot.last),
      data.pictures and data.pictures[i] and { html = ('<img src="%s" alt="The first frame of shot %d">'):format(
        data.pictures[i], i) } or "" }
  end
  body[#body + 1] = '<section id="shots"><h2>Shots</h2>' .. table_of("Where shots begin and end",
    { "shot", "from#", "to#", "frames#", data.pictures and "first frame" or nil }, rows) .. "</section></main>"
  return page(name .. " – checks", body)
end

-- ---- films made here ----------------------------------------------------------------------------------

local function shot_card(i, shot)
  local out = { ('<article id="shot-%d"><header><h3>Shot %d</h3><span class="soft small">%s – %s</span></header>'):format(i, i,
    clock(shot.from), clock(shot.to)) }
  if #shot.pictures > 0 then
    out[#out + 1] = '<div class="frames">'
    for k, uri in ipairs(shot.pictures) do
      out[#out + 1] = ('<img src="%s" alt="Shot %d, %s: %s">'):format(uri, i, ({ "beginning", "middle", "end" })[k] or "later",
        escape(shot.prompt))
    end
    out[#out + 1] = "</div>"
  end
  out[#out + 1] = "<p>" .. difference(shot.text or "", shot.prompt) .. "</p>"
  local list = { { "Who", table.concat(shot.who or {}, ", ") }, { "Where", shot.where }, { "Camera", shot.camera },
    { "Light", shot.light }, { "Begins with", shot.transition }, { "Seed", ("%.0f"):format(shot.seed) },
    { "Left out", #(shot.dropped or {}) > 0 and table.concat(shot.dropped, ", ") .. " (no room in the model's text)" or nil },
    { "Attempts", #shot.attempts > 1 and ("%d, number %d kept"):format(#shot.attempts, shot.kept) or nil } }
  out[#out + 1] = "<dl>"
  for _, pair in ipairs(list) do
    if pair[2] and pair[2] ~= "" then
      out[#out + 1] = ("<dt>%s</dt><dd>%s</dd>"):format(escape(pair[1]), escape(pair[2]))
    end
  end
  out[#out + 1] = "</dl></article>"
  return table.concat(out)
end

-- Better, worse or the same, of a check's values.
local function change(before, after)
  if not (before and before.value and after.value) or before.value == after.value or after.pass == nil then return "" end
  local better = (after.value > before.value) == (after.better == "high")
  return { html = better and '<span class="pass">better</span>' or '<span class="soft">worse</span>' }
end

local function checks_section(data)
  local after, before, rows, old = data.after, data.before, {}, {}
  if not after then return "" end
  for _, c in ipairs(before and before.checks or {}) do old[c.name] = c end
  for i, c in ipairs(after.checks) do
    local o = old[c.name]
    rows[i] = { c.name, o and number(o.value) or "", number(c.value), limit_of(c), change(o, c), verdict(c.pass), places(c) }
  end
  return '<section id="checks"><h2>Checks</h2>' .. table_of("The whole film before and after its passes"
    .. (data.passes ~= "" and " (" .. data.passes .. ")" or ""),
    { "check", "before#", "after#", "limit#", "change", "verdict", "where" }, rows) .. plots(after, before) .. "</section>"
end

local function repairs_section(data)
  local rows = {}
  for i, shot in ipairs(data.shots) do
    for _, a in ipairs(#shot.attempts > 1 and shot.attempts or {}) do
      rows[#rows + 1] = { ("shot %d, attempt %d"):format(i, a.try), a.words or "as planned", #a.failed > 0
        and table.concat(a.failed, ", ") or "nothing", ("%.0f"):format(a.seed), ("%.1f"):format(a.seconds),
        a.try == shot.kept and "kept" or "" }
    end
  end
  local text = #rows == 0 and "<p>Every shot passed its checks at the first attempt.</p>"
    or table_of("Shots that failed a check, and what was tried",
      { "attempt", "remedy", "failed", "seed#", "seconds#", "" }, rows)
  return '<section id="repairs"><h2>What was repaired</h2>' .. text .. "</section>"
end

local function memory_section(data)
  local rows = {}
  for i, note in ipairs(data.memory or {}) do
    rows[i] = { note.name, note.kind, note.entry, { html = difference(note.before, note.after) } }
  end
  if #rows == 0 then return "" end
  return '<section id="memory"><h2>From the memory</h2>' .. table_of("What the project remembered of this film",
    { "in the film", "kind", "remembered as", "words" }, rows) .. "</section>"
end

local function sorted(map)
  local names = {}
  for name in pairs(map) do names[#names + 1] = name end
  table.sort(names)
  return names
end

function M.film(data)
  local seconds = data.frames / data.fps
  local body = { "<header><h1>" .. escape(data.title or "A film") .. "</h1>" }
  if data.prompt and data.prompt ~= "" then body[#body + 1] = "<p>" .. escape(data.prompt) .. "</p>" end
  body[#body + 1] = facts { { "Length", clock(seconds) }, { "Shots", tostring(#data.shots) },
    { "Frames", ("%d at %.4g a second"):format(data.frames, data.fps) },
    { "Size", ("%d × %d"):format(data.width, data.height) },
    { "Model", data.model }, { "Seed", ("%.0f"):format(data.seed) },
    { "Checks", data.after and (data.after.passed and "all pass" or ("%d of %d fail"):format(#data.after.failed,
      #data.after.checks)) or nil } }
  local sections = { { "storyboard", "Storyboard" }, data.after and { "checks", "Checks" } or false,
    { "repairs", "What was repaired" }, #(data.memory or {}) > 0 and { "memory", "From the memory" } or false,
    { "timing", "Timing" }, { "again", "Make it again" } }
  body[#body + 1] = '<nav aria-label="Sections"><ul>'
  for _, s in ipairs(sections) do
    if s then body[#body + 1] = ('<li><a href="#%s">%s</a></li>'):format(s[1], s[2]) end
  end
  body[#body + 1] = '</ul></nav></header>\n<main>\n<section id="storyboard"><h2>Storyboard</h2>'
    .. '<p class="soft small">The words of each shot; <ins>what was added to them</ins> and <del>what was taken out</del> on '
    .. 'the way to the model.</p><div class="shots">'
  for i, shot in ipairs(data.shots) do body[#body + 1] = shot_card(i, shot) end
  body[#body + 1] = "</div></section>"
  body[#body + 1] = checks_section(data)
  body[#body + 1] = repairs_section(data)
  body[#body + 1] = memory_section(data)
  local rows = {}
  for i, entry in ipairs(data.timing) do rows[i] = { entry[1], ("%.1f"):format(entry[2]) } end
  body[#body + 1] = '<section id="timing"><h2>Timing</h2>' .. table_of("Seconds by the clock", { "what", "seconds#" }, rows)
    .. (data.peak_bytes and ("<p>Peak memory of the process: %.0f MB.</p>"):format(data.peak_bytes / 1e6) or "") .. "</section>"
  body[#body + 1] = '<section id="again"><h2>Make it again</h2><pre>' .. escape(data.command) .. "</pre>"
  rows = {}
  for i, name in ipairs(sorted(data.params)) do rows[i] = { name, data.params[name] } end
  body[#body + 1] = table_of("All parameters", { "parameter", "value" }, rows)
  rows = {}
  for i, name in ipairs(sorted(data.versions)) do rows[i] = { name, data.versions[name] } end
  body[#body + 1] = table_of("Versions", { "what", "version" }, rows)
  if #(data.said or {}) > 0 then
    body[#body + 1] = "<h3>What was said on the way</h3><ul>"
    for _, line in ipairs(data.said) do body[#body + 1] = "<li>" .. escape(line) .. "</li>" end
    body[#body + 1] = "</ul>"
  end
  body[#body + 1] = "</section>\n</main>"
  local values = { frames = data.frames, fps = data.fps, timing = data.timing, peak_bytes = data.peak_bytes,
    before = {}, after = {} }
  for _, when in ipairs { "before", "after" } do
    for _, c in ipairs(data[when] and data[when].checks or {}) do
      values[when][c.name] = { value = c.value, better = c.better, pass = c.pass, slope = c.slope }
    end
  end
  return page(data.title or "A film", body, values)
end

return M
