"""The parts of a step's peak of memory, and their sum however much is recomputed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from xftrain.model import Recomputed


@dataclass(frozen=True)
class Peak:
    """Bytes that a training step needs, part by part.

    Attributes:
        weights: parameters.
        gradients: of those that are trained; twice where several ranks sum up batches.
        optimizer: what it keeps, as the two moments of AdamW.
        is_optimizer_known: whether the optimizer says what it keeps (`state_bytes`).
        is_loss_known: whether the loss says what it needs (`peak_bytes`).
        casts: copies of the weights in the dtype of matrix products.
        num_blocks: how many there are.
        block: what a block keeps for its backward pass.
        ffn: the part of it that a block does not keep whose feed-forward is recomputed.
        block_input: what a block keeps that is recomputed: what goes into it.
        block_backward: gradients inside a block while its backward pass runs, at most.
        rest: what is kept between the last block and the loss.
        loss: the logits and what is made of them, at most.
    """

    weights: int
    gradients: int
    optimizer: int
    is_optimizer_known: bool
    is_loss_known: bool
    casts: int
    num_blocks: int
    block: int
    ffn: int
    block_input: int
    block_backward: int
    rest: int
    loss: int

    @property
    def state(self) -> int:
        """What is there at every moment."""
        return self.weights + self.gradients + self.optimizer + self.casts

    def activations(self, recomputed: Recomputed) -> int:
        """What is kept for the backward pass."""
        whole, ffns = recomputed
        kept = (self.num_blocks - whole) * self.block + whole * self.block_input
        return kept - max(0, ffns - whole) * self.ffn + self.rest

    def passing(self, recomputed: Recomputed) -> int:
        """What comes on top for a moment: with the loss, or when the last block goes backward.

        What is recomputed is there again while its block goes backward. But blocks go backward
        from the last, so where that one is not recomputed, its own comes free before.
        """
        again = 0
        if recomputed.blocks == self.num_blocks:
            again = self.block
        elif recomputed.ffns == self.num_blocks:
            again = self.ffn
        return max(self.loss, again + self.block_backward)

    def total(self, recomputed: Recomputed) -> int:
        """The peak of a step that recomputes so much."""
        return self.state + self.activations(recomputed) + self.passing(recomputed)

    def fits(self, limit: int, recomputed: Recomputed) -> bool:
        """Whether that is within a number of bytes."""
        return self.total(recomputed) <= limit

    def plans(self) -> Iterator[Recomputed]:
        """From nothing to all: feed-forwards first, which free the most for their products."""
        ffns = self.num_blocks if self.ffn > 0 else 0
        yield from (Recomputed(ffns=count) for count in range(ffns + 1))
        yield from (Recomputed(blocks=count, ffns=ffns) for count in range(1, self.num_blocks + 1))

    def least(self, limit: int) -> Recomputed:
        """The first of these plans that fits; where none does, the last."""
        plans = list(self.plans())
        return next((plan for plan in plans if self.fits(limit, plan)), plans[-1])
