-- Words that the rule planner knows: movers, places, verbs, and the closed vocabularies of camera and light.
local M = {}

local function set(text)
  local s = {}
  for word in text:gmatch("%S+") do s[word] = true end
  return s
end

-- ---- small words -----------------------------------------------------------------------------------

M.determiners = set [[a an the this that these those his her its their my our your one two three four five six seven
  eight nine ten some several many another each every both few various dozens hundreds thousands no]]
M.possessives = set "his her its their my our your"
M.plural_determiners = set [[two three four five six seven eight nine ten several many few various dozens hundreds
  thousands these those both]]
M.numbers = { a = 1, an = 1, one = 1, two = 2, three = 3, four = 4, five = 5, six = 6, seven = 7, eight = 8, nine = 9,
  ten = 10, twelve = 12, fifteen = 15, twenty = 20, thirty = 30, forty = 40, fifty = 50, sixty = 60, half = 0.5 }
M.some_of = set "one two three some several all both none many few each" -- of them
M.prepositions = set [[in on at over through across along into to down up from inside under near outside around onto
  off past toward towards above below behind beside between by with without of for against among beneath beyond like
  as during until upon within before after about amid amidst aboard atop alongside underneath via]]
-- Those that say where something happens, or where it arrives.
M.at_place = set [[in on at over through across along into to down up inside around onto within amid amidst aboard
  atop outside above]]
