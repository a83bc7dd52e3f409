"""Generation: a cache of keys and values, one token at a time, for several prompts at once."""
