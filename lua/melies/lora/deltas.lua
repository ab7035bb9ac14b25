-- The arithmetic of LoRAs: what a target's tensors add to a weight, in float32.
--
--   lora   up down * alpha / rank                                   Hu et al. 2021 (arXiv 2106.09685)
--   loha   (w1_a w1_b) o (w2_a w2_b) * alpha / rank                 FedPara, Hyeon-Woo et al. 2021 (arXiv 2108.06098)
--   lokr   w1 (x) w2, each whole or w_a w_b; * alpha / rank where one is not whole     LyCORIS (arXiv 2309.14859)
--   diff   the difference itself
-- Kernels: a core t [m, n, k...] (lora_mid, hada_t, lokr_t2) between factors a [m, out] and b [n, in] (Tucker).
-- DoRA: W' = m (W + delta) / |W + delta|, the norm over a row of the result, or over a column, as m's shape says
-- (Liu et al. 2024, arXiv 2402.09353); the strength goes from W to W'.
local tensor = require "melies.tensor"
local T = tensor

local M = {}

-- ---- what a target is ----------------------------------------------------------------------------------

local kinds = { -- kind, slots that it needs, the slot whose axis is the rank, that axis
  { "lora", { "down", "up" }, "down", 1 },
  { "loha", { "w1_a", "w1_b", "w2_a", "w2_b" }, "w1_b", 1 },
  { "lokr", {} },
  { "diff", { "diff" } },
}

local function slot_kind(keys)
  if keys.down or keys.up then return kinds[1] end
  if keys.w1_a or keys.w1_b or keys.w2_a or keys.w2_b then return kinds[2] end
  if keys.k1 or keys.k1_a or keys.k2 or keys.k2_a then return kinds[3] end
  if keys.diff or keys.diff_b then return kinds[4] end
end

-- Fills target.kind, rank, alpha, scale; kind stays nil where there is only a scale. true, or nil and a message.
function M.describe(lora, target, peft_scale)
  local keys, w = target.keys, lora.weights
  local kind = slot_kind(keys)
  if not kind then return true end
  target.kind = kind[1]
  for _, slot in ipairs(kind[2]) do
    if not keys[slot] and not (kind[1] == "diff" and keys.diff_b) then
      local _, one = next(keys)
      return nil, ("the %s tensor of '%s' is missing (there is '%s')"):format(slot, target.module, one)
    end
  end
  if kind[3] then target.rank = w:shape(keys[kind[3]])[kind[4]] end
  if kind[1] == "lokr" then
    local b = keys.k2_b or keys.k1_b
    if not ((keys.k1 or keys.k1_a and keys.k1_b) and (keys.k2 or keys.k2_a and keys.k2_b)) then
      return nil, ("'%s' has only one of the two factors of a LoKr"):format(target.module)
    end
    if b then target.rank = w:shape(b)[1] end
  end
  if (keys.t1 == nil) ~= (keys.t2 == nil) then return nil, ("'%s' has one core of two"):format(target.module) end
  if keys.alpha then
    local alpha = w:get(keys.alpha, "f32")
    if alpha:numel() ~= 1 or alpha:nonfinite() > 0 then
      return nil, ("'%s' is %s and not one number"):format(keys.alpha, alpha:shape_text())
    end
    target.alpha = alpha:get(1)
  end
  local scale = 1
  if target.rank and target.rank > 0 then
    if target.alpha then scale = target.alpha / target.rank
    elseif peft_scale and kind[1] == "lora" then scale = peft_scale(target.rank) end
  end
  target.scale = scale
  return true
end

-- ---- shapes ----------------------------------------------------------------------------------------------

local function product(shape, first)
  local n = 1
  for i = first or 1, #shape do n = n * shape[i] end
  return n
end

local function text(shape) return "[" .. table.concat(shape, ", ") .. "]" end

