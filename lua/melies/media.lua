-- Video and images: streaming readers and writers, whole clips, images, contact sheets.
-- Frames are tensors [H, W, 3] and clips [T, H, W, 3], RGB; u8, or floats in 0..1 where they are written.
-- A file that cannot be read or written gives nil and a message; wrong arguments raise.
local ffi = require "ffi"
local lib = require "melies.ffi.lib"
local T = require "melies.tensor"
local C, err = lib.C, lib.err

local media = {}

-- ---- options -------------------------------------------------------------------------------

-- 24, 29.97, 23.976, {30000, 1001}, "30000/1001" as a fraction. NTSC rates (N / 1.001) are recognised.
local function rational(what, fps, level)
  local num, den
  if type(fps) == "table" then num, den = fps[1], fps[2] or 1
  elseif type(fps) == "string" then
    num, den = fps:match("^(%d+)/(%d+)$")
    if not num then num, den = fps:match("^%d+%.?%d*$"), nil end
    num, den = tonumber(num), tonumber(den)
  else num = fps end
  if type(num) ~= "number" or num <= 0 or num > 1000 * (den or 1) or (den and den <= 0) then
    error(("%s: fps is %s; a number above 0, {30000, 1001} or \"30000/1001\" is wanted"):format(what, tostring(fps)),
      (level or 2) + 1)
  end
  if den then return num, den end
  if num % 1 == 0 then return num, 1 end
  local ntsc = math.floor(num * 1.001 + 0.5)
  if math.abs(ntsc / 1.001 - num) < 0.005 then return ntsc * 1000, 1001 end
  return math.floor(num * 1000 + 0.5), 1000
end

local function whole(what, name, value, level)
  if value == nil then return 0 end
  if type(value) ~= "number" or value ~= value or math.abs(value) > 2 ^ 31 - 1 then
    error(("%s: %s is %s; a number is wanted"):format(what, name, tostring(value)), (level or 2) + 1)
  end
  return math.floor(value + 0.5)
end

local function check_path(what, path, level)
  if type(path) ~= "string" or path == "" then
    error(("%s: a path is wanted, not %s"):format(what, tostring(path)), (level or 2) + 1)
  end
end

local read_options = { width = true, height = true, fps = true, start = true, frames = true, threads = true }
local write_options = {
  format = true, codec = true, width = true, height = true, fps = true, crf = true, quality = true, bitrate = true,
  preset = true, loop = true, pad = true, full_chroma = true, metadata = true, threads = true, audio = true, audio_from = true,
}

-- A file that does not open, read or write: nil and the message. Cancel is raised, as everywhere.
local function expected(status, level)
  status = tonumber(status)
  if status == 0 then return true end
  if status == lib.ECANCELED then lib.raise(status) end
  if status == lib.EINVAL then error(lib.message(), (level or 2) + 1) end
  return nil, lib.message()
end

-- ---- reading -------------------------------------------------------------------------------

local Reader = {}
Reader.__index = Reader

-- media.reader(path, {width=, height=, fps=, start=, threads=}): a stream of frames. One of width and height is enough;
-- fps drops or repeats frames; start is in seconds. nil and a message where the file is no video or image.
function media.reader(path, options)
  options = options or {}
  check_path("media.reader", path)
  lib.check_options("media.reader", options, read_options)
  local o = ffi.new("mel_video_read_options")
  o.width = whole("media.reader", "width", options.width)
  o.height = whole("media.reader", "height", options.height)
  o.threads = whole("media.reader", "threads", options.threads)
  if options.fps then o.fps_num, o.fps_den = rational("media.reader", options.fps) end
  local box = lib.out("mel_video_reader*")
  local ok, message = expected(C.mel_video_reader_open(path, o, box, err))
  if not ok then return nil, message end
  local reader = setmetatable({ path = path, handle = ffi.gc(box[0], C.mel_video_reader_close) }, Reader)
  if options.start and options.start ~= 0 then
    ok, message = reader:seek(options.start)
    if not ok then
      reader:close()
      return nil, message
    end
  end
  return reader
end

local function open_handle(self, level)
  if self.handle == nil then error(("%s: this reader is closed"):format(self.path), (level or 2) + 1) end
  return self.handle
end

