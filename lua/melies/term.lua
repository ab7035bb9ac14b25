-- What the terminal is: is it one, how wide, which characters and colours it shows, and what it answers when
-- it is asked. Plain libc through FFI, so that it serves the program and plain luajit alike.
local ffi = require "ffi"

ffi.cdef [[
int isatty(int fd);
int ioctl(int fd, unsigned long request, ...);
int open(const char *path, int flags, ...);
int close(int fd);
ptrdiff_t read(int fd, void *buffer, size_t size);
ptrdiff_t write(int fd, const void *buffer, size_t size);
int tcgetattr(int fd, void *settings);
int tcsetattr(int fd, int when, const void *settings);
void cfmakeraw(void *settings);
typedef struct { int fd; short events, revents; } mel_term_pollfd;
int poll(mel_term_pollfd *fds, unsigned long count, int timeout_ms);
typedef struct { long seconds, nanoseconds; } mel_term_timespec;
int clock_gettime(int clock, mel_term_timespec *out);
]]

local C = ffi.C
local term = {}

local TIOCGWINSZ, O_RDWR, O_NOCTTY, POLLIN, TCSANOW, CLOCK_MONOTONIC = 0x5413, 2, 0x100, 1, 0, 1
local stamp = ffi.new "mel_term_timespec"

-- Seconds of a monotonic clock.
function term.now()
  C.clock_gettime(CLOCK_MONOTONIC, stamp)
  return tonumber(stamp.seconds) + tonumber(stamp.nanoseconds) * 1e-9
end

-- Is file descriptor fd (0 input, 1 output, 2 messages) a terminal?
function term.isatty(fd) return C.isatty(fd) == 1 end

-- columns, rows, width and height in pixels (0 where unknown) of the terminal at fd (1 by default);
-- 80 x 24 where there is none. COLUMNS in the environment stands in for an unknown width.
function term.size(fd)
  local w = ffi.new "uint16_t[4]"
  if C.ioctl(fd or 1, TIOCGWINSZ, w) == 0 and w[1] > 0 then
    return w[1], w[0] > 0 and w[0] or 24, w[2], w[3]
  end
  return tonumber(os.getenv "COLUMNS") or 80, tonumber(os.getenv "LINES") or 24, 0, 0
end

-- Does the locale say UTF-8?
function term.utf8()
  local all, ctype = os.getenv "LC_ALL", os.getenv "LC_CTYPE"
  local name = (all and all ~= "" and all) or (ctype and ctype ~= "" and ctype) or os.getenv "LANG" or ""
  return name:upper():gsub("-", ""):find("UTF8", 1, true) ~= nil
end

-- "truecolor" (24 bits) or "256".
function term.colors()
  local name = os.getenv "COLORTERM" or ""
  return (name == "truecolor" or name == "24bit") and "truecolor" or "256"
end

-- Writes question to the terminal and returns the first match of pattern in its answer, or nil when timeout_ms pass
-- without one. Ask what every terminal answers (DA1), or the wait is always the full one.
function term.query(question, pattern, timeout_ms)
  local fd = C.open("/dev/tty", O_RDWR + O_NOCTTY)
  if fd < 0 then return nil end
  local before, raw = ffi.new "char[256]", ffi.new "char[256]" -- a struct termios is smaller on every system
  if C.tcgetattr(fd, before) ~= 0 then C.close(fd) return nil end
  ffi.copy(raw, before, 256)
  C.cfmakeraw(raw)
  C.tcsetattr(fd, TCSANOW, raw)
  C.write(fd, question, #question)
  local answer, found = "", nil
  local deadline = term.now() + (timeout_ms or 200) / 1000
  local buffer, wait = ffi.new "char[256]", ffi.new "mel_term_pollfd[1]"
  while not found do
    local left = math.ceil((deadline - term.now()) * 1000)
    wait[0].fd, wait[0].events = fd, POLLIN
    if left <= 0 or C.poll(wait, 1, left) <= 0 then break end
    local n = tonumber(C.read(fd, buffer, 256))
    if n <= 0 then break end
    answer = answer .. ffi.string(buffer, n)
    found = answer:match(pattern)
  end
  C.tcsetattr(fd, TCSANOW, before)
  C.close(fd)
  return found
end

-- Columns that text takes: UTF-8 characters, each counted as one.
function term.columns(text)
  local _, continuation = text:gsub("[\128-\191]", "")
  return #text - continuation
end

-- The first n columns of text.
function term.cut(text, n)
  if term.columns(text) <= n then return text end
  local out = {}
  for char in text:gmatch "[%z\1-\127\194-\244][\128-\191]*" do
    if #out == n then break end
    out[#out + 1] = char
  end
  return table.concat(out)
end

return term
