"""Feed-forward with the squared ReLU (So et al., Primer, 2021, arXiv:2109.08668)."""

from torch import Tensor
from torch.nn import functional as F

from xftrain.model.ffn._feedforward import FeedForward


class ReLU2(FeedForward):
    """Applies `relu(x)^2` between the matrices."""

    def activation(self, x: Tensor) -> Tensor:
        """`relu(x)^2`."""
        return F.relu(x).square()
