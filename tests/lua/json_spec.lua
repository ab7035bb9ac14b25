local t = require "harness"
local json = require "melies.json"
local ffi = require "ffi"

t.test("values of every kind", function()
  local v = assert(json.decode('{"a":[1,-2.5,true,false,null,"x\\u00e9\\u0000y"],"b":{},"c":[]}'))
  t.eq(v.a[1], 1)
  t.eq(v.a[2], -2.5)
  t.eq(v.a[3], true)
  t.eq(v.a[4], false)
  t.eq(v.a[5], json.null)
  t.eq(v.a[6], "x\195\169\0y")
  t.ok(json.is_array(v.c) and not json.is_array(v.b))
  t.eq(json.decode("3"), 3)
  t.eq(json.decode('"s"'), "s")
  t.eq(tostring(json.null), "null")
end)

t.test("integers are exact", function()
  local big = json.decode("[9007199254740992, 9007199254740993, -9223372036854775808]")
  t.eq(type(big[1]), "number")
  t.ok(ffi.istype("int64_t", big[2]) and big[2] == 9007199254740993LL)
  t.eq(json.encode(big), "[9007199254740992.0,9007199254740993,-9223372036854775808]")
  local _, message = json.decode("9223372036854775808")
  t.ok(message:find("too big integer", 1, true), message)
end)

t.test("what is not JSON", function()
  local value, message = json.decode('{"a": 1,\n "a": 2}', "file.json")
  t.eq(value, nil)
  t.ok(message:find("file.json: line 2", 1, true) and message:find("duplicate", 1, true), message)
  for _, bad in ipairs { "", "{", "[1,]", "{'a':1}", "nul", "1 2", "[1e999]", '"\255"', ("["):rep(5000) } do
    local v, why = json.decode(bad)
    t.ok(v == nil and type(why) == "string", bad)
  end
  t.raises(function() json.decode(3) end, "a string is wanted, not a number")
end)

t.test("writing is stable", function()
  local v = { b = 1, a = { 1, 2, { x = json.null } }, c = json.array(), d = {}, e = 'q"\\\n\1é' }
  local text = json.encode(v)
  t.eq(text, '{"a":[1,2,{"x":null}],"b":1,"c":[],"d":{},"e":"q\\"\\\\\\n\\u0001é"}')
  t.eq(json.encode(json.decode(text)), text)
  t.eq(json.encode({ a = { 1, 2 }, b = {} }, { indent = 2 }), '{\n  "a": [\n    1,\n    2\n  ],\n  "b": {}\n}')
  t.raises(function() json.encode({}, { indnt = 2 }) end, "did you mean 'indent'?")
end)

t.test("numbers round trip", function()
  math.randomseed(1)
  local list = { 0.1, 1 / 3, 1e300, -1e-300, 123456.789, 5e-324, 1.7976931348623157e308, 2 ^ 53, 2 ^ 70, -0.0 }
  for _ = 1, 500 do list[#list + 1] = (math.random() - 0.5) * 10 ^ math.random(-30, 30) end
  local back = json.decode(json.encode(list))
  for i, x in ipairs(list) do t.eq(back[i], x) end
  t.eq(json.encode(0.1), "0.1")
  t.eq(json.encode(-0.0), "-0.0")
  t.eq(json.encode(1e15), "1000000000000000")
end)

t.test("what cannot be written", function()
  local loop = {}
  loop.a = { loop }
  t.raises(function() json.encode(loop) end, "at a[1]: a table that holds itself")
  t.raises(function() json.encode({ a = { b = print } }) end, "at a.b: a function cannot be JSON")
  t.raises(function() json.encode({ 0 / 0 }) end, "nan cannot be JSON")
  t.raises(function() json.encode(math.huge) end, "inf cannot be JSON")
  t.raises(function() json.encode({ 1, nil, 3 }) end, "holes")
  t.raises(function() json.encode({ 1, x = 2 }) end, "both a list and the key 'x'")
  t.raises(function() json.encode({ [2.5] = 2 }) end, "not a string")
  t.raises(function() json.encode({ a = "\255" }) end, "byte 1 of a string is not UTF-8")
  local shared = { 1 }
  t.eq(json.encode({ shared, shared }), "[[1],[1]]")
end)

t.test("files", function()
  local dir = t.folder()
  local path = dir .. "/a.json"
  t.ok(json.write(path, { x = { 1, 2 } }, { indent = 2 }))
  t.eq(json.read(path).x[2], 2)
  t.ok(json.write(path, { x = 3 }))
  t.eq(json.read(path).x, 3)
  t.raises(function() json.write(path, print) end, "json.write: a function")
  t.eq(json.read(path).x, 3)
  local p = io.popen("ls '" .. dir .. "'")
  t.eq(p:read("*a"), "a.json\n")
  p:close()
  local ok, message = json.write(dir .. "/none/a.json", {})
  t.ok(ok == nil and message:find("none/a.json", 1, true), message)
  local value, why = json.read(dir .. "/missing.json")
  t.ok(value == nil and why:find("missing.json", 1, true), why)
end)

t.finish()
