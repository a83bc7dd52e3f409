"""Finds where NaN or inf first appeared, by running the batches of a step again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from xftrain.train.step_sums import mean_labels
from xftrain.train.trained_module import TrainedModule

NOT_REPRODUCED = "it did not recur when the step's batches were run again"
_MAX_NAMED = 3  # maximum number of parameters named in a message


def origin(module: TrainedModule, step: int) -> str:
    """Describes where NaN or inf first appears when the batches of a step run again.

    Args:
        module: the module, with the weights before the step or near it.
        step: number of the step, from 1.
    """
    parameters = dict(module.model.named_parameters())
    if named := _nonfinite_names(parameters):
        return f"weights that are not finite: {named}"
    accumulate = int(module.trainer.accumulate_grad_batches)
    for index in range((step - 1) * accumulate, step * accumulate):
        with module.plain_weights():
            text = _origin_in_batch(module, parameters, index)
        if text is not None:
            return text
    return NOT_REPRODUCED


def _origin_in_batch(
    module: TrainedModule, parameters: Mapping[str, Tensor], index: int
) -> str | None:
    batch = module.stream.batch(index + module.data_offset).to(module.device)
    module.on_train_batch_start(batch, index)  # seeds the same dropout
    with module.model.uncompiled(), _watched(module.model) as bad:  # compiled code calls no hooks
        with module.trainer.precision_plugin.forward_context():
            sums = module.forward_loss(batch, with_accuracy=False)
            loss = sums.minimized / mean_labels(sums.num_labels)
    if bad:
        return f"first in {bad[0]}"
    if not torch.isfinite(loss):
        return "first in the loss"
    # does not touch the parameters' own gradients nor DDP's hooks
    grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    if named := _nonfinite_names(dict(zip(parameters, grads, strict=True))):
        return f"the loss is finite; first in the gradient of {named}"
    return None


@contextmanager
def _watched(model: nn.Module) -> Iterator[list[str]]:
    """Within this context, collects the names of non-finite inputs and outputs in order."""
    bad: list[str] = []

    def hook_of(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not _is_finite(args):  # attention is not a module: its output is seen as an input
                bad.append(f"what reaches {name}")
            elif not _is_finite(output):
                bad.append(f"the output of {name}")

        return hook

    handles = [
        child.register_forward_hook(hook_of(name)) for name, child in model.named_modules() if name
    ]
    try:
        yield bad
    finally:
        for handle in handles:
            handle.remove()


def _is_finite(values: Any) -> bool:
    tensors = values if isinstance(values, tuple) else (values,)
    floats = [t for t in tensors if isinstance(t, Tensor) and t.is_floating_point()]
    return all(bool(torch.isfinite(tensor).all()) for tensor in floats)


def _nonfinite_names(tensors: Mapping[str, Tensor | None]) -> str:
    """Names of the tensors that are not finite, a few of them; empty if all are finite."""
    names = [
        name
        for name, tensor in tensors.items()
        if tensor is not None and not torch.isfinite(tensor).all()
    ]
    more = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
