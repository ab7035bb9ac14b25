-- Optimisers: AdamW over named parameters, with clipping and a moving average, in one pass over each parameter.
local ffi = require "ffi"
local lib = require "melies.ffi.lib"
local tensor = require "melies.tensor"
local grad = require "melies.grad"
local C, err, check = lib.C, lib.err, lib.check

local optim = {}
local AdamW = {}
AdamW.__index = AdamW

local function sorted(params, what)
  local names = {}
  for name, p in pairs(params) do
    if type(name) ~= "string" or not grad.is(p) then
      error(("%s: '%s' is %s; a table of name = grad.param(...) is wanted"):format(what, tostring(name), type(p)), 3)
    end
    names[#names + 1] = name
  end
  table.sort(names)
  if #names == 0 then error(what .. ": there are no parameters", 3) end
  return names
end
optim.names = function(params) return sorted(params, "optim.names") end

local options_known = { lr = true, betas = true, eps = true, weight_decay = true, decay = true, ema = true }
-- optim.adamw({ name = param, ... }, { lr = 1e-3, betas = { 0.9, 0.999 }, eps = 1e-8, weight_decay = 0.01,
--   decay = function(name, param) -> boolean      which parameters decay: by default those of two or more dimensions
--   ema = nil })                                  decay of a moving average of the weights: at step t it is at most
--                                                 (1 + t) / (10 + t), so that the start is forgotten
function optim.adamw(params, o)
  o = o or {}
  lib.check_options("optim.adamw", o, options_known)
  local self = setmetatable({
    params = params, names = sorted(params, "optim.adamw"), step_count = 0, lr = o.lr or 1e-3,
    betas = o.betas or { 0.9, 0.999 }, eps = o.eps or 1e-8, weight_decay = o.weight_decay or 0.01, ema_decay = o.ema,
    m = {}, v = {}, ema = o.ema and {} or nil, decays = {},
  }, AdamW)
  for _, name in ipairs(self.names) do
    local p = params[name]
    self.m[name], self.v[name] = tensor.zeros(p.shape), tensor.zeros(p.shape)
    if self.ema then self.ema[name] = p.value:clone() end
    self.decays[name] = o.decay and (o.decay(name, p) and true or false) or (not o.decay and p.ndim >= 2)
  end
  return self
end

-- The norm of all gradients times scale, or nil and which gradient is not finite.
function AdamW:norm(scale)
  local list = {}
  for _, name in ipairs(self.names) do
    local g = self.params[name].grad
    if g then list[#list + 1] = g end
  end
  local handles, out = ffi.new("const mel_tensor*[?]", math.max(1, #list)), ffi.new("double[1]")
  for i, g in ipairs(list) do handles[i - 1] = g.handle end
  check(C.mel_global_norm(#list, handles, out, err))
  local norm = out[0] * (scale or 1)
  if norm == norm and norm < math.huge then return norm end
  for _, name in ipairs(self.names) do
    local g = self.params[name].grad
    if g and g:nonfinite() > 0 then return nil, ("the gradient of %s has %d values that are not finite"):format(name,
      g:nonfinite()) end
  end
  return nil, "the norm of the gradients is not finite"
end

local step_known = { lr = true, clip = true, scale = true }
-- optimiser:step{ lr =, clip = nil, scale = 1 } -> norm: one step on the gradients times scale, brought down to a norm of
-- at most clip. Gradients are used up. nil and a message where one is not finite: nothing has changed then.
-- A parameter without a gradient stays as it is.
local options_box = ffi.typeof("mel_adamw")
function AdamW:step(o) return optim.step(self, o) end
optim.AdamW = AdamW

-- The step of an optimiser with AdamW's fields. other(name, param, settings) -> true where it has changed the value itself.
function optim.step(self, o, other)
  o = o or {}
  lib.check_options("step", o, step_known)
  local scale = o.scale or 1
  local norm, message = self:norm(scale)
  if not norm then return nil, message end
  if o.clip and norm > o.clip then scale = scale * o.clip / norm end
  local t = self.step_count + 1
  local s = options_box()
  s.lr, s.beta1, s.beta2, s.eps = o.lr or self.lr, self.betas[1], self.betas[2], self.eps
  s.grad_scale, s.step = scale, t
  s.ema_decay = self.ema_decay and math.min(self.ema_decay, (1 + t) / (10 + t)) or 0
  for _, name in ipairs(self.names) do
    local p = self.params[name]
    if p.grad then
      s.weight_decay = self.decays[name] and self.weight_decay or 0
      if not (other and other(name, p, s)) then
        check(C.mel_adamw_step(s, p.value.handle, p.grad.handle, self.m[name].handle, self.v[name].handle,
          self.ema and self.ema[name].handle or nil, err))
      end
      if p.half then p.half:free() end
      p.half = nil
      p.grad:free()
      p:zero_grad()
    end
  end
  self.step_count = t
  return norm
end

function AdamW:zero_grad()
  for _, name in ipairs(self.names) do self.params[name]:zero_grad() end
end

-- Everything that a step depends on: { ["weights/NAME"] = tensor, ["m/NAME"], ["v/NAME"], ["ema/NAME"] }.
function AdamW:tensors()
  local out = {}
  for _, name in ipairs(self.names) do
    out["weights/" .. name], out["m/" .. name], out["v/" .. name] = self.params[name].value, self.m[name], self.v[name]
    if self.ema then out["ema/" .. name] = self.ema[name] end
  end
  return out
end
-- The opposite: get(name) -> tensor. step_count is set by the caller.
function AdamW:restore(get)
  for name, t in pairs(self:tensors()) do t:copy_(get(name)) end
  for _, name in ipairs(self.names) do self.params[name].half = nil end
end

return optim
