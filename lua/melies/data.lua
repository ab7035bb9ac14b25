-- Films into clips to train on: `melies data ingest`, `melies data card`.
--
--   data.ingest(folder, out, options) -> report | nil, message
--   data.card(out)                    -> facts (also written as card.md and card.json) | nil, message
--   data.open(out)                    -> { count, clips, settings, get(i) } | nil, message     (store.lua)
--   data.main(words, say)             -> exit code, message                                    (the command line)
--
-- A film is decoded once, frame by frame, at the rate of the clips. Where the picture becomes another one a shot ends.
-- Every `frames` frames within a shot are a clip; the filters look at it, a caption is found and scrubbed, and the clip
-- goes into a shard at the size of the model's grid, as frames or as the latent of a model.
local fs = require "melies.fs"
local json = require "melies.json"
local lib = require "melies.ffi.lib"
local log = require "melies.log"
local media = require "melies.media"
local T = require "melies.tensor"
local captions = require "melies.data.captions"
local look = require "melies.data.look"
local scrub = require "melies.data.scrub"
local store = require "melies.data.store"
local ffi = require "ffi"

local data = { open = store.read }

-- ---- options ---------------------------------------------------------------------------------------

-- type, default, least, most, help. Those that change what is in the folder are its settings.
local spec = {
  frames = { "number", 17, 1, 1025, "frames of a clip: 1 + 4 k" },
  width = { "number", 96, 16, 4096 },
  height = { "number", 96, 16, 4096 },
  fps = { "number", 8, 0.1, 240, "frames a second" },
  model = { "string", nil, nil, nil, "write latents of this model's autoencoder, not frames" },
  min_motion = { "number", 0.002, 0, 1, "least mean change of grey between frames, 0..1" },
  max_motion = { "number", 0.2, 0, 1, "most of it" },
  min_sharpness = { "number", 15, 0, 1e6, "least variance of the Laplacian (grey 0..255, 256 lines)" },
  min_light = { "number", 0.06, 0, 1, "a frame that is darker than this is black" },
  duplicates = { "number", 6, -1, 64, "clips whose hashes differ in so few bits of 64 are the same; -1: keep all" },
  cut = { "number", 0.3, 0.01, 1, "how much another a picture must be for a cut" },
  per_shot = { "number", 0, 0, 1e6, "most clips of a shot; 0: all" },
  uncaptioned = { "boolean", false, nil, nil, "keep clips without a caption" },
}
local settings_names = {}
for name in pairs(spec) do
  if name ~= "uncaptioned" then settings_names[#settings_names + 1] = name end
end
local others = { captions = true, caption_command = true, names = true, licence = true, progress = true }

local function checked(options)
  local o = {}
  for name, value in pairs(options) do
    if not spec[name] and not others[name] then
      local all = { captions = true, caption_command = true, names = true, licence = true }
      for known in pairs(spec) do all[known] = true end
      error(("data.ingest: unknown option '%s'%s"):format(tostring(name), lib.suggest(tostring(name), all)), 3)
    end
    o[name] = value
  end
  for name, s in pairs(spec) do
    if o[name] == nil then o[name] = s[2] end
    local value = o[name]
    if value ~= nil and type(value) ~= s[1] then
      return nil, ("%s is %s; it should be a %s"):format(name, tostring(value), s[1])
    end
    if s[3] and not (value >= s[3] and value <= s[4]) then
      return nil, ("%s is %s; it should be %g to %g"):format(name, tostring(value), s[3], s[4])
    end
  end
  for _, name in ipairs { "frames", "width", "height" } do
    if o[name] % 1 ~= 0 then return nil, ("%s is %s; it should be a whole number"):format(name, o[name]) end
  end
  if (o.frames - 1) % 4 ~= 0 then return nil, ("frames is %d; it should be 1 + 4 k, such as 17"):format(o.frames) end
  return o
end

-- ---- files ------------------------------------------------------------------------------------------

local endings = { mp4 = true, m4v = true, mov = true, mkv = true, webm = true, avi = true, mpg = true, mpeg = true,
  ts = true, gif = true, ogv = true, wmv = true, flv = true }

-- Films under a folder, as paths from it, sorted. Hidden files and folders are left out.
local function films_in(folder)
  local list, problems = {}, {}
  local function walk(under, depth)
    local names, message = fs.list(folder .. under)
    if not names then
      if under == "" then return nil, message end
      problems[#problems + 1] = message
      return true
    end
    for _, name in ipairs(names) do
      local path = under .. "/" .. name
      local there = name:sub(1, 1) ~= "." and fs.stat(folder .. path)
      if there and there.folder then
        if depth < 32 then walk(path, depth + 1) end
      elseif there and endings[(name:match "%.([^.]+)$" or ""):lower()] then list[#list + 1] = path:sub(2) end
    end
    return true
  end
  local there, message = fs.stat(folder)
  if not there then return nil, message end
  if not there.folder then return nil, folder .. ": not a folder" end
  local ok, why = walk("", 0)
  if not ok then return nil, why end
  return list, problems
end

local digest = ffi.new("uint8_t[32]")
local function sha256(text)
  lib.check(lib.C.mel_sha256(text, #text, digest, lib.err), 2)
  return (ffi.string(digest, 32):gsub(".", function(c) return ("%02x"):format(c:byte()) end))
end

-- What names a film, whatever it is called: the hash of the hashes of its pieces of 4 MiB.
local function content_hash(path)
  local file, message = io.open(path, "rb")
  if not file then return nil, message end
  local parts = {}
  while true do
    local piece, why = file:read(4 * 2 ^ 20)
    if not piece then
      file:close()
      if why then return nil, path .. ": " .. why end
      return sha256(table.concat(parts, " "))
    end
    parts[#parts + 1] = sha256(piece)
    if lib.C.mel_canceled() then
      file:close()
      lib.raise(lib.ECANCELED)
    end
  end
end

-- ---- clips ------------------------------------------------------------------------------------------

-- The size that frames are decoded at: the clip's shape is cut out of it later. 256 lines where the film has them, so
-- that sharpness means the same everywhere.
local function decode_size(info, o)
  local w, h = info.width, info.height
  local least = math.max(o.width / w, o.height / h)
  local scale = math.max(least, math.min(1, 256 / math.min(w, h)))
  return math.max(o.width, math.floor(w * scale + 0.5)), math.max(o.height, math.floor(h * scale + 0.5))
end

-- The middle of a frame u8 [H, W, 3] at the clip's size.
local function fitted(frame, o)
  local h, w = frame.shape[1], frame.shape[2]
  local scale = math.min(h / o.height, w / o.width)
  local ch, cw = math.min(h, math.floor(o.height * scale + 0.5)), math.min(w, math.floor(o.width * scale + 0.5))
  local top, left = math.floor((h - ch) / 2), math.floor((w - cw) / 2)
  local x = frame:slice(1, top + 1, top + ch):slice(2, left + 1, left + cw)
  if ch == o.height and cw == o.width then return x:contiguous() end
  x = media.to_f32(x:contiguous()):resize(1, o.height, "bilinear", true):resize(2, o.width, "bilinear", true)
  return media.to_u8(x)
end

-- Hashes of earlier clips, found by any of the eight bytes of the middle one: two that differ in 7 bits or fewer share one.
local Seen = {}
Seen.__index = Seen
local function seen_clips(bits) return setmetatable({ bits = bits, bands = {}, all = {} }, Seen) end
local function apart(a, b)
  return math.max(look.distance(a[1], b[1]), look.distance(a[2], b[2]), look.distance(a[3], b[3]))
end
function Seen:has(hashes)
  if self.bits < 0 then return false end
  if self.bits > 7 then
    for _, other in ipairs(self.all) do
      if apart(hashes, other) <= self.bits then return true end
    end
    return false
  end
  for k = 1, 8 do
    for _, other in ipairs(self.bands[k .. hashes[2]:sub(2 * k - 1, 2 * k)] or {}) do
      if apart(hashes, other) <= self.bits then return true end
    end
  end
  return false
end
function Seen:add(hashes)
  self.all[#self.all + 1] = hashes
  for k = 1, 8 do
    local key = k .. hashes[2]:sub(2 * k - 1, 2 * k)
    self.bands[key] = self.bands[key] or {}
    table.insert(self.bands[key], hashes)
  end
end

local function median(list)
  table.sort(list)
  return list[math.ceil(#list / 2)]
end

-- Why a clip is not kept (nil: it is), and what was measured. looks: of each frame; motions: between them.
local function judge(looks, motions, o)
  local light, dark, sharp, motion, moved = 0, 0, {}, 0, 0
  for i, f in ipairs(looks) do
    light, sharp[i] = light + f.light / #looks, f.sharp
    if f.light < o.min_light then dark = dark + 1 end
  end
  for _, m in ipairs(motions) do
    motion = motion + m / #motions
    if m > 0.0004 then moved = moved + 1 end
  end
  local function round(x) return math.floor(x * 1e5 + 0.5) / 1e5 end
  local facts = { light = round(light), sharpness = round(median(sharp)), motion = round(motion) }
  if dark > #looks / 2 then return "black", facts end
  if #motions > 0 and o.min_motion > 0 then
    if moved <= #motions * 0.25 then return "frozen", facts end
    if motion < o.min_motion then return "too little motion", facts end
  end
  if motion > o.max_motion then return "too much motion", facts end
  if facts.sharpness < o.min_sharpness then return "blurred", facts end
  return nil, facts
end

-- ---- one film -----------------------------------------------------------------------------------------

local Run = {}
Run.__index = Run

function Run:drop(reason) self.film.dropped[reason] = (self.film.dropped[reason] or 0) + 1 end

-- Each text is scrubbed, and counted, once a film.
function Run:scrubbed(text)
  if not self.texts[text] then self.texts[text] = self.scrubber:text(text) end
  return self.texts[text]
end

-- A caption from the program that the user named.
function Run:asked(clip)
  local path = ("%s/caption-%d.mp4"):format(self.out, os.time() % 1000000)
  local ok, message = media.save(path, clip, { fps = self.o.fps, pad = true })
  if not ok then return nil, message end
  local caption, why = self.source:ask(path)
  os.remove(path)
  if lib.C.mel_canceled() then lib.raise(lib.ECANCELED) end
  return caption, why
end

-- A full clip: frames (list of u8), looks, motions, start in seconds. true, or nil and a message where writing failed.
function Run:clip(frames, looks, motions, start)
  local o, film = self.o, self.film
  local reason, facts = judge(looks, motions, o)
  if reason then
    self:drop(reason)
    return true
  end
  local hashes = { look.hash(looks[1]), look.hash(looks[math.ceil(#looks / 2)]), look.hash(looks[#looks]) }
  if self.seen:has(hashes) then
    self:drop "near-duplicate"
    return true
  end
  local stop = start + #frames / o.fps
  local said = self.source:of(film.path, start, stop) or {}
  local tensor = T.stack(frames, 1)
  local caption = said.caption
  if not caption and self.source.command then
    local why
    caption, why = self:asked(tensor)
    if not caption then
      self.failed_command = why
      log.warn("%s at %.1f s: %s", film.file, start, why)
    end
  end
  if not caption and not o.uncaptioned then
    self:drop "no caption"
    return true
  end
  self.seen:add(hashes)
  local entry = { source = film.hash, file = film.file, start = math.floor(start * 1000 + 0.5) / 1000, frames = #frames,
    width = o.width, height = o.height, fps = o.fps, caption = self:scrubbed(caption or ""),
    licence = said.licence and self:scrubbed(said.licence), hashes = json.array(hashes), light = facts.light,
    motion = facts.motion, sharpness = facts.sharpness }
  local kind = "frames"
  if self.model then
    kind, tensor = "latent", self.model.autoencoder:encode(media.to_f32(tensor)):to("f32"):contiguous()
  end
  film.clips = film.clips + 1
  return self.store:add(entry, kind, tensor)
end

-- Decodes a film and hands on its clips. nil and a message where writing failed; a damaged film is film.error.
function Run:read(path)
  local o, film = self.o, self.film
  local info, message = media.info(path)
  if not info then
    film.error = message
    return true
  end
  local w, h = decode_size(info, o)
  local reader, why = media.reader(path, { width = w, height = h, fps = o.fps })
  if not reader then
    film.error = why
    return true
  end
  local frames, looks, motions, start, before = {}, {}, {}, 0, nil
  local at, in_shot, usual, pairs_seen = 0, 0, 0, 0
  local shots = 1
  local function begin(time) frames, looks, motions, start = {}, {}, {}, time end
  local ok
  while true do
    local frame, trouble = reader:next()
    if not frame then
      if trouble then film.error = trouble end
      break
    end
    local f = look.frame(frame)
    if before then
      local motion, change = look.pair(before, f)
      -- A cut stands out from what is usual in its shot, so that quick motion is none.
      if change > o.cut and change > 2.5 * usual then
        if #frames > 0 and in_shot == 0 then self:drop "shot too short" end
        shots, in_shot, usual, pairs_seen = shots + 1, 0, 0, 0
        begin(at / o.fps)
      else
        pairs_seen = pairs_seen + 1
        usual = usual + (change - usual) / math.min(pairs_seen, 8)
        if #frames > 0 then motions[#motions + 1] = motion end
      end
    end
    if o.per_shot == 0 or in_shot < o.per_shot then
      if #frames == 0 then start = at / o.fps end
      frames[#frames + 1], looks[#looks + 1] = fitted(frame, o), f
      if #frames == o.frames then
        in_shot = in_shot + 1
        ok, message = self:clip(frames, looks, motions, start)
        if not ok then break end
        begin((at + 1) / o.fps)
      end
    end
    before, at = f, at + 1
    frame:free()
  end
  reader:close()
  if not ok and message then return nil, message end
  if #frames > 0 and in_shot == 0 then self:drop "shot too short" end
  film.shots, film.seconds = shots, math.floor(at / o.fps * 10 + 0.5) / 10
  return true
end

local function summary(film)
  local parts = {}
  for reason, count in pairs(film.dropped) do parts[#parts + 1] = ("%s %d"):format(reason, count) end
  table.sort(parts)
  return ("%d clip%s%s"):format(film.clips, film.clips == 1 and "" or "s",
    #parts > 0 and "; dropped: " .. table.concat(parts, ", ") or "")
end

-- One film: hashed, read, its line written. nil and a message where the folder cannot be written.
function Run:film_of(name)
  local path, counted = self.folder .. "/" .. name, {}
  for kind, count in pairs(self.scrubber.counts) do counted[kind] = count end
  local file = self.scrubber:text(name)
  local hash, message = content_hash(path)
  if not hash then
    log.warn("%s", message)
    self.report.unreadable = self.report.unreadable + 1
    return true
  end
  if self.store.known[hash] then
    self.report.known = self.report.known + 1
    return true
  end
  self.film = { hash = hash, path = name, file = file, clips = 0, dropped = {} }
  self.texts = {}
  local film = self.film
  local ok, why = self:read(path)
  if not ok then return nil, why end
  for _, fault in ipairs(self.source.faults) do log.warn("%s", fault) end
  self.source.faults = {}
  local privacy
  for kind, count in pairs(self.scrubber.counts) do
    if count > counted[kind] then
      privacy = privacy or {}
      privacy[kind] = count - counted[kind]
    end
  end
  self.report.films = self.report.films + 1
  if film.error then
    local at = film.error:find(path, 1, true) -- the message names the file, the card says it better
    if at then film.error = film.error:sub(1, at - 1) .. film.error:sub(at + #path):gsub("^:%s*", "") end
    film.error = self.scrubber:text(film.error)
    self.report.damaged = self.report.damaged + 1
    log.warn("%s: damaged: %s", file, film.error)
  end
  if not film.error or film.clips > 0 then log.say("%s: %s", file, summary(film)) end
  self.report.clips = self.report.clips + film.clips
  for reason, count in pairs(film.dropped) do self.report.dropped[reason] = (self.report.dropped[reason] or 0) + count end
  return self.store:done { hash = hash, file = film.file, clips = film.clips, dropped = next(film.dropped) and film.dropped,
    privacy = privacy, error = film.error, shots = film.shots, seconds = film.seconds }
end

-- ---- all of them -----------------------------------------------------------------------------------------

local function read_names(path)
  local file, message = io.open(path, "rb")
  if not file then return nil, message end
  local list = {}
  for line in file:lines() do
    line = line:gsub("%s+$", "")
    if line ~= "" and line:sub(1, 1) ~= "#" then list[#list + 1] = line end
  end
  file:close()
  if #list == 0 then return nil, path .. ": holds no names" end
  return list
end

local function run_all(self, films)
  for _, name in ipairs(films) do
    if lib.C.mel_canceled() then lib.raise(lib.ECANCELED) end
    local ok, message = self:film_of(name)
    if not ok then return nil, message end
  end
  return true
end

-- data.ingest(folder, out, options): options as `melies data ingest --help` lists them (min_motion for --min-motion), and
-- captions = FILE.jsonl, caption_command, names = FILE or a list, licence. The report: { films, known, damaged, unreadable,
-- clips, dropped = { reason = count } } of this run. An interrupted run keeps the films that were done; films that are in
-- the folder already, under whatever name, are passed over.
function data.ingest(folder, out, options)
  local o, message = checked(options or {})
  if not o then return nil, message end
  folder = folder:gsub("(.)/+$", "%1")
  local films, problems = films_in(folder)
  if not films then return nil, problems end
  for _, problem in ipairs(problems) do log.warn("%s", problem) end
  if #films == 0 then
    return nil, ("%s: holds no films (.mp4, .mkv, .webm, .mov, .avi, .gif ...)"):format(folder)
  end
  local model
  if o.model then
    model, message = require("melies.pipeline").load(o.model)
    if not model then return nil, message end
    local fits
    fits, message = model:latent_shape { frames = o.frames, width = o.width, height = o.height }
    if not fits then return nil, message end
    if (o.frames - 1) % model.stride[1] ~= 0 then
      return nil, ("frames is %d; %s makes %s"):format(o.frames, model.name, model.frame_grid)
    end
  end
  local names = o.names
  if type(names) == "string" then
    names, message = read_names(names)
    if not names then return nil, message end
  end
  local source
  source, message = captions.open { folder = folder, list = o.captions, command = o.caption_command, licence = o.licence }
  if not source then return nil, message end
  local settings = {}
  for _, name in ipairs(settings_names) do settings[name] = o[name] end
  local target
  target, message = store.open(out, settings)
  if not target then return nil, message end

  local self = setmetatable({ o = o, folder = folder, out = out, source = source, store = target, model = model,
    scrubber = scrub.new { names = names }, seen = seen_clips(o.duplicates),
    report = { films = 0, known = 0, damaged = 0, unreadable = 0, clips = 0, dropped = {} } }, Run)
  for _, clip in ipairs(target.clips) do self.seen:add(clip.hashes) end
  local raised, ok, why = pcall(run_all, self, films)
  if not raised and self.film and not target.known[self.film.hash] then target:forget(self.film.hash) end
  local flushed, trouble = true, nil
  if not raised or ok then -- also what was done before an interrupt, which must not stop the writing of it
    local canceled = lib.C.mel_canceled()
    lib.C.mel_cancel_clear()
    local written, result, why_not = pcall(target.flush, target)
    flushed, trouble = written and result, written and why_not or result
    if canceled then lib.C.mel_cancel() end
  end
  target:close()
  if not raised then error(ok, 0) end
  if not ok or not flushed then return nil, why or trouble end
  local facts
  facts, message = data.card(out)
  if not facts then return nil, message end
  local report = self.report
  report.total = facts.clips
  if report.films + report.known > 0 and facts.clips == 0 then
    local reasons = {}
    for _, item in ipairs(facts.dropped) do reasons[#reasons + 1] = ("%s: %d"):format(item.name, item.count) end
    local hint = ""
    if facts.dropped[1] and facts.dropped[1].name == "no caption" then
      hint = "; put film.txt beside film.mp4, or give --captions FILE.jsonl, --caption-command or --uncaptioned"
    end
    return nil, ("%s: no clip was kept (%s)%s"):format(folder,
      #reasons > 0 and table.concat(reasons, ", ") or ("%d damaged"):format(facts.films.damaged), self.failed_command
        and "; " .. self.failed_command or hint)
  end
  return report
end

-- data.card(out): counts the folder anew, and writes card.md and card.json there.
function data.card(out)
  local card = require "melies.data.card"
  local all, message = store.read(out)
  if not all then return nil, message end
  local facts = card.of(all)
  local ok, why = json.write(all.folder .. "/card.json", facts, { indent = 2 })
  if not ok then return nil, why end
  local file
  file, why = io.open(all.folder .. "/card.md", "wb")
  if not file then return nil, why end
  ok, why = file:write(card.markdown(facts))
  local closed, why_closed = file:close()
  if not (ok and closed) then return nil, tostring(why or why_closed) end
  return facts
end

-- ---- the command line --------------------------------------------------------------------------------------

data.usage = [[
  data ingest DIR -o OUT    films in DIR become captioned clips in OUT; run again to go on, or to add films
    --size WxH              of the clips (96x96)         --frames N   1 + 4 k (17)        --fps N   (8)
    --model NAME            write latents of this model's autoencoder, not frames
    --captions FILE.jsonl   {"file": ..., "caption": ...} a line; else film.txt or film.json beside film.mp4
    --caption-command CMD   run with the path of a clip; what it prints is the caption
    --uncaptioned           keep clips without a caption
    --names FILE            names to scrub from captions, one a line
    --licence TEXT          of films that say none themselves
    --min-motion X --max-motion X --min-sharpness X --min-light X --duplicates BITS --cut X --per-shot N   the filters
  data card OUT             counts the clips anew and shows the data card; OUT/card.md and card.json hold it]]

local function parse(words, first, flags)
  local o, rest, i = {}, {}, first
  while words[i] do
    local word = words[i]
    local name, value = word:match "^%-%-([%w-]+)=(.*)$"
    name = name or word:match "^%-%-([%w-]+)$" or (word == "-o" and "output")
    if name then
      local key = name:gsub("%-", "_")
      local kind = flags[key]
      if not kind then
        local all = {}
        for known in pairs(flags) do all[#all + 1] = "--" .. known:gsub("_", "-") end
        return nil, ("data %s: unknown option '%s'%s"):format(words[1], word, lib.suggest(word, all))
      end
      if kind == "boolean" then o[key] = true
      else
        if not value then
          i = i + 1
          value = words[i]
        end
        if not value then return nil, ("data %s: --%s wants a value"):format(words[1], name) end
        if kind == "number" then
          local n = tonumber(value)
          if not n or n ~= n then return nil, ("--%s is '%s'; it should be a number"):format(name, value) end
          value = n
        end
        o[key] = value
      end
    elseif word:sub(1, 1) == "-" and word ~= "-" then
      return nil, ("data %s: unknown option '%s'"):format(words[1], word)
    else rest[#rest + 1] = word end
    i = i + 1
  end
  return o, rest
end

local commands = {}

function commands.ingest(words, say)
  local flags = { output = "string", size = "string", captions = "string", caption_command = "string", names = "string",
    licence = "string" }
  for name, s in pairs(spec) do flags[name] = s[1] end
  local o, rest = parse(words, 2, flags)
  if not o then return 2, rest end
  if #rest ~= 1 or not o.output then return 2, "usage: melies data ingest DIR -o OUT" end
  local out = o.output
  if o.size then
    local w, h = o.size:match "^(%d+)[xX*](%d+)$"
    if not w then return 2, ("--size is '%s'; it should be WIDTHxHEIGHT, such as 96x96"):format(o.size) end
    o.width, o.height = tonumber(w), tonumber(h)
  end
  o.output, o.size = nil, nil
  local report, message = data.ingest(rest[1], out, o)
  if not report then return 1, message end
  say(("%s: %d clips, %d new from %d film%s%s%s"):format(out, report.total, report.clips, report.films,
    report.films == 1 and "" or "s", report.known > 0 and (", %d were there already"):format(report.known) or "",
    report.damaged + report.unreadable > 0 and (", %d damaged"):format(report.damaged + report.unreadable) or ""))
  return 0
end

function commands.card(words, say)
  local o, rest = parse(words, 2, {})
  if not o then return 2, rest end
  if #rest ~= 1 then return 2, "usage: melies data card OUT" end
  local facts, message = data.card(rest[1])
  if not facts then return 1, message end
  say((require("melies.data.card").markdown(facts):gsub("\n$", "")))
  return 0
end

-- data.main(words, say): an exit code, and a message where it failed.
function data.main(words, say)
  for _, word in ipairs(words) do
    if word == "--help" or word == "-h" then
      say(data.usage)
      return 0
    end
  end
  local command = commands[words[1]]
  if not command then
    return 2, ("data: %s (there are ingest, card)%s"):format(words[1] and "unknown: '" .. words[1] .. "'" or "which one?",
      lib.suggest(words[1] or "", { "ingest", "card" }))
  end
  return command(words, say)
end

return data
