"""Feed-forward with GELU (Hendrycks, Gimpel, 2016, arXiv:1606.08415), as in GPT-2."""

from torch import Tensor
from torch.nn import functional as F

from xftrain.kernels.linear_functions import autotuned_gelu_mlp, should_autotune
from xftrain.model.ffn._feedforward import FeedForward
from xftrain.model.linear import is_plain


class GELU(FeedForward):
    """Applies GELU, in its tanh form, between the matrices."""

    reads_weights = False

    def activation(self, x: Tensor) -> Tensor:
        """`gelu(x)`."""
        return F.gelu(x, approximate="tanh")

    def forward(self, x_BMD: Tensor) -> Tensor:
        """Maps [B, M, D] to [B, M, D]; GELU is fused into large matmuls on a GPU."""
        plain = type(self) is GELU and is_plain(self.up) and is_plain(self.down)
        if plain and should_autotune(x_BMD, self.up, self.down):
            return autotuned_gelu_mlp(x_BMD, self.up.read_for(x_BMD), self.down.read_for(x_BMD))
        return super().forward(x_BMD)
