"""Operators for xFormers' own `op=` seam, and its import."""
