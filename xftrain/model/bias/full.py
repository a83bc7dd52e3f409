"""Bidirectional attention, for the benchmark.

Next-token training refuses it, since the model would see the tokens that it predicts.
"""

from xftrain.interfaces import AttnBias


class Full:
    """Lets a query see every key of its document."""

    not_for_training = (
        "lets next-token training see its answers; choose causal, alibi or window (full is for the "
        "benchmark)"
    )

    def build(self, num_heads: int, seqlens: tuple[int, ...] | None) -> AttnBias:
        """The bias of one batch."""
        return AttnBias(causal=False, seqlens=seqlens)
