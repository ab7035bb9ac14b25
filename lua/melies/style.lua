-- Styles: small Lua files of words, numbers and names of passes, found as plugins of the kind "style".
--
--   style.get(name) -> style | nil, message          style.list() -> registry entries
--   style.prompt(name or style, words) -> words with the style's own before and after them
--   style.fitting(name or style, words, model) -> the same with what the model has room for, whether that was less
--   style.apply(name or style, values, given, model) -> a copy of a recipe's values: prompt, negative and what the style sets,
--     never over what was given (a set of names)
--   style.use(job, model)   the same for a running recipe, by its parameter `style`
--   style.realism { light=, texture=, movement=, perspective= } -> words, negative
--
-- A style: { kind = "style", name =, help =, before =, after =, negative =, guidance =, steps =, sampler =, lora =
-- { { name =, strength = } }, passes = { "grain", { "film", strength = 0.5 } }, realism = { light = "soft", ... } }.
local lib = require "melies.ffi.lib"

local M = {}

-- ---- realism -----------------------------------------------------------------------------------------

-- Closed vocabularies: { words, negative words }. "none" says nothing.
M.realism_words = {
  light = {
    natural = { "natural light, soft shadows that agree with one source", "flat lighting, glowing edges" },
    soft = { "soft diffuse light", "harsh shadows" },
    hard = { "hard directional light, crisp shadows", "flat lighting" },
    low = { "low-key light, deep shadows, one practical lamp", "overexposed" },
    golden = { "warm low sun, long shadows", "cold light" },
    overcast = { "overcast sky, even light", "hard shadows" },
  },
  texture = {
    fine = { "fine surface texture, pores, fibres and dust", "waxy skin, plastic surfaces, oversmoothed" },
    grainy = { "film grain, slight halation", "digital noise, oversharpened" },
    smooth = { "clean smooth surfaces", "noise, grain" },
    worn = { "worn surfaces, scratches and stains", "spotless, brand new" },
  },
  movement = {
    natural = { "natural motion with weight, motion blur", "floating, sliding feet, jitter" },
    slow = { "slow steady motion", "sudden movement" },
    still = { "almost still, a slight breeze", "fast movement" },
    lively = { "lively quick motion", "frozen, static" },
  },
  perspective = {
    natural = { "50 mm lens, natural perspective", "warped perspective, bent lines" },
    wide = { "24 mm wide lens, deep focus", "fisheye" },
    long = { "135 mm long lens, shallow depth of field", "wide angle distortion" },
    macro = { "macro lens, very shallow depth of field", "deep focus" },
  },
}
M.realism_order = { "light", "texture", "movement", "perspective" }

