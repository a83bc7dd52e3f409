"""Causal attention: a query sees itself and everything before it in its document."""

from xftrain.interfaces import AttnBias


class Causal:
    """Causal mask."""

    def build(self, num_heads: int, seqlens: tuple[int, ...] | None) -> AttnBias:
        """The facts for one batch."""
        return AttnBias(causal=True, seqlens=seqlens)
