"""Operators for the `op=` argument of xFormers, and the import of xFormers."""
