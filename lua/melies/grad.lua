-- Reverse-mode differentiation: variables wrap tensors, operations on them leave nodes behind, grad.backward walks the
-- nodes from the last to the first. Docs: docs/training.md.
--
--   local w = grad.param(tensor)                     a leaf that gathers its gradient in w.grad
--   local y = grad.linear(x, w, b):silu()            x, b: variables or plain tensors (constants)
--   grad.backward(grad.mse(y, target))
--
-- Operations are in melies/grad/ops.lua, made by grad.define as a user's own are. What a node's backward pass no longer
-- needs is freed at once: the values of intermediate variables are gone after grad.backward unless var:keep() was called.
local lib = require "melies.ffi.lib"
local tensor = require "melies.tensor"
local C = lib.C

local grad = {}
local Var = {} -- methods; melies/grad/ops.lua adds the operations
Var.__index = Var
grad.methods = Var

local recording = true
local scope       -- variables made since the innermost no_grad began
local serial = 0  -- of nodes: a node's inputs have lower numbers

function grad.is(value) return getmetatable(value) == Var end
local is = grad.is

local function leaf(value, needs, what)
  if not tensor.is(value) then error(("%s: a tensor is wanted, not %s"):format(what, type(value)), 3) end
  return setmetatable({ value = value, needs = needs }, Var)
end
-- A weight: f32, changed by optimisers.
function grad.param(value)
  local v = leaf(value, true, "grad.param")
  if value.dtype ~= "f32" then error("grad.param: weights are f32, this tensor is " .. value.dtype, 2) end
  v.value = value:contiguous()
  return v
end
-- A leaf of any float dtype whose gradient is wanted, and one whose gradient is not.
function grad.var(value) return leaf(value, true, "grad.var") end
function grad.const(value) return leaf(value, false, "grad.const") end

-- A second handle on the same tensor: each owner frees its own.
local function alias(t) return tensor.wrap(C.mel_tensor_ref(tensor.need(t, "grad"))) end
grad.alias = alias

local properties = {
  shape = function(v) return v.value.shape end,
  dtype = function(v) return v.value.dtype end,
  ndim = function(v) return v.value.ndim end,
}
function Var.__index(v, key)
  local method = Var[key]
  if method ~= nil then return method end
  local property = properties[key]
  if property then return property(v) end
  if key == "value" then error("a variable that has no value any more", 2) end
  return nil
end
function Var.__tostring(v)
  return ("variable%s of %s"):format(v.node and " (" .. v.node.name .. ")" or v.needs and " (leaf)" or "",
    tostring(v.value))
end

-- The value outlives grad.backward.
function Var:keep()
  self.kept = true
  return self
end
-- The same value without a history.
function Var:detach() return grad.const(alias(self.value)) end
function Var:item() return self.value:item() end
function Var:numel() return self.value:numel() end
function Var:zero_grad() self.grad, self.summed = nil, nil end

-- ---- operations -----------------------------------------------------------------------------------------------

local function input(v, name)
  if rawget(v.value, "handle") == nil then
    error(("%s: this variable's value was freed by grad.backward; call :keep() on it before"):format(name), 3)
  end
  return v.value
end

