"""Tokenizers, vocabularies, and the cache of token files."""
