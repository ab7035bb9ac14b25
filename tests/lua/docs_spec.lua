-- What the documentation shows works. Every ```lua block of README.md and docs/*.md runs, in a scratch folder of its
-- document; a block that returns a plugin is kept in that folder's melies/, where the program finds it. Of ```sh blocks,
-- lines that begin with `melies ` are checked: those after <!-- run --> run, others are parsed.
-- <!-- skip --> before a block leaves it out (one that shows an error, or needs a terminal).
local t = require "harness"
local ffi = require "ffi"
local melies = require "melies"

ffi.cdef [[ int chdir(const char *); ]]

local root = os.getenv "MELIES_ROOT"
local program = (os.getenv "MELIES_BUILD" or root .. "/build") .. "/melies"

-- { language=, text=, mark=, line= } of a markdown file.
local function blocks(path)
  local out, block, mark, number = {}, nil, nil, 0
  for line in io.lines(path) do
    number = number + 1
    local fence = line:match("^%s*```(.*)$")
    if block and fence then
      block.text = table.concat(block, "\n")
      out[#out + 1], block, mark = block, nil, nil
    elseif block then block[#block + 1] = line
    elseif fence then block = { language = fence:match("^%w*"), mark = mark, line = number }
    elseif line:match("^%s*<!%-%-.*%-%->%s*$") then mark = line:match("<!%-%-%s*(.-)%s*%-%->")
    elseif line:match("%S") then mark = nil end
  end
  return out
end

local function run_lua(block, name, folder)
  -- Lines are those of the document in messages.
  local chunk, message = loadstring(("\n"):rep(block.line) .. block.text, "@" .. name)
  t.ok(chunk, message)
  local env = setmetatable({ print = function() end, arg = {} }, { __index = _G })
  env._G = env
  local result = setfenv(chunk, env)()
  if type(result) == "table" and result.kind then
    local into = ("%s/melies/%s"):format(folder, melies.registry.folder(result.kind))
    os.execute("mkdir -p '" .. into .. "'")
    local f = assert(io.open(("%s/%s.lua"):format(into, result.name), "w"))
    f:write(block.text, "\n")
    f:close()
    local found
    found, message = melies.registry.find(result.kind, result.name)
    t.ok(found, message)
  end
end

-- Words of a shell line: quotes, no expansion. A comment ends it.
local function words(line)
  local out, word, quote = {}, nil, nil
  for c in line:gmatch(".") do
    if quote then
      if c == quote then quote = nil else word = word .. c end
    elseif c == '"' or c == "'" then quote, word = c, word or ""
    elseif c:match("%s") then out[#out + 1], word = word, nil
    elseif c == "#" and not word then break
    else word = (word or "") .. c end
  end
  out[#out + 1] = word
  return out
end

local commands = { run = true, check = true, repl = true, list = true, info = true, help = true, version = true, cache = true,
  plan = true, memory = true, sound = true }

local function check_line(line)
  local argv = words(line)
  while argv[2] and argv[2]:sub(1, 2) == "--" do -- options of the program itself
    if not argv[2]:find("=") and argv[2] ~= "--quiet" then table.remove(argv, 3) end
    table.remove(argv, 2)
  end
  t.ok(commands[argv[2]], "unknown command in: " .. line)
  if argv[2] ~= "run" or argv[3]:find("[A-Z]") then return end
  local plugin, message = melies.recipe.find(argv[3])
  t.ok(plugin, message)
  local code
  plugin, message, code = melies.recipe.parse(plugin, { unpack(argv, 4) })
  t.ok(plugin or code ~= melies.recipe.USAGE, ("%s: %s"):format(line, tostring(message)))
end

local function run_line(line, folder)
  local shell = "cd '%s' && MELIES_CACHE=\"$PWD/cache\" PATH='%s':\"$PATH\" sh -c '%s' >out.txt 2>&1 </dev/null"
  local command = shell:format(folder,
    program:match("^(.*)/"), (line:gsub("'", "'\\''")))
  local code = os.execute(command)
  if code ~= 0 then
    local f = io.open(folder .. "/out.txt")
    error(("'%s' ended with %s:\n%s"):format(line, tostring(code), f and f:read("*a") or ""), 0)
  end
end

local function run_sh(block, folder)
  for line in (block.text:gsub("\\\n%s*", "") .. "\n"):gmatch("(.-)\n") do
    if line:match("^melies ") then
      if block.mark == "run" then run_line(line, folder) else check_line(line) end
    end
  end
end

local files = { root .. "/README.md" }
local listing = io.popen("ls '" .. root .. "/docs/'*.md 2>/dev/null")
for path in listing:lines() do files[#files + 1] = path end
listing:close()

for _, path in ipairs(files) do
  local folder, name = t.folder(), path:match("[^/]+$")
  ffi.C.chdir(folder)
  for _, block in ipairs(blocks(path)) do
    if (block.language == "lua" or block.language == "sh") and not (block.mark or ""):match("^skip") then
      t.test(("%s:%d (%s)"):format(name, block.line, block.language), function()
        if block.language == "lua" then run_lua(block, name, folder) else run_sh(block, folder) end
      end)
    end
  end
end
ffi.C.chdir("/")

t.finish()