-- grad.define{ name=, forward = function(ctx, ...), backward = function(ctx, dy) } -> function(...)
-- The function takes variables and anything else; forward sees the variables' tensors in their place and returns one
-- tensor. ctx is a table to keep things in: ctx.needs[i] tells whether argument i wants a gradient, ctx.vars[i] is its
-- variable. backward returns a gradient for each argument, nil where there is none: a new tensor, dy itself, or an
-- argument's tensor. Tensors in ctx.temps are freed after it.
local define_options = { name = true, forward = true, backward = true }
function grad.define(op)
  lib.check_options("grad.define", op, define_options)
  local name, forward, backward = op.name or "operation", op.forward, op.backward
  if type(forward) ~= "function" or type(backward) ~= "function" then
    error(("grad.define: %s: forward and backward are functions"):format(name), 2)
  end
  return function(...)
    local n = select("#", ...)
    local args, vars, needs, any = { ... }, {}, {}, false
    for i = 1, n do
      local a = args[i]
      if is(a) then
        vars[i], args[i] = a, input(a, name)
        if a.needs then needs[i], any = true, true end
      end
    end
    any = any and recording
    local ctx = { needs = any and needs or {}, vars = vars }
    local value = forward(ctx, unpack(args, 1, n))
    if not tensor.is(value) then error(name .. ": forward must return a tensor", 2) end
    for i = 1, n do
      if rawequal(args[i], value) then value = alias(value) break end
    end
    local out = setmetatable({ value = value, needs = any }, Var)
    if any then
      serial = serial + 1
      out.node = { vars = vars, count = n, ctx = ctx, backward = backward, serial = serial, name = name }
    elseif ctx.temps then
      for _, t in ipairs(ctx.temps) do t:free() end
    end
    if scope then scope[#scope + 1] = out end
    return out
  end
end

-- ---- backward -------------------------------------------------------------------------------------------------

local function same_shape(a, b)
  if a.ndim ~= b.ndim then return false end
  for i = 1, a.ndim do if a.shape[i] ~= b.shape[i] then return false end end
  return true
end

-- g: a handle of v's own.
local function gather(v, g)
  if not v.grad then v.grad = g return end
  if v.summed then -- a sum made here: nobody else looks at it
    v.grad:add_(g)
  else
    local sum = v.grad + g
    v.grad:free()
    v.grad, v.summed = sum, true
  end
  g:free()
end

local function reachable(root)
  local list, seen, stack = {}, {}, { root }
  while #stack > 0 do
    local v = table.remove(stack)
    if v.node and not seen[v] then
      seen[v] = true
      list[#list + 1] = v
      for i = 1, v.node.count do
        local u = v.node.vars[i]
        if u and u.node and not seen[u] then stack[#stack + 1] = u end
      end
    end
  end
  table.sort(list, function(a, b) return a.node.serial > b.node.serial end)
  return list
end

local function run_node(out)
  local node, dy = out.node, out.grad
  local grads = { node.backward(node.ctx, dy) }
  for i = 1, node.count do
    local v, g = node.vars[i], grads[i]
    if v and v.needs and g then
      if not same_shape(g, v.value) then
        error(("%s: the gradient of argument %d is %s, its value is %s"):format(node.name, i, g:shape_text(),
          v.value:shape_text()), 0)
      end
      local shared = rawequal(g, dy) or rawequal(g, out.value)
      for j = 1, node.count do
        shared = shared or (node.vars[j] and rawequal(g, node.vars[j].value)) or (j < i and rawequal(g, grads[j]))
      end
      gather(v, shared and alias(g) or g)
    end
  end
  for _, t in ipairs(node.ctx.temps or {}) do t:free() end
end

-- grad.backward(root, dy): adds d root / d leaf to the grad of every leaf below root. dy: the gradient of root, 1 for a
-- root of one element. The history is used up.
function grad.backward(root, dy)
  if not is(root) then error("grad.backward: a variable is wanted, not " .. type(root), 2) end
  if not root.node then error("grad.backward: this variable does not come from operations that are recorded", 2) end
  if not dy then
    if root.value:numel() ~= 1 then
      error(("grad.backward: the root is %s; give its gradient"):format(root.value:shape_text()), 2)
    end
    dy = tensor.full(root.value.shape, 1, root.value.dtype)
  elseif not tensor.is(dy) or not same_shape(dy, root.value) then
    error(("grad.backward: the root is %s, its gradient %s"):format(root.value:shape_text(),
      tensor.is(dy) and dy:shape_text() or type(dy)), 2)
  end
  local list = reachable(root)
  gather(root, alias(dy))
  for _, out in ipairs(list) do
    if out.grad then
      run_node(out)
      out.grad:free()
      out.grad, out.summed = nil, nil
    end
    out.node, out.needs = nil, false
    if out ~= root and not out.kept then out.value:free() end
  end
end

-- ---- without a history, and with less of it ---------------------------------------------------------------------

local function restore(record, outer, ok, ...)
  local inner = scope
  recording, scope = record, outer
  if not ok then error((...), 0) end
  local held = {}
  for i = 1, select("#", ...) do
    local v = (select(i, ...))
    if is(v) then
      held[v] = true
      if outer then outer[#outer + 1] = v end
    end
  end
  for _, v in ipairs(inner) do
    if not held[v] and not v.kept then v.value:free() end
  end
  return ...
end

-- grad.no_grad(fn, ...): fn's results; nothing is recorded, and the variables made on the way are freed but for those
-- returned.
function grad.no_grad(fn, ...)
  local record, outer = recording, scope
  recording, scope = false, {}
  return restore(record, outer, pcall(fn, ...))
end

-- grad.checkpoint(fn, ...) -> fn(...): one variable. Of the work of fn only the result is kept; backward runs fn again.
-- fn must do the same both times, and take the variables it depends on (but for leaves) as arguments.
function grad.checkpoint(fn, ...)
  if not recording then return fn(...) end
  local n, args = select("#", ...), { ... }
  local out = grad.no_grad(fn, ...)
  if not is(out) then error("grad.checkpoint: the function must return one variable", 2) end
  local vars = {}
  for i = 1, n do vars[i] = is(args[i]) and args[i] or nil end
  serial = serial + 1
  local result = setmetatable({ value = alias(out.value), needs = true }, Var)
  out.value:free()
  result.node = { name = "checkpoint", serial = serial, vars = vars, count = n, ctx = {}, backward = function(_, dy)
    local inner, grads = {}, {}
    for i = 1, n do
      local v = vars[i]
      inner[i] = v and setmetatable({ value = v.value, needs = v.needs }, Var) or args[i]
    end
    local y = fn(unpack(inner, 1, n))
    if y.node then
      grad.backward(y, dy)
      y.value:free()
    end
    for i = 1, n do grads[i] = vars[i] and inner[i].grad or nil end
    return unpack(grads, 1, n)
  end }
  if scope then scope[#scope + 1] = result end
  return result
end

function grad.recording() return recording end

require("melies.grad.ops")(grad)
return grad
