-- melies-api: 1
-- The two experts of Wan 2.2 A14B (Wan-Video/Wan2.2, wan/text2video.py, wan/image2video.py and wan/configs: facts only):
-- one wan_dit for timesteps from the boundary up, another below it. It is used like one wan_dit net.
--
--   load({ high = weights, low = weights }, config, options) -> net
--     high, low      what wan_dit.load takes, or a function that returns it (called when the expert is wanted)
--     config         that of wan_dit and
--       boundary     in units of 1 (the original's 0.875 for text, 0.9 for image to video, by which the default goes)
--       resident     2: both experts stay once they are loaded; 1: the other one is dropped first
--   net:context, net:join, net:forward(latent, t, context) as in wan_dit; net:expert(t) -> "high" or "low"
--
-- A sampler's t falls, so with resident = 1 each expert is loaded once in a run. A context keeps what it was made from:
-- each expert has its own keys and values of a text, computed when the expert first meets it.
local kit = require "melies.modelkit"
local dit = require "melies.models.wan_dit"

local NAME = "wan_experts"
local Net, Context = {}, {}
Net.__index = Net
Context.__index = Context

-- The largest timestep of t: a number, a list of them, or a list of lists of one a frame.
local function latest(t)
  if type(t) == "number" then return t end
  local most = -math.huge
  for i = 1, #t do most = math.max(most, latest(t[i])) end
  return most
end

function Net:expert(t) return latest(t) >= self.boundary * 1000 and "high" or "low" end

-- The net of an expert, loaded where it is not there.
function Net:get(which)
  local net = self.nets[which]
  if net then return net end
  if self.resident == 1 then
    self.nets = {}
    for context in pairs(self.contexts) do context.made = {} end
    require("melies.ffi.lib").reclaim()
  end
  local source = self.sources[which]
  if type(source) == "function" then
    local message
    source, message = source()
    if source == nil then error(("%s: the %s expert: %s"):format(NAME, which, tostring(message)), 0) end
  end
  net = dit.load(source, self.config, { compute = self.dtype, trace = self.trace, lazy = self.lazy,
    attention = self.attention })
  for _, field in ipairs { "in_channels", "out_channels", "latent_channels", "text_dim", "patch", "text_len" } do
    local have, found = self[field], net[field]
    if type(found) == "table" then
      have, found = have and table.concat(have, "x"), table.concat(found, "x")
    end
    if have and have ~= found then
      error(("%s: the %s expert has %s %s, the other one %s"):format(NAME, which, field, tostring(found),
        tostring(have)), 0)
    end
    self[field] = net[field]
  end
  self.nets[which] = net
  return net
end

function Net:context(texts, options)
  if type(texts) ~= "table" or texts.shape or #texts == 0 then
    error(NAME .. ": context wants a list of texts, each [L, text_dim]", 2)
  end
  local context = setmetatable({ net = self, batch = #texts, made = {},
    make = function(net) return net:context(texts, options) end }, Context)
  self.contexts[context] = true
  return context
end

function Net:join(contexts)
  if type(contexts) ~= "table" or #contexts == 0 then error(NAME .. ": join wants a list of contexts", 2) end
  local batch = 0
  for i, c in ipairs(contexts) do
    if getmetatable(c) ~= Context or c.net ~= self then
      error(("%s: join: entry %d is not a context of this model"):format(NAME, i), 2)
    end
    batch = batch + c.batch
  end
  local joined = setmetatable({ net = self, batch = batch, made = {}, make = function(net)
    local parts = {}
    for i, c in ipairs(contexts) do parts[i] = c:of(net) end
    return net:join(parts)
  end }, Context)
  self.contexts[joined] = true
  return joined
end

-- This context for one expert's net.
function Context:of(net)
  if not self.made[net] then self.made[net] = self.make(net) end
  return self.made[net]
end

function Net:forward(latent, t, context)
  if getmetatable(context) ~= Context or context.net ~= self then
    error(NAME .. ": the third argument must be a context of this model (net:context)", 2)
  end
  local net = self:get(self:expert(t))
  net.trace = self.trace
  return net:forward(latent, t, context:of(net))
end

local function load(weights, config, options)
  config = config or {}
  local compute, trace = kit.options(NAME, options, "attention")
  if type(weights) ~= "table" or not rawget(weights, "high") or not rawget(weights, "low") then
    error(NAME .. ": weights are { high = weights, low = weights }: two files, not one", 2)
  end
  local own = {}
  for name, value in pairs(config) do own[name] = value end
  own.boundary, own.resident = nil, nil
  local resident = config.resident or 2
  if resident ~= 1 and resident ~= 2 then
    error(("%s: resident is %s, wanted 1 or 2"):format(NAME, tostring(resident)), 2)
  end
  local net = setmetatable({
    name = NAME, dtype = compute, trace = trace, config = own, lazy = options and options.lazy,
    attention = options and options.attention, resident = resident, nets = {},
    sources = { high = weights.high, low = weights.low }, contexts = setmetatable({}, { __mode = "k" }),
  }, Net)
  net:get "high" -- a run begins there; sizes are known from now on
  net.boundary = config.boundary or (net.in_channels > net.out_channels and 0.9 or 0.875)
  if type(net.boundary) ~= "number" or net.boundary < 0 or net.boundary > 1 then
    error(("%s: boundary is %s, wanted 0 to 1"):format(NAME, tostring(net.boundary)), 2)
  end
  return net
end

return {
  kind = "model", name = NAME, help = "the two experts of Wan 2.2 A14B and their boundary", params = {}, load = load,
}
