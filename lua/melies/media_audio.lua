-- Sound in files: readers of samples, whole files, a plain writer of WAV, sound beside a film's pictures. Adds them to
-- melies.media. Samples are f32 tensors [N, C], C = 1 or 2, full scale -1..1.
local ffi = require "ffi"
local lib = require "melies.ffi.lib"
local T = require "melies.tensor"
local C, err = lib.C, lib.err

local OPTIONS = { rate = true, channels = true, start = true, seconds = true }
local CHUNK = 65536 -- samples

local Reader = {}
Reader.__index = Reader

local function expected(status)
  status = tonumber(status)
  if status == 0 then return true end
  if status == lib.ECANCELED then lib.raise(status) end
  return nil, lib.message()
end

local function number(what, name, value, low, level)
  if value ~= nil and (type(value) ~= "number" or not (value >= low and value < 2 ^ 31)) then
    error(("%s: %s is %s; a number of at least %g is wanted"):format(what, name, tostring(value), low), (level or 2) + 1)
  end
  return value or 0
end

local function open(what, path, options)
  options = options or {}
  if type(path) ~= "string" or path == "" then error(("%s: a path is wanted, not %s"):format(what, tostring(path)), 3) end
  lib.check_options(what, options, OPTIONS, 3)
  local o = ffi.new("mel_audio_read_options")
  o.rate, o.channels = number(what, "rate", options.rate, 0, 3), number(what, "channels", options.channels, 0, 3)
  local start = number(what, "start", options.start, 0, 3)
  local seconds = options.seconds ~= nil and number(what, "seconds", options.seconds, 0, 3) or nil
  local box = lib.out("mel_audio_reader*")
  local ok, message = expected(C.mel_audio_reader_open(path, o, box, err))
  if not ok then return nil, message end
  local self = setmetatable({ path = path, handle = ffi.gc(box[0], C.mel_audio_reader_close) }, Reader)
  local rate = self:info().rate
  self.left = math.huge
  for at = math.floor(start * rate + 0.5), 1, -CHUNK do
    local skipped
    skipped, message = self:read(math.min(at, CHUNK))
    if not skipped then
      if message then return nil, message end
      break
    end
  end
  self.left = seconds and math.floor(seconds * rate + 0.5) or math.huge
  return self
end

local function handle_of(self)
  if self.handle == nil then error(("%s: this reader is closed"):format(self.path), 3) end
  return self.handle
end

-- A table: rate, channels, source_rate, source_channels, duration (nil where unknown), codec, container.
function Reader:info()
  local i = ffi.new("mel_audio_info")
  C.mel_audio_reader_info(handle_of(self), i)
  return { path = self.path, rate = i.rate, channels = i.channels, source_rate = i.source_rate,
    source_channels = i.source_channels, duration = i.duration_s >= 0 and i.duration_s or nil, codec = ffi.string(i.codec),
    container = ffi.string(i.container) }
end

-- The next `count` samples [count, C], fewer at the end, nil after it; nil, message where the file is damaged.
function Reader:read(count)
  if type(count) ~= "number" or count < 1 then
    error("read: a number of samples above 0 is wanted, not " .. tostring(count), 2)
  end
  count = math.min(count, self.left)
  if count < 1 then return nil end
  local box = lib.out("mel_tensor*")
  local ok, message = expected(C.mel_audio_reader_next(handle_of(self), count, box, err))
  if not ok then return nil, message end
  if box[0] == nil then return nil end
  local samples = T.wrap(box[0])
  self.left = self.left - samples.shape[1]
  return samples
end

function Reader:close()
  if self.handle ~= nil then C.mel_audio_reader_close(ffi.gc(self.handle, nil)) end
  self.handle = nil
end

-- 16 bits a sample, little endian.
local function wav_bytes(samples, first, last)
  local part = (samples:slice(1, first, last):clamp(-1, 1) * 32767):round():contiguous()
  local n = part:numel()
  local from, to = part:ptr(), ffi.new("int16_t[?]", n)
  for i = 0, n - 1 do to[i] = from[i] end
  return ffi.string(to, 2 * n)
end

local function le(value, bytes)
  local out = {}
  for i = 1, bytes do
    out[i] = string.char(value % 256)
    value = math.floor(value / 256)
  end
  return table.concat(out)
end

return function(media)
  -- media.audio_reader(path, {rate=, channels=, start=, seconds=}): a stream of samples. nil and a message where the
  -- file cannot be read or holds no sound.
  function media.audio_reader(path, options)
    local reader, message = open("media.audio_reader", path, options)
    return reader, message
  end

  -- media.audio(path, {rate=, channels=, start=, seconds=}): all samples [N, C] and the reader's info. nil and a message.
  function media.audio(path, options)
    local reader, message = open("media.audio", path, options)
    if not reader then return nil, message end
    local info, parts = reader:info(), {}
    while true do
      local part
      part, message = reader:read(CHUNK)
      if not part then break end
      parts[#parts + 1] = part
    end
    reader:close()
    if message then return nil, message end
    if #parts == 0 then return nil, path .. ": holds no samples" end
    return #parts == 1 and parts[1] or T.concat(parts, 1), info
  end

  -- media.save_audio(path, samples, {rate=48000}): [N] or [N, C] as a WAV file of 16 bits. true, or nil and a message.
  function media.save_audio(path, samples, options)
    options = options or {}
    lib.check_options("media.save_audio", options, { rate = true })
    if type(path) ~= "string" or not path:lower():find "%.wav$" then
      error("media.save_audio: a path that ends in .wav is wanted, not " .. tostring(path), 2)
    end
    if not T.is(samples) or samples.ndim > 2 then error("media.save_audio: samples are a tensor [N] or [N, C]", 2) end
    local x = samples:to "f32"
    if x.ndim == 1 then x = x:unsqueeze(2) end
    local n, channels = x.shape[1], x.shape[2]
    local rate = options.rate or 48000
    local bytes = n * channels * 2
    if bytes >= 2 ^ 32 - 36 then return nil, path .. ": a WAV file holds 4 GB" end
    local part = path .. ".part"
    local file, message = io.open(part, "wb")
    if not file then return nil, message end
    local ok = file:write("RIFF", le(36 + bytes, 4), "WAVEfmt ", le(16, 4), le(1, 2), le(channels, 2), le(rate, 4),
      le(rate * channels * 2, 4), le(channels * 2, 2), le(16, 2), "data", le(bytes, 4))
    for first = 1, n, CHUNK do
      ok = ok and file:write(wav_bytes(x, first, math.min(n, first + CHUNK - 1)))
    end
    ok, message = file:close() and ok, path .. ": cannot be written"
    if ok then ok, message = os.rename(part, path) end
    if ok then return true end
    os.remove(part)
    return nil, message
  end

  -- media.holds_sound(path, format): whether a film of this name (or format) can have sound: MP4 and WebM.
  function media.holds_sound(path, format) return C.mel_audio_fits(path, format) end

  -- media.add_audio(video, audio, output, {from=0}): a film with the sound of a file, its pictures as they are; as long as
  -- the film, cut off or followed by silence. true, or nil and a message.
  function media.add_audio(video, audio, output, options)
    options = options or {}
    lib.check_options("media.add_audio", options, { from = true })
    for _, path in ipairs { video or false, audio or false, output or false } do
      if type(path) ~= "string" then error("media.add_audio: three paths are wanted: film, sound, output", 2) end
    end
    local ok, message = expected(C.mel_audio_add(video, audio, number("media.add_audio", "from", options.from, 0), output, err))
    return ok, message
  end
end
