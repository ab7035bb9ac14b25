-- melies-api: 1
-- The report as files: Markdown, a page with every clip, and contact sheets.
local melies = require "melies"
local T = melies.tensor
local escape = melies.plot.escape

local M = {}

local titles = { all = "all five in one clip", everything = "everything the prompt says" }
local second_titles = { { "colour", "colour, by its pixels" }, { "motion", "motion, by the subject's path" } }
local function percent(x) return x and ("%.1f%%"):format(100 * x) or "-" end

-- Rows of the first table: { name, n, share, interval, bar, met, ceilings.. }.
local function rows(report, score)
  local out = {}
  local list = { unpack(score.order) }
  list[#list + 1], list[#list + 2] = "all", "everything"
  local function add(title, f, bar, get)
    if not f then return end
    local row = { title, f.n, percent(f.share), ("%s to %s"):format(percent(f.low), percent(f.high)),
      bar and ("%d%%"):format(100 * bar) or "" }
    for _, ceiling in ipairs(report.ceilings) do
      local g = get(ceiling.figures)
      row[#row + 1] = g and percent(g.share) or "-"
    end
    out[#out + 1] = row
  end
  for _, name in ipairs(list) do
    add(titles[name] or name, report.figures[name], score.bars[name], function(figures) return figures[name] end)
  end
  for _, pair in ipairs(second_titles) do
    add(pair[2], report.figures.second[pair[1]], nil, function(figures) return figures.second[pair[1]] end)
  end
  return out
end

local function heads(report)
  local out = { "attribute", "prompts", "obeyed", "95% interval", "bar" }
  for _, ceiling in ipairs(report.ceilings) do out[#out + 1] = ceiling.name end
  return out
end

-- Names that occur, in the order of the world's lists.
local function names_in(confusion, list)
  local seen, out = {}, {}
  for said, reads in pairs(confusion) do
    seen[said] = true
    for read in pairs(reads) do seen[read] = true end
  end
  for _, name in ipairs(list) do
    if seen[name] then out[#out + 1] = name end
  end
  return out
end

local function setting(report)
  return ("%s, %d prompts, %d steps%s, guidance %s, seed %d, %dx%d, %d frames"):format(report.model, #report.clips,
    report.steps, report.few_steps and " (few-step variant)" or "", tostring(report.guidance), report.seed,
    report.width, report.height, report.frames)
end

local function table_lines(head, body)
  local out = { "| " .. table.concat(head, " | ") .. " |", "|" .. ("---|"):rep(#head) }
  for _, row in ipairs(body) do out[#out + 1] = "| " .. table.concat(row, " | ") .. " |" end
  return table.concat(out, "\n")
end

-- Tables of what was read (columns) where something was said (rows).
local function confusion_tables(report, score, list_of)
  local out = {}
  for _, name in ipairs(score.order) do
    local f = report.figures[name]
    if f then
      local names, body = names_in(f.confusion, list_of(name)), {}
      for _, said in ipairs(names) do
        if f.confusion[said] then
          local row = { said }
          for _, read in ipairs(names) do row[#row + 1] = tostring(f.confusion[said][read] or "") end
          body[#body + 1] = row
        end
      end
      out[#out + 1] = { name = name, head = { name, unpack(names) }, body = body }
    end
  end
  return out
end

-- list_of(attribute): its names.
function M.markdown(report, score, list_of)
  local out = { "# What the model learnt\n", setting(report) .. ".\n", table_lines(heads(report), rows(report, score)) }
  if #report.ceilings > 0 then
    out[#out + 1] = "\nThe columns after the bar: the same prompts as the world itself draws them, read by the same"
      .. " probe. No model can be measured to be better."
  end
  out[#out + 1] = "\n## What was read where something else was said\n\nRows: said. Columns: read."
  for _, t in ipairs(confusion_tables(report, score, list_of)) do
    out[#out + 1] = ("\n### %s\n\n%s"):format(t.name, table_lines(t.head, t.body))
  end
  return table.concat(out, "\n") .. "\n"
end

local css = [[
:root{color-scheme:light dark;--ink:#22262e;--paper:#fff;--soft:#5b616c;--line:#d9dde3;--bad:#b3261e;--good:#1b7a4b}
@media(prefers-color-scheme:dark){:root{--ink:#e8eaee;--paper:#171a1f;--soft:#a6acb7;--line:#343a44;--bad:#ff8a80;--good:#6fd6a2}}
body{font:15px/1.45 system-ui,'DejaVu Sans',sans-serif;color:var(--ink);background:var(--paper);max-width:76rem;margin:2rem auto;
padding:0 1rem}
table{border-collapse:collapse;margin:.6rem 0 1.4rem}td,th{border:1px solid var(--line);padding:.2rem .55rem;text-align:right}
td:first-child,th:first-child{text-align:left}.right{color:var(--good)}.wrong{color:var(--bad);font-weight:600}
.clip{border-top:1px solid var(--line);padding:.6rem 0}.clip img{width:100%;image-rendering:auto;display:block}
.clip p{margin:.2rem 0}.read{color:var(--soft)}.wide{overflow-x:auto}
]]

local function html_table(head, body, mark)
  local out = { "<div class=wide><table><tr>" }
  for _, cell in ipairs(head) do out[#out + 1] = "<th>" .. escape(cell) .. "</th>" end
  out[#out + 1] = "</tr>"
  for _, row in ipairs(body) do
    out[#out + 1] = "<tr>"
    for j, cell in ipairs(row) do
      local class = mark and j > 1 and cell ~= "" and (" class=" .. (head[j] == row[1] and "right" or "wrong")) or ""
      out[#out + 1] = ("<td%s>%s</td>"):format(class, escape(cell))
    end
    out[#out + 1] = "</tr>"
  end
  out[#out + 1] = "</table></div>"
  return table.concat(out)
end

-- The page; clips are images beside it (clip.file).
function M.html(report, score, list_of)
  local out = { "<!doctype html><html lang=en><meta charset=utf-8><title>What the model learnt</title><style>", css,
    "</style><h1>What the model learnt</h1><p>", escape(setting(report)), ".</p>",
    html_table(heads(report), rows(report, score)),
    "<p>The columns after the bar: the same prompts as the world itself draws them, read by the same probe.</p>",
    "<h2>What was read (columns) where something was said (rows)</h2>" }
  for _, t in ipairs(confusion_tables(report, score, list_of)) do
    out[#out + 1] = "<h3>" .. escape(t.name) .. "</h3>" .. html_table(t.head, t.body, true)
  end
  out[#out + 1] = "<h2>Clips</h2>"
  for _, clip in ipairs(report.clips) do
    local said = {}
    for _, name in ipairs(score.order) do
      if clip.says[name] then
        local read = clip.read[name]
        local right = read.value == clip.says[name]
        said[#said + 1] = ("<span class=%s>%s %s%s</span>"):format(right and "read" or "wrong", escape(name),
          escape(clip.says[name]), right and "" or (", read as %s (%.0f%%)"):format(escape(read.value), 100 * read.p))
      end
    end
    out[#out + 1] = ("<div class=clip id=c%d><p>%d. %s</p><img loading=lazy src='%s' alt=''><p class=read>%s</p></div>")
      :format(clip.number, clip.number, escape(clip.prompt), escape(clip.file), table.concat(said, " · "))
  end
  out[#out + 1] = "</html>\n"
  return table.concat(out)
end

-- A clip u8 [T, H, W, 3] with a red edge.
local function edged(frames)
  local t, h, w = frames.shape[1], frames.shape[2], frames.shape[3]
  local red = T.of({ 230, 30, 30 }, { 1, 1, 1, 3 }, "u8")
  local out = frames:clone()
  for _, part in ipairs { out:slice(2, 1, 2), out:slice(2, h - 1, h), out:slice(3, 1, 2), out:slice(3, w - 1, w) } do
    part:copy_(red:expand { t, part.shape[2], part.shape[3], 3 })
  end
  return out
end

-- A sheet of clips { frames, prompt, says, read, number }: where something was read wrongly it stands before the prompt, and
-- the frames have a red edge.
function M.sheet(clips, score)
  local shown, labels = {}, {}
  for i, clip in ipairs(clips) do
    local wrong = score.wrong(clip.says, clip.read)
    local notes = {}
    for j, name in ipairs(wrong) do notes[j] = clip.read[name].value end
    shown[i] = #wrong > 0 and edged(clip.frames) or clip.frames
    labels[i] = ("%d %s%s"):format(clip.number, #wrong > 0 and "NOT " .. table.concat(notes, ", ") .. ": " or "",
      clip.prompt)
  end
  local columns = math.max(5, math.ceil(880 / clips[1].frames.shape[3])) -- a line is as wide as that
  return melies.media.contact_sheet(shown, { columns = columns, labels = labels, gap = 2 })
end

return M
