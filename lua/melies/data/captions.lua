-- Where a clip's caption and licence come from: a file beside the film, a list, or a program that looks at the clip.
--   captions.open { folder =, list = FILE.jsonl, command =, licence = } -> source | nil, message
--   source:of(file, from, to) -> { caption =, licence = }: for the seconds from..to of a film; nil where nothing is said
--   source:ask(clip file)     -> caption | nil, message
-- Beside film.mp4: film.txt or film.mp4.txt (the caption), film.json or film.mp4.json:
--   { "caption": ..., "licence": ..., "captions": [ { "start": 0, "end": 2.5, "caption": ... } ] }
-- A list has one such object a line, with "file" (the path from the folder) and, where it is about a part, "start", "end".
local json = require "melies.json"
local fs = require "melies.fs"

local captions = {}
local Source = {}
Source.__index = Source

local LONGEST = 4000 -- bytes of a caption

local function clean(text)
  if type(text) ~= "string" then return nil end
  text = text:gsub("^\239\187\191", ""):gsub("[%c%s]+", " "):gsub("^ ", ""):gsub(" $", "")
  return text ~= "" and text:sub(1, LONGEST) or nil
end

-- An object of a list or a sidecar as { caption, licence, parts = { { from, to, caption } } }.
local function entry_of(o)
  local e = { caption = clean(o.caption or o.text), licence = clean(o.licence or o.license), parts = {} }
  for _, part in ipairs(type(o.captions) == "table" and o.captions or {}) do
    local text = type(part) == "table" and clean(part.caption or part.text)
    if text then
      e.parts[#e.parts + 1] = { from = tonumber(part.start) or 0, to = tonumber(part["end"]) or 1e9, caption = text }
    end
  end
  return e
end

local function read_list(path)
  local file, message = io.open(path, "rb")
  if not file then return nil, message end
  local entries, number = {}, 0
  for line in file:lines() do
    number = number + 1
    if line:find "%S" then
      local o, why = json.decode(line, ("%s:%d"):format(path, number))
      if type(o) ~= "table" or type(o.file) ~= "string" then
        file:close()
        return nil, o == nil and why or ("%s:%d: an object with \"file\" and \"caption\" is wanted"):format(path, number)
      end
      local name = o.file:gsub("^%./", "")
      local e = entries[name]
      local new = entry_of(o)
      if not e then
        e = { parts = {} }
        entries[name] = e
      end
      if o.start or o["end"] then
        if new.caption then
          e.parts[#e.parts + 1] = { from = tonumber(o.start) or 0, to = tonumber(o["end"]) or 1e9, caption = new.caption }
        end
      else e.caption = new.caption or e.caption end
      e.licence = new.licence or e.licence
      for _, part in ipairs(new.parts) do e.parts[#e.parts + 1] = part end
    end
  end
  file:close()
  return entries
end

function captions.open(options)
  local self = setmetatable({ folder = options.folder, command = options.command, licence = clean(options.licence),
    faults = {} }, Source)
  if options.list then
    local entries, message = read_list(options.list)
    if not entries then return nil, message end
    self.entries = entries
  end
  return self
end

local function sidecar(self, file)
  local base = self.folder .. "/" .. file
  local stem = base:gsub("%.[^./]+$", "")
  for _, path in ipairs { stem .. ".json", base .. ".json" } do
    if fs.stat(path) then
      local o, message = json.read(path)
      if type(o) == "table" then return entry_of(o) end
      self.faults[#self.faults + 1] = message or path .. ": not an object"
    end
  end
  for _, path in ipairs { stem .. ".txt", base .. ".txt" } do
    local there = fs.stat(path)
    if there and not there.folder then
      local text = clean(fs.read(path, 0, LONGEST))
      if text then return { caption = text, parts = {} } end
    end
  end
end

function Source:of(file, from, to)
  if self.known ~= file then
    self.known, self.entry = file, self.entries and self.entries[file] or sidecar(self, file) or { parts = {} }
  end
  local e = self.entry
  local best, overlap
  for _, part in ipairs(e.parts) do
    local common = math.min(to, part.to) - math.max(from, part.from)
    if common > 0 and (not overlap or common > overlap) then best, overlap = part.caption, common end
  end
  local caption, licence = best or e.caption, e.licence or self.licence
  if caption or licence then return { caption = caption, licence = licence } end
end

-- Runs the command with the clip's path as its last word (or where it says {}); its output is the caption.
function Source:ask(path)
  local quoted = "'" .. path:gsub("'", "'\\''") .. "'"
  local command = self.command
  if command:find("{}", 1, true) then command = command:gsub("{}", function() return quoted end)
  else command = command .. " " .. quoted end
  local pipe, message = io.popen("(\n" .. command .. "\n)\necho \"MELIES-STATUS $?\"", "r")
  if not pipe then return nil, message end
  local text = pipe:read "*a" or "" -- an interrupt ends the reading
  pipe:close()
  local output, status = text:match "^(.*)MELIES%-STATUS (%d+)%s*$"
  if status ~= "0" then
    return nil, ("the caption command ended with %s: %s"):format(status or "no status", self.command)
  end
  local caption = clean(output)
  if not caption then return nil, ("the caption command said nothing: %s"):format(self.command) end
  return caption
end

return captions