-- A table: width, height, fps, fps_num, fps_den, duration, frames (nil where unknown), source_width, source_height,
-- source_fps, rotation, has_audio, is_image, codec, pixel_format, container, metadata.
function Reader:info()
  local handle = open_handle(self)
  local i = ffi.new("mel_video_info")
  C.mel_video_reader_info(handle, i)
  local info = {
    path = self.path, width = i.width, height = i.height, source_width = i.source_width, source_height = i.source_height,
    fps = i.fps, fps_num = i.fps_num, fps_den = i.fps_den, source_fps = i.source_fps,
    duration = i.duration_s >= 0 and i.duration_s or nil, frames = i.frames >= 0 and tonumber(i.frames) or nil,
    rotation = i.rotation, has_audio = i.has_audio, is_image = i.is_image, codec = ffi.string(i.codec),
    pixel_format = ffi.string(i.pixel_format), container = ffi.string(i.container), metadata = {},
  }
  local key, value, index = ffi.new("const char*[1]"), ffi.new("const char*[1]"), 0
  while C.mel_video_reader_tag(handle, index, key, value) do
    info.metadata[ffi.string(key[0])] = ffi.string(value[0])
    index = index + 1
  end
  return info
end

-- The next frame [H, W, 3] u8 and its time in seconds; nil at the end. nil, message where the file is damaged.
function Reader:next()
  local box, time = lib.out("mel_tensor*"), ffi.new("double[1]")
  local ok, message = expected(C.mel_video_reader_next(open_handle(self), box, time, err))
  if not ok then return nil, message end
  if box[0] == nil then return nil end
  return T.wrap(box[0]), time[0]
end

-- The next frame is then the one on screen at this time.
function Reader:seek(seconds)
  if type(seconds) ~= "number" then error("seek: a time in seconds is wanted, not " .. tostring(seconds), 2) end
  local ok, message = expected(C.mel_video_reader_seek(open_handle(self), seconds, err))
  return ok, message
end

-- for frame, time in reader:frames() do ... end. Raises where the file is damaged.
function Reader:frames()
  return function()
    local frame, time = self:next()
    if not frame and time then error(time, 2) end
    return frame, time
  end
end

-- Up to count frames (all of them where nil) as one clip [T, H, W, 3]; nil at the end; nil, message where damaged.
function Reader:read(count)
  if count ~= nil and (type(count) ~= "number" or count < 1) then
    error("read: a number of frames above 0 is wanted, not " .. tostring(count), 2)
  end
  local room = math.max(1, math.min(count or math.huge, self:info().frames or 64))
  local clip, got, shape
  while not count or got ~= count do
    local frame, message = self:next()
    if not frame then
      if message then return nil, message end
      break
    end
    if not clip then
      shape = frame.shape
      clip, got = T.empty({ room, shape[1], shape[2], 3 }, "u8"), 0
    elseif got == room then -- more than foreseen: double
      local larger = T.empty({ room * 2, shape[1], shape[2], 3 }, "u8")
      larger:slice(1, 1, room):copy_(clip)
      clip, room = larger, room * 2
    end
    got = got + 1
    clip:select(1, got):copy_(frame)
    frame:free()
  end
  if not clip then return nil end
  return got == room and clip or clip:slice(1, 1, got):clone()
end

function Reader:close()
  if self.handle ~= nil then C.mel_video_reader_close(ffi.gc(self.handle, nil)) end
  self.handle = nil
end

-- media.load(path, {width=, height=, fps=, start=, frames=}): the clip [T, H, W, 3] u8, at most `frames` of it. An
-- image is a clip of one frame.
function media.load(path, options)
  check_path("media.load", path)
  lib.check_options("media.load", options or {}, read_options)
  local reader, message = media.reader(path, options)
  if not reader then return nil, message end
  local clip, why = reader:read(options and options.frames)
  reader:close()
  if not clip then return nil, why or (path .. ": holds no frame") end
  return clip
end

-- media.info(path): what a file is, as Reader:info() tells; nil and a message where it cannot be read.
function media.info(path)
  check_path("media.info", path)
  local reader, message = media.reader(path)
  if not reader then return nil, message end
  local info = reader:info()
  reader:close()
  return info
end

-- ---- writing -------------------------------------------------------------------------------

local Writer = {}
Writer.__index = Writer

