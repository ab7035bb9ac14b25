-- Motion and colour of frames: optical flow, warps, frames between, Lab, blur, resizing, FFmpeg's filters, cuts.
-- Frames are [H, W, 3] RGB, u8 or floats in 0..1; flow is f32 [H, W, 2] in pixels, x first.
local ffi = require "ffi"
local lib = require "melies.ffi.lib"
local T = require "melies.tensor"
local media = require "melies.media"
local C, err = lib.C, lib.err

local video = {}

local function out(status, box)
  lib.check(status, 3)
  return T.wrap(box[0])
end

local function handle(x, what) return T.need(x, what, 3) end

-- ---- motion -------------------------------------------------------------------------------------

local flow_options = { finest = true, iterations = true, refine = true, smoothness = true }

-- video.flow(a, b, {finest=, iterations=12, refine=2, smoothness=1}): where each pixel of a is in b, [H, W, 2]. finest 1
-- works to every pixel, 2 to every second (and is four times faster), 3 to every fourth; small frames 1, others 2.
function video.flow(a, b, options)
  options = options or {}
  lib.check_options("video.flow", options, flow_options)
  local o = ffi.new("mel_flow_options")
  o.finest, o.iterations = options.finest or 0, options.iterations or 0
  o.refine = options.refine == 0 and -1 or options.refine or 0
  o.smoothness = options.smoothness or 0
  local box = lib.out("mel_tensor*")
  return out(C.mel_video_flow(handle(a, "video.flow"), handle(b, "video.flow"), o, box, err), box)
end

-- video.warp(frame, flow): out(x, y) = frame at (x, y) + flow, bilinear, clamped; f32. warp(b, flow(a, b)) is like a.
function video.warp(frame, flow)
  local box = lib.out("mel_tensor*")
  return out(C.mel_video_warp(handle(video.floats(frame), "video.warp"), handle(flow, "video.warp"), box, err), box)
end

-- video.consistent(forward, backward, relative = 0.01, absolute = 0.5): [H, W] of 0 and 1: where forward, then backward,
-- leads back to the start.
function video.consistent(forward, backward, relative, absolute)
  local box = lib.out("mel_tensor*")
  return out(C.mel_video_consistent(handle(forward, "video.consistent"), handle(backward, "video.consistent"),
    relative or 0.01, absolute or 0.5, box, err), box)
end

-- video.between(a, b, at, forward, backward): the frame at `at` (0..1) on the way from a to b; f32. The flows are made
-- where they are not given.
function video.between(a, b, at, forward, backward)
  forward, backward = forward or video.flow(a, b), backward or video.flow(b, a)
  local box = lib.out("mel_tensor*")
  return out(C.mel_video_between(handle(a, "video.between"), handle(b, "video.between"), handle(forward, "video.between"),
    handle(backward, "video.between"), at, box, err), box)
end

-- video.affine(height, width, {a, b, x, c, d, y}): the flow that shows at (dx, dy) from the centre what was at
-- (a dx + b dy + x, c dx + d dy + y) from it.
function video.affine(height, width, map)
  local m = ffi.new("double[6]", map)
  local box = lib.out("mel_tensor*")
  return out(C.mel_video_affine_flow(height, width, m, box, err), box)
end

-- ---- pixels -------------------------------------------------------------------------------------

-- The frame as f32 in 0..1; itself where it is.
function video.floats(frame)
  if frame.dtype == "f32" then return frame end
  if frame.dtype == "u8" then return media.to_f32(frame) end
  return frame:to("f32")
end

-- video.to_lab(rgb), video.from_lab(lab): CIE Lab under D65, f32; any shape [..., 3].
function video.to_lab(rgb)
  local box = lib.out("mel_tensor*")
  return out(C.mel_video_to_lab(handle(rgb, "video.to_lab"), box, err), box)
end
function video.from_lab(lab)
  local box = lib.out("mel_tensor*")
  return out(C.mel_video_from_lab(handle(lab, "video.from_lab"), box, err), box)
end

-- video.blur(frame, sigma): Gaussian, f32.
function video.blur(frame, sigma)
  local box = lib.out("mel_tensor*")
  return out(C.mel_video_blur(handle(video.floats(frame), "video.blur"), sigma, box, err), box)
end

-- video.resize(frame, height, width, mode): mode is nearest, bilinear, bicubic, area; without one area to smaller sizes
-- and bicubic to larger ones. f32; bicubic stays in 0..1.
function video.resize(frame, height, width, mode)
  local h, w = frame.shape[1], frame.shape[2]
  if h == height and w == width then return frame end
  if mode == "nearest" then return frame:resize(1, height, mode):resize(2, width, mode) end
  local x = video.floats(frame)
  local function one(axis, from, to)
    if from == to then return end
    local kind = mode or (to < from and "area" or "bicubic")
    x = x:resize(axis, to, kind)
    if kind == "bicubic" and frame.shape[3] == 3 then x = x:clamp(0, 1) end
  end
  one(1, h, height)
  one(2, w, width)
  return x
end

