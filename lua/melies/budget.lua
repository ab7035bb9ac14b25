-- The memory that a job may use, and what is done with it: which matrices are kept packed, which are read from the file
-- when needed, and in which tiles frames are decoded.
--
--   budget.size("8G")               -> bytes | nil
--   budget.set(bytes or nil)        what --memory says; nil: what the machine has free, less a reserve
--   budget.limit()                  -> bytes of native memory in all, what they come from
--   budget.plan(model, opts)        -> plan | nil, message     opts: shape = { C, T, H, W }, batch = texts at once
--   budget.apply(model, plan)       packs and unpacks the transformer's blocks
--   plan.lines                      what is printed
--
-- All numbers are bytes of mel_alloc: tensors, packed weights, scratch. Pages of mapped files are not among them; the
-- system takes those back when it needs them.
local lib = require "melies.ffi.lib"
local nn = require "melies.nn"
local tensor = require "melies.tensor"
local C = lib.C

local M = {}

local MIB, GIB = 2 ^ 20, 2 ^ 30

-- budget.size("1.5G"): bytes; units K, M, G, T of 1024, with or without B or iB. nil where it is not a size.
function M.size(text)
  local number, unit = tostring(text):match "^(%d+%.?%d*)%s*([KMGTkmgt]?)i?[Bb]?$"
  if not number then return nil end
  local power = ({ [""] = 0, K = 1, M = 2, G = 3, T = 4 })[unit:upper()]
  return math.floor(tonumber(number) * 1024 ^ power)
end

function M.text(bytes)
  if bytes >= GIB then return ("%.1f GiB"):format(bytes / GIB) end
  return ("%.0f MiB"):format(math.ceil(bytes / MIB))
end

-- ---- what there is -----------------------------------------------------------------------------------

local function read(path)
  local f = io.open(path, "rb")
  local text = f and f:read "*a"
  if f then f:close() end
  return text
end

-- Free bytes within a control group of Linux (version 2, then 1), or nil where none limits this process. Pages of files
-- that were not used lately count as free.
local function group_free(text)
  local free
  for line in (text or ""):gmatch "[^\n]+" do
    local controllers, path = line:match "^%d+:([^:]*):(.*)$"
    local two = controllers == ""
    if two or (controllers and ("," .. controllers .. ","):find(",memory,", 1, true)) then
      local root = two and "/sys/fs/cgroup" or "/sys/fs/cgroup/memory"
      while path do -- the group and those that hold it
        local at = root .. (path == "/" and "" or path) .. "/"
        local most = tonumber(read(at .. (two and "memory.max" or "memory.limit_in_bytes")) or "")
        local used = tonumber(read(at .. (two and "memory.current" or "memory.usage_in_bytes")) or "")
        if most and used and most < 2 ^ 60 then
          local idle = (read(at .. "memory.stat") or ""):match(two and "inactive_file (%d+)" or "total_inactive_file (%d+)")
          local here = math.max(0, most - used + (tonumber(idle) or 0))
          if not free or here < free then free = here end
        end
        if path == "/" or path == "" then break end
        path = path:match "^(.*)/[^/]*$"
      end
    end
  end
  return free
end

-- budget.free(): bytes that can still be taken without pushing others out, and where the number comes from.
function M.free()
  local available = tonumber((read "/proc/meminfo" or ""):match "MemAvailable:%s*(%d+) kB")
  available = available and available * 1024
  local group = group_free(read "/proc/self/cgroup")
  if group and (not available or group < available) then return group, "the control group" end
  return available or 4 * GIB, available and "the machine" or "a guess"
end

function M.set(bytes)
  M.given = bytes
  C.mel_mem_set_limit(bytes or 0)
end

-- The reserve is a tenth of what is free, from 256 MiB to 2 GiB: for the system, Lua, codecs and mapped pages.
function M.limit()
  if M.given then return M.given, "--memory" end
  local free, from = M.free()
  local reserve = math.min(2 * GIB, math.max(256 * MIB, free / 10))
  return tonumber(C.mel_mem_live() + C.mel_mem_pooled()) + math.max(0, free - reserve), from
end

-- The limit that a plan of now would have; what the machine has free counts only when it is planned.
function M.limit_of(plan) return M.given or (plan.from ~= "--memory" and plan.limit) end

