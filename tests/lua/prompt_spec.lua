-- Prompt syntax: every rule, unbalanced input, random input, and the rows that weights give.
local t = require "harness"
local melies = require "melies"
local prompt, T = melies.prompt, melies.tensor

-- "text*weight|text*weight / next chunk & next condition" at a step.
local function said(text, step, steps, opts)
  local parsed = type(text) == "table" and text or prompt.parse(text, opts)
  local conditions = {}
  for i, c in ipairs(prompt.at(parsed, step or 1, steps or 20)) do
    local chunks = {}
    for k, chunk in ipairs(c.chunks) do
      local spans = {}
      for j, s in ipairs(chunk) do spans[j] = s.weight == 1 and s.text or ("%s*%.4g"):format(s.text, s.weight) end
      chunks[k] = table.concat(spans, "|")
    end
    conditions[i] = table.concat(chunks, " / ") .. (c.weight ~= 1 and (" w=%g"):format(c.weight) or "")
  end
  return table.concat(conditions, " & ")
end

t.test("emphasis", function()
  for text, want in pairs {
    ["a red ball"] = "a red ball",
    ["a (red) ball"] = "a |red*1.1| ball",
    ["a ((red)) ball"] = "a |red*1.21| ball",
    ["a [red] ball"] = "a |red*0.9091| ball",
    ["a (red:1.3) ball"] = "a |red*1.3| ball",
    ["a (red: .5 ) ball"] = "a |red*0.5| ball",
    ["(a:-1)b"] = "a*-1|b",
    ["(a (b:2) c:1.5)"] = "a *1.5|b*3| c*1.5",
    ["([x])"] = "x",
    ["(a:b)"] = "a:b*1.1",
    ["(a:b:1.2)"] = "a:b*1.2",
    ["(a|b, c)"] = "a|b, c*1.1",
    ["a\\(b\\) \\[c\\] \\\\ \\: \\< d\\e"] = "a(b) [c] \\ : < d\\e",
    ["(a\\:1.3)"] = "a:1.3*1.1",
    ["()"] = "", ["[]"] = "", [""] = "",
    ["time 10:30, a|b > c )"] = "time 10:30, a|b > c )",
  } do t.eq(said(text), want, text) end
end)

t.test("unbalanced brackets run to the end; closers alone are letters", function()
  for text, want in pairs {
    ["a (b c"] = "a |b c*1.1",
    ["a ((b c"] = "a |b c*1.21",
    ["a [b"] = "a |b*0.9091",
    ["a (b:1.5"] = "a |b*1.5",
    ["([a)]"] = "a)",
    ["(a]b)"] = "a]b*1.1",
    ["a) b] c>"] = "a) b] c>",
    ["<random:only"] = "only",
    ["<lora:x"] = "<lora:x",
    ["__"] = "__",
    ["\\"] = "\\",
  } do t.eq(said(text), want, text) end
  t.eq(said("[a:b:0.5", 1), "a")
  t.eq(said("[a:b:0.5", 11), "b")
end)

t.test("schedules", function()
  local cases = {
    { "[a:b:0.5]", { "a", [10] = "a", [11] = "b" } },
    { "[a:b:12]", { "a", [12] = "a", [13] = "b" } },
    { "[a::0.5]", { "a", [11] = "" } },
    { "[:b:0.25]", { "", [5] = "", [6] = "b" } },
    { "[b:5]", { "", [5] = "", [6] = "b" } },
    { "[a:b:0]", { "b" } }, { "[a:b:1.0]", { "a", [20] = "a" } },
    { "x [a (big:1.2):[b:c:0.8]:0.5] y", { "x a |big*1.2| y", [11] = "x b y", [17] = "x c y" } },
    { "([a:b:0.5]:1.4)", { "a*1.4", [11] = "b*1.4" } },
    { "<fromto[0.5]:a, b>", { "a", [11] = "b" } }, { "<fromto[3]:a|b, c>", { "a", [4] = "b, c" } },
  }
  for _, case in ipairs(cases) do
    for step, want in pairs(case[2]) do t.eq(said(case[1], step), want, ("%s at %d"):format(case[1], step)) end
  end
  t.eq(said("[a:b:c]"), "a:b:c*0.9091")
end)

