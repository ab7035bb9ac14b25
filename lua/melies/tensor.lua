-- Tensors in Lua: handles with methods and operators. Axes and indices count from 1, negative ones from the end, ranges
-- are inclusive. Every operation returns a new tensor unless its name ends in "_". Data stays in native memory.
local ffi = require "ffi"
local lib = require "melies.ffi.lib"
local C, make, err, check = lib.C, lib.make, lib.err, lib.check

local tensor = {}
local Tensor = {} -- methods
local meta = {}

local dtype_names = { [0] = "f32", "bf16", "f16", "s8", "u8", "s32", "i64" }
local dtype_codes = {}
for code, name in pairs(dtype_names) do dtype_codes[name] = code end
local ctypes = {
  f32 = "float*", bf16 = "uint16_t*", f16 = "uint16_t*", s8 = "int8_t*", u8 = "uint8_t*", s32 = "int32_t*",
    i64 = "int64_t*",
}
local acts = { none = 0, silu = 1, gelu = 2, gelu_tanh = 2, gelu_erf = 3, quick_gelu = 4, relu = 5, tanh = 6,
  sigmoid = 7 }

local box_type = ffi.typeof("mel_tensor*[1]")
local dims_type = ffi.typeof("int64_t[8]")
local double_box = ffi.typeof("double[1]")

-- ---- wrapping ----------------------------------------------------------------------------------

-- The collector does not see native bytes: when much has been added since the last look, collect from here.
local next_look = 64 * 2 ^ 20
local function look_after(live)
  local more, limit = lib.much(live), tonumber(C.mel_mem_limit())
  return live + (limit > 0 and math.min(more, math.max(0, limit - live) / 2) or more)
end
local next_near, last_limit = 0, 0 -- near the limit: half of what the last collection left free has gone
local function mind_memory()
  local live, limit = tonumber(C.mel_mem_live()), tonumber(C.mel_mem_limit())
  if limit ~= last_limit then next_near, last_limit = 0, limit end
  if live > next_look or (limit > 0 and live > limit * 0.75 and live > next_near) then
    live = lib.collect()
    next_look, next_near = look_after(live), live + math.max(0, limit - live) / 2
  elseif look_after(live) < next_look / 2 then
    next_look = look_after(live)
  end
end

-- Owns an FFI handle from now on.
function tensor.wrap(handle)
  local self = setmetatable({ handle = ffi.gc(handle, C.mel_tensor_unref) }, meta)
  mind_memory()
  return self
end
local wrap = tensor.wrap

function tensor.is(value) return getmetatable(value) == meta end

local function need(value, what, level)
  if getmetatable(value) ~= meta then
    error(("%s: a tensor is wanted, not %s"):format(what, type(value)), (level or 2) + 1)
  end
  local handle = rawget(value, "handle")
  if handle == nil then error(what .. ": this tensor was freed", (level or 2) + 1) end
  return handle
end

-- The code of a dtype name (nil: same as the input).
local function dtype_code(name, level)
  if name == nil then return -1 end
  local code = dtype_codes[name]
  if not code then error(("unknown dtype '%s'%s"):format(tostring(name), lib.suggest(name, dtype_codes)),
    (level or 2) + 1) end
  return code
end
tensor.dtype_code = dtype_code

local function act_code(name, level)
  if name == nil then return 0 end
  local code = acts[name]
  if not code then error(("unknown activation '%s'%s"):format(tostring(name), lib.suggest(name, acts)),
    (level or 2) + 1) end
  return code
end
tensor.act_code = act_code

local function dims(shape, what, level)
  if type(shape) ~= "table" then error(what .. ": a shape is a table of numbers", (level or 2) + 1) end
  local d = dims_type()
  if #shape > 8 then error(("%s: %d dimensions, at most 8 are possible"):format(what, #shape), (level or 2) + 1) end
  for i = 1, #shape do
    local n = shape[i]
    if type(n) ~= "number" or n % 1 ~= 0 then
      error(("%s: dimension %d is %s"):format(what, i, tostring(n)), (level or 2) + 1)
    end
    d[i - 1] = n
  end
  return d, #shape
end

