-- Files and folders: what Lua's io does not have. Failures are nil and a message.
local ffi = require "ffi"

-- Under names of our own, so that other modules may declare the same functions.
ffi.cdef [[
typedef struct { int64_t seconds; uint32_t nanoseconds; int32_t pad; } mel_fs_time;
typedef struct {
  uint32_t mask, block; uint64_t attributes; uint32_t links, uid, gid; uint16_t mode, pad;
  uint64_t inode, size, blocks, attributes_mask; mel_fs_time accessed, born, changed, modified; uint64_t rest[16];
} mel_fs_stat;
typedef struct { uint64_t inode; int64_t offset; unsigned short length; unsigned char type; char name[256]; } mel_fs_entry;
int mel_fs_statx(int, const char *, int, unsigned, mel_fs_stat *) __asm__("statx");
void *mel_fs_opendir(const char *) __asm__("opendir");
mel_fs_entry *mel_fs_readdir(void *) __asm__("readdir");
int mel_fs_closedir(void *) __asm__("closedir");
int mel_fs_mkdir(const char *, unsigned) __asm__("mkdir");
int mel_fs_touch(int, const char *, const void *, int) __asm__("utimensat");
int mel_fs_open(const char *, int, ...) __asm__("open");
int mel_fs_close(int) __asm__("close");
int mel_fs_flock(int, int) __asm__("flock");
int mel_fs_fsync(int) __asm__("fsync");
ptrdiff_t mel_fs_write(int, const char *, size_t) __asm__("write");
int mel_fs_nanosleep(const void *, void *) __asm__("nanosleep");
ptrdiff_t mel_fs_readlink(const char *, char *, size_t) __asm__("readlink");
int mel_fs_getpid(void) __asm__("getpid");
char *mel_fs_getcwd(char *, size_t) __asm__("getcwd");
const char *mel_fs_strerror(int) __asm__("strerror");
]]
local C = ffi.C
local AT_FDCWD, BASIC = -100, 0x7ff
local EEXIST = 17
local O_RDWR, O_CREAT, O_TRUNC, O_CLOEXEC = 2, 64, 512, 524288
local LOCK_EX, LOCK_NB = 2, 4

local fs = {}

local function failed(path)
  return nil, ("%s: %s"):format(path, ffi.string(C.mel_fs_strerror(ffi.errno())))
end

-- fs.stat(path): { size, mtime, folder } (bytes, seconds since 1970, boolean).
function fs.stat(path)
  local s = ffi.new("mel_fs_stat")
  if C.mel_fs_statx(AT_FDCWD, path, 0, BASIC, s) ~= 0 then return failed(path) end
  return { size = tonumber(s.size), mtime = tonumber(s.modified.seconds) + tonumber(s.modified.nanoseconds) * 1e-9,
    folder = bit.band(s.mode, 0xf000) == 0x4000 }
end

-- fs.list(path): names in a folder, sorted, without . and ..
function fs.list(path)
  local handle = C.mel_fs_opendir(path)
  if handle == nil then return failed(path) end
  local names = {}
  while true do
    local entry = C.mel_fs_readdir(handle)
    if entry == nil then break end
    local name = ffi.string(entry.name)
    if name ~= "." and name ~= ".." then names[#names + 1] = name end
  end
  C.mel_fs_closedir(handle)
  table.sort(names)
  return names
end

-- fs.make(path): the folder and those above it, where they are not there yet.
function fs.make(path)
  local at = path:sub(1, 1) == "/" and "/" or ""
  for part in path:gmatch "[^/]+" do
    at = (at == "" or at == "/") and at .. part or at .. "/" .. part
    if C.mel_fs_mkdir(at, 493) ~= 0 and ffi.errno() ~= EEXIST then -- 0755
      local message = select(2, failed(at))
      local there = fs.stat(at)
      if not (there and there.folder) then return nil, message end
    end
  end
  local there, message = fs.stat(path)
  if not there then return nil, message end
  if not there.folder then return nil, path .. ": not a folder" end
  return true
end

-- fs.touch(path, seconds): the time of its last change becomes seconds, now by default.
function fs.touch(path, seconds)
  local times
  if seconds then
    times = ffi.new("mel_fs_time[2]") -- on 64-bit systems a timespec: two of 8 bytes
    for i = 0, 1 do times[i].seconds = seconds end
  end
  if C.mel_fs_touch(AT_FDCWD, path, times, 0) ~= 0 then return failed(path) end
  return true
end

-- fs.lock(path): a lock between processes, held until release() or the end of the program; nil where another process
-- holds it.
function fs.lock(path)
  local fd = C.mel_fs_open(path, O_RDWR + O_CREAT + O_CLOEXEC, ffi.cast("int", 420)) -- 0644
  if fd < 0 then return failed(path) end
  if C.mel_fs_flock(fd, LOCK_EX + LOCK_NB) ~= 0 then
    C.mel_fs_close(fd)
    return nil, path .. ": locked by another process"
  end
  return function() C.mel_fs_close(fd) end
end

-- fs.write(path, text): the file with that content, whole or not at all, and on the disk when this returns.
function fs.write(path, text)
  local new = path .. ".new"
  local fd = C.mel_fs_open(new, O_RDWR + O_CREAT + O_TRUNC + O_CLOEXEC, ffi.cast("int", 420)) -- 0644
  if fd < 0 then return failed(new) end
  local ok = tonumber(C.mel_fs_write(fd, text, #text)) == #text and C.mel_fs_fsync(fd) == 0
  local _, message = nil, nil
  if not ok then _, message = failed(new) end
  C.mel_fs_close(fd)
  if ok then ok, message = os.rename(new, path) end
  if not ok then
    os.remove(new)
    return nil, message
  end
  local folder = C.mel_fs_open(path:match "^(.*/)[^/]*$" or ".", O_CLOEXEC)
  if folder >= 0 then
    C.mel_fs_fsync(folder)
    C.mel_fs_close(folder)
  end
  return true
end

-- fs.program(): the path of the melies program, where this process is one.
function fs.program()
  local buffer = ffi.new("char[4096]")
  local n = tonumber(C.mel_fs_readlink("/proc/self/exe", buffer, 4096))
  local path = n > 0 and n < 4096 and ffi.string(buffer, n)
  return path and path:find "/melies$" and path or nil
end

function fs.sleep(seconds)
  local time = ffi.new("int64_t[2]", { math.floor(seconds), math.floor(seconds % 1 * 1e9) })
  C.mel_fs_nanosleep(time, nil)
end

-- fs.pid(), fs.cwd(): of this process.
function fs.pid() return C.mel_fs_getpid() end
function fs.cwd()
  local buffer = ffi.new("char[4096]")
  return C.mel_fs_getcwd(buffer, 4096) ~= nil and ffi.string(buffer) or nil
end

-- fs.read(path, offset, count): bytes as a string (all by default; fewer at the end of the file).
function fs.read(path, offset, count)
  local f, message = io.open(path, "rb")
  if not f then return nil, message end
  if offset then f:seek("set", offset) end
  local text, why = f:read(count or "*a")
  f:close()
  if not text and why then return nil, ("%s: %s"):format(path, why) end
  return text or ""
end

return fs
