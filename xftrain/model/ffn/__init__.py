"""Feed-forward variants, one per file."""