-- Rows and columns of the change (kernels flat), or nil and a message where its own factors do not fit.
local function extent(lora, target)
  local keys = target.keys
  local function shape(slot) return keys[slot] and lora.weights:shape(keys[slot]) end
  local function misfit(a, b)
    return nil, nil, ("'%s' %s does not fit '%s' %s"):format(keys[a], text(shape(a)), keys[b], text(shape(b)))
  end
  local function factor(a, b) -- a [m, r], b [r, n...]
    local sa, sb = shape(a), shape(b)
    if #sa < 2 or #sb < 2 or sa[2] ~= sb[1] or product(sa, 3) ~= 1 then return misfit(a, b) end
    return sa[1], product(sb, 2)
  end
  local function core(t, a, b, out) -- t [m, n, k...]; a [m, out] or, of a lora_mid, [out, m]; b [n, in]
    local st, sa, sb = shape(t), shape(a), shape(b)
    if #sa < 2 or sa[3 - out] ~= st[1] or product(sa, 3) ~= 1 then return misfit(t, a) end
    if #st < 2 or #sb < 2 or sb[1] ~= st[2] then return misfit(t, b) end
    return sa[out], product(sb, 2) * product(st, 3)
  end
  if target.kind == "lora" then
    if keys.mid then return core("mid", "up", "down", 1) end
    return factor("up", "down")
  elseif target.kind == "loha" then
    local rows, columns, r2, c2, message
    if keys.t1 then rows, columns, message = core("t1", "w1_a", "w1_b", 2)
    else rows, columns, message = factor("w1_a", "w1_b") end
    if not rows then return nil, nil, message end
    if keys.t2 then r2, c2, message = core("t2", "w2_a", "w2_b", 2) else r2, c2, message = factor("w2_a", "w2_b") end
    if not r2 then return nil, nil, message end
    if r2 ~= rows or c2 ~= columns then return misfit("w1_a", "w2_a") end
    return rows, columns
  elseif target.kind == "lokr" then
    local r1, c1, r2, c2, message
    if keys.k1 then r1, c1 = shape "k1"[1], product(shape "k1", 2) else r1, c1, message = factor("k1_a", "k1_b") end
    if not r1 then return nil, nil, message end
    if keys.k2 then r2, c2 = shape "k2"[1], product(shape "k2", 2)
    elseif keys.kt2 then r2, c2, message = core("kt2", "k2_a", "k2_b", 2)
    else r2, c2, message = factor("k2_a", "k2_b") end
    if not r2 then return nil, nil, message end
    return r1 * r2, c1 * c2
  end
  local s = shape "diff"
  return s[1] or 1, product(s, 2)
end

-- nil, or what does not fit: a line with the tensor, the wanted and the found shape.
function M.check(lora, target, part, name, wanted)
  local keys = target.keys
  if part == "bias" then
    for _, slot in ipairs { "diff_b", "up_bias" } do
      local s = keys[slot] and lora.weights:shape(keys[slot])
      if s and product(s) ~= product(wanted) then
        return ("tensor '%s' is %s, wanted %s for '%s'"):format(keys[slot], text(s), text(wanted), name)
      end
    end
    return nil
  end
  local rows, columns, message = extent(lora, target)
  if not rows then return message end -- its own factors
  if rows ~= (wanted[1] or 1) or columns ~= product(wanted, 2) then
    local key = keys.up or keys.w1_a or keys.k1 or keys.k1_a or keys.diff
    return ("tensor '%s' makes a change of %s, wanted %s for '%s'"):format(key, text { rows, columns }, text(wanted),
      name)
  end
  local m = keys.dora and product(lora.weights:shape(keys.dora))
  if m and m ~= wanted[1] and m ~= wanted[2] then
    return ("tensor '%s' has %d values, wanted %d (or %d) for '%s'"):format(keys.dora, m, wanted[1], wanted[2] or 1,
      name)
  end
end

-- ---- the change itself --------------------------------------------------------------------------------------

local function f32(lora, target, slot) return lora.weights:get(target.keys[slot], "f32") end
local function flat(x) return x:reshape(x.shape[1], -1) end

-- out[o, i, k] = sum over m, n of a[m, o] t[m, n, k] b[n, i], as [o, i * k].
local function tucker(t, a, b)
  local m, n = t.shape[1], t.shape[2]
  local k = t:numel() / (m * n)
  local out, inputs = a.shape[2], b.shape[2]
  local x = a:transpose(1, 2):contiguous():matmul(t:reshape(m, n * k)):reshape(out, n, k)
  x = x:permute(1, 3, 2):contiguous():reshape(out * k, n):matmul(b) -- [out * k, in]
  return x:reshape(out, k, inputs):permute(1, 3, 2):contiguous():reshape(out, inputs * k)
end