M.conjunctions = set "and or but while as when then so because if where who which whose that than yet nor"
M.auxiliaries = set [[is are was were be been being has have had do does did can could will would shall should may
  might must isn't aren't can't]]
M.adverbs = set [[very slowly quickly then again away back forward forwards backwards together alone there here now
  just only also too still suddenly softly out upwards downwards left right up down off apart everywhere high low fast
  already almost even never always ahead far nearby once soon later meanwhile outside inside elsewhere finally
  eventually afterwards today tonight]]
M.pronouns = { it = "thing", he = "male", him = "male", she = "female", her = "female", they = "plural",
  them = "plural", himself = "self", herself = "self", itself = "self", themselves = "self" }

M.adjectives = set [[red green blue yellow purple orange white pink black grey gray brown golden silver dark bright
  light big small large tiny huge giant little tall short long wide narrow deep old young new ancient modern beautiful
  pretty ugly lonely single empty full busy quiet noisy calm stormy sunny rainy snowy misty foggy cloudy wet dry damp
  warm cold hot icy frozen soft hard rough smooth shiny rusty dusty dirty clean fluffy furry woolly hairy round square
  flat sharp heavy thin thick fat slim strong weak fast slow wild tame happy sad angry sleepy brave proud elegant
  stylish fancy cute friendly scary creepy mysterious magical enchanted abandoned ruined broken wooden metal stone
  glass paper plastic steam electric robotic cybernetic futuristic medieval vintage retro classic rural urban tropical
  coastal rocky sandy grassy green-eyed colorful colourful vibrant pale glowing neon lush dense open closed distant
  nearby same other different next last first second third steep good great lovely whole vast endless infinite cozy
  cosy real photorealistic cinematic animated cartoon anime dramatic epic gentle late early mid polar arctic
  desert-like]]

-- ---- who -------------------------------------------------------------------------------------------

M.female = set [[woman women girl girls mother grandmother lady queen princess ballerina actress sister daughter witch
  nun waitress wife bride mermaid goddess aunt mom grandma heroine businesswoman]]
M.male = set [[man men boy boys father grandfather king prince fisherman monk gentleman actor brother son wizard
  waiter husband groom uncle dad grandpa cowboy businessman fireman policeman]]
M.people = set [[person people child children kid kids baby toddler chef cook farmer astronaut detective knight pilot
  driver dancer dancers singer musician guitarist pianist drummer violinist student students teacher doctor nurse
  soldier soldiers warrior warriors samurai ninja pirate pirates sailor sailors captain hiker climber runner cyclist
  surfer skateboarder skier snowboarder swimmer diver boxer athlete player crowd couple family friends stranger
  traveler traveller explorer scientist engineer painter artist sculptor writer photographer worker workers miner
  builder carpenter blacksmith baker barista gardener hunter thief robber spy hero villain officer guard passenger
  passengers tourist shepherd beggar vendor merchant clown magician acrobat bride audience team teenager elder
  commuter commuters villager villagers figure silhouette passerby librarian hacker gamer model chef mechanic courier
  kindergartners skater]]
M.animals = set [[animal creature beast cat kitten dog puppy retriever poodle terrier hound husky corgi dalmatian wolf
  fox bear panda lion lioness tiger leopard cheetah elephant mammoth mammoths giraffe zebra horse pony foal unicorn
  donkey cow bull sheep lamb goat pig rabbit hare bunny squirrel mouse rat hamster hedgehog deer moose stag fawn
  monkey gorilla ape chimpanzee kangaroo koala otter beaver seal walrus whale dolphin shark fish goldfish salmon
  octopus squid jellyfish crab lobster turtle tortoise frog toad lizard snake crocodile alligator dinosaur dragon bird
  eagle hawk owl parrot crow raven pigeon dove duck duckling goose swan penguin chicken rooster hen peacock flamingo
  seagull sparrow hummingbird bat bee butterfly moth dragonfly ant spider beetle firefly fireflies snail worm bug
  insect phoenix monster alien ghost zombie vampire fairy elf dwarf troll goblin robot android cyborg golem camel
  llama alpaca raccoon chameleon bison buffalo lemur sloth ladybug caterpillar]]
M.things = set [[ball cube triangle star sphere pyramid cylinder cone circle balloon kite car truck bus taxi van
  motorcycle bicycle bike scooter skateboarder train locomotive tram ship boat sailboat canoe kayak raft submarine
  yacht ferry plane airplane aeroplane jet helicopter drone rocket spaceship spacecraft spaceship ufo satellite tank
  tractor ambulance wagon carriage cart sled sleigh hovercraft toy doll puppet teddy marionette snowman scarecrow
  airship zeppelin gondola lighthouse statue windmill]]
M.vehicles = set [[car truck bus taxi van train tram ship boat submarine yacht ferry plane airplane helicopter
  carriage spaceship spacecraft ambulance limousine airship gondola]]
-- A general word and the particular ones that it may stand for.
M.kinds = {
  dog = set "retriever puppy poodle terrier hound husky corgi dalmatian", cat = set "kitten", ship = set "boat sailboat",
  boat = set "sailboat canoe kayak raft ferry gondola ship", horse = set "pony foal unicorn", car = set "taxi van",
  bird = set [[eagle hawk owl parrot crow raven pigeon dove duck goose swan penguin seagull sparrow hummingbird flamingo
    peacock]], train = set "locomotive tram", plane = set "airplane aeroplane jet", child = set "boy girl kid toddler",
  robot = set "android cyborg", spaceship = set "spacecraft rocket ufo",
}

-- ---- where -----------------------------------------------------------------------------------------

M.places = set [[field grass meadow lawn park garden forest woods woodland jungle rainforest savanna savannah prairie
  desert dune dunes oasis beach shore coast seaside ocean sea lake pond river stream creek waterfall lagoon reef
  harbour harbor port pier dock marina island bay cliff cliffs mountain mountains hill hills hillside valley canyon
  gorge cave cavern volcano glacier iceberg snow tundra ice swamp marsh sky heavens clouds space moon mars planet
  galaxy orbit street road alley avenue highway boulevard lane path trail sidewalk pavement crosswalk intersection
  square plaza bridge tunnel city town village downtown suburb skyline rooftop roof courtyard market bazaar mall shop
  store supermarket bakery cafe café restaurant diner bar pub club nightclub hotel lobby office room bedroom kitchen
  bathroom livingroom attic basement cellar garage hallway corridor staircase elevator lift house home cabin hut
  cottage farmhouse farm barn stable castle palace tower temple church cathedral mosque monastery shrine museum
  gallery library school classroom university laboratory lab hospital theater theatre cinema stage arena stadium gym
  pool playground circus festival concert fairground carnival station airport subway platform runway gutter ditch
  factory warehouse workshop studio mine quarry prison dungeon ruins graveyard cemetery battlefield camp campsite
  vineyard orchard greenhouse plantation bamboo backyard yard porch balcony terrace patio countryside wilderness
  underwater seabed spaceport cockpit cabin arcade aquarium zoo launchpad construction saloon tavern inn ballroom hall
  hallways carriage parking-lot bus-stop void background interior alleyway boardwalk canal fjord plain plains steppe
  trench workshop]]
-- Words of a place that are no place by themselves: a landscape, not where a mover stands.
M.on_places = set [[field grass meadow lawn beach shore coast ocean sea lake river street road avenue highway path
  trail sidewalk bridge rooftop roof stage hill hillside mountain cliff island platform pier dock moon mars planet
  farm battlefield square plaza playground ice snow pond balcony terrace porch balcony dunes dune runway boardwalk]]
M.indoors = set [[room bedroom kitchen bathroom attic basement cellar garage hallway corridor staircase elevator lift
  house home cabin hut cottage farmhouse barn library office lobby hotel restaurant cafe café bar pub club diner shop
  store museum gallery classroom laboratory lab hospital theater theatre cinema stage gym factory warehouse workshop
  studio prison dungeon church cathedral carriage cave tunnel mall supermarket station subway arcade tavern inn
  ballroom hall]]
-- "looks at the sea": a direction, not a place to be.
M.pointing = set "look stare gaze point smile wave shout bark laugh yell nod glance shoot throw peer"
M.entering = set "enter reach cross visit explore approach traverse"

-- Never somebody, whatever verb follows.
M.scenery = set [[rain snow wind sun sunlight sunshine light lights spotlight moonlight moon lamp-light shadow shadows
  fog mist smoke steam dust sky cloud clouds wave waves tide leaf leaves petals fire flame flames lightning thunder
  storm street music sound air water grass trees background foreground scene camera shot view lens frame film video
  image picture mood atmosphere style animation movie clip footage colors colours color colour palette lighting depth
  focus reflection reflections hair fur face eyes hands hand feet legs arms tail wings mouth head fingers mane coat
  dress jacket suit hat clothes skin feathers eye ears smile day night morning evening afternoon dusk dawn sunset
  sunrise spring summer autumn winter noon midnight time title text angle close-up closeup left right way front side
  top bottom middle center centre distance edge moment second seconds minute minutes rays beam beams snowflakes drops
  raindrops confetti sparks bubbles dirt towers buildings lights glow texture]]
M.view_words = set [[view shot close-up closeup footage image picture video film clip scene photo angle portrait
  glimpse panorama look]]
M.group_words = set "group herd flock pack swarm pair team line crowd bunch school army fleet family couple row"

-- ---- verbs -----------------------------------------------------------------------------------------

local stems = set [[roll bounce spin grow shrink fall rise move float fly run walk jump leap hop skip dance play swim
  dive sail drive ride race chase follow climb crawl creep slide glide drift soar hover land take throw catch kick hit
  push pull lift drop carry hold put pick give open close shut enter leave exit reach arrive return turn look watch
  stare gaze see find search discover explore wander stroll march jog sprint stop start begin continue wait stand sit
  lie sleep wake rest stretch laugh smile cry weep shout scream sing talk speak whisper call wave nod bow kneel pray
  read write draw paint build make create break crash explode burn melt freeze shine glow flicker blink sparkle ring
  sound play mend fix repair chop cut cook bake eat drink pour stir wash sweep clean knit sew plant water dig harvest
  fish hunt fight battle attack defend shoot throw swing balance juggle skate ski surf paddle row pedal pass cross
  meet greet hug kiss shake light smoke press check answer dial type work study teach learn think dream remember
  disappear vanish appear emerge transform change become open bloom blossom wither sway rock tremble shiver shake
  rotate orbit circle twirl whirl flip tumble stumble trip slip sink splash drip flow rain snow blow howl bark meow
  roar growl purr chirp hiss stir approach rush hurry dash flee escape hide seek sneak peek feed graze gallop trot
  charge perform practice train exercise box wrestle bathe shower dress undress wear carry pack unpack travel visit
  cross go come get do say tell ask try keep let lead bring send receive buy sell trade steal rob hang lean reach
  point touch feel smell taste hear listen breathe sigh yawn sneeze cough blush frown wink pose stand gather crowd
  celebrate cheer clap applaud toast swirl scatter spread unfold fold wrap tie untie lock unlock knock slam bite chew
  swallow lick nibble sip stalk pounce perch nest hatch lay dissolve fade pan tilt zoom track dolly show reveal
  capture depict feature face head drag tow load unload lift launch erupt collapse crumble shatter crack twist bend
  stretch squeeze squash paddle drum strum conduct meditate help rescue save serve offer share wade wander weave
  zigzag patrol guard scan battle join sled toss hurl cycle hike camp pilot steer park brake accelerate descend ascend
  orbit dock rappel plunge plummet tiptoe waddle fill cover surround scurry scamper slither flutter flap pulse vibrate
  tinkle jingle chime rattle creak clatter ripple shape mould carve polish shovel sharpen hammer saw weld sand rake mow trim
  prune scrub mop wipe dust iron peel slice grind knead whisk fry grill roast boil serve decorate inspect examine measure weigh
  sketch photograph record film adjust steer untangle inflate deflate scoop sprinkle sow milk shear saddle groom herd
  resemble contain belong seem rumble bow salute peer crouch squat collect]]
-- Verbs that say how something is: a sentence of these describes, and is no shot by itself.
M.static = set "wear carry have resemble contain belong seem face look-like feature"

local base, third, gerund, past = {}, {}, {}, {}
local irregular = { run = "ran", swim = "swam", fly = "flew", rise = "rose", fall = "fell", sit = "sat", stand = "stood",
  take = "took", find = "found", go = "went", come = "came", leave = "left", sleep = "slept", drive = "drove",
  ride = "rode", sing = "sang", see = "saw", meet = "met", hold = "held", eat = "ate", throw = "threw", catch = "caught",
  grow = "grew", wake = "woke", lie = "lay", break_ = "broke", spin = "spun", dive = "dove", wear = "wore", stop = "stopped" }
for stem in pairs(stems) do
  base[stem] = stem
  local s = stem
  if s:find("[^aeiou]y$") then third[s:sub(1, -2) .. "ies"], past[s:sub(1, -2) .. "ied"] = s, s
  elseif s:find("[sxz]$") or s:find("[cs]h$") or s:find("o$") then third[s .. "es"], past[s .. "ed"] = s, s
  else third[s .. "s"], past[s .. (s:find("e$") and "d" or "ed")] = s, s end
  if s:find("ie$") then gerund[s:sub(1, -3) .. "ying"] = s
  elseif s:find("[^e]e$") then gerund[s:sub(1, -2) .. "ing"] = s
  else gerund[s .. "ing"] = s end
  if s:find("[^aeiou][aeiou][bdgklmnprt]$") then
    gerund[s .. s:sub(-1) .. "ing"], past[s .. s:sub(-1) .. "ed"] = s, s
  end
  if irregular[s] then past[irregular[s]] = s end
end
M.base, M.third, M.gerund, M.past = base, third, gerund, past

-- The stem of a verb's form, or nil. Base forms are told by the second value.
function M.verb(word)
  if third[word] then return third[word], "third" end
  if gerund[word] then return gerund[word], "gerund" end
  if base[word] then return word, "base" end
  if past[word] then return past[word], "past" end
end

local plurals = { children = "child", people = "person", men = "man", women = "woman", wolves = "wolf", mice = "mouse",
  geese = "goose", knives = "knife", leaves = "leaf", feet = "foot", fireflies = "firefly", butterflies = "butterfly" }
-- "balls" -> "ball".
function M.singular(word)
  if plurals[word] then return plurals[word] end
  if word:find("[^aeiou]ies$") then return word:sub(1, -4) .. "y" end
  if word:find("[sxz]es$") or word:find("[cs]hes$") then return word:sub(1, -3) end
  if word:find("s$") and not word:find("[siu]s$") then return word:sub(1, -2) end
  return word
end
function M.is_plural(word) return M.singular(word) ~= word end

local function member(list, word) return list[word] or list[M.singular(word)] or false end
function M.mover(word)
  return member(M.people, word) or member(M.animals, word) or member(M.things, word) or member(M.female, word)
    or member(M.male, word)
end
function M.human(word) return member(M.people, word) or member(M.female, word) or member(M.male, word) end
function M.gender(word)
  if member(M.female, word) then return "female" end
  if member(M.male, word) then return "male" end
  if member(M.people, word) then return "human" end
  return "thing"
end
-- Words made with a place: "bookshop", "courtroom", "boatyard".
local place_ends = { "shop", "house", "room", "yard", "field", "station", "store", "port", "works", "top" }
function M.place(word)
  if member(M.places, word) then return true end
  if M.mover(word) or M.scenery[word] or M.adjectives[word] then return false end
  for _, ending in ipairs(place_ends) do
    if #word > #ending + 2 and word:sub(-#ending) == ending and (M.places[ending] or #word > 6) then return true end
  end
  return false
end
function M.adjective(word)
  if M.adjectives[word] then return true end
  if M.mover(word) or M.place(word) then return false end
  return word:find("[^aeiou]ful$") or word:find("less$") or word:find("ous$") or word:find("ish$") or word:find("ible$")
    or word:find("able$") or word:find("^%w+%-%w+ed$") or word:find("ly$") or (gerund[word] and true)
    or (past[word] and not base[word]) or false
end

-- ---- camera and light: { pattern (PCRE2, caseless), canonical words } --------------------------------

M.camera = {
  { [[pan(?:s|ning)?(?: slowly| gently)? (?:to the )?left]], "pan left" },
  { [[pan(?:s|ning)?(?: slowly| gently)? (?:to the )?right]], "pan right" },
  { [[tilt(?:s|ing)?(?: slowly)? up]], "tilt up" }, { [[tilt(?:s|ing)?(?: slowly)? down]], "tilt down" },
  { [[zoom(?:s|ing)?(?: slowly)?[ -]+in]], "zoom in" }, { [[zoom(?:s|ing)?(?: slowly)?[ -]+out]], "zoom out" },
  { [[dolly(?:ing)?[ -]+in|push(?:es|ing)?[ -]+in|dollies in]], "dolly in" },
  { [[dolly(?:ing)?[ -]+out|pull(?:s|ing)?[ -]+(?:back|out)|dollies out]], "dolly out" },
  { [[orbit(?:s|ing)?(?! of)|circles around|360[ -]degree]], "orbit", "camera" },
  { [[crane (?:shot|up)|camera rises]], "crane up" },
  { [[tracking shot|camera (?:slowly |smoothly |gently )?(?:tracks|follows)|dolly shot|steadicam]], "tracking shot" },
  { [[aerial|drone (?:view|shot|footage)|bird'?s[ -]eye|from above|overhead shot]], "aerial shot" },
  { [[hand-?held]], "handheld" },
  { [[static (?:shot|camera)|locked[ -]off|camera (?:is|stays|remains) (?:still|static|fixed)]], "static shot" },
  { [[extreme close-?up|macro (?:shot|view)]], "extreme close-up" }, { [[close[ -]?up]], "close-up" },
  { [[extreme wide shot|establishing shot]], "extreme wide shot" },
  { [[wide (?:angle )?(?:shot|view)|long shot]], "wide shot" },
  { [[medium (?:shot|close)]], "medium shot" },
  { [[low[ -]angle]], "low angle" }, { [[high[ -]angle]], "high angle" }, { [[dutch angle]], "dutch angle" },
  { [[over[ -]the[ -]shoulder]], "over the shoulder" },
  { [[\bpov\b|point of view|first[ -]person]], "point of view" },
}
M.light = {
  { [[golden hour]], "golden hour" },
  { [[blue hour]], "blue hour" },
  { [[sunrise]], "sunrise light" },
  { [[\bdawn\b]], "dawn light" },
  { [[(?:late |mid |early )?afternoon]], "afternoon light" },
  { [[\bmorning\b]], "morning light" },
  { [[\bnoon\b|\bmidday\b]], "noon light" },
  { [[sunset]], "sunset light" },
  { [[\bdusk\b|twilight]], "dusk light" },
  { [[moonlight|moonlit]], "moonlight, night" },
  { [[\bnight\b|midnight]], "night" },
  { [[\bevening\b]], "evening light" },
  { [[overcast]], "overcast light" },
  { [[\bneon\b]], "neon light" },
  { [[candle(?:light|lit)]], "candlelight" },
  { [[backlit|backlight]], "backlight" }, { [[spotlight]], "spotlight" }, { [[studio light]], "studio light" },
  { [[sunlight|sunny|sunlit|sunshine]], "sunlight" },
  { [[firelight]], "firelight" },
  { [[\bday(?:time|light)?\b(?!s)]], "daylight" },
}
-- What is chosen from where the words are silent.
M.camera_first = { "wide shot", "extreme wide shot", "wide shot, slow dolly in" }
M.camera_later = { "medium shot", "close-up", "low angle", "tracking shot", "medium shot, slow dolly in" }
M.light_outdoors = { "soft daylight", "golden hour", "overcast light", "morning light" }
M.light_indoors = { "soft window light", "warm lamp light", "diffuse studio light" }

-- Words of a sentence that says how the film looks.
M.look = [[cinematic|photo-?realistic|realistic|\b35 ?mm\b|16 ?mm|film grain|\b[48]k\b|\bhd\b|\bstyle\b|anime|animation|cartoon|]]
  .. [[watercolou?r|oil painting|pixel art|black[ -]and[ -]white|film noir|documentary|vintage|high detail|highly detailed|]]
  .. [[depth of field|shallow focus|\bfilm\b|\bvideo\b|\bmovie\b|\bmood\b|atmosphere|]]
  .. [[colou?r palette|sepia|claymation|stop[ -]motion]]
M.calm = [[\b(?:slow|slowly|calm|peaceful|serene|quiet|gentle|meditative|tranquil)\b]]
M.quick = [[\b(?:fast[ -]paced|frantic|rapid|hectic|energetic|quick cuts|high[ -]speed|action[ -]packed)\b]]

return M
