"""The matmul operators of all kernels here, which an activation budget recomputes last."""

from __future__ import annotations

from xftrain.kernels import gated, matmul

MATMULS = (*matmul.MATMULS, *gated.MATMULS)
