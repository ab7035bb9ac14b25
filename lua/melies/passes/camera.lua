-- melies-api: 1
-- Camera moves in the picture: pan, tilt, zoom, roll, and a dolly that guesses depth.
-- Over `seconds` (the whole shot where its length is known) the view goes from its first place to its last: pan and tilt by
-- shares of the width and height (to the right, downwards), zoom by a factor, roll by degrees (clockwise), eased by 3 x^2 -
-- 2 x^3. The picture is enlarged as far as the move needs so that no border shows. dolly d moves what is near more than
-- what is far: a place at distance z from the centre is enlarged by 1 + d x near(z). near is a guess from the shot's first
-- frame: 0.6 (how low it lies) + 0.4 (how sharp it is, blurred); there is no depth in it.
-- space=latent: films make the move while they sample (melies.latent_camera), in each shot; such an entry is no pass then.
local melies = require "melies"

local function guess_depth(frame)
  local video, T = melies.video, melies.tensor
  local small = video.reduce(frame, 96)
  local luma = video.luma(small):unsqueeze(3)
  local sharp = video.blur((luma - video.blur(luma, 1.5)):abs(), 6)
  sharp = sharp * (1 / math.max(1e-6, sharp:amax()))
  local h = small.shape[1]
  local low = {}
  for y = 1, h do low[y] = (y - 0.5) / h end
  local near = T.of(low, { h, 1, 1 }) * 0.6 + sharp * 0.4
  return near:resize(1, frame.shape[1]):resize(2, frame.shape[2])
end

return {
  kind = "pass", name = "camera",
  params = {
    pan = { "number", default = 0, min = -1, max = 1, help = "to the right, share of the width" },
    tilt = { "number", default = 0, min = -1, max = 1, help = "downwards, share of the height" },
    zoom = { "number", default = 1, min = 0.2, max = 5, help = "factor; above 1 goes closer" },
    roll = { "number", default = 0, min = -180, max = 180, help = "degrees clockwise" },
    dolly = { "number", default = 0, min = -0.5, max = 1, help = "forwards, in share of the near things' size" },
    seconds = { "number", min = 0.01, max = 3600, help = "length of the move (default: the shot's, else 4)" },
    space = { "enum", choices = { "pixel", "latent" }, default = "pixel", help = "latent: the model draws what comes into view" },
    ease = { "boolean", default = true, help = "slow at both ends" },
  },
  new = function(p, info)
    if p.space == "latent" then return nil, "space=latent is for recipes that sample a film: film, film_from_storyboard" end
    local video = melies.video
    local frames = math.max(2, p.seconds and p.seconds * info.fps or info.frames or 4 * info.fps)
    local index, near = 0, nil
    -- Enlargement with which half the move to either side stays inside, at the widest moment.
    local angle = math.rad(math.abs(p.roll) / 2)
    local aspect = math.max(info.width / info.height, info.height / info.width)
    local turned = math.cos(math.min(angle, math.pi / 2)) + aspect * math.sin(math.min(angle, math.pi / 2))
    local cover = turned * (1 + math.max(math.abs(p.pan), math.abs(p.tilt))) * math.max(1, 1 / p.zoom)
    if p.dolly < 0 then cover = cover * (1 - p.dolly) end
    local pass = {}
    function pass.push(_, frame)
      local h, w = frame.shape[1], frame.shape[2]
      local x = math.min(1, index / (frames - 1))
      index = index + 1
      if p.ease then x = x * x * (3 - 2 * x) end
      local size = 1 / (cover * p.zoom ^ x)
      local turn = math.rad(-p.roll * (x - 0.5))
      local re, im = size * math.cos(turn), size * math.sin(turn)
      local dx, dy = p.pan * (x - 0.5) * w / cover, p.tilt * (x - 0.5) * h / cover
      local flow = video.affine(h, w, { re, -im, dx, im, re, dy })
      if p.dolly ~= 0 then
        near = near or guess_depth(frame)
        -- From the centre: (z + flow) / (1 + d x near) in place of z + flow.
        local shrink = 1 / (near * (p.dolly * x) + 1)
        local place = video.affine(h, w, { 0, 0, 0, 0, 0, 0 }) * -1 -- z itself
        flow = (flow + place) * shrink - place
      end
      return { video.warp(frame, flow) }
    end
    function pass.cut()
      index, near = 0, nil
      return {}
    end
    function pass.finish() return {} end
    return pass
  end,
}
