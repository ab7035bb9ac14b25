-- The data card of a folder of clips: what, how many, under which licences, which words, what was dropped and why.
-- After Gebru et al., Datasheets for Datasets (2018), what can be counted of it.
local json = require "melies.json"

local card = {}

-- Words that captions are counted by for a look at whom they speak of. They say how often a word is written, not who is
-- in the films.
local groups = {
  { "women", "woman women girl girls lady ladies she her female mother daughter wife" },
  { "men", "man men boy boys gentleman guy guys he his him male father son husband" },
  { "people, not told which", "person people someone human humans they crowd adult adults" },
  { "children", "child children kid kids baby babies toddler infant boy boys girl girls" },
  { "older people", "old elderly senior aged grandmother grandfather grandma grandpa" },
  { "skin, origin", "black white brown asian african european latino latina hispanic indian arab chinese american" },
  { "faith", "christian muslim jewish hindu buddhist church mosque temple synagogue" },
  { "disability", "disabled wheelchair blind deaf crutches" },
  { "work", "doctor nurse teacher worker engineer police soldier cook farmer driver scientist secretary" },
}

local function quartiles(list)
  if #list == 0 then return nil end
  table.sort(list)
  local function at(q) return list[math.max(1, math.ceil(q * #list))] end
  return { min = list[1], low = at(0.25), median = at(0.5), high = at(0.75), max = list[#list] }
end

local function ranked(counts, most)
  local list = {}
  for name, count in pairs(counts) do list[#list + 1] = { name, count } end
  table.sort(list, function(a, b)
    if a[2] ~= b[2] then return a[2] > b[2] end
    return a[1] < b[1]
  end)
  for i = #list, (most or math.huge) + 1, -1 do list[i] = nil end
  return list
end

local function pairs_of(list)
  local out = {}
  for _, item in ipairs(list) do out[#out + 1] = { name = item[1], count = item[2] } end
  return json.array(out)
end

-- card.of(data): everything counted, from what store.read gives.
function card.of(data)
  local clips, s = data.clips, data.settings
  local facts = { clips = #clips, films = { read = 0, damaged = 0, without_clips = 0 }, seconds = 0, settings = s,
    dropped = {}, privacy = {}, licences = {}, captions = { without = 0 }, terms = {}, groups = {}, damaged = json.array {} }
  local drops, licences, words, lengths, different, distinct = {}, {}, {}, {}, {}, 0
  local measures = { motion = {}, sharpness = {}, light = {} }
  for _, source in ipairs(data.sources) do
    facts.films.read = facts.films.read + 1
    if source.error then
      facts.films.damaged = facts.films.damaged + 1
      facts.damaged[#facts.damaged + 1] = source.file .. ": " .. source.error
    end
    if source.clips == 0 then facts.films.without_clips = facts.films.without_clips + 1 end
    for reason, count in pairs(source.dropped or {}) do drops[reason] = (drops[reason] or 0) + count end
    for kind, count in pairs(source.privacy or {}) do facts.privacy[kind] = (facts.privacy[kind] or 0) + count end
  end
  for _, clip in ipairs(clips) do
    facts.seconds = facts.seconds + clip.frames / clip.fps
    local licence = clip.licence or "not given"
    licences[licence] = (licences[licence] or 0) + 1
    for name, list in pairs(measures) do list[#list + 1] = clip[name] end
    if clip.caption == "" then facts.captions.without = facts.captions.without + 1
    else
      if not different[clip.caption] then different[clip.caption], distinct = true, distinct + 1 end
      local n = 0
      for word in clip.caption:lower():gmatch "[%w\128-\255'-]+" do
        n = n + 1
        words[word] = (words[word] or 0) + 1
      end
      lengths[#lengths + 1] = n
    end
  end
  facts.seconds = math.floor(facts.seconds * 10 + 0.5) / 10
  facts.dropped, facts.licences = pairs_of(ranked(drops)), pairs_of(ranked(licences))
  facts.terms = pairs_of(ranked(words, 40))
  facts.captions.words, facts.captions.different = quartiles(lengths), distinct
  for name, list in pairs(measures) do facts[name] = quartiles(list) end
  local counted = {}
  for _, group in ipairs(groups) do
    local sum = 0
    for word in group[2]:gmatch "%S+" do sum = sum + (words[word] or 0) end
    counted[#counted + 1] = { name = group[1], count = sum }
  end
  facts.groups = json.array(counted)
  return facts
end

-- Text that is no Markdown of its own.
local function plain(text) return (tostring(text):gsub("[|`*_<>\\]", "\\%0")) end

local function count_table(lines, list, head, empty)
  if #list == 0 then
    lines[#lines + 1] = empty
    return
  end
  lines[#lines + 1] = ("| %s | count |"):format(head)
  lines[#lines + 1] = "|---|---|"
  for _, item in ipairs(list) do lines[#lines + 1] = ("| %s | %d |"):format(plain(item.name), item.count) end
end

-- card.markdown(facts)
function card.markdown(f)
  local s, lines = f.settings, {}
  local function add(format, ...) lines[#lines + 1] = select("#", ...) > 0 and format:format(...) or format end
  add "# Data card"
  add ""
  add("%d clips of %d frames, %dx%d at %g frames a second (%s): %.1f seconds, from %d films.", f.clips, s.frames, s.width,
    s.height, s.fps, s.model and "latents of the model " .. plain(s.model) or "frames", f.seconds, f.films.read)
  add("Damaged films: %d. Films that gave no clip: %d.", f.films.damaged, f.films.without_clips)
  add "\n## Licences\n"
  count_table(lines, f.licences, "licence as given", "There are no clips.")
  add "\n## What was dropped, and why\n"
  count_table(lines, f.dropped, "reason", "Nothing.")
  if #f.damaged > 0 then
    add "\nDamaged films:\n"
    for _, text in ipairs(f.damaged) do add("- %s", plain(text)) end
  end
  add "\n## Privacy\n"
  add "Replaced in captions and file names by a word in brackets; the originals were not kept. What no rule finds is"
  add "still there."
  add ""
  local found = {}
  for _, kind in ipairs(require("melies.data.scrub").kinds) do
    found[#found + 1] = { name = kind, count = f.privacy[kind] or 0 }
  end
  count_table(lines, found, "kind", "")
  add "\n## Captions\n"
  local w = f.captions.words
  add("%d different ones, %d clips without.", f.captions.different, f.captions.without)
  if w then add("Words in a caption: %d to %d, half of them %d to %d.", w.min, w.max, w.low, w.high) end
  add "\nThe words that occur most:\n"
  count_table(lines, f.terms, "word", "None.")
  add "\nWhom captions speak of, as far as single words tell. This counts words, not who is in the films:\n"
  count_table(lines, f.groups, "words about", "")
  add "\n## Measured\n"
  add "| | least | a quarter below | median | a quarter above | most |\n|---|---|---|---|---|---|"
  for _, name in ipairs { "motion", "sharpness", "light" } do
    local q = f[name]
    if q then add("| %s | %.4g | %.4g | %.4g | %.4g | %.4g |", name, q.min, q.low, q.median, q.high, q.max) end
  end
  add "\nMotion: mean change of grey between frames, 0 to 1. Sharpness: variance of the Laplacian of grey, 0 to 255."
  add "Light: mean grey, 0 to 1."
  return table.concat(lines, "\n") .. "\n"
end

return card
