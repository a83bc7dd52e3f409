"""bfloat16 copies of large float32 weights, which training matmuls read instead of the weights.

Autocast would cast the weights in each step, at 6 bytes of memory traffic per weight, and spend as
much again to cast each gradient to float32. The float32 weights remain the ones that are
initialized, saved, validated and exported.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from xftrain.kernels.batched_muon import BatchedMuon
from xftrain.kernels.fused_adamw import FusedAdamW, has_own_kernel
from xftrain.model.gpt import GPT
from xftrain.model.linear import Linear
from xftrain.train.composite_optimizer import CompositeOptimizer

log = logging.getLogger(__name__)


class BF16Weights:
    """Gives each large linear layer a bfloat16 copy of its weight, which the optimizer updates.

    The gradient of a copy has the dtype of the copy, and becomes the weight's gradient uncast.

    Args:
        model: the model, already on its device.
        dtype: dtype of the copies and of the matmuls.
    """

    def __init__(self, model: GPT, dtype: torch.dtype) -> None:
        self._layers = list(layers_with_copies(model))
        self.copies: dict[Tensor, Tensor] = {}
        for layer in self._layers:
            copy = layer.weight.detach().to(dtype, copy=True).requires_grad_()
            layer.weight.grad_dtype = None  # accept a gradient of any dtype
            copy.register_post_accumulate_grad_hook(_move_grad_to(layer.weight))
            layer.bf16_weight = self.copies[layer.weight] = copy

    def update_by(self, optimizer: torch.optim.Optimizer) -> None:
        """Makes the steps of the optimizer, which must take copies, update them."""
        for part in _parts(optimizer):
            part.copies = self.copies  # type: ignore[attr-defined]

    @torch.no_grad()
    def refresh(self) -> None:
        """Copies the weights again, after a checkpoint was loaded into them."""
        for weight, copy in self.copies.items():
            copy.copy_(weight)

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Within this context, layers read their float32 weights, which receive the gradients."""
        for layer in self._layers:
            layer.bf16_weight = None
        try:
            yield
        finally:
            for layer in self._layers:
                layer.bf16_weight = self.copies[layer.weight]


def may_copy_weights(trainer: Trainer, optim: Any, optimizer: torch.optim.Optimizer) -> bool:
    """Whether a run may keep bfloat16 copies: only the optimizer changes its weights.

    Args:
        trainer: the trainer of the run.
        optim: the option that built the optimizer.
        optimizer: the optimizer, which has to update the copies and to read bfloat16 gradients.
    """
    if not _takes_copies(optim, optimizer):
        return False
    # DDP looks for the gradients on the float32 weights, which have none during backward
    if trainer.precision != "bf16-mixed" or trainer.world_size > 1:
        return False
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    if unknown := weight_modifiers([*callbacks, optim]):
        log.info(
            "optim: no bfloat16 copies of weights, as %s may change weights or read gradients "
            "(modifies_weights = False in its class says that it does neither)",
            " and ".join(unknown),
        )
    return not unknown


def _takes_copies(optim: Any, optimizer: torch.optim.Optimizer) -> bool:
    """Whether each step of the optimizer updates copies, and the option declares it."""
    parts = _parts(optimizer)
    takes_bf16_gradients = getattr(optim, "takes_bf16_gradients", lambda device: False)
    device = parts[0].param_groups[0]["params"][0].device
    is_built_in = all(type(part) in (FusedAdamW, BatchedMuon) for part in parts)
    return is_built_in and bool(takes_bf16_gradients(device))


def _parts(optimizer: torch.optim.Optimizer) -> list[torch.optim.Optimizer]:
    return optimizer.parts if isinstance(optimizer, CompositeOptimizer) else [optimizer]


def weight_modifiers(parts: Iterable[object]) -> list[str]:
    """The names of the classes that may change weights, or read gradients while they are computed.

    Args:
        parts: callbacks, the optimizer's option, or their classes. Each is included unless its
            class itself declares `modifies_weights = False`. A subclass does not inherit the
            declaration, since it may override any method.
    """
    kinds = [part if isinstance(part, type) else type(part) for part in parts]
    return [kind.__name__ for kind in kinds if vars(kind).get("modifies_weights") is not False]


def layers_with_copies(model: GPT) -> Iterator[Linear]:
    """The linear layers of blocks whose weights get a copy: large, trained, and not read elsewhere.

    Modules are skipped unless they declare that they only call their layers
    (`reads_weights = False`); weights with hooks are skipped too.
    """
    owners = Counter(
        id(weight) for module in model.modules() for weight in module._parameters.values()
    )
    for layer in dict.fromkeys(_called_layers(model.blocks)):
        weight = layer.weight
        hooks = weight._backward_hooks or weight._post_accumulate_grad_hooks
        if weight.requires_grad and has_own_kernel(weight) and not hooks:
            if owners[id(weight)] == 1:
                yield layer


def _called_layers(module: nn.Module) -> Iterator[Linear]:
    if type(module) is Linear:
        yield module
    elif type(module) is nn.ModuleList or not _reads_weights(module):
        for child in module.children():
            yield from _called_layers(child)


def _reads_weights(module: nn.Module) -> bool:
    """Whether a module may read the weights of its layers directly, instead of calling the layers.

    The class that defines `forward` rules this out by `reads_weights = False`.
    """
    definer = next((kind for kind in type(module).__mro__ if "forward" in vars(kind)), nn.Module)
    return "reads_weights" not in vars(definer) or bool(module.reads_weights)


def _move_grad_to(weight: Tensor) -> Callable[[Tensor], None]:
    """Creates a hook that moves the gradient of a copy to the weight."""

    def move_grad(copy: Tensor) -> None:
        grad, copy.grad = copy.grad, None
        assert grad is not None
        if weight.grad is not None:  # of an earlier micro-batch: accumulate in float32
            grad = grad.to(weight.dtype).add_(weight.grad)
        weight.grad = grad

    return move_grad
