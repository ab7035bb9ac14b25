-- Progress of long work, on stderr: a line that is redrawn on a terminal, plain lines elsewhere, nothing
-- with --quiet.
--
--   local bar = progress.bar { label = "sample", total = 20 }
--   bar:step(i, "sigma 0.4")      -- i of 20 are done; without i: one more
--   bar:finish()
--
-- A bar made while another is open is its inner stage: the line shows the outer ones before it.
local log = require "melies.log"
local term = require "melies.term"

local progress = {
  redraw_s = 0.1, -- shortest time between two drawings on a terminal
  plain_s = 5,    -- and between two plain lines
  terminal = nil, -- true or false: do as if standard error were one, or were none
}

local stack = {}         -- open bars, the outermost first
local drawn = false      -- is there a line on the screen that must be overwritten?
local last_draw = -1e9

local Bar = {}
Bar.__index = Bar

local function seconds_text(s)
  if s < 9.95 then return ("%.1fs"):format(s) end
  if s < 99.5 then return ("%.0fs"):format(s) end
  if s < 5999 then return ("%d:%02d"):format(math.floor(s / 60), math.floor(s % 60)) end
  return ("%d:%02d:%02d"):format(math.floor(s / 3600), math.floor(s / 60) % 60, math.floor(s % 60))
end
progress.seconds_text = seconds_text

-- Seconds that the rest of bar will take, nil before the first step.
function Bar:eta()
  if not self.pace or not self.total then return nil end
  return math.max(0, (self.total - self.done) * self.pace - (term.now() - self.stepped))
end

local function counts(bar)
  if not bar.total then return tostring(bar.done) end
  local percent = bar.total > 0 and math.floor(100 * bar.done / bar.total) or 100
  return ("%s/%s %d%%"):format(bar.done, bar.total, percent)
end

local function plain_line(bar)
  local parts = { bar.path, counts(bar) }
  local left = bar:eta()
  if left and bar.done < bar.total then parts[#parts + 1] = seconds_text(left) .. " left" end
  if bar.text then parts[#parts + 1] = bar.text end
  return table.concat(parts, " ")
end

local function picture(fraction, width)
  local full, empty = "#", "-"
  if term.utf8() then full, empty = "━", "╌" end
  local n = math.max(0, math.min(width, math.floor(fraction * width + 0.5)))
  return full:rep(n) .. empty:rep(width - n)
end

-- The line of the innermost bar for a terminal of the given width (never the last column: it may wrap).
function progress.line(bar, width)
  local tail = counts(bar)
  local left = bar:eta()
  if left and bar.done < bar.total then tail = tail .. "  " .. seconds_text(left) .. " left" end
  if bar.text then tail = tail .. "  " .. bar.text end
  local room = width - 1 - term.columns(bar.path) - term.columns(tail) - 2
  local middle = ""
  if bar.total and bar.total > 0 and room >= 8 then
    middle = picture(bar.done / bar.total, math.min(30, room)) .. " "
  end
  return term.cut(bar.path .. " " .. middle .. tail, width - 1)
end

local function terminal()
  if progress.terminal ~= nil then return progress.terminal end
  return term.isatty(2) and os.getenv "TERM" ~= "dumb"
end

local function hide()
  if drawn then io.stderr:write("\r\27[K") drawn = false end
end

local function draw(now)
  local bar = stack[#stack]
  if not bar then return end
  last_draw = now
  io.stderr:write("\r", progress.line(bar, (term.size(2))), "\27[K")
  drawn = true
end

log.guard = {
  hide = hide,
  show = function() if #stack > 0 and not log.quiet and terminal() then draw(term.now()) end end,
}

-- done: how many of total are complete (nil: one more); text: what is being done now (kept until the next).
function Bar:step(done, text)
  local now = term.now()
  done = done or self.done + 1
  local advance = done - self.done
  if advance > 0 then
    -- the average forgets: two thirds of the weight are on the last five steps
    local sample = (now - self.stepped) / advance
    local weight = 1 - 0.8 ^ advance
    self.pace = self.pace and self.pace + weight * (sample - self.pace) or sample
    self.stepped = now
  end
  self.done = done
  if text ~= nil then self.text = text or nil end
  if log.quiet or stack[#stack] ~= self then return end
  if terminal() then
    if now - last_draw >= progress.redraw_s then draw(now) end
  elseif now - self.said >= progress.plain_s and done ~= self.total then
    self.said = now
    io.stderr:write(plain_line(self), "\n")
  end
end

-- A new total, where it became known or changed.
function Bar:set_total(total) self.total = total end

-- Closes the bar (and bars inside it that were left open). Its last line stays: label, count and time taken, or where
-- it stopped before the end. note: said in place of the count; false leaves no line.
function Bar:finish(note)
  if self.closed then return end
  local index
  for i = #stack, 1, -1 do if stack[i] == self then index = i break end end
  for i = #stack, index or #stack + 1, -1 do stack[i].closed = true stack[i] = nil end
  self.closed = true
  if log.quiet then return end
  hide()
  local took = seconds_text(term.now() - self.began)
  if self.total and self.done < self.total and note == nil then
    io.stderr:write(("%s stopped at %d of %d after %s\n"):format(self.path, self.done, self.total, took))
  elseif note ~= false then
    local count = note or (self.total ~= 1 and self.done) or nil
    io.stderr:write(("%s%s in %s\n"):format(self.path, count and " " .. count or "", took))
  end
  if terminal() then draw(term.now()) end
end

-- progress.bar{ label=, total= }, also progress.bar(label, total): opens a bar. label: what is done; total: how many
-- steps (nil: unknown).
function progress.bar(options, total)
  if type(options) == "string" then options = { label = options, total = total } end
  if type(options) ~= "table" or type(options.label) ~= "string" then
    error("progress.bar: give it { label = \"...\", total = n }", 2)
  end
  local now = term.now()
  local outer = stack[#stack]
  local path = options.label
  if outer then
    path = outer.path .. (outer.total and (" %d/%d"):format(math.min(outer.done + 1, outer.total), outer.total) or "")
      .. ": " .. path
  end
  local bar = setmetatable({
    label = options.label, path = path, total = options.total, done = 0,
    began = now, stepped = now, said = now,
  }, Bar)
  stack[#stack + 1] = bar
  if not log.quiet and terminal() then draw(now) end
  return bar
end

-- Forgets all open bars and clears their line: after an error or Ctrl-C.
function progress.reset()
  hide()
  for i = #stack, 1, -1 do stack[i].closed = true stack[i] = nil end
end

return progress
