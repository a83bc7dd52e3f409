"""The commands that train, sample or describe a run, each step by step, and what they share."""
