-- Fixtures of single operations (golden.lua).
local melies = require "melies"
local ffi = require "ffi"
local T = melies.tensor

local single = ffi.new("float[1]")
local function f32(x)
  single[0] = x
  return tonumber(single[0])
end

-- LTX's sinusoid: every step in float32, where the angles of large times carry an error of 2e-5.
local function sinusoid_f32(t, width)
  local half, out = width / 2, {}
  for _, value in ipairs(t) do
    for j = 0, width - 1 do
      local exponent = f32(f32(-math.log(10000) * (j % half)) / half)
      local angle = f32(f32(value) * f32(math.exp(exponent)))
      out[#out + 1] = j < half and math.cos(angle) or math.sin(angle)
    end
  end
  return T.of(out, { #t, width })
end

local function pixel_shuffle(x, p)
  local s = x.shape
  local y = x:reshape(s[1] / (p * p), p, p, s[2], s[3]):permute(1, 4, 2, 5, 3)
  return y:reshape(s[1] / (p * p), s[2] * p, s[3] * p)
end
local function pixel_unshuffle(x, p)
  local s = x.shape
  local y = x:reshape(s[1], s[2] / p, p, s[3] / p, p):permute(1, 3, 5, 2, 4)
  return y:reshape(s[1] * p * p, s[2] / p, s[3] / p)
end

-- Norms over the last axis. Rows near a constant lose digits in float32 whatever one does: their own tolerance.
local function norms(fixture)
  local rows, weight, bias = fixture:get("rows"), fixture:get("weight"), fixture:get("bias")
  local function check(name, got)
    local want = fixture:get(name)
    if want then fixture:close(name, got, want) end
  end
  -- The mean of the row around 0.5 cancels 0.5 against a spread of 1e-4: 2e-2 relative there, as the fixture allows.
  local function layer_norm(name, options)
    local want = fixture:get(name)
    if not want then return end
    local got, scales = rows:layer_norm(options), fixture.json.config.row_scales
    for i, scale in ipairs(scales) do
      local row = ("%s, row %d"):format(name, i - 1)
      fixture:close(row, got:slice(1, i, i), want:slice(1, i, i),
        type(scale) == "string" and { atol = 1e-4, rtol = 2e-2 } or nil)
    end
  end
  layer_norm("wan_layernorm_noaffine_eps1e-6", { eps = 1e-6 })
  layer_norm("wan_layernorm_affine_eps1e-6", { eps = 1e-6, weight = weight, bias = bias })
  layer_norm("layernorm_affine_eps1e-5", { eps = 1e-5, weight = weight, bias = bias })
  check("wan_rmsnorm_eps1e-6", rows:rms_norm { eps = 1e-6, weight = weight })
  check("t5_rmsnorm_eps1e-6", rows:rms_norm { eps = 1e-6, weight = weight })
  check("ltx_qk_rmsnorm_eps1e-5", rows:rms_norm { eps = 1e-5, weight = weight })
  check("ltx_block_rmsnorm_noweight_eps1e-6", rows:rms_norm { eps = 1e-6 })
  check("ltx_pixelnorm_eps1e-8", rows:rms_norm { eps = 1e-8 })
  check("wan_vae_rms_norm", rows:l2_norm { weight = weight })
end

local function tables(fixture)
  local dit = require "melies.models.wan_dit"
  local t = fixture:get("t"):list()
  for name, formula in pairs { wan_sinusoid = dit.sinusoid, ltx_sinusoid = sinusoid_f32 } do
    local want = fixture:get(name)
    if want then fixture:close(name, formula(t, want.shape[2]), want) end
  end
  for d = 2, 256, 2 do
    local want = fixture:get("rope_split_head_dim_" .. d)
    if want then fixture:equal("rope_split_head_dim_" .. d, T.of({ dit.rope_split(d) }, { 3 }, "i64"), want) end
  end
  local positions = fixture:get("rope_positions")
  if not positions then return end
  -- Every axis at the same position: one axis at a time has a length past 1.
  local d = 128
  local nt, nh = dit.rope_split(d)
  local highest = 0
  for _, p in ipairs(positions:list()) do highest = math.max(highest, p) end
  local count, parts = highest + 1, { {}, {} }
  local ranges = { { 1, nt / 2 }, { nt / 2 + 1, nt / 2 + nh / 2 }, { nt / 2 + nh / 2 + 1, d / 2 } }
  for axis, range in ipairs(ranges) do
    local size = { 1, 1, 1 }
    size[axis] = count
    local pair = { dit.rope_tables(d, size[1], size[2], size[3], 0) }
    for i = 1, 2 do parts[i][axis] = pair[i]:slice(2, range[1], range[2]) end
  end
  for i, name in ipairs { "rope_cos_head_dim_128", "rope_sin_head_dim_128" } do
    fixture:close(name, T.gather(T.concat(parts[i], 2), positions), fixture:get(name))
  end
end

local function run(fixture)
  norms(fixture)
  local x = fixture:get("act_x")
  for name, act in pairs { gelu_erf = "gelu_erf", gelu_tanh = "gelu", gelu_t5 = "gelu", quick_gelu = "quick_gelu",
    silu = "silu" } do
    if fixture:get(name) then fixture:close(name, x[act](x), fixture:get(name)) end
  end
  tables(fixture)
  local image = fixture:get("image")
  local function resized(name, h, w, mode)
    if fixture:get(name) then fixture:close(name, image:resize(2, h, mode):resize(3, w, mode), fixture:get(name)) end
  end
  resized("bicubic_to_11x9", 11, 9, "bicubic")
  resized("bicubic_to_3x4_no_antialias", 3, 4, "bicubic")
  resized("upsample_nearest_exact_2x", 2 * image.shape[2], 2 * image.shape[3], "nearest")
  local shuffled = fixture:get("pixel_shuffle_2")
  fixture:close("pixel_shuffle_2", pixel_shuffle(fixture:get("shuffle_in"), 2), shuffled)
  fixture:close("pixel_unshuffle_2", pixel_unshuffle(shuffled, 2), fixture:get("pixel_unshuffle_2"))
end

return {
  { name = "ops_probes", run = run, applies = function(json)
    return type(json["function"]) == "string" and json["function"]:find("^single operations") ~= nil
  end },
}
