"""Fixtures with CPU stand-ins for GPU kernels and CUDA graphs."""

from __future__ import annotations

from tests.train.adamw_stand_in import adamw_on_cpu
from tests.train.graph_stand_in import graphs_on_cpu

__all__ = ["adamw_on_cpu", "graphs_on_cpu"]
