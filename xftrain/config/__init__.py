"""Configurations: composing, the schema, the registry of options, checks and overrides."""
