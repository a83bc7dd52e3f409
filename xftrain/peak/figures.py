"""The parts of a step's peak of memory, and their sum however much is recomputed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from xftrain.layers.block import RecomputePlan


@dataclass(frozen=True)
class LayerBytes:
    """Bytes of one layer.

    Attributes:
        kept: what the layer keeps for its backward pass.
        ffn: the part of it that a layer does not keep whose feed-forward is recomputed.
        input: what a layer keeps that is recomputed: its input.
        backward: gradients inside the layer while its backward pass runs, at most.
        casts: copies of the layer's weights in the dtype of matmuls.
    """

    kept: int
    ffn: int
    input: int
    backward: int
    casts: int


@dataclass(frozen=True)
class Peak:
    """Bytes that a training step needs, part by part.

    Attributes:
        weights: parameters.
        gradients: of those that are trained; twice where several ranks sum up batches.
        optimizer: what it keeps, as the two moments of AdamW.
        is_optimizer_known: whether the optimizer says what it keeps (`state_bytes`).
        is_loss_known: whether the loss says what it needs (`peak_bytes`).
        head_cast: the output matrix in the dtype of matmuls.
        layers: of each layer, from the first.
        rest: what is kept between the last layer and the loss.
        loss: the logits and what is made of them, at most.
    """

    weights: int
    gradients: int
    optimizer: int
    is_optimizer_known: bool
    is_loss_known: bool
    head_cast: int
    layers: tuple[LayerBytes, ...]
    rest: int
    loss: int

    @property
    def num_blocks(self) -> int:
        """How many layers there are."""
        return len(self.layers)

    @property
    def casts(self) -> int:
        """Copies of weights in the dtype of matmuls."""
        return self.head_cast + sum(layer.casts for layer in self.layers)

    @property
    def state(self) -> int:
        """What is there at every moment."""
        return self.weights + self.gradients + self.optimizer + self.casts

    def activations(self, recomputed: RecomputePlan) -> int:
        """What is kept for the backward pass."""
        return sum(self._kept(index, recomputed) for index in range(self.num_blocks)) + self.rest

    def transient_bytes(self, recomputed: RecomputePlan) -> int:
        """What comes on top for a moment: with the loss, or when a layer goes backward.

        What is recomputed is there again while its layer goes backward. But layers go backward
        from the last, and what those after it kept is free by then.
        """
        most, freed = self.loss, 0
        for index in reversed(range(self.num_blocks)):
            layer = self.layers[index]
            again = 0
            if index < recomputed.blocks:
                again = layer.kept
            elif index < recomputed.ffns:
                again = layer.ffn
            most = max(most, again + layer.backward - freed)
            freed += self._kept(index, recomputed)
        return most

    def _kept(self, index: int, recomputed: RecomputePlan) -> int:
        layer = self.layers[index]
        if index < recomputed.blocks:
            return layer.input
        return layer.kept - (layer.ffn if index < recomputed.ffns else 0)

    def total(self, recomputed: RecomputePlan) -> int:
        """The peak of a step that recomputes so much."""
        return self.state + self.activations(recomputed) + self.transient_bytes(recomputed)

    def fits(self, limit: int, recomputed: RecomputePlan) -> bool:
        """Whether that is within a number of bytes."""
        return self.total(recomputed) <= limit

    def plans(self) -> Iterator[RecomputePlan]:
        """From nothing to all: feed-forwards first, which free the most for their products."""
        ffns = self.num_blocks if any(layer.ffn > 0 for layer in self.layers) else 0
        yield from (RecomputePlan(ffns=count) for count in range(ffns + 1))
        yield from (
            RecomputePlan(blocks=count, ffns=ffns) for count in range(1, self.num_blocks + 1)
        )

    def cheapest_fitting_plan(self, limit: int) -> RecomputePlan:
        """The first of these plans that fits; where none does, the last."""
        plans = list(self.plans())
        return next((plan for plan in plans if self.fits(limit, plan)), plans[-1])
