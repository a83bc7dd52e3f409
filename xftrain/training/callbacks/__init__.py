"""Callbacks, one a file."""
