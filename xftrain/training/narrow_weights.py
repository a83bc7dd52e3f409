"""Copies of large weights in the dtype of matrix products, for training to read in their place.

Autocast would make them anew in each step, 6 bytes of traffic a weight, and as much again to widen
each gradient to float32. The weights stay what is initialized, saved, validated and exported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from xftrain.layers.linear import Linear
from xftrain.model import GPT
from xftrain.training.fused_adamw import is_large


class NarrowWeights:
    """Gives each large linear layer its copy, which the optimizer is to keep up to date.

    A gradient comes to the copy in the copy's dtype, and is handed over to the weight as it is.

    Args:
        model: on its device.
        dtype: of matrix products.
    """

    def __init__(self, model: GPT, dtype: torch.dtype) -> None:
        self._layers = list(narrow_layers(model))
        self.copies: dict[Tensor, Tensor] = {}
        self._seen: dict[Tensor, tuple[int, int]] = {}
        for layer in self._layers:
            copy = layer.weight.detach().to(dtype, copy=True).requires_grad_()
            copy.register_post_accumulate_grad_hook(_hand_over_to(layer.weight))
            layer.narrow = self.copies[layer.weight] = copy
            self._seen[layer.weight] = _state_of(layer.weight)

    @torch.no_grad()
    def refresh(self) -> None:
        """Follows what others did to the weights: a checkpoint, a callback."""
        for weight, copy in self.copies.items():
            if (state := _state_of(weight)) != self._seen[weight]:
                copy.copy_(weight)
                self._seen[weight] = state

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Layers read their weights in it, and gradients come to those."""
        for layer in self._layers:
            layer.narrow = None
        try:
            yield
        finally:
            for layer in self._layers:
                layer.narrow = self.copies[layer.weight]


def narrows(precision: str, num_ranks: int) -> bool:
    """Whether a run has copies: DDP looks for gradients where there would be none."""
    return precision == "bf16-mixed" and num_ranks == 1


def narrow_layers(model: GPT) -> Iterator[Linear]:
    """The layers in blocks whose weights are worth a copy: trained, large, their own."""
    owners = Counter(
        id(weight) for module in model.modules() for weight in module._parameters.values()
    )
    for layer in model.blocks.modules():
        if type(layer) is Linear and layer.weight.requires_grad and is_large(layer.weight):
            if owners[id(layer.weight)] == 1:
                yield layer


def _state_of(weight: Tensor) -> tuple[int, int]:
    """Another one once it was written to, or put elsewhere; the optimizer's kernel is not seen."""
    return weight._version, weight.data_ptr()


def _hand_over_to(weight: Tensor) -> Callable[[Tensor], None]:
    def hand_over(copy: Tensor) -> None:
        grad, copy.grad = copy.grad, None
        assert grad is not None
        if weight.grad is not None:  # of another batch of the step: the sum is kept in float32
            grad = grad.to(weight.dtype).add_(weight.grad)
            weight.grad = None
        weight.grad_dtype = grad.dtype
        weight.grad = grad

    return hand_over