t.test("alternation", function()
  for step, want in ipairs { "a", "b", "c", "a" } do t.eq(said("[a|b|c]", step), want) end
  for step, want in ipairs { "x a", "x", "x a" } do t.eq(said("x [a|]", step), want) end
  for step, want in ipairs { "a*2", "b:1", "a*2" } do t.eq(said("[(a:2)|b:1]", step), want) end
  for step, want in ipairs { "a", "b, c", "a" } do t.eq(said("<alternate:a||b, c>", step), want) end
  for step, want in ipairs { "a", "b" } do t.eq(said("<alt:a,b>", step), want) end
end)

t.test("BREAK and AND", function()
  t.eq(said "a BREAK b", "a / b")
  t.eq(said "(a BREAK b:1.2) c", "a*1.2 / b*1.2| c")
  t.eq(said "BREAK a BREAK", "a")
  t.eq(said "a \\BREAK xBREAK break", "a BREAK xBREAK break")
  t.eq(said "a AND b", "a & b")
  t.eq(said "a :0.5 AND (b:2) :-1.5", "a w=0.5 & b*2 w=-1.5")
  t.eq(said "(a AND b", "a*1.1 & b")
  t.eq(said "SAND and \\AND", "SAND and AND")
  t.eq(said("a AND b", 1, 20, { negative = true }), "a AND b")
  t.eq(#prompt.parse("a AND AND b").conditions, 3)
end)

t.test("LoRAs are taken out of the text", function()
  local p = prompt.parse("a <lora:film grain:0.8> red<lora:b> ball <lora:c:0.5@0.2-0.7><lyco:d:1,0.5,0> "
    .. "[<lora:e:2@5>x:y:0.5]")
  t.eq(said(p), "a red ball x")
  t.eq(#p.loras, 5) t.eq(#p.warnings, 0)
  t.eq(p.loras[1].name, "film grain") t.eq(p.loras[1].strength, 0.8) t.eq(p.loras[2].strength, 1)
  local function at(i, step) return prompt.strength_at(p.loras[i].strength, step, 20) end
  t.eq(at(1, 7), 0.8)
  t.eq(at(3, 4), 0) t.eq(at(3, 5), 0.5) t.eq(at(3, 14), 0.5) t.eq(at(3, 15), 0)
  t.eq(at(4, 1), 1) t.eq(at(4, 7), 1) t.eq(at(4, 8), 0.5) t.eq(at(4, 15), 0) t.eq(at(4, 20), 0)
  t.eq(at(5, 5), 0) t.eq(at(5, 6), 2) t.eq(at(5, 20), 2)
  p = prompt.parse "<lora:x:much> a"
  t.eq(p.loras[1].strength, 1) t.ok(p.warnings[1]:find("much", 1, true), p.warnings[1])
end)

t.test("choices come from the seed", function()
  local seen = {}
  for seed = 1, 60 do
    local one, again = said("<random:a,b,c>", 1, 1, { seed = seed }), said("<random:a,b,c>", 1, 1, { seed = seed })
    t.eq(one, again)
    seen[one] = (seen[one] or 0) + 1
  end
  t.ok(seen.a > 5 and seen.b > 5 and seen.c > 5, "all of them")
  t.eq(said("<random:(a, b:2)|(a, b:2)>"), "a, b*2")
end)

t.test("wildcards", function()
  local folder = t.folder()
  local function write(name, text)
    local f = assert(io.open(folder .. "/" .. name .. ".txt", "wb"))
    f:write(text)
    f:close()
  end
  write("colour", "# colours\r\nred\r\n\r\n  blue \n")
  write("thing", "(__colour__:1.2) ball\n")
  write("self", "x __self__ __self__\n")
  write("empty", "# nothing\n")
  local opts, seen = { wildcards = folder }, {}
  for seed = 1, 30 do
    opts.seed = seed
    seen[said("a __colour__ <wildcard:colour>", 1, 1, opts)] = true
  end
  for _, want in ipairs { "a red red", "a red blue", "a blue red", "a blue blue" } do t.ok(seen[want], want) end
  t.ok(({ ["a |red*1.2| ball"] = true, ["a |blue*1.2| ball"] = true })[said("a __thing__", 1, 1, opts)])
  for _, case in ipairs { { "__none__", "none" }, { "<wildcard:../colour>", "not a name" }, { "__empty__",
    "no lines" } } do
    local p = prompt.parse(case[1], opts)
    t.eq(said(p), case[1]) t.ok(p.warnings[1]:find(case[2], 1, true), p.warnings[1])
  end
  t.ok(prompt.parse("__self__", opts).warnings[1]:find("too many", 1, true))
  t.ok(prompt.parse("__colour__").warnings[1]:find("no folder", 1, true))
end)

t.test("directives of shots are data", function()
  local p = prompt.parse("[/duration=5s,/overlap=9,/new_shot] a dog (at 2 seconds: it (barks)) runs\n"
    .. "[/duration=2.5, /mood=dark] rain")
  t.eq(said(p), "a dog it |barks*1.1| runs rain")
  local one, timed, two = p.directives[1], p.directives[2], p.directives[3]
  t.eq(#p.directives, 3)
  t.eq(one.kind, "shot") t.eq(one.duration, 5) t.eq(one.overlap, 9) t.eq(one.new_shot, true)
  t.eq(one.text, "a dog (at 2 seconds: it (barks)) runs")
  t.eq(timed.kind, "at") t.eq(timed.seconds, 2) t.eq(timed.text, "it (barks)")
  t.eq(two.duration, 2.5) t.eq(two.mood, "dark") t.eq(two.text, "rain")
  t.eq(said "(at 1.5s: a", "a")
end)

t.test("plain words are left as they are, and style plain reads nothing", function()
  local text = "  two  blanks,\n\ta line: 50% <b> {c} "
  local p = prompt.parse(text)
  t.ok(p.plain) t.eq(prompt.at(p, 1, 1)[1].text, text)
  p = prompt.parse("a (b:2) [c|d] AND <lora:x:1> __y__", { style = "plain" })
  t.ok(p.plain) t.eq(prompt.at(p, 1, 1)[1].text, "a (b:2) [c|d] AND <lora:x:1> __y__") t.eq(#p.loras, 0)
  t.raises(function() prompt.parse("x", { style = "a1112" }) end, "did you mean 'a1111'")
  t.raises(function() prompt.parse("x", { sed = 1 }) end, "seed")
end)

t.test("equal keys are equal conditions", function()
  local p = prompt.parse "a [b:c:0.5] d"
  local function key(step) return prompt.at(p, step, 20)[1].key end
  t.eq(key(1), key(10)) t.eq(key(11), key(20)) t.ok(key(10) ~= key(11))
  t.ok(prompt.at(prompt.parse "(a:2)b")[1].key ~= prompt.at(prompt.parse "a(b:2)")[1].key)
end)

t.test("random strings of marks never fail and always end", function()
  local words = { "(", ")", "[", "]", "|", ":", ",", "<", ">",
    "\\", "__", "AND", "BREAK", "0.5", ":1.2)", ":3]", "a", " ",
    "\n", "\0", "<random:", "<alternate:", "<fromto[0.5]:", "<fromto[x]:", "<lora:", "<lora:n:1@2>", "<wildcard:",
      "(at 2 seconds:",
    "[/duration=5s]",
    "[/", "\xff", "\xe4\xbd", "__w__", "é" }
  local state = 12345
  local function draw(n)
    state = (state * 1103515245 + 12345) % 2 ^ 31
    return math.floor(state / 65536) % n + 1
  end
  local folder = t.folder()
  local f = assert(io.open(folder .. "/w.txt", "wb"))
  f:write("[a|__w__:\n(b:2 __w__ <random:__w__,[\n)\n")
  f:close()
  for round = 1, 3000 do
    local out = {}
    for i = 1, draw(24) do out[i] = words[draw(#words)] end
    local text = table.concat(out)
    local ok, p = pcall(prompt.parse, text, { seed = round, wildcards = folder })
    t.ok(ok, ("%q: %s"):format(text, tostring(p)))
    for _, step in ipairs { 1, 2, 7 } do
      for _, c in ipairs(prompt.at(p, step, 7)) do t.eq(type(c.text), "string") t.ok(c.weight == c.weight) end
    end
  end
  local deep = prompt.parse(("("):rep(20000) .. "x" .. (")"):rep(20000))
  t.ok(deep.warnings[1]:find("deeper", 1, true)) t.eq(#prompt.at(deep), 1)
  prompt.at(prompt.parse(("[a:"):rep(5000) .. ("<random:("):rep(5000)))
  t.eq(#prompt.parse(("x AND "):rep(500)).conditions, 501)
end)

-- ---- rows ------------------------------------------------------------------------------------------

local compute = melies.compute()
melies.set_compute "f32"
local model = assert(melies.pipeline.load "starter")
local function same(a, b, what) t.close(a, b, 0, 0, what) end

t.test("tokens and spans", function()
  local encode = require "melies.prompt.encode"
  local tokenizer = model.tokenizer
  local function weights(spans)
    local text = {}
    for i, s in ipairs(spans) do text[i] = s.text end
    local ids = tokenizer:encode(table.concat(text))
    ids[#ids + 1] = 1
    local out = {}
    for i, w in ipairs(encode.token_weights(tokenizer, ids, spans)) do
      out[i] = (i < #ids and tokenizer:piece(ids[i]) or "end") .. "=" .. w
    end
    return table.concat(out, " "):gsub("\226\150\129", "_")
  end
  local function span(text, weight) return { text = text, weight = weight or 1 } end
  t.eq(weights { span "a ", span("red", 2), span " ball" }, "_a=1 _red=2 _b=1 all=1 end=1")
  t.eq(weights { span "a", span(" red ", 2), span "ball" }, "_a=1 _red=2 _b=1 all=1 end=1")
  t.eq(weights { span("a red ball", 3) }, "_a=3 _red=3 _b=3 all=3 end=1")
  t.eq(weights { span "a ", span("ä", 2), span " ball" }, "_a=1 _=2 <0xC3>=2 <0xA4>=2 _b=1 all=1 end=1")
  t.eq(weights { span "a b", span("all", 2) }, "_a=1 _b=1 all=2 end=1")
  -- Every tokenizer of the fixtures: as many weights as tokens, those of the first word and the last as they should be.
  for _, files in ipairs { { "tok_spm_unigram_bytefallback.model" }, { "tok_spm_unigram_unk.model" },
    { "tok_hf_unigram.tokenizer.json" }, { "tok_spm_bpe_identity.model" }, { "tok_clip_vocab.json",
      "tok_clip_merges.txt" } } do
    local folder = os.getenv "MELIES_ROOT" .. "/tests/golden/"
    local tok = assert(melies.tokenizer.load(folder .. files[1], files[2] and folder .. files[2]))
    for _, middle in ipairs { "red", "球 é", "x, y" } do
      local spans = { span("one ", 2), span(middle, 3), span(" two", 4) }
      local ids = tok:encode("one " .. middle .. " two")
      local w = encode.token_weights(tok, ids, spans)
      local last = 0
      t.eq(w[1], 2, files[1]) t.eq(w[#w], 4, files[1]) t.eq(#w, #ids)
      for _, v in ipairs(w) do t.ok(v >= last, "in order") last = v end
    end
  end
end)

t.test("no marks, or weights of 1: the bits of the plain text", function()
  local plain = assert(model:encode "a red ball")
  same(model:encode(prompt.parse "a red ball"), plain)
  same(model:encode(prompt.parse "a (red:1) ball"), plain)
  same(model:encode(prompt.parse "a <lora:x:0.5> red ball", { steps = 4 }), plain)
  same(model:encode(prompt.parse("a [red] ball", { style = "plain" })), model:encode "a [red] ball")
end)

t.test("ComfyUI's weights: (z - z_empty) w + z_empty", function()
  local z, empty = model:encode "a red ball", model:encode ""
  local got = model:encode(prompt.parse "a (red:1.5) ball")
  same(got:slice(1, 1, 1), z:slice(1, 1, 1))
  t.close(got:slice(1, 2, 2), z:slice(1, 2, 2) * 1.5, 1e-6, 1e-6)
  same(got:slice(1, 3), z:slice(1, 3))
  got = model:encode(prompt.parse "(a:0.5) red ball")
  t.close(got:slice(1, 1, 1), z:slice(1, 1, 1) * 0.5 + empty:slice(1, 1, 1) * 0.5, 1e-6, 1e-6)
end)

t.test("A1111's weights: multiplied, the mean brought back", function()
  local z = model:encode "a red ball"
  local got = model:encode(prompt.parse("a (red:1.5) ball", { style = "a1111" }))
  local scaled = T.concat({ z:slice(1, 1, 1), z:slice(1, 2, 2) * 1.5, z:slice(1, 3) }, 1)
  t.close(got, scaled * (z:mean() / scaled:mean()), 1e-5, 1e-4)
  t.near(got:mean(), z:mean(), 1e-6)
end)

t.test("BREAK: parts one after the other; too long is told", function()
  same(model:encode(prompt.parse "a red ball BREAK a blue box"),
    T.concat({ model:encode "a red ball", model:encode "a blue box" }, 1))
  local long = ("a red ball BREAK "):rep(12)
  local rows, message = model:encode(prompt.parse(long))
  t.eq(rows, nil) t.ok(message:find("12 parts", 1, true), message)
  rows, message = model:encode(prompt.parse(long), { truncate = true })
  t.eq(rows.shape[1], model.text_len) t.ok(message:find("cut", 1, true), message)
end)

t.test("schedules: each text encoded once, in its steps", function()
  local count, encode = 0, model.encode
  local counting = setmetatable({ encode = function(self, text, opts)
    count = count + (type(text) == "string" and 1 or 0)
    return encode(self, text, opts)
  end }, { __index = model })
  local text = assert(prompt.conditions(prompt.parse "a [red:blue:0.5] ball", counting, { steps = 8 }))
  t.eq(count, 2)
  same(text:now()[1].rows, model:encode "a red ball")
  text:seek(5, 8)
  same(text:now()[1].rows, model:encode "a blue ball")
  t.eq(count, 2)
  local seen, told, sigmas = {}, {}, { 1, 0.75, 0.5, 0.25, 0 }
  local denoise = prompt.follow(function() seen[#seen + 1] = told[#told] end, sigmas,
    { text, { seek = function(_, step, steps) told[#told + 1] = step + steps / 10 end } })
  for _, sigma in ipairs { 1, 0.9, 0.75, 0.6, 0.5, 0.25, 1 } do denoise(nil, sigma) end
  t.eq(table.concat(seen, " "), "1.4 1.4 2.4 2.4 3.4 4.4 1.4")
  t.eq(#told, 5)
  -- A run with other steps than were told: what is said goes by the run's own.
  text = assert(prompt.conditions(prompt.parse "a [red|blue] ball", model, { steps = 1 }))
  text:seek(2, 4)
  same(text:now()[1].rows, model:encode "a blue ball")
end)

t.test("AND: u + sum of w (c - u)", function()
  local x, sigma = T.noise({ 48, 2, 4, 4 }, { seed = 1 }), 0.8
  local a, b, u = model:encode "a red ball", model:encode "a blue box", model:encode ""
  local v = model:predict(x, sigma, { a, b, u })
  local function x0(c, scale) return model:to_x0(x, sigma, T.lincomb { scale, c, 1 - scale, v[3] }) end
  local c = T.lincomb { 1, v[1], 0.5, v[2], -0.5, v[3] }
  for _, scale in ipairs { 1, 4 } do
    local text = model:encode(prompt.parse "a red ball AND a blue box:0.5")
    local denoise = melies.guide.cfg(model, { text = text, scale = scale })
    t.close(denoise(x, sigma), x0(c, scale), 1e-5, 1e-5, "scale " .. scale)
  end
  local one = melies.guide.cfg(model, { text = a, scale = 4 })(x, sigma)
  t.close(one, x0(v[1], 4), 1e-5, 1e-5)
end)

t.test("films: the same bits without marks, others with them", function()
  local function film(text, more)
    local p = { prompt = text, frames = 1, width = 32, height = 32, steps = 4, seed = 3 }
    for k, v in pairs(more or {}) do p[k] = v end
    return assert(melies.run("text_to_video", p, { progress = false }))
  end
  local plain = film "a red ball"
  same(film "a (red:1.0) ball", plain)
  same(film("a red ball", { prompt_style = "plain" }), plain)
  for _, text in ipairs { "a (red:1.8) ball", "a [red:blue:0.5] ball", "a [red|blue] ball", "a red ball AND a box",
    "a red ball BREAK a box" } do
    local d = (film(text) - plain):abs():amax()
    t.ok(d > 1e-3, text .. " changes the film")
  end
  same(film "a [red:blue:4] ball", plain)
end)

melies.set_compute(compute)
t.finish()
