-- melies-api: 1
-- What was said against what was read: shares with their confidence, confusions, and whole clips.
--
--   local figures = score.figures({ { says = { colour = "red" }, read = { colour = { value = "red" } } }, ... })
--   figures.colour { n, right, share, low, high, confusion[said][read] = count }
--   figures.all: clips in which all of score.core that the prompt says is right; figures.everything: all that it says
--   figures.second[name]: the same of second = { name = { said =, read = } }, direct measures
local M = {}

M.order = { "subject", "colour", "motion", "place", "style", "light", "texture", "size", "camera" }
M.core = { "place", "colour", "style", "subject", "motion" }
-- What the starter must reach: docs/training.md.
M.bars = { place = 0.98, colour = 0.95, style = 0.95, subject = 0.9, motion = 0.9, all = 0.75 }

-- Wilson's score interval of k out of n (z = 1.96: 95%): low, high. E. B. Wilson, 1927.
function M.wilson(k, n, z)
  if n == 0 then return 0, 1 end
  z = z or 1.959964
  local p, zz = k / n, z * z
  local middle, reach = p + zz / (2 * n), z * math.sqrt(p * (1 - p) / n + zz / (4 * n * n))
  local low, high = (middle - reach) / (1 + zz / n), (middle + reach) / (1 + zz / n)
  return k == 0 and 0 or low, k == n and 1 or high
end

local function share(k, n)
  local low, high = M.wilson(k, n)
  return { n = n, right = k, share = n > 0 and k / n or nil, low = low, high = high }
end

-- The attributes, in M.order, that `says` names and `read` has otherwise.
function M.wrong(says, read)
  local out = {}
  for _, name in ipairs(M.order) do
    if says[name] and read[name].value ~= says[name] then out[#out + 1] = name end
  end
  return out
end

function M.figures(clips)
  local out, right, count, confusion = {}, {}, {}, {}
  local all, everything, said_core = 0, 0, {}
  for _, name in ipairs(M.core) do said_core[name] = true end
  for _, clip in ipairs(clips) do
    local wrong = M.wrong(clip.says, clip.read)
    local core_right = true
    for _, name in ipairs(wrong) do core_right = core_right and not said_core[name] end
    all, everything = all + (core_right and 1 or 0), everything + (#wrong == 0 and 1 or 0)
    for _, name in ipairs(M.order) do
      local said = clip.says[name]
      if said then
        local read = clip.read[name].value
        count[name], right[name] = (count[name] or 0) + 1, (right[name] or 0) + (read == said and 1 or 0)
        confusion[name] = confusion[name] or {}
        confusion[name][said] = confusion[name][said] or {}
        confusion[name][said][read] = (confusion[name][said][read] or 0) + 1
      end
    end
  end
  for name, n in pairs(count) do
    out[name] = share(right[name], n)
    out[name].confusion = confusion[name]
  end
  out.all, out.everything = share(all, #clips), share(everything, #clips)
  local second = {}
  for _, clip in ipairs(clips) do
    for name, pair in pairs(clip.second or {}) do
      local s = second[name] or { 0, 0 }
      second[name] = { s[1] + (pair.said == pair.read and 1 or 0), s[2] + 1 }
    end
  end
  out.second = {}
  for name, s in pairs(second) do out.second[name] = share(s[1], s[2]) end
  return out
end

return M
