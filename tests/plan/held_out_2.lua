-- Prompts written after the planner was last changed, and left as they were. The form is that of prompts.lua.
return {
  { "A tired nurse sits in an empty corridor at night. A cat walks past. She smiles and follows it.",
    { "A tired nurse", "nurse", "corridor", "first", light = "night" }, { "A cat", "cat", "corridor", "overlap" },
    { "She smiles", "nurse,cat", "corridor", "overlap" } },
  { "Three penguins slide down an icy hill. One of them stumbles. Cut to the sea, where a seal watches.",
    { "Three penguins", "penguins", "hill", "first" }, { "One of them", "penguins", "hill", "overlap" },
    { "the sea", "seal", "sea", "cut" } },
  { "A silver robot paints a fence in a backyard. Then a dog runs through the wet paint. The robot sighs.",
    { "A silver robot", "robot", "backyard", "first" }, { "a dog", "dog", "backyard", "overlap" },
    { "The robot sighs", "robot", "backyard", "overlap" } },
  { "Aerial shot of a small sailboat on a calm lake at dawn. Cut to a heron, it catches a fish.",
    { "Aerial shot", "sailboat", "lake", "first", camera = "aerial", light = "dawn" },
    { "a heron", "heron,fish", "lake", "cut" } },
  { "Lena unlocks the workshop and lights a lamp. Outside, snow falls on the street for 5 seconds. "
    .. "Later, Lena sleeps on a bench.",
    { "Lena unlocks", "lena", "workshop", "first" }, { "snow falls", "", "street", "cut", seconds = 5 },
    { "Later", "lena", "", "cut" } },
  { "A blue kite drifts over a beach. A boy chases it. He trips and laughs.",
    { "A blue kite", "kite", "beach", "first" }, { "A boy", "boy,kite", "beach", "overlap" },
    { "He trips", "boy", "beach", "overlap" } },
}
