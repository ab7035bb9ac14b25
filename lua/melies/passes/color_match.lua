-- melies-api: 1
-- Colour and exposure held where they were, inside a shot or over the whole film.
-- In Lab, per channel: x' = m' + (x - m) s'/s (Reinhard et al. 2001), m and s being the mean and deviation of the frame
-- (a running mean over `smooth` seconds, so that motion in the picture does not pump), m' and s' those of the anchor: the
-- first `anchor` seconds of the shot (scope "shot") or of the film (scope "film"), or an image's (reference). `strength`
-- mixes with the original.
-- The anchor never follows later frames, so that drift cannot add up. Keeps no frames.
local melies = require "melies"

local function mix(into, from, k)
  for c = 1, 3 do into[c] = into[c] + k * (from[c] - into[c]) end
end

return {
  kind = "pass", name = "color_match",
  of_shots = function(p) return p.scope == "shot" end,
  params = {
    scope = { "enum", choices = { "shot", "film" }, default = "film", help = "what every frame is matched to" },
    strength = { "number", default = 1, min = 0, max = 1, help = "1: fully" },
    anchor = { "number", default = 1, min = 0, max = 60, help = "seconds at the beginning that set the look" },
    smooth = { "number", default = 0.3, min = 0, max = 10, help = "seconds over which a frame's own look is averaged" },
    reference = { "string", default = "", help = "an image to match instead of the film's own beginning" },
    deviation = { "boolean", default = true, help = "contrast and saturation too, not only the mean" },
  },
  new = function(p, info)
    local T, video = melies.tensor, melies.video
    local anchor_frames = math.max(1, math.floor(p.anchor * info.fps + 0.5))
    local pace = 1 - math.exp(-1 / math.max(1e-3, p.smooth * info.fps))
    local anchor, seen       -- { mean, deviation } and how many frames it was made of
    local fixed
    if p.reference ~= "" then
      local image, message = melies.media.image(p.reference)
      if not image then return nil, message end
      local mean, deviation = video.lab_stats(melies.media.to_f32(image))
      anchor, seen, fixed = { mean, deviation }, anchor_frames, true
    end
    local own                -- of the frame, averaged
    local first_shot = true
    local pass = {}
    function pass.cut()
      own = nil
      first_shot = false
      if p.scope == "shot" and not fixed then anchor, seen = nil, nil end
      return {}
    end
    function pass.push(_, frame)
      local mean, deviation = video.lab_stats(frame)
      if not own then own = { { unpack(mean) }, { unpack(deviation) } }
      else
        mix(own[1], mean, pace)
        mix(own[2], deviation, pace)
      end
      if not anchor then anchor, seen = { { unpack(mean) }, { unpack(deviation) } }, 1
      elseif not fixed and seen < anchor_frames and (p.scope == "shot" or first_shot) then
        seen = seen + 1
        mix(anchor[1], mean, 1 / seen)
        mix(anchor[2], deviation, 1 / seen)
      end
      local gain, shift = {}, {}
      for c = 1, 3 do
        local g = p.deviation and (anchor[2][c] + 0.5) / (own[2][c] + 0.5) or 1
        g = 1 + p.strength * (math.max(0.5, math.min(2, g)) - 1)
        local to = own[1][c] + p.strength * (anchor[1][c] - own[1][c])
        gain[c], shift[c] = g, to - own[1][c] * g
      end
      local lab = video.to_lab(frame:contiguous())
      return { video.from_lab(lab * T.of(gain, { 1, 1, 3 }) + T.of(shift, { 1, 1, 3 })) }
    end
    function pass.finish() return {} end
    return pass
  end,
}
