std = "luajit"
max_line_length = 130
exclude_files = { "build*" }
ignore = { "212" } -- unused arguments: plugin signatures name what they do not use
