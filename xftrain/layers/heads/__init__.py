"""Head groupings, one a file."""
