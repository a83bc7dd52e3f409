"""Attention: bias recipes, backends, and the code that both share."""
