"""Bias recipes, one a file: what a query may see."""
