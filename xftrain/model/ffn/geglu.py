"""Gated feed-forward with GELU (Shazeer, 2020, arXiv:2002.05202)."""

from torch import Tensor
from torch.nn import functional as F

from xftrain.kernels.gated import Gate
from xftrain.model.ffn._feedforward import GatedFeedForward


class GEGLU(GatedFeedForward):
    """Applies GELU, in its tanh form, to the gate."""

    def activation(self, x: Tensor) -> Tensor:
        """`gelu(x)`."""
        return F.gelu(x, approximate="tanh")

    @property
    def fused_gate(self) -> Gate | None:
        """`gelu`, but None for subclasses, which may override the activation."""
        return "gelu" if type(self) is GEGLU else None
