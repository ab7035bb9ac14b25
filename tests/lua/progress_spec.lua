local t = require "harness"
local log = require "melies.log"
local progress = require "melies.progress"
local term = require "melies.term"

-- What fn writes to standard error, and with a clock that moves only when told.
local clock
local function captured(terminal, fn)
  local parts, before, now = {}, io.stderr, term.now
  clock = 100
  io.stderr = { write = function(_, ...) for _, s in ipairs { ... } do parts[#parts + 1] = s end end } -- luacheck: ignore
  term.now = function() return clock end
  progress.terminal = terminal
  local ok, message = pcall(fn)
  io.stderr, term.now, progress.terminal = before, now, nil -- luacheck: ignore
  progress.reset()
  if not ok then error(message, 0) end
  return table.concat(parts)
end

t.test("piped: plain lines, at most one every five seconds, and the end", function()
  local text = captured(false, function()
    local bar = progress.bar { label = "sample", total = 20 }
    for i = 1, 20 do clock = clock + 1 bar:step(i) end
    bar:finish()
  end)
  t.eq(text, "sample 5/20 25% 15s left\nsample 10/20 50% 10s left\nsample 15/20 75% 5.0s left\nsample 20 in 20s\n")
end)

t.test("positional arguments, text, and an end before the last step", function()
  local text = captured(false, function()
    local bar = progress.bar("load", 4)
    clock = clock + 6
    bar:step(1, "text encoder")
    bar:finish()
    bar:finish() -- harmless
  end)
  t.eq(text, "load 1/4 25% 18s left text encoder\nload stopped at 1 of 4 after 6.0s\n")
end)

t.test("nested stages say where they are", function()
  local text = captured(false, function()
    local outer = progress.bar { label = "shot", total = 2 }
    outer:step(1)
    local inner = progress.bar { label = "sample", total = 8 }
    clock = clock + 5
    inner:step(4)
    inner:finish(false)
    outer:step()
    outer:finish("done")
  end)
  t.eq(text, "shot 2/2: sample 4/8 50% 5.0s left\nshot done in 5.0s\n")
end)

t.test("closing an outer bar closes the inner ones", function()
  captured(false, function()
    local outer, inner = progress.bar("a", 1), progress.bar("b", 1)
    outer:finish()
    t.ok(inner.closed)
    t.eq(progress.bar("c", 1).path, "c")
  end)
end)

t.test("the time left follows a moving average", function()
  captured(false, function()
    local bar = progress.bar { label = "x", total = 100 }
    for i = 1, 10 do clock = clock + 10 bar:step(i) end
    t.near(bar:eta(), 900, 1e-6)
    for i = 11, 40 do clock = clock + 1 bar:step(i) end -- ten times as fast from now on
    t.near(bar:eta(), 60, 2)
    clock = clock + 0.5
    t.near(bar:eta(), 59.5, 2)
    t.eq(progress.bar { label = "unknown" }:eta(), nil)
  end)
end)

t.test("on a terminal one line is redrawn, ten times a second at most", function()
  local text = captured(true, function()
    local bar = progress.bar { label = "decode", total = 1000 }
    for i = 1, 1000 do clock = clock + 0.001 bar:step(i) end
    bar:finish()
  end)
  local _, drawings = text:gsub("\r[^\r\n]*\27%[K", "")
  t.ok(drawings >= 8 and drawings <= 15, drawings .. " drawings")
  t.ok(text:find("decode 1000 in 1.0s\n", 1, true), text)
end)

t.test("the line keeps within the width", function()
  captured(true, function()
    local bar = progress.bar { label = "sampling", total = 20 }
    clock = clock + 1
    bar:step(10, "sigma 0.5")
    for width = 10, 120 do
      local line = progress.line(bar, width)
      t.ok(term.columns(line) < width, ("%d columns in %d"):format(term.columns(line), width))
    end
    t.ok(progress.line(bar, 100):find("10/20 50%", 1, true))
  end)
end)

t.test("messages stand above the line", function()
  local text = captured(true, function()
    progress.bar { label = "work", total = 2 }
    log.say("a note")
  end)
  t.ok(text:find("\r\27[Ka note\n", 1, true), text)
end)

t.test("--quiet silences", function()
  log.quiet = true
  local text = captured(true, function()
    local bar = progress.bar { label = "work", total = 2 }
    bar:step(1)
    bar:step(2)
    bar:finish()
    log.say("news")
  end)
  log.quiet = false
  t.eq(text, "")
end)

t.test("misuse raises at the caller's line", function()
  t.raises(function() progress.bar {} end, "progress_spec.lua")
end)

t.test("texts are cut by characters, not bytes", function()
  t.eq(term.cut("Méliès", 3), "Mél")
  t.eq(term.columns("Méliès"), 6)
end)

t.finish()