-- Methods with a leading box: every operation ends here. A third argument is what must live until then: the tensors of
-- an array of handles.
local function result(status, box)
  if status ~= 0 then lib.raise(tonumber(status), 3) end -- always tail-called: the next frame is the user's
  return wrap(box[0])
end

-- ---- making ------------------------------------------------------------------------------------

-- tensor.empty(shape, dtype = "f32"): contents are whatever was there.
function tensor.empty(shape, dtype)
  local d, n = dims(shape, "tensor.empty")
  local box = box_type()
  return result(make.mel_tensor_create(dtype_code(dtype or "f32"), n, d, box, err), box)
end

-- tensor.zeros(shape, dtype = "f32")
function tensor.zeros(shape, dtype)
  local d, n = dims(shape, "tensor.zeros")
  local box = box_type()
  return result(make.mel_tensor_zeros(dtype_code(dtype or "f32"), n, d, box, err), box)
end

-- tensor.full(shape, value, dtype = "f32")
function tensor.full(shape, value, dtype)
  local t = tensor.empty(shape, dtype)
  return t:fill_(value)
end

local function flatten(values, out, shape, depth, what)
  if shape[depth] == nil then shape[depth] = #values
  elseif shape[depth] ~= #values then error(what .. ": the nested tables have different lengths", 4) end
  for i = 1, #values do
    if type(values[i]) == "table" then flatten(values[i], out, shape, depth + 1, what)
    else out[#out + 1] = values[i] end
  end
end

-- tensor.of(numbers, shape, dtype = "f32"): from a flat or nested table, or one number.
function tensor.of(values, shape, dtype)
  if type(values) ~= "table" then values, shape = { values }, shape or {} end
  local flat, seen = {}, {}
  flatten(values, flat, seen, 1, "tensor.of")
  local t = tensor.empty(shape or seen, dtype)
  if t:numel() ~= #flat then
    error(("tensor.of: %d values do not fill the shape %s"):format(#flat, t:shape_text()), 2)
  end
  local p = t:ptr()
  if t.dtype == "f32" or t.dtype == "s32" or t.dtype == "i64" then
    for i = 1, #flat do p[i - 1] = flat[i] end
  else
    for i = 1, #flat do t:set(i, flat[i]) end
  end
  return t
end

-- tensor.noise(shape, { seed = 0, stream = 0, offset = 0 }): standard normal f32; the same for any thread count.
local noise_options = { seed = true, stream = true, offset = true }
local function noise_with(fn, what)
  return function(shape, options)
    options = options or {}
    lib.check_options(what, options, noise_options)
    local d, n = dims(shape, what)
    local box = box_type()
    return result(fn(options.seed or 0, options.stream or 0, options.offset or 0, n, d, box, err), box)
  end
end
tensor.noise = noise_with(make.mel_noise_normal, "noise")
tensor.uniform = noise_with(make.mel_noise_uniform, "uniform")

-- ---- looking -----------------------------------------------------------------------------------

local properties = {
  shape = function(self)
    local p, out = C.mel_tensor_shape(self.handle), {}
    for i = 1, C.mel_tensor_ndim(self.handle) do out[i] = tonumber(p[i - 1]) end
    rawset(self, "shape", out)
    return out
  end,
  dtype = function(self)
    local name = dtype_names[tonumber(C.mel_tensor_dtype(self.handle))]
    rawset(self, "dtype", name)
    return name
  end,
  ndim = function(self) return C.mel_tensor_ndim(self.handle) end,
}

function meta.__index(self, key)
  local method = Tensor[key]
  if method ~= nil then return method end
  local property = properties[key]
  if property then
    need(self, "tensor")
    return property(self)
  end
  if type(key) == "string" then
    local names = { "shape", "dtype", "ndim" }
    for name in pairs(Tensor) do names[#names + 1] = name end
    error(("a tensor has no '%s'%s"):format(key, lib.suggest(key, names)), 2)
  end
end

function Tensor:numel() return tonumber(C.mel_tensor_numel(need(self, "numel"))) end
-- Bytes of the elements (a view's own, not its storage's).
function Tensor:bytes() return tonumber(C.mel_tensor_bytes(need(self, "bytes"))) end
function Tensor:is_contiguous() return C.mel_tensor_is_contiguous(need(self, "is_contiguous")) end
-- "[2, 3, 4]"
function Tensor:shape_text() return "[" .. table.concat(self.shape, ", ") .. "]" end
-- A typed pointer to the elements; the tensor must be contiguous and outlive the pointer.
function Tensor:ptr()
  local handle = need(self, "ptr")
  if not C.mel_tensor_is_contiguous(handle) then error("ptr: the tensor is not contiguous, call :contiguous()", 2) end
  return ffi.cast(ctypes[self.dtype], C.mel_tensor_data(handle))
end
-- Gives the memory back now instead of at some later collection.
function Tensor:free()
  local handle = self.handle
  if handle ~= nil then
    C.mel_tensor_unref(ffi.gc(handle, nil))
    rawset(self, "handle", nil)
  end
end

-- get(i), set(i, value): one element at a flat row-major index, from 1.
function Tensor:get(index)
  local out = double_box()
  check(C.mel_tensor_get(need(self, "get"), (index < 0 and index + self:numel() + 1 or index) - 1, out, err))
  return out[0]
end
function Tensor:set(index, value)
  check(C.mel_tensor_set(need(self, "set"), (index < 0 and index + self:numel() + 1 or index) - 1, value, err))
  return self
end
-- All elements as a flat Lua table: for small tensors.
function Tensor:list()
  local t = self:to(self.dtype == "i64" and "i64" or "f32"):contiguous()
  local p, out = t:ptr(), {}
  for i = 1, t:numel() do out[i] = tonumber(p[i - 1]) end
  return out
end
-- The value of a tensor of one element.
function Tensor:item()
  if self:numel() ~= 1 then error("item: the tensor has " .. self:numel() .. " elements", 2) end
  return self:get(1)
end

local function bytes_text(n)
  if n < 1024 then return n .. " B" end
  local units = { "KiB", "MiB", "GiB", "TiB" }
  local i = 0
  repeat n, i = n / 1024, i + 1 until n < 1024 or i == #units
  return ("%.1f %s"):format(n, units[i])
end

function meta.__tostring(self)
  if rawget(self, "handle") == nil then return "tensor (freed)" end
  local head = ("%s %s %s"):format(self.dtype, self:shape_text(), bytes_text(self:bytes()))
  if self:numel() == 0 then return head end
  local bad = self:nonfinite()
  local tail = bad > 0 and (" (%d not finite)"):format(bad) or ""
  return ("%s min %.4g mean %.4g max %.4g%s"):format(head, self:amin(), self:mean(), self:amax(), tail)
end

-- ---- views --------------------------------------------------------------------------------------

local function axis_code(self, axis, what, level)
  local n = self.ndim
  if type(axis) ~= "number" or axis % 1 ~= 0 or axis == 0 or axis > n or axis < -n then
    error(("%s: no axis %s in a tensor of shape %s"):format(what, tostring(axis), self:shape_text()), (level or 2) + 1)
  end
  return axis > 0 and axis - 1 or axis + n
end

-- slice(axis, first, last = -1): a view of [first, last] along axis, inclusive.
function Tensor:slice(axis, first, last)
  local handle = need(self, "slice")
  local a = axis_code(self, axis, "slice")
  local n = self.shape[a + 1]
  if last == nil and first and first > n then last = first end -- no silent empty view past the end
  first, last = first or 1, last or -1
  local lo, hi = first < 0 and first + n + 1 or first, last < 0 and last + n + 1 or last
  if lo < 1 or hi > n or hi < lo - 1 then
    error(("slice: %d..%d is outside axis %d of %s"):format(first, last, a + 1, self:shape_text()), 2)
  end
  local box = box_type()
  return result(make.mel_tensor_slice(handle, a, lo - 1, hi - lo + 1, box, err), box)
end

-- select(axis, i): a view without that axis.
function Tensor:select(axis, index)
  local a = axis_code(self, axis, "select")
  local n = self.shape[a + 1]
  local i = index < 0 and index + n + 1 or index
  if i < 1 or i > n then error(("select: %d is outside axis %d of %s"):format(index, a + 1, self:shape_text()), 2) end
  local shape = { unpack(self.shape) }
  table.remove(shape, a + 1)
  return self:slice(a + 1, i, i):reshape(shape)
end

-- permute(a1, a2, ...): a view whose axis i is this one's axis a_i.
function Tensor:permute(...)
  local handle = need(self, "permute")
  local axes = { ... }
  if type(axes[1]) == "table" then axes = axes[1] end
  if #axes ~= self.ndim then error(("permute: %d axes given for a tensor of shape %s"):format(#axes,
    self:shape_text()), 2) end
  local codes = ffi.new("int[8]")
  for i = 1, #axes do codes[i - 1] = axis_code(self, axes[i], "permute") end
  local box = box_type()
  return result(make.mel_tensor_permute(handle, codes, box, err), box)
end

-- transpose(a, b): a view with two axes exchanged.
function Tensor:transpose(a, b)
  local axes = {}
  for i = 1, self.ndim do axes[i] = i end
  a, b = axis_code(self, a, "transpose") + 1, axis_code(self, b, "transpose") + 1
  axes[a], axes[b] = axes[b], axes[a]
  return self:permute(axes)
end

-- reshape(d1, d2, ...) or reshape{...}: one may be -1. A view where strides allow it, else a copy.
function Tensor:reshape(...)
  local handle = need(self, "reshape")
  local shape = ...
  if type(shape) ~= "table" then shape = { ... } end
  local d, n = dims(shape, "reshape")
  local box = box_type()
  return result(make.mel_tensor_reshape(handle, n, d, box, err), box)
end

-- unsqueeze(axis): a view with a dimension of 1 inserted there. squeeze(axis) removes one.
function Tensor:unsqueeze(axis)
  local n = self.ndim
  local at = axis < 0 and axis + n + 2 or axis
  if at < 1 or at > n + 1 then error(("unsqueeze: no place %d in %s"):format(axis, self:shape_text()), 2) end
  local shape = { unpack(self.shape) }
  table.insert(shape, at, 1)
  return self:reshape(shape)
end
function Tensor:squeeze(axis)
  local a = axis_code(self, axis, "squeeze") + 1
  if self.shape[a] ~= 1 then error(("squeeze: axis %d of %s is not 1"):format(a, self:shape_text()), 2) end
  local shape = { unpack(self.shape) }
  table.remove(shape, a)
  return self:reshape(shape)
end

-- expand{...}: dimensions of 1 stretched, leading ones added; read-only.
function Tensor:expand(shape)
  local d, n = dims(shape, "expand")
  local box = box_type()
  return result(make.mel_tensor_expand(need(self, "expand"), n, d, box, err), box)
end

-- ---- copies -------------------------------------------------------------------------------------

function Tensor:contiguous()
  local handle = need(self, "contiguous")
  if C.mel_tensor_is_contiguous(handle) then return self end
  local box = box_type()
  return result(make.mel_tensor_contiguous(handle, box, err), box)
end
function Tensor:clone()
  local box = box_type()
  return result(make.mel_tensor_clone(need(self, "clone"), box, err), box)
end
-- to("bf16"): itself where nothing changes.
function Tensor:to(dtype)
  local code = dtype_code(dtype or error("to: a dtype is wanted", 2))
  if self.dtype == dtype then return self end
  local box = box_type()
  return result(make.mel_tensor_cast(need(self, "to"), code, box, err), box)
end
-- copy_(src): in place; src broadcasts and is cast.
function Tensor:copy_(src)
  check(C.mel_tensor_copy(need(self, "copy_"), need(src, "copy_"), err))
  return self
end
function Tensor:fill_(value)
  check(C.mel_tensor_fill(need(self, "fill_"), value, err))
  return self
end

-- ---- elementwise ----------------------------------------------------------------------------------

for name, code in pairs(acts) do
  if name ~= "none" then
    Tensor[name] = function(self, dtype)
      local box = box_type()
      return result(make.mel_activate(code, need(self, name), dtype_code(dtype), box, err), box)
    end
  end
end

local unaries = { neg = 0, abs = 1, exp = 2, log = 3, sqrt = 4, rsqrt = 5, square = 6, sin = 7, cos = 8, round = 9,
  floor = 10, recip = 11 }
for name, code in pairs(unaries) do
  Tensor[name] = function(self, dtype)
    local box = box_type()
    return result(make.mel_unary(code, need(self, name), dtype_code(dtype), box, err), box)
  end
end
meta.__unm = function(a) return a:neg() end

local function binary(code, what)
  return function(a, b)
    local box = box_type()
    if type(b) == "number" then
      return result(make.mel_binary_scalar(code, need(a, what), b, false, box, err), box)
    elseif type(a) == "number" then
      return result(make.mel_binary_scalar(code, need(b, what), a, true, box, err), box)
    end
    return result(make.mel_binary(code, need(a, what), need(b, what), box, err), box)
  end
end
meta.__add, meta.__sub = binary(0, "add"), binary(1, "subtract")
meta.__mul, meta.__div = binary(2, "multiply"), binary(3, "divide")
meta.__pow = binary(6, "power")
tensor.maximum, tensor.minimum = binary(4, "maximum"), binary(5, "minimum")

function Tensor:clamp(low, high)
  local box = box_type()
  return result(make.mel_clamp(need(self, "clamp"), low or -math.huge, high or math.huge, box, err), box)
end
-- add_(x, alpha = 1, gate): in place, self + alpha * x * gate; x and gate broadcast.
function Tensor:add_(x, alpha, gate)
  check(C.mel_add_inplace(need(self, "add_"), alpha or 1, need(x, "add_"), gate and need(gate, "add_") or nil, err))
  return self
end

-- lincomb{c1, x1, c2, x2, ...}: sum of c_i x_i in one pass; f32.
function tensor.lincomb(terms)
  local n = #terms / 2
  if n % 1 ~= 0 or n < 1 or n > 16 then error("lincomb: 1 to 16 pairs of a number and a tensor are wanted", 2) end
  local c, x = ffi.new("double[16]"), ffi.new("const mel_tensor*[16]")
  for i = 1, n do
    if type(terms[2 * i - 1]) ~= "number" then error(("lincomb: coefficient %d is not a number"):format(i), 2) end
    c[i - 1] = terms[2 * i - 1]
    x[i - 1] = need(terms[2 * i], "lincomb")
  end
  local box = box_type()
  return result(make.mel_lincomb(n, c, x, box, err), box, terms)
end

-- ---- reductions -----------------------------------------------------------------------------------

local reductions = { sum = 0, mean = 1, amax = 2, amin = 3, sumsq = 4 }
for name, code in pairs(reductions) do
  -- With an axis a tensor (keep: the axis stays as 1), without one a number.
  Tensor[name] = function(self, axis, keep)
    local handle = need(self, name)
    if axis == nil then
      local out = double_box()
      check(make.mel_reduce_all(code, handle, out, err))
      return out[0]
    end
    local box = box_type()
    return result(make.mel_reduce(code, handle, axis_code(self, axis, name), keep and true or false, box, err), box)
  end
end
-- Euclidean norm, population standard deviation, inner product, count of NaN and infinities: numbers.
function Tensor:norm() return math.sqrt(self:sumsq()) end
function Tensor:std()
  local mean = self:mean()
  return math.sqrt(math.max(0, (self - mean):sumsq() / self:numel()))
end
function Tensor:dot(other)
  local out = double_box()
  check(C.mel_dot(need(self, "dot"), need(other, "dot"), out, err))
  return out[0]
end
function Tensor:nonfinite()
  local out = ffi.new("int64_t[1]")
  check(C.mel_count_nonfinite(need(self, "nonfinite"), out, err))
  return tonumber(out[0])
end

-- ---- moving -----------------------------------------------------------------------------------------

-- concat({a, b, ...}, axis = 1)
function tensor.concat(parts, axis)
  if type(parts) ~= "table" or #parts == 0 then error("concat: a table of tensors is wanted", 2) end
  local handles = ffi.new("const mel_tensor*[?]", #parts)
  for i = 1, #parts do handles[i - 1] = need(parts[i], "concat") end
  local box = box_type()
  return result(make.mel_concat(#parts, handles, axis_code(parts[1], axis or 1, "concat"), box, err), box, parts)
end
-- stack({a, b, ...}, axis = 1): along a new axis.
function tensor.stack(parts, axis)
  local views = {}
  for i = 1, #parts do views[i] = parts[i]:unsqueeze(axis or 1) end
  return tensor.concat(views, axis or 1)
end
-- pad(axis, before, after, value = 0): value "edge" repeats the border.
function Tensor:pad(axis, before, after, value)
  local edge = value == "edge"
  local box = box_type()
  return result(make.mel_pad(need(self, "pad"), axis_code(self, axis, "pad"), before, after, edge and 0 or value or 0,
    edge, box, err), box)
end
-- gather(table, ids): rows of table by ids (i64 or s32, counted from 0: they are token ids).
function tensor.gather(source, ids, dtype)
  local box = box_type()
  return result(make.mel_gather(need(source, "gather"), need(ids, "gather"), dtype_code(dtype), box, err), box)
end
-- resize(axis, size, mode = "bilinear", antialias = false): mode nearest, bilinear, bicubic, area.
local modes = { nearest = 0, bilinear = 1, bicubic = 2, area = 3 }
function Tensor:resize(axis, size, mode, antialias)
  local code = modes[mode or "bilinear"]
  if not code then error(("resize: unknown mode '%s'%s"):format(tostring(mode), lib.suggest(mode, modes)), 2) end
  local box = box_type()
  return result(make.mel_resize(need(self, "resize"), axis_code(self, axis, "resize"), size, code, antialias or false,
    box, err), box)
end
-- pixel_shuffle(x [N, H, W, C*r*r], r) -> [N, H*r, W*r, C] with the channel slowest inside C*r*r, as PyTorch's; and back.
function tensor.pixel_shuffle(x, r)
  local n, h, w, c = unpack(x.shape)
  if x.ndim ~= 4 or c % (r * r) ~= 0 then
    error(("pixel_shuffle: %s does not divide by %d^2"):format(x:shape_text(), r), 2)
  end
  return x:reshape(n, h, w, c / (r * r), r, r):permute(1, 2, 5, 3, 6, 4):reshape(n, h * r, w * r, c / (r * r))
end
function tensor.pixel_unshuffle(x, r)
  local n, h, w, c = unpack(x.shape)
  if x.ndim ~= 4 or h % r ~= 0 or w % r ~= 0 then
    error(("pixel_unshuffle: %s does not divide by %d"):format(x:shape_text(), r), 2)
  end
  return x:reshape(n, h / r, r, w / r, r, c):permute(1, 2, 4, 6, 3, 5):reshape(n, h / r, w / r, c * r * r)
end

-- ---- norms, softmax, attention, products --------------------------------------------------------------

local norm_options = { weight = true, bias = true, eps = true, scale = true, shift = true, act = true, dtype = true,
  groups = true }
local function opt(options, key, what) return options[key] and need(options[key], what, 3) or nil end

-- layer_norm{weight=, bias=, eps=1e-6, scale=, shift=, act=, dtype=}: over the last axis.
function Tensor:layer_norm(o)
  o = o or {}
  lib.check_options("layer_norm", o, norm_options)
  local box = box_type()
  return result(make.mel_layer_norm(need(self, "layer_norm"), opt(o, "weight", "layer_norm"), opt(o, "bias",
    "layer_norm"), o.eps or 1e-6,
    opt(o, "scale", "layer_norm"), opt(o, "shift", "layer_norm"), act_code(o.act), dtype_code(o.dtype), box, err), box)
end
-- rms_norm{weight=, eps=1e-6, scale=, shift=, act=, dtype=}
function Tensor:rms_norm(o)
  o = o or {}
  lib.check_options("rms_norm", o, norm_options)
  local box = box_type()
  return result(make.mel_rms_norm(need(self, "rms_norm"), opt(o, "weight", "rms_norm"), o.eps or 1e-6, opt(o, "scale",
    "rms_norm"),
    opt(o, "shift", "rms_norm"), act_code(o.act), dtype_code(o.dtype), box, err), box)
end
local l2_options = { weight = true, act = true, dtype = true, into = true }
-- l2_norm{weight=, act=, dtype=}: x / |x| * sqrt(D) * weight. into: a dense tensor of x's shape that gets the result.
function Tensor:l2_norm(o)
  o = o or {}
  lib.check_options("l2_norm", o, l2_options)
  if o.into then
    check(make.mel_l2_norm_into(need(self, "l2_norm"), opt(o, "weight", "l2_norm"), act_code(o.act),
      need(o.into, "l2_norm"), err))
    return o.into
  end
  local box = box_type()
  return result(make.mel_l2_norm(need(self, "l2_norm"), opt(o, "weight", "l2_norm"), act_code(o.act),
    dtype_code(o.dtype), box, err), box)
end
-- group_norm{groups=, weight=, bias=, eps=1e-5, act=, dtype=}: x [N, ..., C].
function Tensor:group_norm(o)
  lib.check_options("group_norm", o, norm_options)
  local box = box_type()
  return result(make.mel_group_norm(need(self, "group_norm"), o.groups or 1, opt(o, "weight", "group_norm"), opt(o,
    "bias", "group_norm"),
    o.eps or 1e-5, act_code(o.act), dtype_code(o.dtype), box, err), box)
end
function Tensor:softmax(dtype)
  local box = box_type()
  return result(make.mel_softmax(need(self, "softmax"), dtype_code(dtype), box, err), box)
end
-- rope(cos, sin, {interleaved = true, dtype=}): self [B, L, H, D], tables [L, D/2] or [B, L, D/2].
local rope_options = { interleaved = true, dtype = true }
function Tensor:rope(cos, sin, o)
  o = o or {}
  lib.check_options("rope", o, rope_options)
  local box = box_type()
  return result(make.mel_rope(need(self, "rope"), need(cos, "rope"), need(sin, "rope"), o.interleaved ~= false,
    dtype_code(o.dtype), box, err), box)
end
-- attention(q, k, v, {scale = 1/sqrt(D), bias=, key_bias=, causal=, dtype=, scores=, values=, mask=}): [B, L, H, D]
-- each. scores = "s8": q and k in 8 bits; values = "s8": v and the softmax too, without biases and causal. mask: the keys
-- that each block of queries sees (melies.sparse_attention).
local attention_options = { scale = true, bias = true, key_bias = true, causal = true, dtype = true, scores = true,
  values = true, mask = true }
local attention_box = ffi.typeof "mel_attention_options"
function tensor.attention(q, k, v, o)
  o = o or {}
  lib.check_options("attention", o, attention_options)
  local hq = need(q, "attention")
  local bad = o.scores ~= nil and o.scores ~= "s8" and "scores" or o.values ~= nil and o.values ~= "s8" and "values"
  if bad then
    error(("attention: %s is '%s'; there is only 's8', and nothing for those of the operands"):format(bad,
      tostring(o[bad])), 2)
  end
  local mask = o.mask
  if mask ~= nil and (type(mask) ~= "table" or not mask.offsets or not mask.blocks) then
    error("attention: the mask is no mask of melies.sparse_attention", 2)
  end
  local box, given = box_type(), attention_box()
  given.scale, given.causal, given.s8_scores = o.scale or 1 / math.sqrt(q.shape[q.ndim]), o.causal or false,
    o.scores == "s8"
  given.s8_values = o.values == "s8"
  given.bias, given.key_bias, given.dtype = opt(o, "bias", "attention"), opt(o, "key_bias", "attention"),
    dtype_code(o.dtype)
  if mask then
    given.offsets, given.blocks = need(mask.offsets, "attention"), need(mask.blocks, "attention")
  end
  return result(make.mel_attention_with(hq, need(k, "attention"), need(v, "attention"), given, box, err), box)
end
-- matmul(b, {transpose = false, alpha = 1, dtype=}): [..., M, K] x [..., K, N] ([..., N, K] where transposed).
local matmul_options = { transpose = true, alpha = true, dtype = true }
function Tensor:matmul(b, o)
  o = o or {}
  lib.check_options("matmul", o, matmul_options)
  local box = box_type()
  return result(make.mel_matmul(need(self, "matmul"), need(b, "matmul"), o.transpose or false, o.alpha or 1,
    dtype_code(o.dtype), box, err), box)
end

tensor.need = need
tensor.methods = Tensor
return tensor