-- The C options, and the texts they point to (keep them while the call lasts).
local function options_of(what, options, level)
  lib.check_options(what, options, write_options, (level or 2) + 1)
  local o, keep = ffi.new("mel_video_write_options"), {}
  for _, name in ipairs { "width", "height", "crf", "quality", "loop", "threads" } do
    o[name] = whole(what, name, options[name], (level or 2) + 1)
  end
  o.crf_set = options.crf ~= nil
  if options.quality and o.quality < 1 and options.quality >= 0 then o.quality = 1 end
  if options.bitrate then o.bitrate = options.bitrate end
  if options.fps then o.fps_num, o.fps_den = rational(what, options.fps, (level or 2) + 1) end
  o.pad, o.full_chroma = not not options.pad, not not options.full_chroma
  if options.audio_from ~= nil then
    if type(options.audio_from) ~= "number" then
      error(("%s: audio_from is %s; seconds are wanted"):format(what, tostring(options.audio_from)), (level or 2) + 1)
    end
    o.audio_from_s = options.audio_from
  end
  for _, name in ipairs { "format", "codec", "preset", "audio" } do
    local text = options[name]
    if text ~= nil then
      text = tostring(text)
      keep[#keep + 1] = text
      o[name] = text
    end
  end
  if options.format == "jpg" then o.format = "jpeg" end
  local names = {}
  for key in pairs(options.metadata or {}) do names[#names + 1] = key end
  table.sort(names)
  local texts = ffi.new("const char*[?]", math.max(1, 2 * #names))
  for i, key in ipairs(names) do
    local value = tostring(options.metadata[key])
    keep[#keep + 1], keep[#keep + 2] = key, value
    texts[2 * i - 2], texts[2 * i - 1] = key, value
  end
  keep[#keep + 1] = texts
  o.metadata, o.metadata_count = texts, #names
  return o, keep
end

local function open_writer(what, path, options)
  check_path(what, path, 3)
  local o, keep = options_of(what, options or {}, 3)
  local box = lib.out("mel_video_writer*")
  local ok, message = expected(C.mel_video_writer_open(path, o, box, err), 3)
  if not ok or not keep then return nil, message end
  return setmetatable({ path = path, handle = ffi.gc(box[0], C.mel_video_writer_abort) }, Writer)
end

-- media.writer(path, {fps=24, crf= | quality= | bitrate=, preset=, codec=, format=, loop=, pad=, full_chroma=,
-- metadata={...}, width=, height=, threads=, audio= (a file whose sound the film gets), audio_from= (seconds)}): a file that
-- takes frames. The format goes by the extension; PNG and JPEG
-- sequences have a path with %04d. The size is the first frame's. nil and a message where the path cannot be written.
function media.writer(path, options)
  local writer, message = open_writer("media.writer", path, options)
  return writer, message
end

local function writer_handle(self, level)
  if self.handle == nil then error(("%s: this writer is finished"):format(self.path), (level or 2) + 1) end
  return self.handle
end

-- A frame [H, W, 3], a clip [T, H, W, 3] or a list of either. true, or nil and a message (no space on the disk).
function Writer:write(frames)
  local handle = writer_handle(self)
  if type(frames) == "table" and not T.is(frames) then
    for _, part in ipairs(frames) do
      local ok, message = self:write(part)
      if not ok then return nil, message end
    end
    return true
  end
  if not T.is(frames) then error("write: frames are a tensor or a list of them, not " .. type(frames), 2) end
  local ok, message = expected(C.mel_video_writer_write(handle, frames.handle, err))
  return ok, message
end

-- Frames written so far.
function Writer:count() return tonumber(C.mel_video_writer_frames(writer_handle(self))) end

-- Completes the file and gives it its name. true, or nil and a message; the writer is done either way.
function Writer:finish()
  local handle = ffi.gc(writer_handle(self), nil)
  self.handle = nil
  local ok, message = expected(C.mel_video_writer_finish(handle, err))
  return ok, message
end

-- Leaves nothing behind. Fine after finish().
function Writer:abort()
  if self.handle ~= nil then C.mel_video_writer_abort(ffi.gc(self.handle, nil)) end
  self.handle = nil
end

-- finish(), where that has not been done.
function Writer:close()
  if self.handle == nil then return true end
  return self:finish()
end

-- media.save(path, frames, options): a clip, an image or a list of them into one file. Options as media.writer.
-- true, or nil and a message.
function media.save(path, frames, options)
  local writer, message = open_writer("media.save", path, options)
  if not writer then return nil, message end
  local raised, ok, why = pcall(writer.write, writer, frames)
  if not raised then
    writer:abort()
    if type(ok) ~= "string" then error(ok, 0) end
    error((ok:gsub("^[^\n]-%.lua:%d+: ", "", 1)), 2) -- at the caller's line, not at the one above
  end
  if not ok then
    writer:abort()
    return nil, why
  end
  ok, why = expected(C.mel_video_writer_finish(ffi.gc(writer.handle, nil), err))
  writer.handle = nil
  return ok, why
end

-- media.check_output(path, options): true where media.save would accept this path and these options, or nil and the
-- message: to be asked before the work. Leaves nothing behind.
function media.check_output(path, options)
  check_path("media.check_output", path)
  local o, keep = options_of("media.check_output", options or {})
  local box = lib.out("mel_video_writer*")
  local ok, message = lib.try(C.mel_video_writer_open, path, o, box)
  if not ok or not keep then return nil, message end
  C.mel_video_writer_abort(box[0])
  return true
end

-- ---- images -----------------------------------------------------------------------------------

-- media.image(path): [H, W, 3] u8; nil and a message where it cannot be read.
function media.image(path)
  check_path("media.image", path)
  local box = lib.out("mel_tensor*")
  local ok, message = expected(C.mel_image_read(path, box, err))
  if not ok then return nil, message end
  return T.wrap(box[0])
end

-- media.save_image(path, image, {quality=, full_chroma=, metadata=}): [H, W, 3] as PNG, JPEG, WebP or GIF.
function media.save_image(path, image, options)
  check_path("media.save_image", path)
  if not T.is(image) then error("media.save_image: an image is a tensor, not " .. type(image), 2) end
  local o, keep = options_of("media.save_image", options or {})
  local ok, message = expected(C.mel_image_write(path, image.handle, o, err))
  if not ok or not keep then return nil, message end
  return true
end

-- Between pixels as bytes and as floats in 0..1; any shape.
function media.to_u8(x)
  local box = lib.out("mel_tensor*")
  lib.check(C.mel_pixels_to_u8(x.handle, box, err))
  return T.wrap(box[0])
end
function media.to_f32(x)
  local box = lib.out("mel_tensor*")
  lib.check(C.mel_pixels_to_f32(x.handle, box, err))
  return T.wrap(box[0])
end

-- ---- contact sheets -------------------------------------------------------------------------------

-- The cells of a row for each clip: `columns` of its frames, evenly spread with the first and the last, and its label.
local function rows_of(clips, columns, labels)
  local frames, texts = {}, {}
  for i, clip in ipairs(clips) do
    local count = clip.ndim == 4 and clip.shape[1] or 1
    for column = 1, columns do
      local at = columns == 1 and 1 or 1 + math.floor((column - 1) * (count - 1) / (columns - 1) + 0.5)
      frames[#frames + 1] = clip.ndim == 4 and clip:select(1, at) or clip
      texts[#frames] = column == 1 and labels and labels[i] or nil
    end
  end
  return frames, texts
end

local sheet_options = { columns = true, labels = true, gap = true, scale = true, label_scale = true }

-- media.contact_sheet(frames, {columns=, labels=, gap=8, scale=1, label_scale=}): one image [H, W, 3] u8. frames: a list
-- of images, a cell each; a clip, whose frames are cells; or a list of clips, a row of `columns` (5) frames each with
-- one label a row.
function media.contact_sheet(frames, options)
  options = options or {}
  lib.check_options("media.contact_sheet", options, sheet_options)
  local columns, labels = options.columns, options.labels
  if T.is(frames) then
    local clip = frames
    frames = {}
    if clip.ndim == 4 then for i = 1, clip.shape[1] do frames[i] = clip:select(1, i) end
    else frames[1] = clip end
  end
  if type(frames) ~= "table" or #frames == 0 then error("media.contact_sheet: a list of frames is wanted", 2) end
  local clips = false
  for i, frame in ipairs(frames) do
    if not T.is(frame) then error(("media.contact_sheet: entry %d is no tensor"):format(i), 2) end
    clips = clips or frame.ndim == 4
  end
  if clips then
    columns = columns or 5
    frames, labels = rows_of(frames, columns, labels)
  end
  local handles, texts, keep = ffi.new("const mel_tensor*[?]", #frames), ffi.new("const char*[?]", #frames), {}
  for i, frame in ipairs(frames) do
    handles[i - 1] = frame.handle
    if labels and labels[i] then
      keep[i] = tostring(labels[i])
      texts[i - 1] = keep[i]
    end
  end
  local o = ffi.new("mel_contact_sheet_options")
  o.columns = whole("media.contact_sheet", "columns", columns)
  o.label_scale = whole("media.contact_sheet", "label_scale", options.label_scale)
  o.scale = options.scale or 0
  o.gap_set, o.gap = options.gap ~= nil, whole("media.contact_sheet", "gap", options.gap)
  local box = lib.out("mel_tensor*")
  if next(keep) then o.labels = texts end
  lib.check(C.mel_contact_sheet(#frames, handles, o, box, err))
  return T.wrap(box[0])
end

require("melies.media_audio")(media)

return media
