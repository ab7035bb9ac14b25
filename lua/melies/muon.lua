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

local A, B, C = 3.4445, -4.7750, 2.0315 -- the quintic whose iteration sends singular values from (0, 1] to about 1

local function product(a, turn_a, b, turn_b, compute, dtype)
  local box = ffi.new("mel_tensor*[1]")
  lib.check(lib.C.mel_train_matmul(a.handle, turn_a, b.handle, turn_b, nil, compute, dtype, box, lib.err))
  return tensor.wrap(box[0])
end

local function with_diagonal(x, scale, diagonal)
  local box = ffi.new("mel_tensor*[1]")
  lib.check(lib.C.mel_add_diagonal(x.handle, scale, diagonal, box, lib.err))
  return tensor.wrap(box[0])
end

-- g [n, k] in float32 with its singular values made 1, roughly (0.7 to 1.2), in the type of the work: five steps of Newton
-- and Schulz, x <- (A + B s + C s^2) x with s = x x', or from the right with s = x' x where that is smaller.
local function orthogonal(g)
  local wide = g.shape[1] <= g.shape[2]
  local dtype = require("melies").compute() == "f32" and "f32" or "bf16"
  local code = tensor.dtype_code(dtype)
  local x = (g * (1 / (math.sqrt(g:sumsq()) + 1e-7))):to(dtype)
  for _ = 1, 5 do
    local gram = product(x, not wide, x, wide, code, code)
    local inner = with_diagonal(gram, C, B)
    local square = product(gram, false, inner, false, code, code)
    local factor = with_diagonal(square, 1, A)
    local y = wide and product(factor, false, x, false, code, code) or product(x, false, factor, false, code, code)
    gram:free()
    inner:free()
    square:free()
    factor:free()
    x:free()
    x = y
  end
  return x
end
function muon.orthogonal(g) return orthogonal(g):to "f32" end

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

local function blend(y, a, x, b) lib.check(lib.C.mel_blend(y.handle, a, x.handle, b, lib.err)) end

-- As AdamW's, see optim.lua.
function Muon:step(o)
  return optim.step(self, o, function(name, p, s)
    if not self.matrices[name] then return false end
    local shape, m = p.shape, self.m[name]
    local rows, columns = shape[1], p:numel() / shape[1]
    local share = s.grad_scale * (1 - self.momentum)
    blend(m, self.momentum, p.grad, share)
    local sum = tensor.lincomb { self.momentum, m, share, p.grad }
    local u = orthogonal(sum:reshape(rows, columns)):reshape(shape)
    sum:free()
    local size = 0.2 * math.sqrt(math.max(rows, columns)) * s.lr
    blend(p.value, 1 - s.lr * s.weight_decay, u, -size)
    if self.ema then blend(self.ema[name], s.ema_decay, p.value, 1 - s.ema_decay) end
    return true
  end)
end

for _, name in ipairs { "norm", "zero_grad", "tensors", "restore" } do Muon[name] = optim.AdamW[name] end

return muon
