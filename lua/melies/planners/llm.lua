-- melies-api: 1
-- Asks a language model that you run, at any HTTP address in OpenAI's chat form.
-- The answer has to be JSON of the storyboard's own schema; what is not is sent back once with what is wrong, and then
-- given up: plan.make takes the rules instead. The key, where the server wants one, comes from $MELIES_LLM_KEY.
local ffi = require "ffi"
local json = require "melies.json"
local lib = require "melies.ffi.lib"
local schema = require "melies.plan.schema"

local text = { type = "string" }
local function object(properties, required)
  return { type = "object", properties = properties, required = json.array(required), additionalProperties = false }
end
local function list(items) return { type = "array", items = items } end

-- The storyboard for a server that constrains what its model may write. Names are lists here, since a grammar wants its
-- keys beforehand.
local cast = list(object({ name = text, description = text }, { "name", "description" }))
local form = object({
  title = text, look = text, pace = { type = "string", enum = json.array { unpack(schema.paces) } },
  characters = cast, places = cast,
  shots = list(object({ text = text, who = list(text), where = text, camera = text, light = text, seconds = { type = "number" },
    transition = { type = "string", enum = json.array { unpack(schema.transitions) } } },
    { "text", "who", "seconds", "transition" })),
}, { "title", "characters", "places", "shots" })

local INSTRUCTION = [[You divide the prompt of a film into shots. Answer with one JSON object and nothing else:
{"title": "...", "look": "words about style for every shot", "pace": "calm|normal|fast",
 "characters": [{"name": "short name", "description": "canonical description, the same in every shot"}],
 "places": [{"name": "short name", "description": "..."}],
 "shots": [{"text": "what happens, one action", "who": ["names of characters"], "where": "name of a place",
  "camera": "...", "light": "...", "seconds": 3, "transition": "none|overlap|cut|dissolve|fade|match cut"}]}
Keep the user's words where you can. Name every character by its name in the text, never by a pronoun. The first shot's
transition is none; a shot in the same place as the one before has overlap, a new place has cut. Invent no character or
event that the prompt does not ask for. Leave out look, camera, light and where if the prompt says nothing of them.]]

local out, out_bytes, http_status = ffi.new("char*[1]"), ffi.new("size_t[1]"), ffi.new("int[1]")

