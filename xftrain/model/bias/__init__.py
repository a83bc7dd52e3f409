"""Bias recipes, one per file; each says which keys a query may see."""
