"""What any part may use: files, text, processes, plots, timing; no module knows a transformer."""
