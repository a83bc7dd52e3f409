"""The components of a training step's peak memory, and the peak for each recompute plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from xftrain.model.block import RecomputePlan


@dataclass(frozen=True)
class LayerBytes:
    """Memory of one layer, bytes.

    Attributes:
        saved: activations that the layer saves for its backward pass.
        ffn: the part of `saved` that is freed if the layer's feed-forward is recomputed.
        input: the layer's input, all that is saved if the whole layer is recomputed.
        backward: peak of the gradients inside the layer during its backward pass.
        casts: copies of the layer's weights in the dtype of matmuls.
    """

    saved: int
    ffn: int
    input: int
    backward: int
    casts: int


@dataclass(frozen=True)
class Peak:
    """Memory of a training step by component, bytes.

    Attributes:
        weights: the parameters.
        gradients: gradients of trained parameters; twice if several ranks accumulate batches.
        optimizer: the optimizer's state, such as AdamW's two moments.
        head_cast: copy of the output matrix in the dtype of matmuls.
        layers: the memory of each layer, from the first.
        after_layers: activations saved between the last layer and the loss.
        loss: peak of the logits and of the tensors computed from them.
        assumptions: what is assumed of each option that does not declare its memory.
    """

    weights: int
    gradients: int
    optimizer: int
    head_cast: int
    layers: tuple[LayerBytes, ...]
    after_layers: int
    loss: int
    assumptions: tuple[str, ...]

    @property
    def num_blocks(self) -> int:
        """The number of layers."""
        return len(self.layers)

    @property
    def casts(self) -> int:
        """Bytes of all copies of weights in the dtype of matmuls."""
        return self.head_cast + sum(layer.casts for layer in self.layers)

    @property
    def state(self) -> int:
        """Bytes that are allocated throughout: weights, gradients and optimizer state."""
        return self.weights + self.gradients + self.optimizer + self.casts

    def activations(self, recomputed: RecomputePlan) -> int:
        """Bytes of all activations that are saved for the backward pass."""
        return (
            sum(self._saved_bytes(index, recomputed) for index in range(self.num_blocks))
            + self.after_layers
        )

    def transient_bytes(self, recomputed: RecomputePlan) -> int:
        """The largest temporary memory, in the loss or in the backward pass of a layer.

        The recomputed activations of a layer exist during its backward pass, but by then the
        activations of later layers are free.
        """
        peak, freed = self.loss, 0
        for index in reversed(range(self.num_blocks)):
            layer = self.layers[index]
            recomputed_bytes = 0
            if index < recomputed.blocks:
                recomputed_bytes = layer.saved
            elif index < recomputed.ffns:
                recomputed_bytes = layer.ffn
            peak = max(peak, recomputed_bytes + layer.backward - freed)
            freed += self._saved_bytes(index, recomputed)
        return peak

    def _saved_bytes(self, index: int, recomputed: RecomputePlan) -> int:
        layer = self.layers[index]
        if index < recomputed.blocks:
            return layer.input
        return layer.saved - (layer.ffn if index < recomputed.ffns else 0)

    def total(self, recomputed: RecomputePlan) -> int:
        """The peak of a step under a recompute plan, bytes."""
        return self.state + self.activations(recomputed) + self.transient_bytes(recomputed)

    def fits(self, limit: int, recomputed: RecomputePlan) -> bool:
        """Whether the peak under a plan is at most `limit` bytes."""
        return self.total(recomputed) <= limit

    def plans(self) -> Iterator[RecomputePlan]:
        """Yields plans from the cheapest: first feed-forwards, which free the most per matmul."""
        ffns = self.num_blocks if any(layer.ffn > 0 for layer in self.layers) else 0
        yield from (RecomputePlan(ffns=count) for count in range(ffns + 1))
        yield from (
            RecomputePlan(blocks=count, ffns=ffns) for count in range(1, self.num_blocks + 1)
        )

    def cheapest_fitting_plan(self, limit: int) -> RecomputePlan:
        """The first of `plans` that fits, or the last one if none does."""
        plans = list(self.plans())
        return next((plan for plan in plans if self.fits(limit, plan)), plans[-1])