-- The change [rows, columns] without strength, with the target's scale.
local function delta(lora, target)
  local keys = target.keys
  local x
  local function get(slot) return f32(lora, target, slot) end
  if target.kind == "lora" then
    local up, down = flat(get "up"), get "down"
    if keys.mid then x = tucker(get "mid", up:transpose(1, 2):contiguous(), flat(down))
    else x = up:matmul(flat(down)) end
  elseif target.kind == "loha" then
    if keys.t1 then x = tucker(get "t1", get "w1_a", get "w1_b") * tucker(get "t2", get "w2_a", get "w2_b")
    else x = get "w1_a":matmul(flat(get "w1_b")) * get "w2_a":matmul(flat(get "w2_b")) end
  elseif target.kind == "lokr" then
    local w1 = keys.k1 and flat(get "k1") or get "k1_a":matmul(get "k1_b")
    local w2
    if keys.k2 then w2 = flat(get "k2")
    elseif keys.kt2 then w2 = tucker(get "kt2", get "k2_a", get "k2_b")
    else w2 = get "k2_a":matmul(flat(get "k2_b")) end
    local a, b, c, d = w1.shape[1], w1.shape[2], w2.shape[1], w2.shape[2]
    x = (w1:reshape(a, 1, b, 1) * w2:reshape(1, c, 1, d)):reshape(a * c, b * d)
  else
    x = get "diff"
    x = x.ndim == 0 and x:reshape(1, 1) or flat(x)
  end
  return target.scale == 1 and x or x * target.scale
end

local function bias_delta(lora, target)
  local x
  if target.keys.diff_b then x = f32(lora, target, "diff_b"):reshape { -1 } end
  if target.keys.up_bias then
    local more = f32(lora, target, "up_bias"):reshape { -1 } * target.scale
    x = x and x + more or more
  end
  return x
end

-- W' - W of a DoRA; base [rows, columns (flat)], wanted: the weight's whole shape.
local function decomposed(lora, target, base, change, wanted)
  local m, sum = f32(lora, target, "dora"):reshape { -1 }, base + change
  if m:numel() == wanted[1] then
    local norm = sum:square():sum(2, true):sqrt()
    return sum * (m:reshape(-1, 1) / norm) - base
  end
  local rows, columns = wanted[1], wanted[2]
  local cube = sum:reshape(rows, columns, -1)
  local norm = cube:square():sum(3, true):sum(1, true):sqrt()
  return (cube * (m:reshape(1, columns, 1) / norm)):reshape(rows, -1) - base
end

-- base (f32, any shape) with the change at a strength.
function M.add(lora, target, part, base, strength)
  if part == "bias" then return T.lincomb { 1, base, strength, bias_delta(lora, target):reshape(base.shape) } end
  local wanted, keys = base.shape, target.keys
  if target.kind == "lora" and not keys.mid and not keys.dora then -- without a third matrix of that size
    local x = flat(f32(lora, target, "up")):matmul(flat(f32(lora, target, "down")), { alpha = target.scale * strength })
    return x:reshape(wanted):add_(base)
  end
  local change = delta(lora, target)
  if keys.dora then
    change = decomposed(lora, target, base:reshape(wanted[1], -1), change, wanted)
  end
  return T.lincomb { 1, base, strength, change:reshape(wanted) }
end

-- ---- beside the weights ----------------------------------------------------------------------------------------

-- A function of x [..., K] that gives what to add to the layer's result, f32 [..., N], or nil at strength 0. b: entry
-- (its `now` is the strength) and target. base(): the layer's own weight in f32, for a DoRA. A change that is not of
-- low rank is kept whole.
function M.adapter(b, options, base)
  local nn = require "melies.nn"
  local lora, target, entry = b.entry.lora, b.target, b.entry
  local c = options.compute or require("melies").compute()
  local compute = { compute = c == "s8" and "bf16" or c } -- small beside a base in 8 bits
  local run
  if target.kind == "lora" and not target.keys.dora and not target.keys.mid then
    local up = flat(f32(lora, target, "up"))
    local down = nn.linear(flat(f32(lora, target, "down")), nil, compute)
    up = nn.linear(target.scale == 1 and up or up * target.scale, nil, compute)
    run = function(x) return up(down(x), { dtype = "f32" }) end
  else
    local change = delta(lora, target)
    if target.keys.dora then
      local weight = base()
      change = decomposed(lora, target, weight:reshape(weight.shape[1], -1), change, weight.shape)
    end
    local whole = nn.linear(change, nil, compute)
    run = function(x) return whole(x, { dtype = "f32" }) end
  end
  return function(x)
    local s = entry.now
    if s == 0 then return nil end
    local y = run(x)
    return s == 1 and y or y * s
  end
end

function M.bias_adapter(b)
  local change, entry = bias_delta(b.entry.lora, b.target), b.entry
  return function() return entry.now ~= 0 and change * entry.now or nil end
end

return M
