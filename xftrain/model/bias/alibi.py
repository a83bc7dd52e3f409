"""Attention with Linear Biases (Press, Smith, Lewis, ICLR 2022, arXiv:2108.12409).

Head h adds `-slope_h * (i - j)` to the score of query i and key j.
"""

import math
from typing import Literal

from xftrain.config.fields import PositiveInt
from xftrain.errors import ConfigError
from xftrain.interfaces import AttnBias


def slopes(num_heads: int) -> tuple[float, ...]:
    """The slopes of the paper, one per head.

    For a power of two n they are 2^(-8/n), 2^(-16/n), ..., 2^-8. For any other head count the
    paper's released code uses the slopes of the next lower power of two, then every second slope of
    the next higher one (`get_slopes` in ofirpress/attention_with_linear_biases).
    """
    if num_heads < 1:
        raise ConfigError(f"ALiBi needs at least one query head, got {num_heads}.")
    lower = 2 ** math.floor(math.log2(num_heads))
    head = tuple(2.0 ** (-8.0 * (h + 1) / lower) for h in range(lower))
    rest = tuple(2.0 ** (-8.0 * (2 * h + 1) / (2 * lower)) for h in range(num_heads - lower))
    return head + rest


class Alibi:
    """Causal attention with linear biases.

    Args:
        impl: `folded` rewrites the bias as extra features of q and k (linear memory, any kernel);
            `dense` hands the kernel one tensor of [H, M, M], as xFormers' own examples do.
        window: number of keys a query sees, itself included; None is unlimited.
    """

    def __init__(
        self,
        *,
        impl: Literal["folded", "dense"] = "folded",
        window: PositiveInt | None = None,
    ) -> None:
        self.impl = impl
        self.window = window

    def build(self, num_heads: int, seqlens: tuple[int, ...] | None) -> AttnBias:
        """The bias of one batch."""
        return AttnBias(
            causal=True,
            window=self.window,
            seqlens=seqlens,
            slopes=slopes(num_heads),
            dense=self.impl == "dense",
        )
