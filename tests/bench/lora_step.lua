-- One step of LoRA training on a transformer of full size with random weights: seconds and the most memory of the process.
--   melies run tests/bench/lora_step.lua FILE [SIZE = 256 [FRAMES = 17 [STEPS = 1 [RANK = 16]]]]
-- FILE: a transformer of Wan's layout (a file, an index of shards, a folder; safetensors or GGUF). Without one there:
--   ./dev fake-checkpoint wan2.1-t2v-1.3b DIR        2.8 GB
-- The text encoder and the autoencoder stand aside: texts and latents of the right shape take their place, as in training,
-- where they are computed before. Blocks are computed twice (save_memory); a step is a forward pass, a second one, and the
-- backward pass to the inputs of every layer.
local melies = require "melies"
local T = melies.tensor

local path, size, frames, steps, rank = (...), tonumber((select(2, ...))) or 256, tonumber((select(3, ...))) or 17,
  tonumber((select(4, ...))) or 1, tonumber((select(5, ...))) or 16
if not path then error("usage: lora_step.lua FILE [SIZE [FRAMES [STEPS [RANK]]]]", 0) end

local function status(field)
  local f = assert(io.open("/proc/self/status"))
  local kilobytes = tonumber(f:read("*a"):match(field .. ":%s*(%d+)"))
  f:close()
  return kilobytes / 2 ^ 20
end

local weights = assert(require("melies.checkpoint").open(path, { part = "dit" }))
local c = weights.info.config
local model = { name = path, patch = c.patch, text_len = 512, time_scale = 1000, defaults = { shift = 3 },
  latent_channels = c.out_channels, sources = { dit = { weights = weights } }, dit = { dim = c.dim, blocks = {},
    head_count = c.heads or c.dim / 128, eps = 1e-6, in_channels = c.in_channels, out_channels = c.out_channels } }
for i = 1, c.layers do model.dit.blocks[i] = {} end
function model.encode_ahead() end
function model:encode(text) return T.noise({ text == "" and 1 or 24, c.text_dim }, { stream = #text }) * 0.2 end
local clips = { count = 1, shape = { c.out_channels, 1 + (frames - 1) / 4, size / 8, size / 8 }, captions = { "a clip" },
  identity = "random" }
function clips:split() return { self.count }, {} end
function clips:latent() return T.noise(self.shape, { seed = 2 }) end

local before = status "VmHWM"
local last
local tuning = assert(melies.train_lora.new { model = model, clips = clips, rank = rank, steps = steps, batch = 1, lr = 1e-4,
  save_memory = true, warmup = 0, on_record = function(record) last = record end })
local count = 0
for _, l in pairs(tuning.net.lora) do count = count + l.down:numel() + l.up:numel() end
local tokens = clips.shape[2] * clips.shape[3] * clips.shape[4] / (c.patch[1] * c.patch[2] * c.patch[3])
print(("%s: width %d, %d blocks; %dx%dx%d is %d tokens; rank %d of %d layers: %.1f M values learn"):format(path, c.dim,
  c.layers, size, size, frames, tokens, rank, #tuning.layers, count * 1e-6))
for _ = 1, steps do
  local clock, wall = os.clock(), melies.seconds()
  assert(tuning:run(tuning.training_run.step + 1))
  print(("step %d: loss %.4f, gradient %.3g; %.1f s, %.1f s of processor"):format(last.step, last.loss, last.norm,
    melies.seconds() - wall, os.clock() - clock))
end
print(("most memory: %.2f GiB resident (%.2f before), %.2f GiB of it in tensors; pages of the mapped file count"):format(
  status "VmHWM", before, melies.memory().peak / 2 ^ 30))
