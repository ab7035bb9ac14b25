-- Makes the FFI declarations of the public headers, and the hash by which Lua and C know each other.
-- usage: luajit cdef.lua VERSION OUT.lua OUT.h HEADER...
local version, out_lua, out_h = arg[1], arg[2], arg[3]
local headers = {}
for i = 4, #arg do headers[#headers + 1] = arg[i] end
-- base and tensor first: the others stand on them
local rank = { ["base.h"] = 1, ["tensor.h"] = 2 }
local function name(path) return path:match("[^/]+$") end
table.sort(headers, function(a, b)
  local ra, rb = rank[name(a)] or 3, rank[name(b)] or 3
  if ra ~= rb then return ra < rb end
  return name(a) < name(b)
end)

local parts = {}
for _, path in ipairs(headers) do
  local f = assert(io.open(path, "rb"))
  local text = f:read("*a")
  f:close()
  text = text:gsub("//[^\n]*", ""):gsub("/%*.-%*/", "")
  text = ("\n" .. text):gsub("\n%s*#[^\n]*", "\n"):gsub("MEL_API%s+", "")
  text = text:gsub("__attribute__%s*(%b())", "")
  parts[#parts + 1] = text
end
local cdef = table.concat(parts, "\n"):gsub("[ \t]+", " "):gsub("%s*\n%s*", "\n")

-- FNV-1a, twice with different bases: enough to tell two versions of a header apart.
local bit = require "bit"
local function fnv(s, h)
  for i = 1, #s do
    h = bit.bxor(h, s:byte(i))
    h = bit.tobit(bit.lshift(h, 24) + bit.lshift(h, 8) + h * 0x93)
  end
  return bit.tohex(h)
end
local hash = fnv(cdef, 0x811c9dc5) .. fnv(cdef, 0x01000193)

local function write(path, text)
  os.execute(("mkdir -p '%s'"):format(path:match("^(.*)/")))
  local f = assert(io.open(path, "wb"))
  f:write(text)
  f:close()
end
write(out_lua, ("-- generated from core/include/melies/*.h\nreturn { version = %q, hash = %q, cdef = [==[%s]==] }\n")
  :format(version, hash, cdef))
write(out_h, ("#define MELIES_VERSION \"%s\"\n#define MELIES_ABI_HASH \"%s\"\n"):format(version, hash))
