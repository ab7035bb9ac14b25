-- Counts the decisions of a planner that are as the expectations of prompts.lua have them.
--   score(prompt, expected shots, board) -> right, all, { what is wrong }
local function ends_with(name, wanted)
  name, wanted = (name or ""):lower(), wanted:lower()
  if wanted == "" then return name == "" end
  return name == wanted or name:sub(-#wanted - 1) == " " .. wanted
    or (wanted:find(" ") and
      name:find(wanted:match("^%S+"), 1, true) and name:find(wanted:match("%S+$"), 1, true)) and true or false
end

local function same_who(who, wanted)
  local left, count = {}, 0
  for i, name in ipairs(who) do left[i] = name end
  for w in wanted:gmatch("[^,]+") do
    count = count + 1
    for i, name in ipairs(left) do
      if ends_with(name, w) then table.remove(left, i) break end
    end
  end
  return #left == 0 and count == #who
end

local function begins_with(text, words)
  return text:lower():sub(1, #words) == words:lower()
end

return function(expected, board)
  local right, all, wrong = 0, 0, {}
  local function decide(ok, format, ...)
    all = all + 1
    if ok then right = right + 1 else wrong[#wrong + 1] = format:format(...) end
  end
  local used = {}
  for i, want in ipairs(expected) do
    local found
    for k, shot in ipairs(board.shots) do
      if not used[k] and begins_with(shot.text, want[1]) then found = k break end
    end
    local shot = found and board.shots[found] or { who = { "?" }, where = "?" }
    if found then used[found] = true end
    decide(found, "no shot begins with '%s'", want[1])
    decide(same_who(shot.who, want[2]), "%d who: %s, wanted %s", i, table.concat(shot.who, ","), want[2])
    decide(ends_with(shot.where, want[3]), "%d where: %s, wanted %s", i, tostring(shot.where), want[3])
    local join = want[4] == "first" and "none" or want[4]
    decide(shot.transition == join, "%d join: %s, wanted %s", i, tostring(shot.transition), join)
    for _, key in ipairs { "camera", "light" } do
      if want[key] then
        decide((shot[key] or ""):find(want[key], 1, true), "%d %s: %s, wanted %s", i, key, tostring(shot[key]), want[key])
      end
    end
    if want.seconds then
      decide(math.abs((shot.seconds or 0) - want.seconds) <= 0.3,
        "%d seconds: %s, wanted %g", i, tostring(shot.seconds), want.seconds)
    end
  end
  for k, shot in ipairs(board.shots) do -- a shot too many is a decision too many
    if not used[k] then decide(false, "nobody expects '%s'", shot.text) end
  end
  return right, all, wrong
end
