"""Loggers, one per file."""
