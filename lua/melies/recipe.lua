-- Recipes: a table that declares typed parameters and a run(p, job). From the declaration come the command-line
-- flags, their checks, and --help; the runner gives the recipe its job and cleans up after it.
--
--   recipe.parse(plugin, argv)         -> values | nil, message, exit code (0: message is the help text)
--   recipe.check(plugin, table)        -> values | nil, message, exit code   (the same checks for a Lua table)
--   recipe.help(plugin)                -> text
--   recipe.run(plugin, values, opts)   -> result | nil, message, exit code   (0 is never returned with nil)
--   recipe.call(name, table, opts)    -> result | nil, message, exit code   (= melies.run)
--
-- A parameter: name = { type, required=, default=, min=, max=, choices=, of=, help=, from_model= }.
-- Types: string, text, integer, number, boolean, enum (choices), list (of = another type; commas between), file, image,
-- video, model, sampler, schedule, guide, size ("640x480" -> { width=, height= }), seconds (2.5, "2.5s", "1:30"),
-- output. unless: the name of a parameter that makes this one not required. from_model:
-- without a value, job:defaults fills in the model's own.
local lib = require "melies.ffi.lib"

local M = {}

-- Exit codes of the program.
M.OK, M.FAILED, M.USAGE, M.CANCELED = 0, 1, 2, 130

-- ---- values --------------------------------------------------------------------------------------

-- Foreign text inside a message: cut where it is long.
local function cut(text)
  text = tostring(text)
  return #text > 80 and text:sub(1, 80) .. "..." or text
end

-- nil, message, code as they go out: one line that a terminal may show, control characters spelled out.
local function refusal(message, code)
  message = message:gsub("%c", function(c) return c == "\n" and "\\n" or ("\\x%02x"):format(c:byte()) end)
  return nil, #message > 600 and message:sub(1, 600) .. "..." or message, code
end

local plugin_kinds = { sampler = true, schedule = true, guide = true, step_cache = true, planner = true, style = true }

local function readable(path)
  local f, message = io.open(path, "rb")
  if not f then return nil, message end
  local ok, why = f:read(0) -- a folder opens but does not read; an empty file gives nil without a reason
  f:close()
  if not ok and why then return nil, path .. ": " .. why end
  return path
end

local function number_of(value)
  local n = tonumber(value)
  if n and n == n and math.abs(n) ~= math.huge then return n end
end

local types = {}

function types.string(value)
  if type(value) == "string" then return value end
  if type(value) == "number" then return tostring(value) end
  return nil, "text"
end
types.text, types.model, types.output = types.string, types.string, types.string

function types.number(value)
  local n = number_of(value)
  if not n then return nil, "a number" end
  return n
end

function types.integer(value)
  local n = number_of(value)
  if not n or n ~= math.floor(n) or math.abs(n) > 2 ^ 53 then return nil, "a whole number" end
  return n
end

local truths = { ["true"] = true, yes = true, on = true, ["1"] = true, ["false"] = false, no = false, off = false,
                 ["0"] = false }
function types.boolean(value)
  if type(value) == "boolean" then return value end
  local b = truths[tostring(value):lower()]
  if b == nil then return nil, "yes or no" end
  return b
end

function types.enum(value, spec)
  for _, choice in ipairs(spec.choices) do
    if value == choice or tostring(value) == tostring(choice) then return choice end
  end
  return nil, "one of " .. table.concat(spec.choices, ", ") .. lib.suggest(tostring(value), spec.choices)
end

function types.size(value)
  if type(value) == "table" and value.width and value.height then return value end
  local w, h = tostring(value):match("^(%d+)[xX*](%d+)$")
  if not w then return nil, "WIDTHxHEIGHT, such as 640x480" end
  return { width = tonumber(w), height = tonumber(h) }
end

function types.seconds(value)
  if type(value) == "number" then return number_of(value), "seconds" end
  local text = tostring(value)
  local m, s = text:match("^(%d+):(%d%d?%.?%d*)$")
  local n = m and tonumber(m) * 60 + tonumber(s) or number_of((text:gsub("s$", "")))
  if not n then return nil, "seconds, such as 2.5 or 1:30" end
  return n
end

