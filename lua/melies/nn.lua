-- Layers with packed weights: matrix work through oneDNN in its own weight layout.
local ffi = require "ffi"
local lib = require "melies.ffi.lib"
local tensor = require "melies.tensor"
local C, make, err, check, need = lib.C, lib.make, lib.err, lib.check, tensor.need

local nn = {}
local run_options = { act = true, dtype = true }

local function run_with(call, what)
  return function(self, x, options)
    local act, dtype
    if options then
      lib.check_options(what, options, run_options)
      act, dtype = options.act, options.dtype
    end
    local handle = self.handle
    if handle == nil then error(what .. ": this layer was freed", 2) end
    local box = ffi.new("mel_tensor*[1]")
    check(call(handle, need(x, what), tensor.act_code(act), tensor.dtype_code(dtype), box, err))
    return tensor.wrap(box[0])
  end
end

local function free_with(release)
  return function(self)
    if self.handle ~= nil then release(ffi.gc(self.handle, nil)) end
    self.handle = nil
  end
end

-- ---- linear ---------------------------------------------------------------------------------------

local Linear = { free = free_with(function(h) C.mel_linear_free(h) end) }
Linear.__index = Linear
local run_linear = run_with(make.mel_linear_run, "linear")
-- layer(x [..., K], {act=, dtype=}) -> [..., N]. layer.adapters: functions of x that give what is added to the product
-- before the activation, float32 [..., N] or [N], or nil for nothing. layer:observe(x), where it is set, sees every input.
function Linear.__call(self, x, options)
  if self.observe then self:observe(x) end
  local adapters, sum = self.adapters, nil
  for i = 1, adapters and #adapters or 0 do
    local more = adapters[i](x)
    if more then
      sum = sum or run_linear(self, x, { dtype = "f32" })
      sum:add_(more)
    end
  end
  if not sum then return run_linear(self, x, options) end
  if not options then return sum:to(x.dtype) end
  lib.check_options("linear", options, run_options)
  if options.act and options.act ~= "none" then sum = sum[options.act](sum) end
  return sum:to(options.dtype or x.dtype)
end

local linear_options = { compute = true, lazy = true, smooth = true, rotate = true }
-- nn.linear(weight [N, K], bias [N] or nil, {compute = melies.compute(), lazy = false}). weight: a tensor, or a source
-- (weights:matrix(name)). lazy: no packed copy is kept; the weight is read where it lies at each call. smooth: a vector
-- [K], rotate: a block size, both for compute "s8" (melies.quantize).
function nn.linear(weight, bias, options)
  options = options or {}
  lib.check_options("nn.linear", options, linear_options)
  local box = ffi.new("mel_linear*[1]")
  local compute = options.compute or require("melies").compute()
  local code, b = tensor.dtype_code(compute), bias and need(bias, "nn.linear") or nil
  local kept
  local eight = compute == "s8" and (options.smooth or options.rotate) and { smooth = options.smooth,
    rotate = options.rotate or 0 }
  if eight and tensor.is(weight) then weight = nn.source(weight) end
  if eight and not options.lazy then
    check(make.mel_linear_create_s8(weight.handle, b, eight.smooth and need(eight.smooth, "nn.linear"), eight.rotate, box,
      err))
  elseif tensor.is(weight) and not options.lazy then
    check(make.mel_linear_create(need(weight, "nn.linear"), b, code, box, err))
  else
    local source = tensor.is(weight) and nn.source(weight) or weight
    local create = options.lazy and make.mel_linear_create_lazy or make.mel_linear_create_from
    check(create(source.handle, b, code, box, err))
    if options.lazy then kept = { source = source, bias = bias, code = code, eight = eight } end
  end
  local n, k = tonumber(C.mel_linear_outputs(box[0])), tonumber(C.mel_linear_inputs(box[0]))
  return setmetatable({ handle = ffi.gc(box[0], C.mel_linear_free), inputs = k, outputs = n, lazy = options.lazy,
    kept = kept, compute = compute }, Linear)
end
nn.Linear = Linear

-- Of a lazy layer: pack() makes the packed copy, unpack() lets it go. Other layers stay as they are. pack(kept) takes what
-- packed() gave in this or an earlier process, where it fits; whether it did.
local function replace(self, handle, lazy)
  self:free()
  self.handle, self.lazy = ffi.gc(handle, C.mel_linear_free), lazy
