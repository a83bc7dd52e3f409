"""Normalizations, one per file."""
