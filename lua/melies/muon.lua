-- Muon: matrices step along their momentum made orthogonal, everything else by AdamW (K. Jordan et al., "Muon", 2024; the
-- size of a step as in Liu et al., "Muon is Scalable for LLM Training", 2025: 0.2 sqrt(max(rows, columns)), so that one
-- rate and one weight decay fit both halves).
--
--   melies.train.new { optimiser = muon.new, ... }     the same options as optim.adamw, and
--   momentum = 0.95; matrix = function(name, param) -> boolean: what steps by it. By default all of two or more
--   dimensions (a convolution [O, I, ..] is the matrix [O, I ..]) that have at least 16 rows and columns and are no
--   embedding.
local ffi = require "ffi"
local lib = require "melies.ffi.lib"
local optim = require "melies.optim"
local tensor = require "melies.tensor"

local muon = {}
local Muon = {}
Muon.__index = Muon

-- g [n, k] in float32 with its singular values made 1, roughly (0.7 to 1.2).
function muon.orthogonal(g)
  local box = ffi.new("mel_tensor*[1]")
  lib.check(lib.C.mel_orthogonal(g.handle, tensor.dtype_code(nil), box, lib.err))
  return tensor.wrap(box[0])
end

local function matrix_like(name, p)
  if p.ndim < 2 or name:find "embedding%.weight$" and not name:find "patch_embedding" then return false end
  local rows = p.shape[1]
  return rows >= 16 and p:numel() / rows >= 16
end

function muon.new(params, o)
  local own = {}
  for key, value in pairs(o or {}) do own[key] = value end
  local momentum, is_matrix = own.momentum or 0.95, own.matrix or matrix_like
  own.momentum, own.matrix = nil, nil
  local self = optim.adamw(params, own)
  self.momentum, self.matrices = momentum, {}
  for _, name in ipairs(self.names) do
    if is_matrix(name, params[name]) then self.matrices[name], self.v[name] = true, tensor.zeros { 1 } end
  end
  return setmetatable(self, Muon)
end

-- As AdamW's, see optim.lua.
function Muon:step(o)
  local own = ffi.new "mel_muon"
  own.momentum = self.momentum
  return optim.step(self, o, function(name, p, s)
    if not self.matrices[name] then return false end
    own.lr, own.weight_decay, own.grad_scale, own.ema_decay = s.lr, s.weight_decay, s.grad_scale, s.ema_decay
    lib.check(lib.C.mel_muon_step(own, p.value.handle, p.grad.handle, self.m[name].handle,
      self.ema and self.ema[name].handle or nil, lib.err))
    return true
  end)
end

for _, name in ipairs { "norm", "zero_grad", "tensors", "restore" } do Muon[name] = optim.AdamW[name] end

return muon
