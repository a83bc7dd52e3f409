"""Base classes of the feed-forward variants: two matrices, with or without a gate."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from xftrain.config.fields import PositiveInt
from xftrain.kernels.gated import Gate
from xftrain.kernels.linear_functions import autotuned_gated_linear, should_fuse_gate
from xftrain.model.linear import Linear, is_plain


def plain_width(dim: int) -> int:
    """The default inner width, 4 x dim (Vaswani et al., 2017)."""
    return 4 * dim


def gated_width(dim: int) -> int:
    """The default inner width of gated variants: 8/3 x dim, rounded to a multiple of 64.

    The three matrices of a gated variant then have as many weights as the two of a plain one.
    """
    return -(-8 * dim // 3 // 64) * 64


class FeedForward(nn.Module, ABC):
    """Computes `activation(x up) down`.

    Args:
        dim: D.
        linear_bias: whether the linear layers add biases.
        hidden_dim: inner width; None is 4 x dim.
    """

    reads_weights = False

    def __init__(
        self, dim: int, linear_bias: bool, *, hidden_dim: PositiveInt | None = None
    ) -> None:
        super().__init__()
        hidden_dim = hidden_dim or plain_width(dim)
        self.up = Linear(dim, hidden_dim, bias=linear_bias)
        self.down = Linear(hidden_dim, dim, bias=linear_bias)

    @abstractmethod
    def activation(self, x: Tensor) -> Tensor:
        """Applies the activation, element by element."""

    def forward(self, x_BMD: Tensor) -> Tensor:
        """Maps [B, M, D] to [B, M, D]."""
        return self.down(self.activation(self.up(x_BMD)))


class GatedFeedForward(nn.Module, ABC):
    """Computes `(activation(x gate) * (x value)) down`; `up` holds gate and value.

    Args:
        dim: D.
        linear_bias: whether the linear layers add biases.
        hidden_dim: inner width; None is 8/3 x dim, rounded to a multiple of 64.
    """

    reads_weights = False

    def __init__(
        self, dim: int, linear_bias: bool, *, hidden_dim: PositiveInt | None = None
    ) -> None:
        super().__init__()
        hidden_dim = hidden_dim or gated_width(dim)
        self.up = Linear(dim, 2 * hidden_dim, bias=linear_bias)
        self.up.stacked_rows = (hidden_dim, hidden_dim)
        self.down = Linear(hidden_dim, dim, bias=linear_bias)

    @abstractmethod
    def activation(self, x: Tensor) -> Tensor:
        """Applies the activation to the gate, element by element."""

    @property
    def fused_gate(self) -> Gate | None:
        """The name of the activation for the fused kernel; None if the kernel does not have it."""
        return None

    def forward(self, x_BMD: Tensor) -> Tensor:
        """Maps [B, M, D] to [B, M, D]; for large matmuls on a GPU, the gate is fused."""
        h_BMF2, gate = self.up(x_BMD), self.fused_gate
        if gate is not None and is_plain(self.down) and should_fuse_gate(h_BMF2, self.down):
            return autotuned_gated_linear(h_BMF2, self.down.read_for(h_BMF2), gate)
        first, value = h_BMF2.chunk(2, dim=-1)
        return self.down(self.activation(first) * value)
