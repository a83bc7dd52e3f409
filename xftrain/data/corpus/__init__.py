"""Text files of a corpus."""
