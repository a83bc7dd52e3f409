"""The GPT, and the options of its parts: one package for each group."""
