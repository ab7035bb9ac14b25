-- Passes: what is done to a film's frames once they are there. A pass is a plugin of kind "pass":
--   params; new(params, info) -> object (or nil, message)
-- and the object has push(self, frame) -> list of frames that are ready, finish(self) -> the rest, and optionally
-- cut(self) -> list: the next frame begins a new shot (frames that waited may come out), and info: what the frames that
-- come out are, where they differ from what went in. info is { width, height, fps, frames (may be nil) }. A plugin with
-- of_shots(params) -> true works on every shot by itself, frame for frame: films do it before their transitions. Frames are
-- f32 [H, W, 3] in 0..1. An object keeps a bounded number of frames, so that a film of any length passes through.
--
-- A list of passes is data: { "deflicker", { "sharpen", amount = 0.4 }, "grain" }, or the text
-- "deflicker; sharpen: amount=0.4; grain". They run in this order.
local T = require "melies.tensor"
local lib = require "melies.ffi.lib"
local media = require "melies.media"
local registry = require "melies.registry"
local video = require "melies.video"

local pass = {}

-- ---- lists --------------------------------------------------------------------------------------

local function trim(text) return (text:gsub("^%s+", ""):gsub("%s+$", "")) end

local function value_of(text)
  if text == "true" then return true elseif text == "false" then return false end
  return tonumber(text) or text
end

