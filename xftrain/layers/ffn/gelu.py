"""Feed-forward with GELU (Hendrycks, Gimpel, 2016, arXiv:1606.08415), as in GPT-2."""

from torch import Tensor
from torch.nn import functional as F

from xftrain.layers.feedforward import FeedForward


class GELU(FeedForward):
    """The tanh form."""

    def activation(self, x: Tensor) -> Tensor:
        """`gelu(x)`."""
        return F.gelu(x, approximate="tanh")