-- The frame with a long side of at most `side` pixels (area means), no side below 16. And the factor, new / old width.
function video.reduce(frame, side)
  local h, w = frame.shape[1], frame.shape[2]
  local scale = math.min(1, side / math.max(h, w))
  local nh, nw = math.max(16, math.floor(h * scale + 0.5)), math.max(16, math.floor(w * scale + 0.5))
  if scale == 1 then nh, nw = math.max(16, h), math.max(16, w) end
  return video.resize(video.floats(frame), nh, nw, (nh > h or nw > w) and "bilinear" or "area"), nw / w
end

-- Rec. 601 luma, [H, W] f32.
function video.luma(frame)
  local x = video.floats(frame)
  return T.lincomb { 0.299, x:select(3, 1):contiguous(), 0.587, x:select(3, 2):contiguous(),
    0.114, x:select(3, 3):contiguous() }
end

-- Mean and deviation of the Lab values of a frame: { L, a, b }, { L, a, b }. Measured on every few pixels.
function video.lab_stats(frame)
  local h, w = frame.shape[1], frame.shape[2]
  local small = video.resize(frame, math.min(h, 96), math.min(w, 96), "nearest"):contiguous()
  local lab = video.to_lab(small):reshape(-1, 3)
  local mean = lab:mean(1)
  local deviation = (lab - mean):square():mean(1):sqrt()
  return mean:list(), deviation:list()
end

-- ---- cuts ---------------------------------------------------------------------------------------

-- How much of b cannot be had from a by motion and light: 0 (all can) to about 1. On thumbnails: the difference to the
-- moved b without its mean, against the contrast; plus half the distance of the colours; plus a leap of brightness.
local function novelty(a, b)
  local moved = video.warp(b.small, video.flow(a.small, b.small, { finest = 1, refine = 1 }))
  local d = video.luma(a.small) - video.luma(moved)
  local shift = d:mean()
  local structure = (d - shift):abs():mean() / (0.5 * (a.contrast + b.contrast) + 0.03)
  local colour = 0
  for i = 1, #a.colours do colour = colour + math.abs(a.colours[i] - b.colours[i]) / 2 end
  return structure + 0.5 * colour + 2 * math.max(0, math.abs(shift) - 0.12)
end

-- Shares of hues (a, b of Lab in 6 x 6 cells, with soft borders) in a small frame.
local function colours_of(small)
  local lab = video.to_lab(small:contiguous()):reshape(-1, 3)
  local p, n, bins = lab:ptr(), lab.shape[1], {}
  for i = 1, 36 do bins[i] = 0 end
  for i = 0, n - 1 do
    local x = math.max(0, math.min(4.999, (p[3 * i + 1] + 75) / 30))
    local y = math.max(0, math.min(4.999, (p[3 * i + 2] + 75) / 30))
    local cx, cy = math.floor(x), math.floor(y)
    local fx, fy = x - cx, y - cy
    local at = cy * 6 + cx + 1
    bins[at] = bins[at] + (1 - fx) * (1 - fy) / n
    bins[at + 1] = bins[at + 1] + fx * (1 - fy) / n
    bins[at + 6] = bins[at + 6] + (1 - fx) * fy / n
    bins[at + 7] = bins[at + 7] + fx * fy / n
  end
  return bins
end

-- video.cut_detector(threshold = 0.3): a function that is given the frames in order and says whether a new shot begins
-- with this one, and how new it is. What is new has to stand out from the frames before it, too.
function video.cut_detector(threshold)
  threshold = threshold or 0.3
  local before, usual
  return function(frame)
    local small = video.reduce(frame, 64)
    local here = { small = small, contrast = video.luma(small):std(), colours = colours_of(small) }
    local last = before
    before = here
    if not last then return false, 0 end
    local value = novelty(last, here)
    if value ~= value then value = 0 end
    local cut = value > threshold and value > 3 * (usual or 0)
    if cut then usual = nil else usual = usual and 0.8 * usual + 0.2 * value or value end
    return cut, value
  end
end

-- ---- features -----------------------------------------------------------------------------------

