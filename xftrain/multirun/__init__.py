"""Hydra's multirun: a process for each job, one table and one plot, and resuming."""
