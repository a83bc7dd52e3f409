"""Folders of models as `transformers` reads and writes them."""
