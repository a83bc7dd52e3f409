"""What one layer of a model is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from xftrain.interfaces import BiasRecipe


class LayerSpec(NamedTuple):
    """The parts of a layer that may differ from its neighbour's.

    Attributes:
        bias: recipe of the attention bias.
        make_heads: (D, H, linear_bias) -> projection to q, k, v.
        make_ffn: (D, linear_bias) -> feed-forward.
        make_pos: (D, K) -> position encoding of this layer; None is the model's own.
    """

    bias: BiasRecipe
    make_heads: Callable[..., nn.Module]
    make_ffn: Callable[..., nn.Module]
    make_pos: Callable[..., Any] | None = None
