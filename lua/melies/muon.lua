-- Muon: matrices step along their momentum made orthogonal, everything else by AdamW (K. Jordan et al., "Muon", 2024; the
-- size of a step as in Liu et al., "Muon is Scalable for LLM Training", 2025: 0.2 sqrt(max(rows, columns)), so that one
-- rate and one weight decay fit both halves).
--
--   melies.train.new { optimiser = muon.new, ... }     the same options as optim.adamw, and
--   momentum = 0.95; matrix = function(name, param) -> boolean: what steps by it. By default all of two or more
--   dimensions (a convolution [O, I, ..] is the matrix [O, I ..]) that have at least 16 rows and columns and are no
--   embedding.
local optim = require "melies.optim"
local tensor = require "melies.tensor"

local muon = {}
local Muon = {}
Muon.__index = Muon

local A, B, C = 3.4445, -4.7750, 2.0315 -- the quintic whose iteration sends singular values from (0, 1] to about 1
-- g [n, k] in float32 with its singular values made 1, roughly (0.7 to 1.2): five steps of Newton and Schulz.
function muon.orthogonal(g)
  local n, k = g.shape[1], g.shape[2]
  local x = n > k and g:transpose(1, 2):contiguous() or g
  local dtype = require("melies").compute()
  x = (x * (1 / (math.sqrt(g:sumsq()) + 1e-7))):to(dtype)
  for _ = 1, 5 do
    local a = x:matmul(x, { transpose = true })
    local b = tensor.lincomb { B, a:to("f32"), C, a:matmul(a):to("f32") }:to(dtype)
    x = tensor.lincomb { A, x:to("f32"), 1, b:matmul(x):to("f32") }:to(dtype)
  end
  x = x:to("f32")
  return n > k and x:transpose(1, 2):contiguous() or x
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
  return optim.step(self, o, function(name, p, s)
    if not self.matrices[name] then return false end
    local shape, m = p.shape, self.m[name]
    local rows, columns = shape[1], p:numel() / shape[1]
    local g = p.grad * (s.grad_scale * (1 - self.momentum))
    m:copy_(tensor.lincomb { self.momentum, m, 1, g })
    local u = muon.orthogonal(tensor.lincomb { self.momentum, m, 1, g }:reshape(rows, columns)):reshape(shape)
    local size = 0.2 * math.sqrt(math.max(rows, columns)) * s.lr
    p.value:copy_(tensor.lincomb { 1 - s.lr * s.weight_decay, p.value, -size, u })
    if self.ema then
      local average = self.ema[name]
      average:copy_(tensor.lincomb { s.ema_decay, average, 1 - s.ema_decay, p.value })
    end
    return true
  end)
end

for _, name in ipairs { "norm", "zero_grad", "tensors", "restore" } do Muon[name] = optim.AdamW[name] end

return muon
