-- Architecture files: streaming against whole, ways of batching against each other, and what does not fit.
local t = require "harness"
local melies = require "melies"
local T = melies.tensor

local dir = os.getenv("MELIES_ROOT") .. "/tests/golden/"
local function arch(name) return require("melies.models." .. name) end
local function open(name) return assert(melies.weights.open(dir .. name .. ".weights.safetensors")) end
-- A file's tensors as a table, to be tampered with.
local function tensors(name)
  local file, out = open(name), {}
  for _, key in ipairs(file:names()) do out[key] = file:get(key) end
  return out
end
local function same_bits(a, b)
  t.eq(a:shape_text(), b:shape_text())
  local x, y = a:contiguous():ptr(), b:contiguous():ptr()
  for i = 0, a:numel() - 1 do
    if x[i] ~= y[i] then error(("differs at %d: %.9g and %.9g"):format(i + 1, x[i], y[i]), 2) end
  end
end

local DIT = { num_heads = 3, text_len = 16 }
local function dit(compute) return arch("wan_dit").load(open "wan_dit", DIT, { compute = compute or "f32" }) end
local function noise(shape, stream) return melies.noise(shape, { seed = 7, stream = stream or 0 }) end

-- ---- streaming ----------------------------------------------------------------------------------------------------

local function blocks(compute)
  return arch("linear_blocks").load({
    ["decoder.weight"] = noise({ 768, 48 }, 1) * 0.05, ["decoder.bias"] = noise({ 768 }, 2),
    ["encoder.weight"] = noise({ 48, 768 }, 3) * 0.05, ["encoder.bias"] = noise({ 48 }, 4),
  }, { block = { 4, 8, 8 } }, { compute = compute })
end

local autoencoders = {
  taehv = { 16, function(c) return arch("taehv").load(open "taehv", {}, { compute = c }) end },
  taehv_p2 = { 48, function(c) return arch("taehv").load(open "taehv_p2", {}, { compute = c }) end },
  taehv_super = { 48, function(c) return arch("taehv").load(open "taehv_super", {}, { compute = c }) end },
  wan_vae = { 16, function(c) return arch("wan_vae").load(open "wan_vae", {}, { compute = c }) end },
  linear_blocks = { 48, blocks },
}

for name, entry in pairs(autoencoders) do
  for _, compute in ipairs { "f32", "bf16" } do
    t.test(("%s in %s: a stream gives the bits of a whole decode"):format(name, compute), function()
      local net = entry[2](compute)
      local latent = noise { entry[1], 5, 2, 3 }
      local whole = net:decode(latent)
      t.eq(whole.shape[1], 17)
      local stream, parts = net:decoder(), {}
      for i, range in ipairs { { 1, 1 }, { 2, 3 }, { 4, 4 }, { 5, 5 } } do
        parts[i] = stream:push(latent:slice(2, range[1], range[2]))
      end
      t.eq(parts[1].shape[1], 1)
      t.eq(parts[2].shape[1], 8)
      same_bits(T.concat(parts, 1), whole)
    end)
  end
  t.test(name .. ": sizes of encode and decode, bytes as input", function()
    local net = entry[2]("f32")
    local s = net.stride
    local video = T.uniform({ 9, 2 * s[2], 3 * s[3], 3 }, { seed = 3 })
    local latent = net:encode(video)
    t.eq(latent:shape_text(), ("[%d, 3, 2, 3]"):format(entry[1]))
    t.eq(net:decode(latent):shape_text(), ("[9, %d, %d, 3]"):format(2 * s[2], 3 * s[3]))
    local bytes = (video * 255):round():to("u8")
    t.close(net:encode(bytes), net:encode(bytes:to("f32") * (1 / 255)), 0, 0)
    t.raises(function() net:encode(T.zeros { 5, 2 * s[2] + 1, 3 * s[3], 3 }) end, "multiple")
    t.raises(function() net:encode(T.zeros { 5, 2 * s[2], 3 * s[3], 4 }) end, "[T, H, W, 3]")
    t.raises(function() net:decode(T.zeros { entry[1] + 1, 2, 2, 2 }) end, "a latent is")
  end)
end

