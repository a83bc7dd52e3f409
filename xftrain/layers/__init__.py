"""The layers of a block, one variant a file."""
