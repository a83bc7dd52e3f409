"""Causal sliding-window attention (Longformer, arXiv:2004.05150; Mistral 7B, arXiv:2310.06825)."""

from xftrain.config.fields import PositiveInt
from xftrain.interfaces import AttnBias


class Window:
    """A query sees the last `window` keys, itself included.

    Args:
        window: number of keys a query sees.
    """

    def __init__(self, *, window: PositiveInt = 256) -> None:
        self.window = window

    def build(self, num_heads: int, seqlens: tuple[int, ...] | None) -> AttnBias:
        """The bias of one batch."""
        return AttnBias(causal=True, window=self.window, seqlens=seqlens)
