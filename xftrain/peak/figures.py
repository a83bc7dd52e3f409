"""The parts of a step's peak of memory, and their sum for any number of recomputed blocks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Peak:
    """Bytes that a training step needs, part by part.

    Attributes:
        weights: parameters.
        gradients: of those that are trained; twice with several ranks, which sum them in copies.
        optimizer: what it keeps, as the two moments of AdamW.
        casts: copies of the weights in the dtype of matrix products.
        num_blocks: how many there are.
        block: what a block keeps for its backward pass.
        block_input: what a block keeps that is recomputed: what goes into it.
        block_backward: gradients inside a block while its backward pass runs, at most.
        rest: what is kept between the last block and the loss.
        loss: the logits and what is made of them, at most.
    """

    weights: int
    gradients: int
    optimizer: int
    casts: int
    num_blocks: int
    block: int
    block_input: int
    block_backward: int
    rest: int
    loss: int

    @property
    def state(self) -> int:
        """What is there at every moment."""
        return self.weights + self.gradients + self.optimizer + self.casts

    def activations(self, num_recomputed: int) -> int:
        """What is kept for the backward pass, by the first so many blocks their input alone."""
        kept = (self.num_blocks - num_recomputed) * self.block
        return kept + num_recomputed * self.block_input + self.rest

    def passing(self, num_recomputed: int) -> int:
        """What comes on top for a moment: with the loss, or when the last block goes backward.

        A block that is recomputed has all that it keeps again while it goes backward. But blocks
        go backward from the last, so the first one that does comes after all others are through.
        """
        again = self.block if num_recomputed == self.num_blocks else 0
        return max(self.loss, again + self.block_backward)

    def total(self, num_recomputed: int) -> int:
        """The peak where the first so many blocks are recomputed in the backward pass."""
        return self.state + self.activations(num_recomputed) + self.passing(num_recomputed)

    def fits(self, limit: int, num_recomputed: int = 0) -> bool:
        """Whether that is within a number of bytes."""
        return self.total(num_recomputed) <= limit

    def least(self, limit: int) -> int:
        """The fewest blocks to recompute for it to fit; all of them where nothing fits."""
        counts = range(self.num_blocks + 1)
        return next((count for count in counts if self.fits(limit, count)), self.num_blocks)
