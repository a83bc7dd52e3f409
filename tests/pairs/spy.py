"""What a run made of itself: losses, gradients' moments and weights, read through a callback."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from xftrain.interfaces import LossSums
from xftrain.train.module import TrainingModule, training_module

_PROBE_SEED = 7  # of dropout in each pass of the probe


State = dict[str, dict[str, Tensor]]


@dataclass
class Step:
    """An optimizer step, and what it began with.

    Attributes:
        weights: in float64 on the CPU.
        state: of the optimizer, by weight; empty before the first step.
        losses: mean loss of each micro-batch; empty with CUDA graphs, which call no Python.
    """

    weights: dict[str, Tensor]
    state: State
    losses: list[float] = field(default_factory=list)


class Spy(Callback):
    """Reads and changes nothing, but for the probe after the last step.

    Attributes:
        steps: in order, and at the end what the last one has left.
        num_steps: optimizer steps made.
        overflowed: whether GradScaler left out a step.
        slope: of the loss along its gradient, as that gradient says and as differences say.
    """

    modifies_weights = False
    last: Spy

    def __init__(self, *, probes: bool = False) -> None:
        Spy.last = self
        self.probes = probes
        self.steps: list[Step] = []
        self.num_steps, self.overflowed = 0, False
        self.slope: tuple[float, float] | None = None
        self.device = torch.device("cpu")
        self._scale = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module = training_module(pl_module)
        self.device = module.device
        if module.scaler is not None:
            self._scale = module.scaler.get_scale()
        if type(trainer.fit_loop.epoch_loop).__name__ == "GraphedLoop":
            return
        forward = module.forward_loss

        def noted(*args: Any, **kwargs: Any) -> LossSums:
            sums = forward(*args, **kwargs)
            if module.training:
                loss = float(sums.loss.detach()) / float(sums.num_labels)
                self.steps[-1].losses.append(loss)
            return sums

        module.forward_loss = noted  # type: ignore[method-assign]

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._note(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any
    ) -> None:
        scaler = training_module(pl_module).scaler
        if scaler is not None:
            self.overflowed |= scaler.get_scale() < self._scale
            self._scale = scaler.get_scale()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.num_steps = trainer.global_step
        self._note(trainer, pl_module)
        if self.probes:
            with trainer.precision_plugin.forward_context():
                self.slope = slope_along_gradient(training_module(pl_module))

    def _note(self, trainer: Trainer, pl_module: LightningModule) -> None:
        of_weights = trainer.optimizers[0].state
        weights: dict[str, Tensor] = {}
        state: State = {}
        for name, weight in training_module(pl_module).model.named_parameters():
            weights[name] = weight.detach().to("cpu", torch.float64, copy=True)
            if of_weight := of_weights.get(weight):
                state[name] = {
                    key: value.detach().to("cpu", copy=True) for key, value in of_weight.items()
                }
        self.steps.append(Step(weights, state))


def slope_along_gradient(module: TrainingModule) -> tuple[float, float]:
    """The derivative of the loss along its gradient: by that gradient, and by central differences.

    Both passes drop the same numbers, so the two agree unless the backward pass drops others.
    """
    was_training = module.training
    module.train()
    batch = module.transfer_batch_to_device(module.data.batch("train", 0), module.device, 0)
    weights = [weight for weight in module.model.parameters() if weight.requires_grad]

    def loss() -> Tensor:
        torch.manual_seed(_PROBE_SEED)
        sums = module.forward_loss(batch, with_accuracy=False)
        return sums.loss / sums.num_labels

    with module.plain_weights(), torch.enable_grad():
        value = loss()
        gradient = torch.autograd.grad(value, weights, allow_unused=True)
        gradient = [
            torch.zeros_like(w) if g is None else g.to(w.dtype)
            for w, g in zip(weights, gradient, strict=True)
        ]
        norm = float(torch.stack([g.double().square().sum() for g in gradient]).sum().sqrt())
        kept = [weight.detach().clone() for weight in weights]
        # of the loss: at 0.01 the curvature of a small model alone was 4 % of the slope, and
        # weights in 16 bits do not move at all by less than their rounding
        is_rounded = any(weight.dtype != torch.float32 for weight in weights)
        length = (0.01 if is_rounded else 0.003) * float(value.detach()) / max(norm, 1e-9)
        values, by_gradient = [], 0.0
        for sign in (1, -1):
            with torch.no_grad():
                for weight, start, g in zip(weights, kept, gradient, strict=True):
                    weight.copy_(start + g * (sign * length / max(norm, 1e-9)))
                    # what the weight has moved by, its rounding included
                    moved = weight.double() - start.double()
                    by_gradient += sign * float((moved * g.double()).sum())
            values.append(float(loss().detach()))
        with torch.no_grad():
            for weight, start in zip(weights, kept, strict=True):
                weight.copy_(start)
    module.train(was_training)
    return by_gradient / (2 * length), (values[0] - values[1]) / (2 * length)
