-- melies watch: what a running job has so far. Each part's newest estimate is decoded and shown as a row of frames.
local durable = require "melies.durable"
local fs = require "melies.fs"
local media = require "melies.media"

local M = {}

-- watch.sheet(folder, columns) -> sheet [H, W, 3] | nil where there is nothing yet, key that changes with what is shown;
-- nil, nil, message where the folder is no job.
function M.sheet(folder, columns)
  local looks, saved = durable.watch(folder)
  if not looks then return nil, nil, saved end
  if #looks == 0 then return nil, "" end
  local model, message = require("melies.pipeline").load(saved.values.model or "starter")
  if not model then return nil, nil, message end
  local rows, labels, key = {}, {}, {}
  for i, look in ipairs(looks) do
    rows[i] = media.to_u8(model:decode(look.latent):clamp(0, 1))
    labels[i] = look.done and look.name or ("%s %d/%d"):format(look.name, look.step or 0, look.steps or 0)
    key[i] = ("%s@%.3f"):format(look.name, look.at)
  end
  return media.contact_sheet(rows, { columns = columns, labels = labels }), table.concat(key, " ")
end

-- Shows the sheet whenever it changed, until the folder is gone or no process holds it. opts: once=, write=, columns=.
function M.run(folder, opts)
  local shown
  while true do
    local there = fs.stat(folder .. "/job.json")
    if not there and shown then return true end
    local sheet, key, message = M.sheet(folder, opts.columns or 5)
    if message then return nil, message end
    if sheet and key ~= shown then
      require "melies.show"(sheet)
      shown = key
    end
    if opts.once then
      if not sheet then opts.write("nothing to see yet") end
      return true
    end
    local release = fs.lock(folder .. "/lock")
    if release then -- nobody works on it
      release()
      return true
    end
    if require("melies.ffi.lib").C.mel_canceled() then return true end
    fs.sleep(0.5)
  end
end

return M
