"""Hydra's multirun: runs each job in a process, tabulates and plots the jobs, resumes sweeps."""
