"""All that uses xFormers, which the rest of the package calls through this folder's functions."""
