"""Bidirectional attention, for the benchmark.

Refused for next-token training, which would see its own answers.
"""

from xftrain.interfaces import AttnBias


class Full:
    """No mask but the document boundary."""

    not_for_training = (
        "lets next-token training see its answers; choose causal, alibi or window (full is for the "
        "benchmark)"
    )

    def build(self, num_heads: int, seqlens: tuple[int, ...] | None) -> AttnBias:
        """The facts for one batch."""
        return AttnBias(causal=False, seqlens=seqlens)
