"""Copies of large weights in the dtype of matrix products, for training to read in their place.

Autocast would make them anew in each step, 6 bytes of traffic a weight, and as much again to widen
each gradient to float32. The weights stay what is initialized, saved, validated and exported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from xftrain.layers.linear import Linear
from xftrain.model import GPT
from xftrain.training.fused_adamw import has_own_kernel

_OURS = "xftrain."


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
        for layer in self._layers:
            copy = layer.weight.detach().to(dtype, copy=True).requires_grad_()
            layer.weight.grad_dtype = None  # any
            copy.register_post_accumulate_grad_hook(_hand_over_to(layer.weight))
            layer.narrow = self.copies[layer.weight] = copy

    @torch.no_grad()
    def refresh(self) -> None:
        """Follows what a checkpoint did to the weights."""
        for weight, copy in self.copies.items():
            copy.copy_(weight)

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


def strangers(parts: Iterable[object]) -> list[str]:
    """Names of those that may change weights, or look for gradients while they come.

    Args:
        parts: callbacks, the optimizer's option, or classes of them. One that is not built in is
            a stranger unless its class says that it does neither: `leaves_weights = True`.
    """
    kinds = [part if isinstance(part, type) else type(part) for part in parts]
    return [kind.__name__ for kind in kinds if not _is_known(kind)]


def _is_known(kind: type) -> bool:
    built_in = kind.__module__.startswith((_OURS, "lightning.pytorch.callbacks.progress"))
    return built_in or getattr(kind, "leaves_weights", False) is True


def narrow_layers(model: GPT) -> Iterator[Linear]:
    """The layers in blocks whose weights are worth a copy: large, trained, and read by them alone.

    Parts of a block that are not built in, or say that they read weights (`reads_weights`), are
    passed over; so are weights that others wait for, by hooks.
    """
    owners = Counter(
        id(weight) for module in model.modules() for weight in module._parameters.values()
    )
    for layer in dict.fromkeys(_in_known_parts(model.blocks)):
        weight = layer.weight
        hooks = weight._backward_hooks or weight._post_accumulate_grad_hooks
        if weight.requires_grad and has_own_kernel(weight) and not hooks:
            if owners[id(weight)] == 1:
                yield layer


def _in_known_parts(module: nn.Module) -> Iterator[Linear]:
    if type(module) is Linear:
        yield module
    elif type(module) is nn.ModuleList or type(module).__module__.startswith(_OURS):
        if not getattr(module, "reads_weights", False):
            for child in module.children():
                yield from _in_known_parts(child)


def _hand_over_to(weight: Tensor) -> Callable[[Tensor], None]:
    def hand_over(copy: Tensor) -> None:
        grad, copy.grad = copy.grad, None
        assert grad is not None
        if weight.grad is not None:  # of another batch of the step: the sum is kept in float32
            grad = grad.to(weight.dtype).add_(weight.grad)
        weight.grad = grad

    return hand_over