end
local function recreate(self, lazy)
  if self.handle == nil then error("linear: this layer was freed", 3) end
  if not self.kept or self.lazy == lazy then return end
  local k, box = self.kept, ffi.new("mel_linear*[1]")
  local bias = k.bias and k.bias.handle or nil
  if lazy then check(make.mel_linear_create_lazy(k.source.handle, bias, k.code, box, err), 2)
  elseif k.eight then
    check(make.mel_linear_create_s8(k.source.handle, bias, k.eight.smooth and k.eight.smooth.handle, k.eight.rotate, box,
      err), 2)
  else check(make.mel_linear_create_from(k.source.handle, bias, k.code, box, err), 2) end
  replace(self, box[0], lazy)
end
function Linear:pack(kept)
  if kept and self.kept and self.lazy then
    local k, box = self.kept, ffi.new("mel_linear*[1]")
    local status = make.mel_linear_create_packed(self.outputs, self.inputs, need(kept, "linear"),
      k.bias and k.bias.handle or nil, k.code, box, err)
    if status == lib.OK then
      replace(self, box[0], false)
      return true
    end
    if status ~= lib.EFORMAT then check(status) end
  end
  recreate(self, false)
  return false
end
function Linear:unpack() recreate(self, true) end

-- The packed form, u8 [n], for a file (melies.packed); none of a lazy layer.
function Linear:packed()
  local box = ffi.new("mel_tensor*[1]")
  check(make.mel_linear_packed(self.handle, box, err))
  return tensor.wrap(box[0])
end
function Linear:packed_bytes() return tonumber(C.mel_linear_packed_bytes(self.handle)) end

-- Bytes that the layer holds for itself: its packed weights, none where it is lazy.
function Linear:bytes() return tonumber(C.mel_linear_bytes(self.handle)) end

-- nn.source(matrix): a float matrix as a source. nn.wrap_source(handle) owns an FFI handle.
function nn.wrap_source(handle)
  return { handle = ffi.gc(handle, C.mel_source_unref), shape = { tonumber(C.mel_source_rows(handle)),
    tonumber(C.mel_source_columns(handle)) } }
end
function nn.source(matrix)
  local box = ffi.new("mel_source*[1]")
  check(C.mel_source_of(need(matrix, "nn.source"), box, err))
  return nn.wrap_source(box[0])
end

-- ---- convolution ------------------------------------------------------------------------------------

local Conv = { free = free_with(function(h) C.mel_conv_free(h) end) }
Conv.__index = Conv
-- layer(x [N, T, H, W, I] or [N, H, W, I], {act=, dtype=}): channels last.
Conv.__call = run_with(make.mel_conv_run, "conv")

local conv_options = { stride = true, pad = true, causal = true, groups = true, compute = true }
-- nn.conv(weight [O, I/groups, kT, kH, kW] or [O, I/groups, kH, kW], bias or nil,
--   {stride = 1 or {..}, pad = 0, n or {{before, after}, ..}, causal = false, groups = 1, compute=}).
-- causal: time is padded in front only, by kT - 1.
function nn.conv(weight, bias, options)
  options = options or {}
  lib.check_options("nn.conv", options, conv_options)
  local shape = weight.shape
  local n = #shape - 2
  local stride, before, after = ffi.new("int64_t[3]"), ffi.new("int64_t[3]"), ffi.new("int64_t[3]")
  for i = 1, math.min(n, 3) do
    local s, p = options.stride or 1, options.pad or 0
    stride[i - 1] = type(s) == "table" and s[i] or s
    if type(p) == "table" then p = p[i] end
    before[i - 1] = type(p) == "table" and p[1] or p
    after[i - 1] = type(p) == "table" and p[2] or p
  end
  if options.causal then before[0], after[0] = shape[3] - 1, 0 end
  local box = ffi.new("mel_conv*[1]")
  check(make.mel_conv_create(need(weight, "nn.conv"), bias and need(bias, "nn.conv") or nil, stride, before, after,
    options.groups or 1, tensor.dtype_code(options.compute), box, err))
  return setmetatable({ handle = ffi.gc(box[0], C.mel_conv_free), inputs = shape[2] * (options.groups or 1),
    outputs = shape[1] }, Conv)
end

return nn
