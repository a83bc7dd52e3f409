"""Feed-forward variants, one a file."""
