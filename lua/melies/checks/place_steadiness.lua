-- melies-api: 1
-- Whether the place stays itself inside shots: 1 is unchanged.
-- The formula is in melies.steadiness; the features are those of what is around the middle (region "border").
return require "melies.steadiness"("place_steadiness", "border")
