"""Attention: bias recipes, backends, and what both share."""