-- A decoder that looks ahead gives its frames later and the rest at the end.
for _, name in ipairs { "ltx_vae", "ltx_vae_tc" } do
  for _, compute in ipairs { "f32", "bf16" } do
    t.test(("%s in %s: a stream and its end give the bits of a whole decode"):format(name, compute), function()
      local net = arch("ltx_vae").load(open(name), {}, { compute = compute })
      local channels = net.latent_channels
      local latent = noise { channels, 13, 1, 2 }
      local whole = net:decode(latent)
      t.eq(whole:shape_text(), "[97, 32, 64, 3]")
      local stream, parts = net:decoder(), {}
      t.eq(stream:push(latent:slice(2, 1, 1)).shape[1], 0)
      for _, range in ipairs { { 2, 11 }, { 12, 12 }, { 13, 13 } } do
        local frames = stream:push(latent:slice(2, range[1], range[2]))
        if frames.shape[1] > 0 then parts[#parts + 1] = frames end
      end
      t.ok(#parts > 0, "some frames are ready before the end")
      parts[#parts + 1] = stream:finish()
      same_bits(T.concat(parts, 1), whole)
      t.eq(stream:finish(), nil)
      t.raises(function() stream:push(latent) end, "was finished")
      t.eq(net:decode(latent:slice(2, 1, 1)).shape[1], 1)
      t.eq(net:encode(whole):shape_text(), latent:shape_text())
      t.raises(function() net:encode(whole:slice(1, 1, 8)) end, "wanted 1 + 8k (1 or 9)")
    end)
  end
end

t.test("ltx_vae: the decoder's timestep and noise", function()
  local w = tensors "ltx_vae_tc"
  local net = arch("ltx_vae").load(w, {}, { compute = "f32" })
  local latent = noise { 10, 2, 1, 2 }
  local plain = net:decode(latent)
  t.close(net:decode(latent, { timestep = 0.05 }), plain, 0, 0)
  t.ok((net:decode(latent, { timestep = 0.5 }) - plain):norm() > 1e-2)
  t.raises(function() net:decode(latent, { timestp = 0 }) end, "did you mean 'timestep'")
  local width = w["decoder.up_blocks.0.res_blocks.0.conv1.conv.weight"].shape[1]
  for i = 1, 2 do
    w["decoder.up_blocks.0.res_blocks.0.per_channel_scale" .. i] = T.full({ width, 1, 1 }, 0.5)
  end
  local noisy = arch("ltx_vae").load(w, {}, { compute = "f32" }):decode(latent)
  t.ok((noisy - plain):norm() > 1e-2)
  t.close(arch("ltx_vae").load(w, {}, { compute = "f32" }):decode(latent), noisy, 0, 0, "the same seed")
end)

t.test("tiles: blended where they overlap, none where one covers the latent", function()
  local net = blocks("f32")
  local latent = noise { 48, 3, 7, 9 }
  local whole = net:decode(latent)
  same_bits(net:decode(latent, { tile = 9 }), whole)
  -- Blocks do not see each other, so that tiles change nothing but the rounding.
  for _, o in ipairs { { tile = 4 }, { tile = 4, overlap = 0 }, { tile = 3, overlap = 2 }, { tile = 8 } } do
    t.close(net:decode(latent, o), whole, 1e-6, 0, ("tile %d"):format(o.tile))
  end
  for name, entry in pairs(autoencoders) do
    local one, x = entry[2]("f32"), noise { entry[1], 2, 3, 20 }
    local all, tiled = one:decode(x), one:decode(x, { tile = 15, overlap = 4 })
    t.eq(tiled:shape_text(), all:shape_text())
    local s = one.stride
    -- What lies far from the seam has seen the same, but for attention over the whole frame.
    local _, _, relative = melies.golden.compare(tiled:slice(3, 1, s[3]), all:slice(3, 1, s[3]), 0, 0)
    t.ok(relative < 0.1, name .. " " .. relative)
  end
  t.raises(function() net:decode(latent, { tile = 4, overlap = 4 }) end, "a tile of 4 with an overlap of 4")
end)

t.test("a stream's memory does not grow with its length", function()
  for _, name in ipairs { "taehv", "wan_vae", "linear_blocks" } do
    local entry = autoencoders[name]
    local net = entry[2]("f32")
    local stream, latent = net:decoder(), noise { entry[1], 1, 4, 4 }
    local function live_after(pushes)
      for _ = 1, pushes do stream:push(latent) end
      collectgarbage()
      collectgarbage()
      return melies.memory().live
    end
    local early = live_after(3)
    t.eq(live_after(9), early, name)
  end
end)

t.test("clips off the grid are refused with the lengths that fit", function()
  local vae = autoencoders.wan_vae[2]("f32")
  t.raises(function() vae:encode(T.zeros { 7, 16, 16, 3 }) end, "7 frames cannot be encoded: wanted 1 + 4k (5 or 9)")
  t.raises(function() blocks("f32"):encode(T.zeros { 8, 16, 16, 3 }) end, "wanted 1 + 4k")
end)

t.test("taehv: a clip that is no multiple of 4 repeats its last frame", function()
  local net = autoencoders.taehv[2]("f32")
  local video = T.uniform({ 6, 16, 16, 3 }, { seed = 1 })
  same_bits(net:encode(video), net:encode(video:pad(1, 0, 2, "edge")))
end)

-- ---- the diffusion transformer --------------------------------------------------------------------------------------

t.test("wan_dit: padding as one weighted key equals every padded row", function()
  local net = dit()
  local texts = { noise({ 9, 40 }, 1), noise({ 2, 40 }, 2), noise({ 16, 40 }, 3), noise({ 15, 40 }, 4) }
  local latent = noise { 1, 16, 2, 4, 6 }
  for _, text in ipairs(texts) do
    local plain = net:forward(latent, 500, net:context({ text }, { plain = true }))
    t.close(net:forward(latent, 500, net:context { text }), plain, 2e-6, 2e-6, text:shape_text())
  end
  local all = net:forward(latent, 500, net:context(texts))
  t.close(all, net:forward(latent, 500, net:context(texts, { plain = true })), 2e-6, 2e-6, "together")
end)

t.test("wan_dit: samples of a batch are what they are alone", function()
  local net = dit()
  local texts = { noise({ 9, 40 }, 1), noise({ 1, 40 }, 2) }
  local latent, times = noise { 2, 16, 2, 4, 6 }, { 900, 31.5 }
  local both = net:forward(latent, times, net:context(texts))
  local contexts = { net:context { texts[1] }, net:context { texts[2] } }
  local joined = net:forward(latent, times, net:join(contexts))
  for i = 1, 2 do
    local alone = net:forward(latent:slice(1, i, i), { times[i] }, contexts[i])
    t.close(both:slice(1, i, i), alone, 2e-6, 2e-6, "batch")
    t.close(joined:slice(1, i, i), alone, 2e-6, 2e-6, "joined contexts")
  end
  -- One latent and one time for all texts.
  local shared = net:forward(latent:slice(1, 1, 1), 900, net:context(texts))
  t.close(shared:slice(1, 1, 1), both:slice(1, 1, 1), 2e-6, 2e-6, "shared latent")
end)

t.test("wan_dit: bf16 differs by rounding only", function()
  local text, latent = noise({ 9, 40 }, 1), noise { 1, 16, 2, 4, 6 }
  local a, b = dit("f32"), dit("bf16")
  local want, got = a:forward(latent, 500, a:context { text }), b:forward(latent, 500, b:context { text })
  local _, _, relative = melies.golden.compare(got, want, 0, 0)
  t.ok(relative > 1e-5 and relative < 2e-2, tostring(relative))
end)

t.test("wan_dit: arguments that do not fit", function()
  local net = dit()
  local context = net:context { noise { 3, 40 } }
  t.raises(function() net:context { noise { 17, 40 } } end, "text 1 has 17 rows, the model takes at most 16")
  t.raises(function() net:context { noise { 3, 41 } } end, "text 1 is [3, 41], wanted [L, 40]")
  t.raises(function() net:context {} end, "wants a list of texts")
  t.raises(function() net:forward(noise { 1, 15, 2, 4, 6 }, 1, context) end, "wanted [B, 16, T, H, W]")
  t.raises(function() net:forward(noise { 1, 16, 2, 5, 6 }, 1, context) end, "H must be a multiple of 2")
  t.raises(function() net:forward(noise { 2, 16, 2, 4, 6 }, 1, context) end, "2 latents with a context of 1 texts")
  t.raises(function() net:forward(noise { 1, 16, 2, 4, 6 }, { 1, 2 }, context) end, "2 timesteps for 1 samples")
  t.raises(function() net:forward(noise { 1, 16, 2, 4, 6 }, 1, {}) end, "must be a context of this model")
end)

t.test("wan_dit: one timestep a frame", function()
  local net = dit()
  local latent, context = noise { 1, 16, 3, 4, 6 }, net:context { noise({ 9, 40 }, 1) }
  local plain = net:forward(latent, 500, context)
  t.close(net:forward(latent, { { 500, 500, 500 } }, context), plain, 2e-6, 2e-6, "all the same")
  local other = net:forward(latent, { { 0, 500, 500 } }, context)
  local _, _, relative = melies.golden.compare(other, plain, 0, 0)
  t.ok(relative > 1e-2, "another time changes something")
  t.raises(function() net:forward(latent, { { 1, 2 } }, context) end, "2 timesteps for 3 frames")
end)

t.test("wan_dit: given first frames have time 0 and lead where they are", function()
  local net = dit()
  local latent, first = noise { 1, 16, 3, 4, 6 }, noise({ 16, 1, 4, 6 }, 5)
  local texts = { noise({ 9, 40 }, 1) }
  local context = net:context(texts, { first = first })
  local got = net:forward(latent, 400, context)
  local by_hand = T.concat({ first:unsqueeze(1), latent:slice(3, 2) }, 3)
  local want = net:forward(by_hand, { { 0, 400, 400 } }, net:context(texts))
  t.close(got:slice(3, 2), want:slice(3, 2), 0, 0, "the other frames")
  -- x - sigma * v is the given frame.
  local end_point = latent:slice(3, 1, 1) - got:slice(3, 1, 1) * 0.4
  t.close(end_point, first:unsqueeze(1), 1e-5, 1e-5, "the given frame")
  t.eq(net:forward(latent, 0, context):nonfinite(), 0)
  local two = net:join { context, net:context({ noise({ 4, 40 }, 2) }, { first = first }) }
  t.close(net:forward(latent, 400, two):slice(1, 1, 1), got, 2e-6, 2e-6, "joined")
  t.raises(function() net:context(texts, { first = noise { 15, 1, 4, 6 } }) end, "the first frames are")
  t.raises(function() net:forward(noise { 1, 16, 3, 4, 4 }, 1, context) end, "the context's first frames")
end)

local I2V = { num_heads = 2, text_len = 12 }
t.test("wan_dit: image and condition of a join, alone and together", function()
  local net = arch("wan_dit").load(open "wan_dit_i2v", I2V, { compute = "f32" })
  local latent = noise { 1, 16, 2, 4, 6 }
  local image, beside = noise({ 11, 40 }, 1), noise({ 20, 2, 4, 6 }, 2)
  local function context(stream, picture, condition)
    return net:context({ noise({ 5, 32 }, stream) }, { image = picture, condition = condition })
  end
  local a, b = context(3, image, beside), context(4, image, beside)
  local c = context(5, noise({ 11, 40 }, 6), noise({ 20, 2, 4, 6 }, 7))
  for _, group in ipairs { { a, b }, { a, c }, { a, b, c } } do
    local all = net:forward(latent, 300, net:join(group))
    for i, one in ipairs(group) do
      t.close(all:slice(1, i, i), net:forward(latent, 300, one), 2e-6, 2e-6)
    end
  end
  t.raises(function() net:context { noise { 5, 32 } } end, "this model reads image features")
  t.raises(function() context(1, noise { 11, 41 }, beside) end, "image features are [11, 41], wanted [tokens, 40]")
  t.raises(function() context(1, image, noise { 4, 2, 4, 6 }) end, "wanted [20, T, H, W]")
  t.raises(function() net:forward(latent, 1, context(1, image)) end, "takes 20 more channels beside the latent")
  t.raises(function() net:forward(latent:slice(3, 1, 1), 1, a) end, "the context's condition")
  t.raises(function() dit():context({ noise { 3, 40 } }, { image = image }) end, "no image branch")
  t.raises(function() dit():context({ noise { 3, 40 } }, { condition = beside }) end, "this model takes none")
end)

t.test("wan_dit: a condition without an image branch (Wan 2.2 I2V)", function()
  local w = {}
  for name, x in pairs(tensors "wan_dit_i2v") do
    if not name:find("img") then w[name] = x end
  end
  local net = arch("wan_dit").load(w, I2V, { compute = "f32" })
  local latent, text = noise { 1, 16, 2, 4, 6 }, noise({ 5, 32 }, 1)
  local a = net:forward(latent, 300, net:context({ text }, { condition = noise({ 20, 2, 4, 6 }, 2) }))
  local b = net:forward(latent, 300, net:context({ text }, { condition = noise({ 20, 2, 4, 6 }, 3) }))
  t.eq(a:shape_text(), "[1, 16, 2, 4, 6]")
  t.ok((a - b):norm() > 1e-2)
  local experts = arch("wan_experts").load({ high = w, low = w }, I2V, { compute = "f32" })
  t.eq(experts.boundary, 0.9)
end)

t.test("wan_causal: finished blocks go into a decoder's stream while the clip is made", function()
  local net, vae = dit(), autoencoders.wan_vae[2]("f32")
  local context, stream, frames = net:context { noise({ 9, 40 }, 1) }, vae:decoder(), {}
  local parts = {}
  for _, block in net:causal({ frames_per_block = 2 }):blocks(noise { 16, 4, 2, 2 }, { context = context,
    timesteps = { 1000, 500 } }) do
    parts[#parts + 1], frames[#frames + 1] = block, stream:push(block)
  end
  t.eq(frames[1].shape[1], 5)
  t.eq(frames[2].shape[1], 8)
  same_bits(T.concat(frames, 1), vae:decode(T.concat(parts, 2)))
end)

t.test("wan_dit: the position table of first-and-last-frame models is added to the features", function()
  local w, position = tensors "wan_dit_i2v", noise({ 1, 22, 40 }, 9)
  local plain = arch("wan_dit").load(w, I2V, { compute = "f32" })
  w = tensors "wan_dit_i2v"
  w["img_emb.emb_pos"] = position
  local net = arch("wan_dit").load(w, I2V, { compute = "f32" })
  local two, latent, text = noise({ 2, 11, 40 }, 1), noise { 1, 16, 1, 4, 4 }, noise({ 5, 32 }, 3)
  local beside = noise({ 20, 1, 4, 4 }, 2)
  local got = net:forward(latent, 300, net:context({ text }, { image = two, condition = beside }))
  local by_hand = two:reshape(22, 40) + position:squeeze(1)
  t.close(got, plain:forward(latent, 300, plain:context({ text }, { image = by_hand, condition = beside })), 0, 0)
  t.raises(function() net:context({ text }, { image = noise { 11, 40 } }) end, "wanted [22, 40]")
  local mask = arch("wan_dit").condition_mask(3, 2, 2, true)
  t.eq(mask:sum(), 4 * 4 + 4)
  t.eq(mask:slice(2, 3, 3):slice(1, 4, 4):mean(), 1)
end)

t.test("wan_causal: one block for the whole clip is the plain forward", function()
  local net = dit()
  local latent, context = noise { 1, 16, 3, 4, 6 }, net:context { noise({ 9, 40 }, 1) }
  local stream = net:causal { frames_per_block = 3 }
  t.close(stream:block(latent, 500, context), net:forward(latent, 500, context), 2e-6, 2e-6)
end)

t.test("wan_causal: a window that never fills is no window; blocks come out one by one", function()
  local net = arch("wan_causal").load(open "wan_dit", { num_heads = 3, text_len = 16, frames_per_block = 2 },
    { compute = "f32" })
  local context, clip = net:context { noise({ 9, 40 }, 1) }, noise { 16, 5, 4, 4 }
  local function run(options)
    local out, firsts, steps = {}, {}, 0
    for first, block in net:causal(options):blocks(clip, { context = context, timesteps = { 1000, 600 }, seed = 3,
      step = function() steps = steps + 1 end }) do
      out[#out + 1], firsts[#firsts + 1] = block, first
    end
    t.eq(table.concat(firsts, " "), "1 3 5")
    t.eq(steps, 6)
    return T.concat(out, 2)
  end
  local all = run {}
  t.eq(all:shape_text(), "[16, 5, 4, 4]")
  t.close(run { local_frames = 5, sink_frames = 1 }, all, 1e-5, 1e-5)
  local windowed = run { local_frames = 3, sink_frames = 1 }
  t.close(windowed:slice(2, 1, 2), all:slice(2, 1, 2), 1e-5, 1e-5, "the window is not full yet")
  local _, _, relative = melies.golden.compare(windowed:slice(2, 5), all:slice(2, 5), 0, 0)
  t.ok(relative > 1e-4, "dropped frames are not seen")
end)

t.test("wan_causal: arguments that do not fit", function()
  local net = dit()
  local context = net:context { noise({ 9, 40 }, 1) }
  t.raises(function() net:causal { frames_per_blok = 2 } end, "did you mean 'frames_per_block'")
  t.raises(function() net:causal { local_frames = 2 } end, "local_frames is 2, wanted a whole number from 3")
  local stream = net:causal { frames_per_block = 2 }
  t.raises(function() stream:next() end, "no call of block")
  t.raises(function() stream:block(noise { 1, 16, 3, 4, 4 }, 1, context) end, "1 to 2, H, W]")
  stream:block(noise { 1, 16, 2, 4, 4 }, 1, context)
  t.raises(function() stream:block(noise { 1, 16, 1, 4, 4 }, 1, context) end, "its last call had 2")
  t.raises(function() stream:block(noise { 1, 16, 2, 4, 6 }, 1, context) end, "the blocks before it were")
  t.raises(function() stream:blocks(noise { 16, 4, 4, 4 }, { context = context }) end, "a list of timesteps")
end)

t.test("wan_experts: the timestep chooses, one resident expert gives the same", function()
  local high, low = tensors "wan_dit", tensors "wan_dit"
  low["head.head.bias"] = low["head.head.bias"] + 1
  local loads = 0
  local function counted(w) return function() loads = loads + 1 return w end end
  local config = { num_heads = 3, text_len = 16, boundary = 0.9 }
  local both = arch("wan_experts").load({ high = high, low = low }, config, { compute = "f32" })
  config.resident = 1
  local one = arch("wan_experts").load({ high = counted(high), low = counted(low) }, config, { compute = "f32" })
  t.eq(both.out_channels, 16)
  local latent, text = noise { 1, 16, 2, 4, 6 }, noise({ 9, 40 }, 1)
  local alone, context = dit(), both:context { text }
  local other = one:context { text }
  local want = alone:forward(latent, 900, alone:context { text })
  t.eq(both:expert(900), "high")
  t.eq(both:expert(899.9), "low")
  t.eq(both:expert { { 0, 950 } }, "high")
  t.close(both:forward(latent, 900, context), want, 0, 0, "high")
  t.close(one:forward(latent, 900, other), want, 0, 0, "high, alone")
  want = alone:forward(latent, 100, alone:context { text }) + 1
  t.close(both:forward(latent, 100, context), want, 1e-5, 1e-5, "low")
  t.close(one:forward(latent, 100, other), want, 1e-5, 1e-5, "low, alone")
  t.close(both:forward(latent, 100, both:join { context, both:context { text } }):slice(1, 2, 2), want, 1e-5, 1e-5)
  t.eq(loads, 2)
  t.eq(one.nets.high, nil)
  t.raises(function() arch("wan_experts").load(open "wan_dit", config) end, "two files, not one")
  low["patch_embedding.weight"], low["head.head.weight"] = noise { 72, 17, 1, 2, 2 }, low["head.head.weight"]
  local unlike = arch("wan_experts").load({ high = high, low = low }, config, { compute = "f32" })
  t.raises(function() unlike:forward(latent, 1, unlike:context { text }) end, "the low expert has in_channels 17")
end)

t.test("ltx_dit: batches, joins, first frames, timesteps by frame and by token", function()
  local net = arch("ltx_dit").load(open "ltx_dit", { heads = 4 }, { compute = "f32" })
  local latent = noise { 1, 24, 3, 2, 4 }
  local texts = { noise({ 9, 40 }, 1), noise({ 3, 40 }, 2) }
  local both = net:forward(latent, 500, net:context(texts))
  local a, b = net:context { texts[1] }, net:context { texts[2] }
  t.close(net:forward(latent, 500, net:join { a, b }), both, 2e-6, 2e-6, "joined")
  for i, one in ipairs { a, b } do t.close(both:slice(1, i, i), net:forward(latent, 500, one), 4e-6, 4e-6, "alone") end
  local by_frame = net:forward(latent, { { 0, 500, 500 } }, a)
  local by_token = {}
  for i = 1, 24 do by_token[i] = i <= 8 and 0 or 500 end
  t.close(net:forward(latent, { by_token }, a), by_frame, 2e-6, 2e-6, "tokens")
  local first = noise({ 24, 1, 2, 4 }, 5)
  local got = net:forward(latent, 500, net:context({ texts[1] }, { first = first }))
  t.close(latent:slice(3, 1, 1) - got:slice(3, 1, 1) * 0.5, first:unsqueeze(1), 1e-5, 1e-5, "the given frame")
  local fast = net:forward(latent, 500, net:context({ texts[1] }, { fps = 50 }))
  t.ok((fast - both:slice(1, 1, 1)):norm() > 1e-3, "frames a second turn the frame axis")
  t.raises(function() net:join { a, net:context({ texts[1] }, { fps = 50 }) } end, "different fps")
  t.raises(function() net:context({ texts[1] }, { fps = 0 }) end, "fps is 0")
  t.raises(function() net:forward(latent, { { 1, 2 } }, a) end, "has 2 timesteps, wanted one, 3 (frames) or 24 (tokens)")
  t.raises(function() net:forward(noise { 1, 23, 1, 2, 2 }, 1, a) end, "wanted [B, 24, T, H, W]")
end)

-- ---- text encoders --------------------------------------------------------------------------------------------------

t.test("t5: a padded batch has the rows of its samples alone", function()
  for _, name in ipairs { "umt5", "t5v1_1" } do
    local net = arch("t5").load(open(name), {}, { compute = "f32" })
    local ids = { { 5, 9, 22, 7, 1 }, { 33, 1 } }
    local batch = net:forward(T.of({ 5, 9, 22, 7, 1, 33, 1, 0, 0, 0 }, { 2, 5 }, "i64"),
      T.of({ 1, 1, 1, 1, 1, 1, 1, 0, 0, 0 }, { 2, 5 }, "i64"))
    local alone = net:encode(ids)
    t.close(batch:slice(1, 1, 1):squeeze(1), alone[1], 2e-6, 2e-6)
    t.close(batch:slice(1, 2, 2):squeeze(1):slice(1, 1, 2), alone[2], 2e-6, 2e-6)
    t.raises(function() net:encode { 5, 1e6 } end, "id 2 is 1000000, outside 0..")
    t.raises(function() net:encode {} end, "empty")
  end
end)

-- ---- CLIP --------------------------------------------------------------------------------------------------------

t.test("clip_text: what does not fit", function()
  local net = arch("clip_text").load(open "clip_text_gelu", { heads = 3, activation = "gelu" }, { compute = "f32" })
  t.eq(net:encode({ 78, 5, 79 }).last:shape_text(), "[3, 48]")
  t.raises(function() net:encode { 78, 80 } end, "id 2 is 80, outside 0..79")
  t.raises(function() net:forward(T.zeros({ 1, 15 }, "i64")) end, "wanted [B, 1 to 14]")
  t.raises(function() arch("clip_text").load(open "clip_text_gelu", { heads = 3, activation = "relu" }) end,
    "activation is 'relu'")
  t.raises(function() arch("clip_text").load(open "clip_text_gelu", {}) end, "must give heads")
end)

t.test("clip_vision: several pictures at once, bytes, a file with a text tower", function()
  local w = tensors "wan_clip_vision"
  w["textual.type_embedding.weight"], w.log_scale = T.zeros { 1, 4 }, T.zeros {}
  local net = arch("clip_vision").load(w, { num_heads = 3 }, { compute = "f32" })
  local pictures = (T.uniform({ 2, 9, 17, 3 }, { seed = 4 }) * 255):round():to("u8")
  local both = net:encode(pictures)
  t.eq(both:shape_text(), "[2, 17, 48]")
  t.close(both:select(1, 2), net:encode(pictures:select(1, 2):to("f32") * (1 / 255)), 1e-5, 1e-5)
  t.raises(function() net:encode(T.zeros { 4, 4 }) end, "a picture is [H, W, 3]")
  t.raises(function() arch("clip_vision").load(w, { num_heads = 3, skip_last = 3 }) end, "transformer.3")
end)

-- ---- weights that do not fit ------------------------------------------------------------------------------------------

t.test("one line names the tensor that is missing, misshapen or unknown", function()
  local load = arch("wan_dit").load
  local w = tensors "wan_dit"
  w["blocks.1.ffn.0.bias"] = nil
  t.eq(t.raises(function() load(w, DIT) end, "missing"), "wan_dit: tensor 'blocks.1.ffn.0.bias' is missing")
  w = tensors "wan_dit"
  w["blocks.1.cross_attn.k.weight"] = T.zeros { 72, 71 }
  t.eq(t.raises(function() load(w, DIT) end, "wanted"),
    "wan_dit: tensor 'blocks.1.cross_attn.k.weight' is [72, 71], wanted [72, 72]")
  w = tensors "wan_dit"
  w["blocks.1.cross_attn.k_img.weight"] = T.zeros { 72, 72 }
  t.eq(t.raises(function() load(w, DIT) end, "not part"),
    "wan_dit: tensor 'blocks.1.cross_attn.k_img.weight' [72, 72] is not part of this architecture")

  local others = { taehv_super = "taehv", umt5 = "t5", wan_dit_i2v = "wan_dit", ltx_vae_tc = "ltx_vae",
    clip_text_gelu = "clip_text", wan_clip_vision = "clip_vision" }
  local configs = { wan_dit_i2v = { num_heads = 2 }, ltx_dit = { heads = 4 }, clip_text_gelu = { heads = 3 },
    wan_clip_vision = { num_heads = 3, skip_last = 0 } }
  for _, name in ipairs { "taehv", "taehv_super", "wan_vae", "umt5", "wan_dit_i2v", "ltx_dit", "ltx_vae", "ltx_vae_tc",
    "clip_text_gelu", "wan_clip_vision" } do
    local model = others[name] or name
    -- Any tensor of the file, taken away or cut: an error with its name, or of one that depends on it, never a crash.
    local keys = {}
    for key in pairs(tensors(name)) do
      -- What stands behind the picture tower's last token is not read.
      if not key:find("^visual%.post_norm") and key ~= "visual.head" then keys[#keys + 1] = key end
    end
    table.sort(keys)
    for i = 1, #keys, math.ceil(#keys / 24) do
      w = tensors(name)
      local first = w[keys[i]].shape[1]
      w[keys[i]] = T.zeros { first + 1, 5 }
      local message = t.raises(function() arch(model).load(w, configs[name] or {}) end, model .. ": ")
      t.ok(not message:find("\n"), message)
    end
  end
end)

t.test("a configuration that contradicts the tensors is named", function()
  t.raises(function() arch("wan_dit").load(open "wan_dit", { heads = 3, dim = 80 }) end,
    "wan_dit: the configuration says dim 80, patch_embedding.weight gives 72")
  t.raises(function() arch("wan_dit").load(open "wan_dit", { heads = 5 }) end, "does not divide into 5 heads")
  t.raises(function() arch("wan_dit").load(open "wan_dit", {}) end, "must give heads")
  t.raises(function() arch("t5").load(open "umt5", { vocab = 1000 }) end, "the configuration says vocab 1000")
  t.raises(function() arch("wan_vae").load(open "wan_vae", { mean = { 1 }, std = { 1 } }) end, "must give them")
  t.raises(function() arch("taehv").load(open "taehv", {}, { compte = "f32" }) end, "unknown option 'compte'")
end)

t.test("a prefix before all names is found, other tensors are left alone", function()
  local w, moved = tensors "wan_dit", { ["first_stage.thing"] = T.zeros { 1 } }
  for key, tensor in pairs(w) do moved["model.diffusion_model." .. key] = tensor end
  local a = dit()
  local b = arch("wan_dit").load(moved, DIT, { compute = "f32" })
  local text, latent = noise({ 4, 40 }, 1), noise { 1, 16, 1, 2, 2 }
  same_bits(a:forward(latent, 10, a:context { text }), b:forward(latent, 10, b:context { text }))
end)

t.finish()
