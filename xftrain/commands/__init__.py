"""The commands that train, sample or describe a run, and their shared steps."""
