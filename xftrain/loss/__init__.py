"""Cross-entropy variants, one per file."""
