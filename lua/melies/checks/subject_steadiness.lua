-- melies-api: 1
-- Whether the subject stays itself inside shots: 1 is unchanged.
-- The formula is in melies.steadiness; the features are those of the middle of the picture (region "centre").
return require "melies.steadiness"("subject_steadiness", "centre")