-- video.features(frame, region): a list of numbers that tells what a frame looks like, to be compared with
-- video.likeness. 12 x 12 hues (of Lab), eight directions of edges in 4 x 4 parts of the frame less their mean, the
-- 8 x 8 lowest frequencies of brightness; 0.4, 0.3 and 0.3 of the whole. region: "centre" weighs the
-- middle, "border" what is around it.
function video.features(frame, region)
  local n = 64
  local small = video.resize(video.floats(frame), n, n, (frame.shape[1] < n or frame.shape[2] < n) and "bilinear" or "area")
    :contiguous()
  local lab = video.to_lab(small)
  local p = lab:ptr()
  local weight = {}
  for y = 0, n - 1 do
    for x = 0, n - 1 do
      local d = ((x - 31.5) ^ 2 + (y - 31.5) ^ 2) / 400
      local middle = math.exp(-d)
      weight[y * n + x] = region == "centre" and middle or region == "border" and 1 - middle or 1
    end
  end
  local hues, edges, waves = {}, {}, {}
  for i = 1, 144 do hues[i] = 0 end
  for i = 1, 128 do edges[i] = 0 end
  for y = 0, n - 1 do
    for x = 0, n - 1 do
      local i = y * n + x
      local w = weight[i]
      local hx = math.max(0, math.min(10.999, (p[3 * i + 1] + 77) / 14))
      local hy = math.max(0, math.min(10.999, (p[3 * i + 2] + 77) / 14))
      local cx, cy = math.floor(hx), math.floor(hy)
      local fx, fy = hx - cx, hy - cy
      local at = cy * 12 + cx + 1
      hues[at] = hues[at] + w * (1 - fx) * (1 - fy)
      hues[at + 1] = hues[at + 1] + w * fx * (1 - fy)
      hues[at + 12] = hues[at + 12] + w * (1 - fx) * fy
      hues[at + 13] = hues[at + 13] + w * fx * fy
      if x > 0 and y > 0 and x < n - 1 and y < n - 1 then
        local gx, gy = p[3 * i + 3] - p[3 * i - 3], p[3 * (i + n)] - p[3 * (i - n)]
        local size = math.sqrt(gx * gx + gy * gy)
        local angle = (math.atan2(gy, gx) % math.pi) / math.pi * 8
        local a0 = math.floor(angle) % 8
        local share = angle - math.floor(angle)
        local cell = (math.floor(y / 16) * 4 + math.floor(x / 16)) * 8
        edges[cell + a0 + 1] = edges[cell + a0 + 1] + w * size * (1 - share)
        edges[cell + (a0 + 1) % 8 + 1] = edges[cell + (a0 + 1) % 8 + 1] + w * size * share
      end
    end
  end
  for v = 0, 7 do
    for u = 0, 7 do
      if u + v > 0 then
        local sum = 0
        for y = 0, n - 1, 2 do
          local cy = math.cos(math.pi * (y + 0.5) * v / n)
          for x = 0, n - 1, 2 do
            sum = sum + weight[y * n + x] * p[3 * (y * n + x)] * cy * math.cos(math.pi * (x + 0.5) * u / n)
          end
        end
        waves[#waves + 1] = sum / (1 + u + v)
      end
    end
  end
  -- What goes in every direction alike says little: each part's mean is taken out.
  for cell = 0, 120, 8 do
    local mean = 0
    for k = 1, 8 do mean = mean + edges[cell + k] / 8 end
    for k = 1, 8 do edges[cell + k] = edges[cell + k] - mean end
  end
  local result = {}
  local function add(group, share)
    local square = 1e-12
    for i = 1, #group do square = square + group[i] * group[i] end
    local k = math.sqrt(share / square)
    for i = 1, #group do result[#result + 1] = group[i] * k end
  end
  add(hues, 0.4)
  add(edges, 0.3)
  add(waves, 0.3)
  return result
end

-- The cosine of two features: 1 for the same, about 0 for strangers.
function video.likeness(a, b)
  local ab, aa, bb = 0, 0, 0
  for i = 1, #a do
    ab = ab + a[i] * b[i]
    aa = aa + a[i] * a[i]
    bb = bb + b[i] * b[i]
  end
  return ab / math.sqrt(math.max(1e-30, aa * bb))
end

-- ---- FFmpeg's filters ---------------------------------------------------------------------------

local Filter = {}
Filter.__index = Filter

-- A rate as a fraction; N / 1.001 is known.
local function fraction(fps)
  if fps % 1 == 0 then return fps, 1 end
  local ntsc = math.floor(fps * 1.001 + 0.5)
  if math.abs(ntsc / 1.001 - fps) < 0.005 then return ntsc * 1000, 1001 end
  return math.floor(fps * 1000 + 0.5), 1000
end

-- video.filter(text, {width=, height=, fps=24}): a stream through FFmpeg's filters, as "eq=saturation=1.3,vignette".
-- nil and a message where the text is refused. Filters that open files or addresses are.
function video.filter(text, info)
  local num, den = fraction(info.fps or 24)
  local box = lib.out("mel_filter_graph*")
  local ok, message, status = lib.try(C.mel_filter_graph_open, text, info.width, info.height, num, den, box)
  if not ok then
    if status == lib.ECANCELED then lib.raise(status) end
    return nil, message
  end
  local self = setmetatable({ handle = ffi.gc(box[0], C.mel_filter_graph_close) }, Filter)
  local size = ffi.new("int32_t[4]")
  C.mel_filter_graph_size(self.handle, size, size + 1, size + 2, size + 3)
  self.width, self.height = size[0], size[1]
  self.fps = size[2] > 0 and size[2] / size[3] or nil
  return self
end

-- A frame in; the list of frames that are ready, u8. push(nil) ends the stream.
function Filter:push(frame)
  lib.check(C.mel_filter_graph_push(self.handle, frame and frame.handle or nil, err))
  local list = {}
  while true do
    local box = lib.out("mel_tensor*")
    lib.check(C.mel_filter_graph_pull(self.handle, box, err))
    if box[0] == nil then return list end
    list[#list + 1] = T.wrap(box[0])
  end
end

function Filter:close()
  if self.handle then C.mel_filter_graph_close(ffi.gc(self.handle, nil)) end
  self.handle = nil
end

return video
