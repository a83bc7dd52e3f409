"""Folders of runs and sweeps: which run one holds, its lock, its owner, links and seals."""
