"""Gated feed-forward with GELU (Shazeer, 2020, arXiv:2002.05202)."""

from torch import Tensor, nn
from torch.nn import functional as F

from xftrain.fields import PositiveInt
from xftrain.layers.widths import gated_width


class GEGLU(nn.Module):
    """`(gelu(x gate) * (x value)) down`; `up` holds gate and value.

    Args:
        dim: D.
        linear_bias: whether the linear layers add biases.
        hidden_dim: inner width; None is 8/3 x dim, to a multiple of 64.
    """

    def __init__(
        self, dim: int, linear_bias: bool, *, hidden_dim: PositiveInt | None = None
    ) -> None:
        super().__init__()
        hidden_dim = hidden_dim or gated_width(dim)
        self.up = nn.Linear(dim, 2 * hidden_dim, bias=linear_bias)
        self.down = nn.Linear(hidden_dim, dim, bias=linear_bias)

    def forward(self, x_BMD: Tensor) -> Tensor:
        """[B, M, D] to [B, M, D]."""
        gate, value = self.up(x_BMD).chunk(2, dim=-1)
        return self.down(F.gelu(gate, approximate="tanh") * value)
