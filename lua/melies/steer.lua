-- Sound and images that steer a film: cuts on beats, pace and words by energy, the sound in the file; an image as the first
-- frame, the palette, or a character of the memory.
--
--   steer.new(job, opts) -> steering: opts are the recipe's values (steer.params), as film.run takes them
--     steering:board(board, model)   the storyboard as the sound and the image want it; what was changed is told
--     steering:first_frame()         [1, H, W, 3] f32 that the film begins with, or nil
--     steering:passes(list)          the passes with that of the palette before them
-- opts.fill_sound: the shots are repeated until the sound is full; opts.length: seconds of it that count.
--   steer.reference(text) -> { as =, name = } | nil, message    text: first_frame, palette, character:NAME
local lib = require "melies.ffi.lib"
local recipe = require "melies.recipe"

local M = {}

local SHORT_TEXT = 64 -- tokens: a model that reads so few knows no such words (as in melies.plan)

M.roles = { "first_frame", "palette", "character" }

-- Parameters of recipes that are steered.
M.params = {
  audio = { "file", help = "sound: cuts fall on its beats, its energy sets pace and motion, and the film gets it" },
  audio_from = { "seconds", default = 0, min = 0, help = "where in the sound the film begins" },
  steer = { "enum", choices = { "all", "cuts", "none" },
    help = "what the sound does: all (words are added too; without --steer only for models that read many); cuts: only that; "
      .. "none: it is only heard" },
  reference = { "image", help = "an image that the film is to follow" },
  as = { "string", default = "first_frame", help = "what the image is: first_frame, palette or character:NAME" },
}
M.order = { "audio", "audio_from", "steer", "reference", "as" }

function M.reference(text)
  local as, name = tostring(text):match "^%s*([^:]-)%s*:%s*(.-)%s*$"
  as = as or text
  for _, role in ipairs(M.roles) do
    if as == role then
      if role == "character" and (not name or name == "") then
        return nil, "as: character of which name? character:NAME is wanted"
      elseif role ~= "character" and name then
        return nil, ("as: %s takes no name ('%s')"):format(role, name)
      end
      return { as = role, name = name }
    end
  end
  return nil, ("as is '%s'; it is first_frame, palette or character:NAME%s"):format(tostring(as),
    lib.suggest(tostring(as), M.roles))
end

local Steering = {}
Steering.__index = Steering

function M.new(job, opts)
  local self = setmetatable({ job = job, opts = opts }, Steering)
  if opts.reference then
    local reference, message = M.reference(opts.as or "first_frame")
    if not reference then recipe.fail(message, recipe.USAGE) end
    self.reference = reference
  end
  return self
end

function Steering:first_frame()
  if not self.reference or self.reference.as ~= "first_frame" then return nil end
  return require("melies.media").to_f32(self.job:image(self.opts.reference))
end

function Steering:passes(list)
  if not self.reference or self.reference.as ~= "palette" then return list end
  return { { "color_match", reference = self.opts.reference, strength = 0.8 }, unpack(list) }
end

-- The picture becomes that of a character of the memory, and of the board's character of that name.
local function remember(self, board)
  local name, found, names = self.reference.name, nil, {}
  for known in pairs(board.characters or {}) do
    names[#names + 1] = known
    if known:lower() == name:lower() then found = known end
  end
  if not found then
    table.sort(names)
    recipe.fail(("reference: the film has no character '%s'%s (%s)"):format(name, lib.suggest(name, names),
      #names > 0 and "it has " .. table.concat(names, ", ") or "it has none"))
  end
  local entity = board.characters[found]
  local entry = self.job:check(require("melies.memory_bank").remember { name = found, kind = "character",
    description = entity.description, image = self.opts.reference })
  entity.image = entry.path .. "/" .. entry.references[#entry.references]
  self.job:notice("%s is remembered as %s", self.opts.reference, found)
end

function Steering:board(board, model)
  local opts, job = self.opts, self.job
  if self.reference and self.reference.as == "character" then
    board = job:check(require("melies.plan").check(board))
    remember(self, board)
  end
  if not opts.audio or opts.steer == "none" then return board end
  if board.exact then
    job:notice("the storyboard's shots last as long as it says: none is moved to a beat")
    return board
  end
  local grid = require("melies.plan").grid(model)
  local words = opts.steer == "all" or (opts.steer == nil and not (grid.text_len and grid.text_len < SHORT_TEXT))
  if not words and opts.steer == nil then
    job:notice("the model reads %d tokens: no words of motion and mood are added (--steer all adds them)", grid.text_len)
  end
  local stage = job:progress("listening to " .. opts.audio, 1)
  local analysis = job:check(require("melies.sound").analyse(opts.audio, { from = opts.audio_from, seconds = opts.length }))
  stage:step(1)
  job:end_stage()
  local steered, notes = require("melies.steer_cuts").cut(board, analysis, { grid = grid, fill = opts.fill_sound,
    words = words, hold = opts.steer == "cuts", pace = opts.pace, model = model })
  steered = job:check(steered, notes)
  for _, line in ipairs(notes) do job:notice("%s", line) end
  return steered
end

return M
