"""The layers of a block, one variant per file."""
