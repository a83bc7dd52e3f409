"""xFormers' gated feed-forward with SiLU, as a function of its weights."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from xftrain.model.attn.xformers_ops.loading import xformers_ops


def swiglu_function() -> Callable[..., Tensor] | None:
    """xFormers' `swiglu`; None if it cannot be imported. Compiled code must not look it up.

    Its arguments are x [B, M, D], then weight and bias, which may be None, of the gate, the value
    and the output.
    """
    try:
        found: Callable[..., Tensor] = xformers_ops().swiglu
    except ImportError:
        return None
    return found