-- The answer's text and status, or nil and a message.
local function post(url, body, params)
  local headers = "Content-Type: application/json\nAccept: application/json"
  local key = os.getenv "MELIES_LLM_KEY"
  if key and key ~= "" then headers = headers .. "\nAuthorization: Bearer " .. key end
  local options = ffi.new("mel_http_options")
  options.timeout_ms, options.headers, options.limit_bytes = params.timeout * 1000, headers, 4 * 2 ^ 20
  local ok, message, status = lib.try(lib.C.mel_http_post, url, body, #body, options, out, out_bytes, http_status)
  if not ok then
    if status == lib.ECANCELED then error(lib.canceled, 0) end
    return nil, message
  end
  local answer = ffi.string(out[0], out_bytes[0])
  lib.C.mel_free(out[0])
  return answer, http_status[0]
end

local function address(endpoint)
  endpoint = endpoint:gsub("/+$", "")
  if endpoint:find("/chat/completions$") then return endpoint end
  if endpoint:find("/v%d+$") then return endpoint .. "/chat/completions" end
  return endpoint .. "/v1/chat/completions"
end

-- What the model said, or nil and a message.
local function said(answer, status, url)
  local short = answer:gsub("%s+", " "):gsub("[%z\1-\31\127]", ""):sub(1, 200)
  if status ~= 200 then return nil, ("%s answers %d: %s"):format(url, status, short) end
  local data, message = json.decode(answer, url)
  if data == nil then return nil, message end
  local choice = type(data) == "table" and type(data.choices) == "table" and data.choices[1]
  local content = type(choice) == "table" and type(choice.message) == "table" and choice.message.content
  if type(content) ~= "string" then return nil, ("%s: no choices[1].message.content in: %s"):format(url, short) end
  return content
end

-- A list of { name=, description= } as a table of names; a table stays one. nil and a message where it is neither.
local function by_name(cast_list, key)
  if cast_list == nil then return nil end
  if type(cast_list) ~= "table" then return nil, ("%s must be a list of { name, description }"):format(key) end
  if not json.is_array(cast_list) then return cast_list end
  local names = {}
  for i, entry in ipairs(cast_list) do
    if type(entry) ~= "table" or type(entry.name) ~= "string" then return nil, ("%s[%d] has no name"):format(key, i) end
    if names[entry.name] then return nil, ("%s[%d]: '%s' is there twice"):format(key, i, entry.name) end
    names[entry.name] = entry.description or entry.name
  end
  return names
end

local function no_null(value)
  if type(value) ~= "table" then return value end
  local copy = setmetatable({}, getmetatable(value))
  for key, v in pairs(value) do
    if v ~= json.null then copy[key] = no_null(v) end
  end
  return copy
end

-- A checked board from what the model said, or nil and a message.
local function board_of(content)
  content = content:gsub("<think>.-</think>", "")
  content = content:match("```%w*%s*(.-)%s*```") or content:match("^%s*(.-)%s*$")
  local data, message = json.decode(content, "answer")
  if data == nil then return nil, message end
  data = no_null(data)
  if type(data) ~= "table" then return nil, "answer: it should be an object" end
  for _, key in ipairs { "characters", "places" } do
    data[key], message = by_name(data[key], key)
    if message then return nil, "answer: " .. message end
  end
  for _, key in ipairs { "look", "title" } do
    if data[key] == "" then data[key] = nil end
  end
  for _, shot in ipairs(type(data.shots) == "table" and data.shots or {}) do
    if type(shot) == "table" then
      for _, key in ipairs { "where", "camera", "light" } do
        if shot[key] == "" then shot[key] = nil end
      end
    end
  end
  return schema.check(data, "answer")
end

local function plan(prompt, options, note)
  local params = options.params
  local url = address(params.endpoint or os.getenv "MELIES_LLM" or "http://127.0.0.1:8080")
  local messages = json.array { { role = "system", content = INSTRUCTION }, { role = "user", content = prompt } }
  local constrained, left = true, params.retries
  while true do
    local body = { model = params.model or "default", messages = messages, temperature = params.temperature,
      seed = options.seed, stream = false }
    if constrained then
      body.response_format = { type = "json_schema", json_schema = { name = "storyboard", schema = form } }
    end
    local answer, status = post(url, json.encode(body), params)
    if not answer then return nil, status end
    if constrained and (status == 400 or status == 422) then
      constrained = false -- a server that knows no response_format
    else
      local content, message = said(answer, status, url)
      if not content then return nil, message end
      local board
      board, message = board_of(content)
      if board then
        if board.shots[1] then board.shots[1].transition = "none" end
        for i, shot in ipairs(board.shots) do
          note(i, "shot", shot.text or shot.action, "the language model at " .. url, "")
        end
        return board
      end
      if left == 0 then return nil, message end
      left = left - 1
      messages[#messages + 1] = { role = "assistant", content = content }
      messages[#messages + 1] = { role = "user", content = "That is no valid storyboard: " .. message
        .. ". Answer with the whole, corrected JSON object." }
    end
  end
end

return {
  kind = "planner", name = "llm",
  params = {
    endpoint = { "string", help = "http(s) address in OpenAI's chat form (default: $MELIES_LLM, or http://127.0.0.1:8080)" },
    model = { "string", help = "the model's name there" },
    temperature = { "number", default = 0.2, min = 0, max = 2, help = "0: always the likeliest words" },
    timeout = { "number", default = 120, min = 0.1, max = 3600, help = "seconds to wait for an answer" },
    retries = { "integer", default = 1, min = 0, max = 5, help = "how often a wrong answer is sent back" },
  },
  plan = plan,
}