-- ---- what a model needs --------------------------------------------------------------------------------

local skipped = { file = true, trace = true, names = true, ropes = true, adapters = true, kept = true }

-- All linear layers below a table.
local function linears(value, out, seen)
  if type(value) ~= "table" or seen[value] or tensor.is(value) then return out end
  seen[value] = true
  if getmetatable(value) == nn.Linear then
    out[#out + 1] = value
    return out
  end
  for key, inner in pairs(value) do
    if not skipped[key] then linears(inner, out, seen) end
  end
  return out
end

local value_bytes = { f32 = 4, bf16 = 2, s8 = 1 }

local function packed_bytes(layers)
  local bytes, largest = 0, 0
  for _, layer in ipairs(layers) do
    local one = layer.inputs * layer.outputs * (value_bytes[layer.compute] or 4)
    bytes = bytes + (layer.kept and one or 0)
    largest = math.max(largest, layer.kept and math.max(one, 2 * layer.inputs * layer.outputs) or 0)
  end
  return bytes, largest
end

-- The nets of a transformer that are loaded: itself, or the experts of which it is made.
local function cores(net)
  return net.nets and { net.nets.high or net.nets.low, net.nets.high and net.nets.low or nil } or { net }
end

-- budget.files(weights): the files of weights, or of the experts' { high =, low = }, as a list of weights.
function M.files(weights)
  return rawget(weights, "high") and { weights.high, weights.low } or { weights }
end

-- The transformer's parts: { blocks = { { layers, bytes }, ... }, rest = { layers, bytes }, largest }.
local function parts_of(net)
  local parts, seen, largest = { blocks = {} }, {}, 0
  for _, core in ipairs(cores(net)) do
    for i, block in ipairs(core.blocks or {}) do
      local layers = linears(block, {}, seen)
      local bytes, most = packed_bytes(layers)
      parts.blocks[#parts.blocks + 1] = { layers = layers, bytes = bytes, core = core, index = i }
      largest = math.max(largest, most)
    end
  end
  local layers = linears(net, {}, seen)
  parts.rest = { layers = layers, bytes = (packed_bytes(layers)) }
  parts.largest = largest
  return parts
end

-- Peak of one forward pass over `tokens` tokens and `batch` texts, the packed weights not among it. Within a block all
-- intermediate results stay until its end: nine rows of `dim` in the compute dtype for self-attention (norm; q, k, v as
-- they come, q and k normed and turned; the result), four for cross-attention, one and `ffn` for the feed-forward, and
-- three of f32 for what is added to the stream, which is f32 itself. Keys and values of the texts for every block.
function M.forward_bytes(net, tokens, batch, text_rows)
  net = cores(net)[1]
  local e = net.dtype == "bf16" and 2 or 4
  local dim, ffn = net.dim or 0, net.ffn or 4 * (net.dim or 0)
  local row = e * (14 * dim + ffn) + 4 * 4 * dim
  local kept = 2 * #(net.blocks or {}) * (text_rows or 64) * dim * e
  return 1.05 * batch * (tokens * row + kept) + 3 * tokens * dim * 4
end

-- Peak of a causal model's clip: keys and values of all its tokens, and a pass over one block.
function M.causal_bytes(model, tokens, frames)
  local net = model.dit
  local kept = math.min(1, (net.causal_options.local_frames or frames) / frames)
  return 2 * #net.blocks * tokens * kept * net.dim * (net.dtype == "bf16" and 2 or 4)
    + M.forward_bytes(net, tokens * math.min(1, model.block_frames / frames), 1, model.text_len)
end

-- Peak of decoding a latent of h x w (its values, not pixels), frame by frame: what the layers remember, and the most
-- that is alive in one step. From the shapes in the file of the autoencoder.
local decoders = {}

-- Layers of Wan's decoders in order: { residual = shape } or { resample = shape, time = shape or nil }, and the number of
-- the last one that works on a whole chunk: those behind it go frame by frame. In Wan 2.2 a stage is a group of layers.
local function wan_layers(file)
  local out, whole = {}, 0
  local function add(at)
    local function shape(name) return file:has(at .. name) and file:shape(at .. name) or nil end
    local layer = { residual = shape "residual.2.weight", resample = shape "resample.1.weight",
      time = shape "time_conv.weight" }
    if not layer.residual and not layer.resample then return false end
    out[#out + 1] = layer
    return true, layer.time
  end
  for _, name in ipairs { "decoder.middle.0.", "decoder.middle.2." } do add(name) end
  for i = 0, 63 do
    local at = ("decoder.upsamples.%d."):format(i)
    local there, timed = add(at)
    for j = 0, there and -1 or 63 do
      local inner, inner_timed = add(("%supsamples.%d."):format(at, j))
      if not inner then break end
      there, timed = true, timed or inner_timed
    end
    if not there then break end
    if timed then whole = #out end
  end
  return out, whole
end

-- Causal convolutions keep two frames of their input. A residual block of n frames holds its input, the norm, the joined
-- history (n + 2 frames), the result and the convolution's scratch; upsampling holds the enlarged input and its result.
function decoders.wan_vae(file, net, h, w)
  local e = net.dtype == "bf16" and 2 or 4
  local layers, whole = wan_layers(file)
  local state, step, scale, frames, held = 0, 0, 1, 1, 0
  local function area() return h * w * scale * scale * e end
  local function convolve(inputs, outputs)
    state = state + 2 * area() * inputs
    step = math.max(step, held + area() * ((3 * frames + 2) * inputs + 2 * frames * outputs))
  end
  local first = file:has "decoder.conv1.weight" and file:shape "decoder.conv1.weight"
  if first then convolve(first[2], first[1]) end
  for i, layer in ipairs(layers) do
    local r, s = layer.residual, layer.resample
    if r then
      convolve(r[2], r[1])
      convolve(r[1], r[1])
    else
      if layer.time then
        state = state + 2 * area() * s[2]
        frames = 2 * frames
      end
      scale = 2 * scale
      step = math.max(step, held + area() * frames * (s[2] + s[1]) + area() / 4 * frames * s[2])
    end
    if i == whole then
      held = area() * frames * (r or s)[1]
      frames = 1
    end
  end
  local head = file:has "decoder.head.2.weight" and file:shape "decoder.head.2.weight"
  if head then convolve(head[2], head[1]) end
  local s = net.stride
  return 1.1 * state, 1.1 * step + h * s[2] * w * s[3] * s[1] * 3 * 4
end
decoders.wan_vae22 = decoders.wan_vae

-- Tiny ones keep one frame a memory block and join it beside each frame.
function decoders.taehv(file, net, h, w)
  local e = net.dtype == "bf16" and 2 or 4
  local state, step, scale, frames = 0, 0, 1, 1
  local names, i = {}, 0
  for _, name in ipairs(file:names()) do names[name] = true end
  local up = math.max(1, net.block / (net.patch or 1)) ^ (1 / 3)
  while i <= 22 do
    local at = ("decoder.%d."):format(i)
    local area = h * w * scale * scale
    local memory = names[at .. "conv.0.weight"] and file:shape(at .. "conv.0.weight")
    local grow = names[at .. "conv.weight"] and file:shape(at .. "conv.weight")
    local plain = names[at .. "weight"] and file:shape(at .. "weight")
    if memory then
      state = state + area * e * memory[1]
      step = math.max(step, area * e * memory[1] * frames * 8)
    elseif grow then
      scale, frames = math.floor(scale * up + 0.5), frames * grow[1] / grow[2]
      step = math.max(step, h * w * scale * scale * e * (2 * frames * grow[2]))
    elseif plain and #plain == 4 then
      step = math.max(step, h * w * scale * scale * e * frames * 2 * (plain[1] + plain[2]))
    end
    i = i + 1
  end
  local s = net.stride
  return state, step + h * s[2] * w * s[3] * s[1] * 3 * 4 * 3
end

function decoders.linear_blocks(_, net, h, w)
  local s = net.stride
  return 0, h * w * s[1] * s[2] * s[3] * 3 * 4 * 4
end

-- state, step, both for a latent of h x w; an architecture that is not known here: 24 rows of 128 values a pixel and
-- frame in flight.
function M.decode_bytes(model, h, w)
  local net = model.autoencoder
  local f = decoders[net.name]
  local file = model.sources and model.sources.autoencoder.weights
  if f and (file or net.name == "linear_blocks") then return f(file, net, h, w) end
  local s, e = model.stride, net.dtype == "bf16" and 2 or 4
  local pixels = h * s[2] * w * s[3]
  return pixels * e * 2 * 128 * 4, pixels * e * s[1] * 24 * 128 / 4
end

-- ---- the plan ----------------------------------------------------------------------------------------------

-- Lua's garbage holds on to tensors: so much lies about between collections (see tensor.lua).
local function slack(limit) return math.min(256 * MIB, limit / 8) end

local TILES = { 128, 96, 64, 48, 32, 24, 16, 12 }
local OVERLAP = 4 -- latent values on each side of a seam

M.overlap = OVERLAP

-- The largest tiles with which decoding stays within `room`: { h, w } or nil for none, and the bytes: one tile's decoder,
-- the film in f16 with what tiles share twice, and a few frames while they are joined.
local function choose_tiles(model, shape, room)
  local h, w, s = shape[3], shape[4], model.stride
  local frame = h * s[2] * w * s[3] * 3
  local film = model:frame_count(shape[2]) * frame * 2
  local state, step = M.decode_bytes(model, h, w)
  if state + step <= room then return nil, state + step end
  local best
  for _, side in ipairs(TILES) do
    local th, tw = math.min(side, h), math.min(side, w)
    if th < h or tw < w then
      local rows = math.max(1, math.ceil((h - OVERLAP) / (th - OVERLAP)))
      local columns = math.max(1, math.ceil((w - OVERLAP) / (tw - OVERLAP)))
      local one_state, one_step = M.decode_bytes(model, th, tw)
      local twice = rows * th * columns * tw / (h * w)
      local bytes = math.max(one_state + one_step, 3 * s[1] * frame * 4) + twice * film
      if not best or bytes < best[3] then best = { th, tw, bytes } end
      if bytes <= room then break end
    end
  end
  if not best then return nil, state + step end
  return { best[1], best[2] }, best[3]
end

local function advice(shape, over, model)
  local s = model.stride
  return ("%s more than there is; a smaller size than %dx%d, fewer frames than %d, "):format(M.text(over),
    shape[4] * s[3], shape[3] * s[2], model:frame_count(shape[2]))
    .. "--guidance 1 (one text a step) or more --memory would make it fit"
end

-- opts: shape (of the latent), batch (texts in one forward pass, 2), text_rows.
function M.plan(model, opts)
  lib.reclaim() -- what is alive counts, not what was left lying
  local limit, from = M.limit()
  local shape, batch = opts.shape, opts.batch or 2
  local net, patch = model.dit, model.patch
  local parts = parts_of(net)
  local tokens = shape[2] / patch[1] * (shape[3] / patch[2]) * (shape[4] / patch[3])
  local forward = M.forward_bytes(net, tokens, batch, opts.text_rows or model.text_len)
  if model.causal then forward = math.max(forward, M.causal_bytes(model, tokens, shape[2])) end
  local held = 0 -- packed already: counted as free
  local all = linears(net, {}, {})
  for _, layer in ipairs(all) do if layer.kept then held = held + layer:bytes() end end
  local base = tonumber(C.mel_mem_live()) - held
  local spare = slack(limit)
  local room = limit - base - forward - spare

  local plan = { limit = limit, from = from, forward = forward, base = base, shape = shape, batch = batch,
    of = #parts.blocks, resident = 0, packed = 0, parts = parts }
  if room < parts.largest then
    return nil, ("this needs %s for one step at this size: %s"):format(M.text(base + forward + spare + parts.largest),
      advice(shape, parts.largest - room, model))
  end
  -- Packed for good, as long as there is room to pack one streamed matrix.
  local total = parts.rest.bytes
  for _, block in ipairs(parts.blocks) do total = total + block.bytes end
  local keep = total <= room and room or room - parts.largest
  if parts.rest.bytes <= keep then plan.packed, plan.rest = parts.rest.bytes, true end
  for i, block in ipairs(parts.blocks) do
    if (not plan.rest or plan.packed + block.bytes > keep) and block.bytes > 0 then break end
    plan.packed, plan.resident = plan.packed + block.bytes, i
  end
  plan.total = total

  -- Frames: with the transformer where it fits, without it otherwise.
  local tile, bytes = choose_tiles(model, shape, limit - base - spare - plan.packed)
  if tile then
    plan.release = plan.packed > 0
    tile, bytes = choose_tiles(model, shape, limit - base - spare)
  end
  plan.tile, plan.decode = tile, bytes
  if base + spare + bytes > limit then
    return nil, ("decoding needs %s: %s"):format(M.text(base + spare + bytes),
      advice(shape, base + spare + bytes - limit, model))
  end
  plan.peak = base + spare + math.max(plan.packed + forward + (plan.resident < plan.of and parts.largest or 0),
    bytes + (plan.release and 0 or plan.packed))
  plan.lines = M.describe(model, plan)
  return plan
end

-- What is printed: one line where there is nothing to save, else three.
function M.describe(model, plan)
  local s = plan.shape
  local kept
  local encoder, texts = model.text_encoder, nil
  if encoder and encoder.streamed then
    local bytes, file = 0, model.sources.text_encoder.weights
    for _, name in ipairs(file:names()) do bytes = bytes + file:bytes(name) end
    texts = ("  texts: new ones pass the encoder's file (%s) layer by layer, nothing of it stays"):format(M.text(bytes))
  end
  if plan.resident == plan.of and not plan.tile and not plan.release and not texts then
    return { ("memory: %s (%s); about %s will be used, everything stays in it"):format(M.text(plan.limit), plan.from,
      M.text(plan.peak)) }
  end
  if plan.resident == plan.of then kept = ("all of the transformer packed, %s"):format(M.text(plan.packed))
  elseif plan.resident == 0 then kept = ("all %d blocks streamed from the file, %s"):format(plan.of, M.text(plan.total))
  else
    kept = ("%d of %d blocks packed, %s; the others streamed from the file"):format(plan.resident, plan.of,
      M.text(plan.packed))
  end
  local decode = plan.tile and ("tiles of %dx%d"):format(plan.tile[2] * model.stride[3], plan.tile[1] * model.stride[2])
    or "whole frames"
  local lines = {
    ("memory: %s (%s); about %s will be used"):format(M.text(plan.limit), plan.from, M.text(plan.peak)),
    ("  sampling: %s; %s for a step over %d frames of %dx%d"):format(kept, M.text(plan.forward),
      model:frame_count(s[2]), s[4] * model.stride[3], s[3] * model.stride[2]),
    ("  decoding: %s, %s%s"):format(decode, M.text(plan.decode),
      plan.release and ", after the transformer's packed copy was let go" or ""),
  }
  if texts then table.insert(lines, 2, texts) end
  return lines
end

-- Makes the model's packed layers those of the plan.
function M.apply(model, plan)
  local files = model.sources and M.files(model.sources.dit.weights) or {}
  local packed = require("melies.packed").of(model, plan)
  local function drop() for _, file in ipairs(files) do file:drop() end end
  local function set(layers, pack)
    local changed = false
    for _, layer in ipairs(layers) do
      if layer.kept and layer.lazy == pack then
        if not pack then layer:unpack() elseif packed then packed:pack(layer) else layer:pack() end
        changed = true
      end
    end
    if changed and pack then drop() end
    lib.call(C.mel_check_cancel)
  end
  for i = #plan.parts.blocks, plan.resident + 1, -1 do set(plan.parts.blocks[i].layers, false) end
  set(plan.parts.rest.layers, plan.rest)
  for i = 1, plan.resident do set(plan.parts.blocks[i].layers, true) end
  if packed then packed:finish() end
  -- Pages of a streamed block are given back when it is done.
  for _, core in ipairs(cores(model.dit)) do core.after_block = nil end
  for i, block in ipairs(plan.parts.blocks) do
    local first = block.index -- of those of this net that are streamed
    if i > plan.resident and not block.core.after_block then
      block.core.after_block = function(k) if k >= first then drop() end end
    end
  end
end

-- Lets the packed copies go; the next apply packs again.
function M.release(plan)
  for _, block in ipairs(plan.parts.blocks) do
    for _, layer in ipairs(block.layers) do if layer.kept then layer:unpack() end end
  end
  for _, layer in ipairs(plan.parts.rest.layers) do if layer.kept then layer:unpack() end end
  C.mel_mem_trim(0)
end

return M
