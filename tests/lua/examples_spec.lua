-- Every program in examples/ runs, and writes what it says.
local t = require "harness"
local ffi = require "ffi"
local melies = require "melies"

ffi.cdef [[ int chdir(const char *); ]]

local root = os.getenv "MELIES_ROOT"
local folder = t.folder()
ffi.C.chdir(folder)

local n = assert(melies.pipeline.load "starter").defaults.frames
-- file -> words, and the films it writes with their lengths
local known = {
  ["film_from_a_script.lua"] = { { folder, "4" }, { ["red-ball.mp4"] = n, ["blue-ball.mp4"] = n } },
  ["own_sampler.lua"] = { { "own.mp4", "4" }, { ["own.mp4"] = n } },
  ["tensor_tour.lua"] = { {}, {} },
  ["edit_video.lua"] = { { "red-ball.mp4", "edited.mp4" }, { ["edited.mp4"] = math.ceil(n / 2) } },
}

local listing = io.popen("ls '" .. root .. "/examples/'*.lua")
local paths = {}
for path in listing:lines() do paths[#paths + 1] = path end
listing:close()
-- edit_video reads what film_from_a_script writes.
table.sort(paths, function(a, b)
  local ea, eb = a:find("edit_video", 1, true) and 1 or 0, b:find("edit_video", 1, true) and 1 or 0
  if ea ~= eb then return ea < eb end
  return a < b
end)

for _, path in ipairs(paths) do
  local name = path:match("[^/]+$")
  t.test(name, function()
    local words, films = unpack(t.ok(known[name], "no entry for " .. name .. " in examples_spec.lua"))
    local plugin = assert(melies.recipe.find(path))
    local result, message = melies.recipe.run(plugin, assert(melies.recipe.parse(plugin, words)))
    t.ok(result, message)
    for film, frames in pairs(films) do
      t.eq(assert(melies.media.load(folder .. "/" .. film)).shape[1], frames, film)
    end
  end)
end
ffi.C.chdir("/")

t.finish()
