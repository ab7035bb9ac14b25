-- Tensors in five minutes: axes and indices count from 1, -1 is the last, ranges include both ends.
local melies = require "melies"
local T = melies.tensor

local x = T.of({ 1, 2, 3, 4, 5, 6 }, { 2, 3 })
print("shape", table.concat(x.shape, "x"), "dtype", x.dtype, "bytes", x:bytes())

-- Views share storage: writing through one shows in the other.
local column = x:select(2, 3)
column:fill_(0)
print("after column:fill_(0)", table.concat(x:list(), " "))

-- Arithmetic broadcasts.
local y = (x + T.of({ 10, 20, 30 }, { 1, 3 })) / 2
print("(x + row) / 2", table.concat(y:list(), " "))

-- Reductions: along an axis a tensor, without one a number.
print("sum of rows", table.concat(y:sum(2):list(), " "), "mean", y:mean())

-- Matrix products and layers.
local a, b = melies.noise({ 4, 8 }, { seed = 1 }), melies.noise({ 8, 3 }, { seed = 2 })
print("matmul", table.concat(a:matmul(b).shape, "x"))
local layer = melies.nn.linear(melies.noise({ 16, 8 }, { seed = 3 }), nil)
print("linear with gelu", table.concat(layer(a, { act = "gelu" }).shape, "x"))

-- Noise is a function of seed, stream and place: the same numbers on any machine and any number of threads.
local first, again = melies.noise({ 3 }, { seed = 42 }), melies.noise({ 3 }, { seed = 42 })
print("same seed, same noise", (first - again):abs():amax() == 0)

-- A tensor knows its size; the collector frees it, :free() does so at once.
print("bytes", a:bytes())
a:free()
