"""Lists xFormers' operators, to find out which of them run."""

from __future__ import annotations

from typing import Any

from xftrain.model.attn.xformers_ops.loading import xformers_ops


def operator_pairs() -> dict[str, tuple[Any, Any]]:
    """Forward and backward operators by the name of the forward one; None if there is no backward.

    Raises:
        ImportError: xFormers cannot be imported.
    """
    fmha = xformers_ops().fmha
    backwards = {op.__module__: op for op in fmha.ALL_BW_OPS}  # one module per family
    return {op.NAME: (op, backwards.get(op.__module__)) for op in fmha.ALL_FW_OPS}
