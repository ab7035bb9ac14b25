-- LoRA files in the layouts that other tools read.
--
--   write.save(path, layers, { format =, dtype =, metadata = }) -> true | nil, message
--   write.tensors(layers, options)                              -> { name = tensor }, metadata
--
-- layers: { ["blocks.0.self_attn.q"] = { down = [rank, inputs], up = [outputs, rank], scale = alpha / rank } }, modules by
-- the names of the original layout.
--
--   "peft"   transformer.blocks.0.attn1.to_q.lora_A.weight, .lora_B.weight: diffusers' names. Tools take alpha for the rank
--            there unless a file beside it says otherwise, so the scale is multiplied into lora_B.
--   "kohya"  lora_unet_blocks_0_self_attn_q.lora_down.weight, .lora_up.weight and .alpha, a scalar; what the network is
--            stands in the metadata too (ss_network_dim, ss_network_alpha, ss_network_module). ComfyUI, musubi-tuner
--            and diffusers read it.
local ffi = require "ffi"
local lib = require "melies.ffi.lib"
local names = require "melies.lora.names"
local tensor = require "melies.tensor"

local M = {}

local known = { format = true, dtype = true, metadata = true }
local formats = { peft = true, kohya = true }
local dtypes = { f32 = true, bf16 = true, f16 = true }
M.formats = { "peft", "kohya" }

function M.tensors(layers, o)
  o = o or {}
  lib.check_options("lora.write", o, known, 2)
  local format, dtype = o.format or "peft", o.dtype or "bf16"
  if not formats[format] then
    error(("lora.write: format is '%s'%s"):format(tostring(format), lib.suggest(tostring(format), formats)), 2)
  end
  if not dtypes[dtype] then error(("lora.write: dtype is '%s'; f32, bf16 or f16"):format(tostring(dtype)), 2) end
  local out, metadata = {}, { format = "pt" }
  local first = next(layers)
  if not first then error("lora.write: there are no layers", 2) end
  if format == "kohya" then
    local layer = layers[first]
    local rank = layer.down.shape[1]
    metadata.ss_network_module, metadata.ss_network_dim = "networks.lora_wan", tostring(rank)
    metadata.ss_network_alpha = ("%.9g"):format(layer.scale * rank)
  end
  for key, value in pairs(o.metadata or {}) do metadata[key] = tostring(value) end
  for module, layer in pairs(layers) do
    if format == "peft" then
      local at = "transformer." .. names.diffusers(module)
      out[at .. ".lora_A.weight"] = layer.down:to(dtype)
      out[at .. ".lora_B.weight"] = (layer.scale == 1 and layer.up or layer.up * layer.scale):to(dtype)
    else
      local at = "lora_unet_" .. module:gsub("%.", "_")
      out[at .. ".lora_down.weight"], out[at .. ".lora_up.weight"] = layer.down:to(dtype), layer.up:to(dtype)
      out[at .. ".alpha"] = tensor.full({}, layer.scale * layer.down.shape[1]):to(dtype)
    end
  end
  return out, metadata
end

-- write.writable(path): true, or nil and a message: asked before hours of work.
function M.writable(path)
  local box = ffi.new("mel_weights_writer*[1]")
  local ok, message = lib.try(lib.C.mel_weights_writer_create, path, box)
  if not ok then return nil, message end
  lib.C.mel_weights_writer_free(box[0])
  return true
end

function M.save(path, layers, o)
  local tensors, metadata = M.tensors(layers, o)
  return require("melies.weights").save(path, tensors, metadata)
end

return M
