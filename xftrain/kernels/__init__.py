"""Kernels of this project, each in Triton for a GPU and in torch for everything else."""
