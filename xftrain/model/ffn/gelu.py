"""Feed-forward with GELU (Hendrycks, Gimpel, 2016, arXiv:1606.08415), as in GPT-2."""

from torch import Tensor
from torch.nn import functional as F

from xftrain.config.fields import PositiveInt
from xftrain.kernels.linear_functions import autotuned_gelu_mlp, should_autotune
from xftrain.model.ffn._feedforward import FeedForward
from xftrain.model.linear import is_plain


class GELU(FeedForward):
    """Applies GELU between the matrices.

    Args:
        dim: D.
        linear_bias: whether the linear layers add biases.
        hidden_dim: inner width; None is 4 x dim.
        exact: whether GELU is computed by erf, as in BERT and MPT, instead of in its tanh form, as
            in GPT-2; the fused matmuls have the tanh form only.
    """

    reads_weights = False

    def __init__(
        self,
        dim: int,
        linear_bias: bool,
        *,
        hidden_dim: PositiveInt | None = None,
        exact: bool = False,
    ) -> None:
        super().__init__(dim, linear_bias, hidden_dim=hidden_dim)
        self.exact = exact

    def activation(self, x: Tensor) -> Tensor:
        """`gelu(x)`."""
        return F.gelu(x, approximate="none" if self.exact else "tanh")

    def forward(self, x_BMD: Tensor) -> Tensor:
        """Maps [B, M, D] to [B, M, D]; GELU is fused into large matmuls on a GPU."""
        is_tanh = type(self) is GELU and not self.exact
        plain = is_tanh and is_plain(self.up) and is_plain(self.down)
        if plain and should_autotune(x_BMD, self.up, self.down):
            return autotuned_gelu_mlp(x_BMD, self.up.read_for(x_BMD), self.down.read_for(x_BMD))
        return super().forward(x_BMD)
