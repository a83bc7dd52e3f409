"""Causal attention: a query sees itself and everything before it in its document."""

from xftrain.interfaces import AttnBias


class Causal:
    """Lets a query see itself and everything before it in its document."""

    def build(self, num_heads: int, seqlens: tuple[int, ...] | None) -> AttnBias:
        """The bias of one batch."""
        return AttnBias(causal=True, seqlens=seqlens)