-- pass.parse("deflicker; sharpen: amount=0.4, radius=2"): a list as pass.chain takes it. A value that has a comma or a
-- semicolon stands in double quotes. nil and a message.
function pass.parse(text)
  local quotes = {}
  text = text:gsub('"([^"]*)"', function(quoted)
    quotes[#quotes + 1] = quoted
    return "\1" .. #quotes .. "\1"
  end)
  local list = {}
  for part in (text .. ";"):gmatch("([^;]*);") do
    part = trim(part)
    if part ~= "" then
      local name, rest = part:match("^([%w_%.%+%-]+)%s*:%s*(.*)$")
      local entry = { trim(name or part) }
      for word in ((rest or "") .. ","):gmatch("([^,]*),") do
        word = trim(word)
        if word ~= "" then
          local key, value = word:match("^([%w_]+)%s*=%s*(.-)$")
          if not key then return nil, ("passes: '%s' is no NAME=VALUE of %s"):format(word, entry[1]) end
          local quoted = value:match("^\1(%d+)\1$")
          if quoted then entry[key] = quotes[tonumber(quoted)] else entry[key] = value_of(value) end
        end
      end
      list[#list + 1] = entry
    end
  end
  return list
end

-- A plugin of the kind with its parameters: plugin, values; or nil and a message. entry: a name, or { name, values... }.
function pass.resolve(kind, entry)
  local name, values = entry, {}
  if type(entry) == "table" then
    name = entry[1] or entry.name
    for key, value in pairs(entry) do
      if key ~= 1 and key ~= "name" then values[key] = value end
    end
  end
  if type(name) ~= "string" then return nil, ("%s: an entry without a name"):format(kind) end
  local plugin, message = registry.get(kind, name)
  if not plugin then return nil, message end
  local resolved
  resolved, message = registry.resolve_params(plugin, values)
  if not resolved then return nil, message end
  return plugin, resolved
end

-- ---- streams ------------------------------------------------------------------------------------

-- pass.stream(source): a function that gives the next frame, or nil at the end. source: a clip [T, H, W, 3], a list of
-- frames, a reader of media.reader, or such a function.
function pass.stream(source)
  if type(source) == "function" then return source end
  if T.is(source) then
    if source.ndim == 3 then source = source:unsqueeze(1) end
    if source.ndim ~= 4 or source.shape[4] ~= 3 then
      error(("a clip is [T, H, W, 3], not %s"):format(source:shape_text()), 2)
    end
    local i = 0
    return function()
      if i == source.shape[1] then return nil end
      i = i + 1
      return source:select(1, i)
    end
  end
  if type(source) == "table" and type(source.next) == "function" then
    return function()
      local frame, message = source:next()
      if not frame and type(message) == "string" then error(message, 0) end
      return frame
    end
  end
  if type(source) == "table" then
    local i = 0
    return function()
      i = i + 1
      return source[i]
    end
  end
  error("frames are a clip, a list, a reader or a function, not " .. type(source), 2)
end

-- ---- chains -------------------------------------------------------------------------------------

local Chain = {}
Chain.__index = Chain

-- pass.known_cuts(list): a function that says whether a frame's number is in the list, which may grow meanwhile.
function pass.known_cuts(list)
  local set, seen = {}, 0
  return function(index)
    while seen < #list do
      seen = seen + 1
      set[list[seen]] = true
    end
    return set[index] == true
  end
end

-- pass.chain(list, {width=, height=, fps=24, frames=, cuts=}): the passes as one: push(frame) and finish() give lists of
-- frames, info tells what comes out. cuts: the numbers of the frames (from 1) that begin a shot, a list that may grow ahead of
-- the frames; false: there are none; without it they are looked for, where a pass wants to know. nil and a message.
function pass.chain(list, info)
  if type(list) == "string" then
    local parsed, message = pass.parse(list)
    if not parsed then return nil, message end
    list = parsed
  end
  if type(info) ~= "table" or not info.width or not info.height then
    error("pass.chain: the width and height of the frames are wanted", 2)
  end
  local self = setmetatable({ stages = {}, count = 0, cuts_found = {} }, Chain)
  local now = { width = info.width, height = info.height, fps = info.fps or 24, frames = info.frames }
  local asks = false
  for i, entry in ipairs(list) do
    local plugin, values = pass.resolve("pass", entry)
    if not plugin then return nil, values end
    local stage, message = plugin.new(values, now)
    if not stage then return nil, ("pass %s: %s"):format(plugin.name, tostring(message)) end
    self.stages[i] = stage
    asks = asks or stage.cut ~= nil
    if stage.info then
      local after = {}
      for key, value in pairs(now) do after[key] = value end
      for key, value in pairs(stage.info) do after[key] = value or nil end
      now = after
    end
  end
  self.info = now
  if type(info.cuts) == "table" then
    self.is_cut = pass.known_cuts(info.cuts)
  elseif info.cuts == nil and asks then
    self.detect = video.cut_detector()
  end
  return self
end

-- Frames through the stages from `first` on.
local function down(self, first, frames)
  for i = first, #self.stages do
    if #frames == 0 then break end
    local after = {}
    for _, frame in ipairs(frames) do
      for _, ready in ipairs(self.stages[i]:push(frame)) do after[#after + 1] = ready end
    end
    frames = after
  end
  return frames
end

-- What every stage gives up when `method` is called on one after the other.
local function drain(self, method, into)
  for i, stage in ipairs(self.stages) do
    if stage[method] then
      for _, frame in ipairs(down(self, i + 1, stage[method](stage) or {})) do into[#into + 1] = frame end
    end
  end
  return into
end

function Chain:push(frame)
  self.count = self.count + 1
  local ready = {}
  local cut = self.is_cut and self.is_cut(self.count) and self.count > 1
  if self.detect then cut = self.detect(frame) end
  if cut then
    self.cuts_found[#self.cuts_found + 1] = self.count
    drain(self, "cut", ready)
  end
  for _, each in ipairs(down(self, 1, { video.floats(frame) })) do ready[#ready + 1] = each end
  return ready
end

function Chain:finish() return drain(self, "finish", {}) end

-- pass.over(source, list, info): a function that gives the frames of source after the passes, one by one, and the info of
-- what comes out. info.width and height may be left out for a clip or list. nil and a message.
function pass.over(source, list, info)
  local given = {}
  for key, value in pairs(info or {}) do given[key] = value end
  local next_frame = pass.stream(source)
  local first
  if not given.width then
    first = next_frame()
    if not first then return nil, "there are no frames" end
    given.height, given.width = first.shape[1], first.shape[2]
  end
  local chain, message = pass.chain(list, given)
  if not chain then return nil, message end
  local ready, at, ended = {}, 0, false
  return function()
    while at == #ready do
      if ended then return nil end
      local frame = first or next_frame()
      first = nil
      if frame then ready = chain:push(frame) else ready, ended = chain:finish(), true end
      at = 0
    end
    at = at + 1
    local frame = ready[at]
    ready[at] = false
    return frame
  end, chain.info, chain
end

-- pass.apply(clip, list, info): the clip [T, H, W, 3] (or list of frames) after the passes, f32, or u8 where the input
-- was; and the info of it. nil and a message.
function pass.apply(clip, list, info)
  local given = {}
  if T.is(clip) then given.frames = clip.ndim == 4 and clip.shape[1] or 1
  elseif type(clip) == "table" and #clip > 0 then given.frames = #clip end
  for key, value in pairs(info or {}) do given[key] = value end
  local next_frame, after = pass.over(clip, list, given)
  if not next_frame then return nil, after end
  local frames = {}
  local bytes = T.is(clip) and clip.dtype == "u8"
  for frame in next_frame do frames[#frames + 1] = bytes and media.to_u8(frame) or frame end
  if #frames == 0 then return nil, "no frame is left after the passes" end
  return T.stack(frames, 1), after
end

local file_options = { cuts = true, writer = true, progress = true }

-- pass.file(input, output, list, {cuts=, writer = options of media.writer, progress = function(count)}): a film through the
-- passes into another file, frame by frame. The info of what was written, or nil and a message.
function pass.file(input, output, list, options)
  options = options or {}
  lib.check_options("pass.file", options, file_options)
  local reader, message = media.reader(input)
  if not reader then return nil, message end
  local info = reader:info()
  local next_frame, after = pass.over(reader, list, { width = info.width, height = info.height, frames = info.frames,
    fps = info.fps > 0 and info.fps or 24, cuts = options.cuts })
  if not next_frame then reader:close() return nil, after end
  local settings = { fps = after.fps, pad = true }
  for key, value in pairs(options.writer or {}) do settings[key] = value end
  local writer
  writer, message = media.writer(output, settings)
  if not writer then reader:close() return nil, message end
  local count = 0
  local ok, why = pcall(function()
    for frame in next_frame do
      local done, reason = writer:write(frame)
      if not done then error({ text = reason }, 0) end
      count = count + 1
      if options.progress then options.progress(count) end
    end
  end)
  reader:close()
  if not ok then
    writer:abort()
    if type(why) == "table" and why.text then return nil, why.text end
    if type(why) == "string" and why:find(input, 1, true) then return nil, why end
    error(why, 0)
  end
  ok, message = writer:finish()
  if not ok then return nil, message end
  after.frames = count
  return after
end

-- ---- joining ------------------------------------------------------------------------------------

-- pass.join(shots, transitions, {fps = 24}): a function that gives the frames of all shots, f32, one after the other, and a
-- table that fills with the numbers of the frames (from 1) that begin a shot. shots: sources as pass.stream takes them.
-- transitions: one for all, or a list with one for each joint; a name or { name, values... }; "cut" where none is given.
-- A transition holds back as many frames of the shot before as it says and no more. info.joint(k, cut, first, last) is called
-- for joint k before its frames are given: the frame that begins shot k + 1, and the first and last frame of the transition
-- (last < first where it has none). nil and a message.
-- A plugin of kind "transition" has frames(params, info) -> n, how many frames it wants of either side, and
-- run(tail, head, params, info) -> list of frames in their place and the number of the first one of the new shot in it;
-- tail and head have at most n frames (fewer where a shot is shorter).
function pass.join(shots, transitions, info)
  info = info or { fps = 24 }
  local joints = {}
  for i = 1, #shots - 1 do
    local entry = transitions or "cut"
    if type(entry) == "table" and not (entry.name or type(entry[1]) == "string" and #entry == 1) then
      entry = entry[i] or "cut"
    end
    local plugin, values = pass.resolve("transition", entry)
    if not plugin then return nil, values end
    joints[i] = { plugin = plugin, values = values, frames = plugin.frames and plugin.frames(values, info) or 0 }
  end
  local cuts, given = {}, 0
  local at, source = 0, nil
  local ready, queue = {}, {} -- frames to give; frames held back for the next joint
  local function begin()
    at = at + 1
    source = shots[at] and pass.stream(shots[at])
    local joint = at > 1 and joints[at - 1]
    if not source or not joint then return end
    local head = {}
    while #head < joint.frames do
      local frame = source()
      if not frame then break end
      head[#head + 1] = video.floats(frame)
    end
    local frames, first = joint.plugin.run(queue, head, joint.values, info)
    cuts[#cuts + 1] = given + #ready + (first or #queue + 1)
    if info.joint then info.joint(at - 1, cuts[#cuts], given + #ready + 1, given + #ready + #frames) end
    queue = {}
    -- The next joint may want frames that come out of this one, but only those of the new shot.
    for _, frame in ipairs(frames) do ready[#ready + 1] = frame end
  end
  begin()
  return function()
    while #ready == 0 do
      if not source then return nil end
      local frame = source()
      if frame then
        queue[#queue + 1] = video.floats(frame)
        local hold = joints[at] and joints[at].frames or 0
        if #queue > hold then ready[1] = table.remove(queue, 1) end
      else
        if not joints[at] then -- the last shot
          ready, queue = queue, {}
          source = nil
          if #ready == 0 then return nil end
        else
          begin()
        end
      end
    end
    given = given + 1
    return table.remove(ready, 1)
  end, cuts
end

return pass
