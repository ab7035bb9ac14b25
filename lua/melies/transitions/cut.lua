-- melies-api: 1
-- One shot ends, the next begins.
return {
  kind = "transition", name = "cut", params = {},
  frames = function() return 0 end,
  run = function(tail, head)
    local frames = {}
    for _, frame in ipairs(tail) do frames[#frames + 1] = frame end
    for _, frame in ipairs(head) do frames[#frames + 1] = frame end
    return frames, #tail + 1
  end,
}