local function choices(list)
  local names = {}
  for name in pairs(list) do names[#names + 1] = name end
  table.sort(names)
  return names
end

-- nil and a message for a control or a word that is not known.
local function realism(controls)
  local words, negative = {}, {}
  for key, value in pairs(controls) do
    local list = M.realism_words[key]
    if not list then
      return nil, ("realism: unknown control '%s'%s"):format(tostring(key), lib.suggest(tostring(key), M.realism_order))
    end
    if value ~= "none" and not list[value] then
      return nil, ("realism: %s is '%s', must be none or one of %s%s"):format(key, tostring(value),
        table.concat(choices(list), ", "), lib.suggest(tostring(value), list))
    end
  end
  for _, key in ipairs(M.realism_order) do
    local entry = controls[key] and M.realism_words[key][controls[key]]
    if entry then words[#words + 1], negative[#negative + 1] = entry[1], entry[2] end
  end
  return table.concat(words, ", "), table.concat(negative, ", ")
end

function M.realism(controls)
  local words, negative = realism(controls)
  if not words then error("style." .. negative, 2) end
  return words, negative
end

-- ---- plugins -----------------------------------------------------------------------------------------

local FIELDS = { kind = "string", name = "string", help = "string", before = "string", after = "string", negative = "string",
  guidance = "number", steps = "number", sampler = "string", schedule = "string", shift = "number", lora = "table",
  passes = "table", realism = "table", params = "table" }

-- What is wrong with a style's table, and the key it is about; nil where all is well.
function M.check(plugin)
  for key, value in pairs(plugin) do
    local want = FIELDS[key]
    if not want then return ("unknown field '%s'%s"):format(tostring(key), lib.suggest(tostring(key), FIELDS)), tostring(key) end
    if type(value) ~= want then return ("%s is a %s, must be a %s"):format(key, type(value), want), key end
  end
  for i, entry in ipairs(plugin.lora or {}) do
    if type(entry) ~= "table" or type(entry.name) ~= "string" then
      return ("lora[%d] must be { name = \"…\", strength = … }"):format(i), "lora"
    end
  end
  for i, entry in ipairs(plugin.passes or {}) do
    if type(entry) ~= "string" and not (type(entry) == "table" and type(entry[1]) == "string") then
      return ("passes[%d] must be a name, or { \"name\", parameter = … }"):format(i), "passes"
    end
  end
  if plugin.realism then
    local words, message = realism(plugin.realism)
    if not words then return message, "realism" end
  end
end

function M.get(name)
  if type(name) == "table" then
    local wrong = M.check(name)
    if wrong then return nil, "style: " .. wrong end
    return name
  end
  return require("melies.registry").get("style", name)
end

function M.list() return require("melies.registry").list("style") end

local function wanted(name, level)
  local style, message = M.get(name)
  if not style then error(message, level + 1) end
  return style
end

-- Joined by commas; a part that is there already is not said again.
local function join(...)
  local out = ""
  for i = 1, select("#", ...) do
    local part = select(i, ...)
    if part and part ~= "" and not out:lower():find(part:lower(), 1, true) then
      out = out == "" and part or out:gsub("[%s.,]+$", "") .. ", " .. part
    end
  end
  return out
end

-- before WORDS, after; WORDS may stand in `before` as {prompt}. parts: only so many of the phrases between the style's
-- own commas, the first ones, for a model that reads few words.
function M.prompt(name, words, parts)
  local style = wanted(name, 2)
  local left = parts or math.huge
  local function phrases(text)
    local out = {}
    for phrase in ((text or "") .. ","):gmatch("%s*(.-)%s*,") do
      if phrase ~= "" and left > 0 then out[#out + 1], left = phrase, left - 1 end
    end
    return #out > 0 and table.concat(out, ", ") or nil
  end
  local around = style.before and style.before:find("{prompt}", 1, true) and left > 0
  if around then
    words, left = style.before:gsub("{prompt}", function() return words end), left - 1
  end
  local before = not around and style.before and not style.before:find("{prompt}", 1, true) and phrases(style.before) or nil
  return join(before, words, phrases(style.after), phrases(style.realism and realism(style.realism)))
end

-- The prompt with as many of the style's phrases as the model reads, and whether some were left out.
function M.fitting(name, words, model)
  local whole = M.prompt(name, words)
  if M.fits(whole, model) then return whole, false end
  for parts = 12, 1, -1 do
    local shorter = M.prompt(name, words, parts)
    if M.fits(shorter, model) then return shorter, true end
  end
  return words, true
end

-- Whether the model reads the whole text: true where it does not say.
function M.fits(text, model)
  if type(model) ~= "table" or not model.tokens then return true end
  return model:tokens(text) ~= nil
end

function M.negative(name, words)
  local style = wanted(name, 2)
  local _, extra = realism(style.realism or {})
  return join(words, style.negative, extra)
end

-- The negative words with as many of the style's as the model reads, the first ones; and whether some were left out.
local function fitting_negative(style, words, model)
  local whole = M.negative(style, words)
  local text = whole
  while not M.fits(text, model) and #text > #(words or "") do text = text:match "^(.*),.-$" or "" end
  if #text < #(words or "") then text = words end
  return text, text ~= whole
end

function M.apply(name, values, given, model)
  local style = wanted(name, 2)
  given = given or {}
  local out = {}
  for key, value in pairs(values) do out[key] = value end
  local cut, less
  out.prompt, cut = M.fitting(style, values.prompt or "", model)
  out.negative, less = fitting_negative(style, values.negative, model)
  cut = cut or less
  for _, key in ipairs { "guidance", "steps", "sampler", "schedule", "shift" } do
    if style[key] ~= nil and not given[key] then out[key] = style[key] end
  end
  for _, lora in ipairs(style.lora or {}) do
    out.prompt = ("%s <lora:%s:%g>"):format(out.prompt, lora.name, lora.strength or 1)
  end
  out.passes = values.passes or style.passes
  return out, cut
end

-- Applies the job's parameter `style`, under what was given, and tells what the prompt got. The parameters are then those
-- of a job without a style.
function M.use(job, model)
  local p = job.params
  if not p.style then return end
  local name, before = type(p.style) == "table" and p.style.name or p.style, p.prompt
  local all, cut = M.apply(p.style, p, p, model)
  for _, key in ipairs { "prompt", "negative", "guidance", "steps", "sampler", "schedule", "shift" } do p[key] = all[key] end
  p.style = nil
  job:notice("style %s: %s%s", name, require("melies.plan.compose").marked(before, p.prompt) or "no words",
    cut and " (more is not read by this model)" or "")
end

return M
