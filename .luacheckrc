std = "luajit"
max_line_length = 130
exclude_files = { "build*" }
-- 212: plugin signatures name what they do not use. 581: "not (a <= b)" is not "a > b" where there are NaNs.
ignore = { "212", "581" }
