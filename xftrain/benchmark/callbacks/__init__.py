"""Sweeps, one a file: callbacks that measure when training has ended."""
