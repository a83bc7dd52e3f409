"""Model classes of `transformers`, one per file."""
