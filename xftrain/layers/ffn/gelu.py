"""Feed-forward with GELU (Hendrycks, Gimpel, 2016, arXiv:1606.08415), as in GPT-2."""

from torch import Tensor, nn
from torch.nn import functional as F

from xftrain.fields import PositiveInt
from xftrain.layers.widths import plain_width


class GELU(nn.Module):
    """`gelu(x up) down`, the tanh form.

    Args:
        dim: D.
        linear_bias: whether the linear layers add biases.
        hidden_dim: inner width; None is 4 x dim.
    """

    def __init__(
        self, dim: int, linear_bias: bool, *, hidden_dim: PositiveInt | None = None
    ) -> None:
        super().__init__()
        hidden_dim = hidden_dim or plain_width(dim)
        self.up = nn.Linear(dim, hidden_dim, bias=linear_bias)
        self.down = nn.Linear(hidden_dim, dim, bias=linear_bias)

    def forward(self, x_BMD: Tensor) -> Tensor:
        """[B, M, D] to [B, M, D]."""
        return self.down(F.gelu(self.up(x_BMD), approximate="tanh"))