function types.file(value)
  if type(value) ~= "string" then return nil, "a file" end
  return value
end
types.image, types.video = types.file, types.file

-- Words as lora.argument reads them, one or a list (a flag that is given several times).
function types.loras(value)
  local out = {}
  for i, item in ipairs(type(value) == "table" and not value.file and value or { value }) do
    local entry, why = item, "a LoRA's file and its strength, FILE:0.8"
    if type(item) == "string" then entry, why = require("melies.lora").argument(item) end
    if type(entry) ~= "table" or type(entry.file) ~= "string" then return nil, why end
    out[i] = entry
  end
  return out
end

for kind in pairs(plugin_kinds) do
  types[kind] = function(value)
    if type(value) == "table" and value.kind == kind then return value end -- an inline plugin, from Lua
    if type(value) ~= "string" then return nil, "the name of a " .. kind end
    local found, message = require("melies.registry").get(kind, value)
    if found then return value end
    return nil, ("the name of a %s: %s (melies list %ss)"):format(kind, message, kind)
  end
end

function types.list(value, spec)
  local out, items = {}, value
  if type(value) == "string" then
    items = {}
    for item in (value .. ","):gmatch("%s*(.-)%s*,") do
      if item ~= "" then items[#items + 1] = item end
    end
  end
  if type(items) ~= "table" then return nil, "a list with commas between" end
  for i, item in ipairs(items) do
    local v, want = types[spec.of or "string"](item, spec)
    if v == nil then return nil, ("a list of %ss; entry %d, '%s', should be %s"):format(spec.of, i, cut(item), want) end
    out[i] = v
  end
  if #out == 0 then return nil, "a list with something in it" end
  return out
end

local function type_of(spec, name, recipe_name)
  local kind = spec[1]
  if not types[kind] then
    local names = {}
    for k in pairs(types) do names[#names + 1] = k end
    error(("recipe %s: parameter %s has the unknown type '%s'%s"):format(recipe_name, name, tostring(kind),
      lib.suggest(tostring(kind), names)), 0)
  end
  return types[kind]
end

local function range_text(spec)
  if spec.min and spec.max then return ("%s..%s"):format(spec.min, spec.max) end
  if spec.min then return ("%s or more"):format(spec.min) end
  if spec.max then return ("up to %s"):format(spec.max) end
end

-- The value in its own type, or nil and a message that names parameter, value and what was wanted.
local function coerce(name, value, spec, recipe_name)
  local got, want = type_of(spec, name, recipe_name)(value, spec)
  local shown = type(value) == "table" and "a table" or cut(value)
  if got == nil then return nil, ("%s is '%s'; it should be %s"):format(name, shown, want) end
  local low, high = spec.min, spec.max
  if type(got) == "number" and ((low and got < low) or (high and got > high)) then
    return nil, ("%s is %s, outside %s"):format(name, shown, range_text(spec))
  end
  if type(got) == "table" and spec[1] == "size" and ((low and math.min(got.width, got.height) < low)
    or (high and math.max(got.width, got.height) > high)) then
    return nil, ("%s is %s, outside %s a side"):format(name, shown, range_text(spec))
  end
  return got
end

-- ---- declarations --------------------------------------------------------------------------------

-- What every recipe takes. A recipe's own declaration of the same name stands before it.
local common = {
  output = { "output", short = "o", help = "the file to write; its ending says the format" },
  seed = { "integer", default = 0, min = 0, help = "the same seed gives the same film" },
}

-- The table of parameters with the common ones, and their names in the order of --help: required ones, then the
-- recipe's `order`, then the rest by name.
function M.params(plugin)
  local all, names, rank = {}, {}, {}
  for name, spec in pairs(common) do all[name] = spec end
  for name, spec in pairs(plugin.params or {}) do all[name] = spec end
  for i, name in ipairs(plugin.order or {}) do rank[name] = i end
  for name in pairs(all) do names[#names + 1] = name end
  table.sort(names, function(a, b)
    local ra, rb = all[a].required and 1 or 2, all[b].required and 1 or 2
    if ra ~= rb then return ra < rb end
    ra, rb = rank[a] or 1000, rank[b] or 1000
    if ra ~= rb then return ra < rb end
    return a < b
  end)
  return all, names
end

-- The parameters that recipes which generate share; `own` adds to them and stands before them.
-- own.NAME = false leaves one out.
function M.generation(own)
  local params = {
    model = { "model", default = "starter", help = "a model's name, its folder, or a checkpoint" },
    text_encoder = { "model", help = "file or folder of the text encoder, in place of the model's" },
    vae = { "model", help = "file or folder of the autoencoder, in place of the model's" },
    image_encoder = { "model", help = "file or folder of the image encoder, in place of the model's" },
    tokenizer = { "file", help = "spiece.model or tokenizer.json, in place of the model's" },
    quantization = { "file", help = "a calibration of melies run quantize, for --compute s8" },
    attention = { "text", help = "s8, s8-values, tiles:3x3x3 or radial:0.5: self-attention in 8 bits, or of what is near" },
    few_steps = { "boolean", default = false, help = "the model's few-step variant, where it has one" },
    prompt = { "text", required = true, unless = "latents", help = "what the film shows" },
    negative = { "text", default = "", help = "what it should not show" },
    frames = { "integer", from_model = true, min = 1, max = 100000, help = "length in frames" },
    seconds = { "seconds", min = 0.01, max = 3600, help = "length in seconds, in place of frames" },
    width = { "integer", from_model = true, min = 8, max = 8192, help = "pixels" },
    height = { "integer", from_model = true, min = 8, max = 8192, help = "pixels" },
    size = { "size", min = 8, max = 8192, help = "width and height in one" },
    fps = { "number", from_model = true, min = 0.1, max = 240, help = "frames a second" },
    steps = { "integer", from_model = true, min = 1, max = 1000, help = "sampling steps" },
    sampler = { "sampler", from_model = true, help = "melies list samplers" },
    schedule = { "schedule", from_model = true, help = "melies list schedules" },
    shift = { "number", from_model = true, min = 0.01, max = 100, help = "shift of the flow schedule" },
    guide = { "guide", from_model = true, help = "melies list guides" },
    step_cache = { "step_cache", help = "leave out what changes little between steps: melies list step_caches" },
    guidance_interval = { "list", of = "number", help = "LOW,HIGH: guidance only at sigmas in between" },
    guidance = { "number", from_model = true, min = 0, max = 100, help = "how strongly the prompt steers; 1 is off" },
    guidance_low = { "number", from_model = true, min = 0, max = 100,
      help = "guidance of the expert for low noise, where the model has two (default: that of the model or of --guidance)" },
    strict = { "boolean", default = false, help = "refuse a length off the model's grid in place of rounding it" },
    truncate = { "boolean", default = false, help = "cut a prompt that is longer than the model takes" },
    prompt_style = { "enum", choices = { "comfyui", "a1111", "plain" }, default = "comfyui",
      help = "how weights act on the text; plain: brackets are letters" },
    lora = { "loras", repeatable = true, help = "a LoRA's file or name and its strength; may be given several times" },
    wildcards = { "string", help = "folder of NAME.txt, for __NAME__ in a prompt" },
    latents = { "file", help = "decode this latent, with the parameters it was made with; nothing is sampled" },
    save_latents = { "string", help = "a file for the latent, before it is decoded" },
    job = { "string", help = "folder that keeps the unfinished job (default: OUTPUT.job)" },
    fresh = { "boolean", default = false, help = "begin anew where the job's folder holds an unfinished one" },
    reuse = { "boolean", default = false, help = "take the latent of the same job from the cache, or keep it there" },
    quality = { "number", min = 1, max = 100, help = "quality of the output file; each format has its own default" },
    bitrate = { "integer", min = 1000, max = 1e9, help = "bits a second of the output, in place of quality" },
    codec = { "string", help = "h264 or av1 in .mp4, vp9 or av1 in .webm" },
  }
  for name, spec in pairs(own or {}) do params[name] = spec or nil end
  return params
end

M.generation_order = { "prompt", "negative", "model", "frames", "seconds", "size", "width", "height", "fps", "steps",
  "sampler", "schedule", "shift", "guide", "guidance", "seed", "output" }

local metavar = {
  string = "TEXT", text = "TEXT", integer = "N", number = "X", file = "FILE", image = "IMAGE", video = "VIDEO",
  model = "MODEL", sampler = "NAME", schedule = "NAME", guide = "NAME", step_cache = "NAME", size = "WxH", seconds = "SECONDS",
  output = "FILE", planner = "NAME", style = "NAME", list = "A,B,...", loras = "FILE:X",
}

local function default_text(spec)
  if spec.required then return "required" end
  if spec.from_model then return "default: the model's" end
  local d = spec.default
  if d == nil or d == "" then return nil end
  if type(d) == "boolean" then return "default: " .. (d and "yes" or "no") end
  if type(d) == "table" then
    return "default: " .. (d.width and ("%dx%d"):format(d.width, d.height) or table.concat(d, ","))
  end
  return "default: " .. tostring(d)
end

-- The text of --help: one parameter a line, with range and default.
function M.help(plugin)
  local all, names = M.params(plugin)
  local lines, rows, wide = {}, {}, 0
  lines[1] = plugin.name .. (plugin.help and ": " .. plugin.help or "")
  local usage = { "melies run " .. plugin.name }
  for _, name in ipairs(names) do
    local spec = all[name]
    type_of(spec, name, plugin.name)
    local flag = (spec.short and "-" .. spec.short .. ", " or "") .. "--" .. name
    if spec[1] == "boolean" then flag = flag .. " | --no-" .. name
    elseif spec[1] == "enum" then flag = flag .. " " .. table.concat(spec.choices, "|")
    else flag = flag .. " " .. metavar[spec[1]] end
    if spec.required then usage[#usage + 1] = ("--%s %s"):format(name, metavar[spec[1]] or "X") end
    local notes = {}
    notes[#notes + 1] = range_text(spec)
    notes[#notes + 1] = default_text(spec)
    local note = #notes > 0 and (" (" .. table.concat(notes, "; ") .. ")") or ""
    rows[#rows + 1] = { flag, (spec.help or "") .. note }
    wide = math.max(wide, #flag)
  end
  lines[2] = ""
  lines[3] = "  " .. table.concat(usage, " ") .. " -o FILE"
  lines[4] = ""
  for _, row in ipairs(rows) do lines[#lines + 1] = ("  %-" .. wide .. "s  %s"):format(row[1], row[2]) end
  for _, name in ipairs(names) do
    if plugin_kinds[all[name][1]] then
      lines[#lines + 1] = ""
      lines[#lines + 1] = ("A %s's own parameters are given as --%s.NAME VALUE."):format(all[name][1], name)
      break
    end
  end
  return table.concat(lines, "\n")
end

-- ---- checking ------------------------------------------------------------------------------------

-- The parameters of the plugin that `values` chose for `name` ("sampler"), given as ["sampler.eta"], checked against
-- the plugin's own declaration. A table, or nil and a message.
function M.plugin_params(all, values, name)
  local out, prefix, found = {}, name .. ".", false
  for key in pairs(values) do found = found or key:sub(1, #prefix) == prefix end
  if not found then return out end
  local choice = values[name]
  local plugin = type(choice) == "table" and choice
    or (choice and require("melies.registry").get(all[name][1], choice))
  if not plugin then return nil, ("%s* is given, but no %s is chosen"):format(prefix, name) end
  local known = {}
  for key in pairs(plugin.params or {}) do known[#known + 1] = prefix .. key end
  for key, value in pairs(values) do
    if key:sub(1, #prefix) == prefix then
      local short = key:sub(#prefix + 1)
      local spec = (plugin.params or {})[short]
      if not spec then
        return nil, ("%s: the %s '%s' has no such parameter%s"):format(key, name, plugin.name, lib.suggest(key, known))
      end
      local got, message = coerce(key, value, spec, plugin.name)
      if got == nil then return nil, message end
      out[short] = got
    end
  end
  return out
end

local function check(plugin, given)
  local all, names = M.params(plugin)
  local values = {}
  for key, value in pairs(given) do
    local head = type(key) == "string" and key:match("^([%w_]+)%.")
    if head and all[head] and plugin_kinds[all[head][1]] then
      values[key] = value
    elseif not all[key] then
      return nil, ("%s: unknown parameter '%s'%s"):format(plugin.name, tostring(key),
        lib.suggest(tostring(key), names)), M.USAGE
    end
  end
  for _, name in ipairs(names) do
    local spec, value = all[name], given[name]
    if value == nil then value = spec.default end
    if value == nil and spec.required and not (spec.unless and given[spec.unless] ~= nil) then
      return nil, ("%s: %s is needed (%s)"):format(plugin.name, name, spec.help or spec[1]), M.USAGE
    end
    if value ~= nil then
      local got, message = coerce(name, value, spec, plugin.name)
      if got == nil then return nil, ("%s: %s"):format(plugin.name, message), M.USAGE end
      values[name] = got
    end
  end
  for name, spec in pairs(all) do
    if plugin_kinds[spec[1]] and (values[name] or not spec.from_model) then
      local ok, message = M.plugin_params(all, values, name)
      if not ok then return nil, ("%s: %s"):format(plugin.name, message), M.USAGE end
    end
  end
  for name, spec in pairs(all) do
    local kind = spec[1]
    if values[name] and (kind == "file" or kind == "image" or kind == "video") then
      local ok, message = readable(values[name])
      if not ok then return nil, ("%s: %s: %s"):format(plugin.name, name, message), M.FAILED end
    end
  end
  for name, spec in pairs(all) do
    for i, entry in ipairs(spec[1] == "loras" and values[name] or {}) do
      local path, message = require("melies.lora").find(entry.file)
      if not path then return nil, ("%s: %s: %s"):format(plugin.name, name, message), M.FAILED end
      values[name][i] = { file = path, strength = entry.strength }
    end
  end
  return values
end

-- given: name -> value, in its type or as text. Returns all values with defaults, each in its type.
function M.check(plugin, given)
  local values, message, code = check(plugin, given)
  if not values then return refusal(message, code) end
  return values
end

-- Command-line words into a table of texts.
local function words(plugin, argv)
  local all, names = M.params(plugin)
  local given, shorts = {}, {}
  for name, spec in pairs(all) do if spec.short then shorts[spec.short] = name end end
  local i = 1
  while i <= #argv do
    local word = argv[i]
    local name, value = word:match("^%-%-([^=]+)=(.*)$")
    name = name or word:match("^%-%-(.+)$")
    if not name and word:match("^%-%a$") then name = shorts[word:sub(2)] or word end
    if not name then
      return nil, ("%s: '%s' is not a parameter; give values as --name value"):format(plugin.name, cut(word))
    end
    name = name:gsub("%-", "_")
    local negated = not all[name] and name:match("^no_(.+)$")
    if negated and all[negated] and all[negated][1] == "boolean" and not value then
      name, value = negated, "no"
    end
    local spec = all[name]
    local head = name:match("^([%w_]+)%.")
    if not spec and not (head and all[head] and plugin_kinds[all[head][1]]) then
      return nil, ("%s: unknown parameter '%s'%s"):format(plugin.name, cut(word:match("^[^=]+")), lib.suggest(name, names))
    end
    local repeats = spec and spec.repeatable
    if given[name] ~= nil and not repeats then return nil, ("%s: %s is given twice"):format(plugin.name, name) end
    if not value and spec and spec[1] == "boolean" then
      local follows = argv[i + 1]
      if follows and truths[follows:lower()] ~= nil then value, i = follows, i + 1 else value = "yes" end
    elseif not value then
      i = i + 1
      value = argv[i]
      if not value then return nil, ("%s: %s wants a value"):format(plugin.name, name) end
    end
    if repeats then
      given[name] = given[name] or {}
      table.insert(given[name], value)
    else
      given[name] = value
    end
    i = i + 1
  end
  return given
end

function M.parse(plugin, argv)
  if plugin.script then return { words = { unpack(argv) } } end
  for _, word in ipairs(argv) do
    if word == "--help" or word == "-h" then return nil, M.help(plugin), M.OK end
  end
  local given, message = words(plugin, argv)
  if not given then return refusal(message, M.USAGE) end
  return M.check(plugin, given)
end

-- ---- running -------------------------------------------------------------------------------------

local depth = 0 -- a script or recipe may run recipes: the outermost one answers for a cancel

-- values: as recipe.check gives them. opts: output=, seed= (before those of values), progress= (true: bars on stderr; a
-- factory { label=, total= } -> object with :step(i, note) and :finish(); false: none; nil: bars on a terminal), keep=
-- (false: frames that go to an output are not kept, the result is its path).
-- The result is what the recipe returns (frames; true where that is nothing), or nil, message, exit code.
function M.run(plugin, values, opts)
  opts = opts or {}
  if depth == 0 then lib.C.mel_cancel_clear() end
  depth = depth + 1
  local job = require("melies.job").new(plugin, values, opts)
  local ok, result, message = xpcall(function()
    job:begin()
    return plugin.run(job.params, job)
  end, function(e)
    if type(e) == "table" then return e end
    -- Raised at a line of the job: the values were wrong, and the place says nothing to the user.
    local text = tostring(e):gsub("^[^\n]-/melies/job%.lua:%d+: ", "")
    return { failure = text, trace = debug.traceback(tostring(e), 2) }
  end)
  if ok and result == nil and message ~= nil then ok, result = false, { failure = tostring(message) } end
  job:finish(ok)
  depth = depth - 1
  local canceled = lib.C.mel_canceled() or (not ok and result.canceled)
  if depth == 0 then lib.C.mel_cancel_clear() end
  if ok then return result == nil and true or result end
  if canceled then return nil, "canceled", M.CANCELED end
  if result.trace and require("melies.log").debug then io.stderr:write(result.trace, "\n") end
  return nil, result.failure or tostring(result), result.code or M.FAILED
end

-- melies.run("text_to_video", { prompt = "...", output = "film.mp4" }): the recipe by name, file, or as a table.
function M.call(recipe, given, opts)
  local plugin = recipe
  if type(recipe) ~= "table" then
    local message
    plugin, message = M.find(recipe)
    if not plugin then return nil, message, M.USAGE end
  end
  local values, message, code = M.check(plugin, given or {})
  if not values then return nil, message, code end
  return M.run(plugin, values, opts)
end

-- A file without the plugin mark is a plain script: its words come as ... and as the global `arg`.
local function script(path, chunk)
  return {
    kind = "recipe", name = path:match("([^/]+)$"), script = true, params = {},
    run = function(p)
      local before = rawget(_G, "arg")
      rawset(_G, "arg", p.words)
      p.words[0] = path
      local result = chunk(unpack(p.words))
      rawset(_G, "arg", before)
      if type(result) == "table" and result.kind == "recipe" then
        M.fail(path .. ": a recipe's first line must be '-- melies-api: 1'")
      end
      return result
    end,
  }
end

-- A recipe in a file, or nil and a message with file and line. A file whose first line is not "-- melies-api: 1" is a
-- script that runs with its words.
function M.load_file(path)
  local ok, message = readable(path)
  if not ok then return nil, "no recipe there: " .. message end
  local chunk
  chunk, message = loadfile(path)
  if not chunk then return nil, message end
  local f = assert(io.open(path, "rb"))
  local first = f:read("*l") or ""
  f:close()
  if not first:find("^%-%-%s*melies%-api:") then return script(path, chunk) end
  local plugin
  ok, plugin = pcall(chunk)
  if not ok then return nil, tostring(plugin) end
  if type(plugin) ~= "table" or plugin.kind ~= "recipe" or type(plugin.run) ~= "function" then
    return nil, path .. ": it does not return { kind = \"recipe\", name = ..., params = ..., run = ... }"
  end
  plugin.name = plugin.name or path:match("([^/]+)%.lua$") or path
  ok, message = pcall(M.help, plugin) -- walks all declarations
  if not ok then return nil, ("%s: %s"):format(path, message) end
  return plugin
end

-- A recipe by name (through the plugin search path) or by file. nil, message where there is none.
function M.find(name)
  if type(name) ~= "string" then error("a recipe is a name, a file or a table, not a " .. type(name), 2) end
  if name:find("/", 1, true) or name:find("%.lua$") then return M.load_file(name) end
  local plugin, message = require("melies.registry").get("recipe", name)
  if plugin then return plugin end
  return nil, message .. "; melies list recipes shows them all"
end

-- Ends the recipe with a message for the user, without a trace: an expected failure (a missing file).
function M.fail(message, code)
  error({ failure = message, code = code }, 0)
end

return M
