"""Cross-entropy variants, one a file."""
