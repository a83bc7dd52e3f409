"""Bidirectional attention, for the benchmark.

Refused for next-token training, which would see its own answers.
"""

from xftrain.interfaces import AttnBias


class Full:
    """No mask but the document boundary."""

    def build(self, num_heads: int, seqlens: tuple[int, ...] | None) -> AttnBias:
        """The facts for one batch."""
        return AttnBias(causal=False, seqlens=seqlens)
