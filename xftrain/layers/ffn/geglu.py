"""Gated feed-forward with GELU (Shazeer, 2020, arXiv:2002.05202)."""

from torch import Tensor
from torch.nn import functional as F

from xftrain.kernels.gated import Gate
from xftrain.layers.feedforward import GatedFeedForward


class GEGLU(GatedFeedForward):
    """The gate passes through GELU, the tanh form."""

    def activation(self, x: Tensor) -> Tensor:
        """`gelu(x)`."""
        return F.gelu(x, approximate="tanh")

    @property
    def fused_gate(self) -> Gate | None:
        """GELU, of this class alone."""
        return "gelu" if type(self) is GEGLU else None
