"""Head groupings, one per file."""
