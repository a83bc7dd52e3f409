"""Checkpoint files: writing them atomically, and reading untrusted ones without running code."""
