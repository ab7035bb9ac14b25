-- melies-api: 1
-- The starter's tokenizer: a sentencepiece model of the world's captions, made by sentencepiece's own program (Debian's
-- package `sentencepiece`). Byte pairs, so that each word of the world becomes one piece; bytes for all it does not know.
local melies = require "melies"

local tokenizer = {}
tokenizer.pieces = 800
local CAPTIONS = 60000

-- tokenizer.train(world, folder) -> path of spiece.model, or nil and a message
function tokenizer.train(world, folder)
  local corpus, prefix = folder .. "/captions.txt", folder .. "/spiece"
  local lines = {}
  for index = 1, CAPTIONS do
    local _, caption = world.describe { seed = 1, index = index }
    lines[index] = caption
  end
  local ok, message = melies.fs.write(corpus, table.concat(lines, "\n") .. "\n")
  if not ok then return nil, message end
  local command = ("spm_train --input='%s' --model_prefix='%s' --vocab_size=%d --model_type=bpe --byte_fallback=true "
    .. "--normalization_rule_name=nmt_nfkc_cf --pad_id=0 --eos_id=1 --unk_id=2 --bos_id=-1 --character_coverage=1.0 "
    .. "--num_threads=1 --minloglevel=1"):format(corpus, prefix, tokenizer.pieces)
  local status = os.execute(command)
  if status ~= 0 and status ~= true then
    return nil, "spm_train failed; is Debian's package 'sentencepiece' installed? It was: " .. command
  end
  return prefix .. ".model"
end

return tokenizer
