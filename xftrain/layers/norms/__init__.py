"""Normalizations, one a file."""
