"""Keeps an exponential moving average (EMA) of the weights.

Its model is often better than the trained one before the learning rate has decayed (Morales-Brotons
et al., 2024, arXiv:2411.18704).
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from xftrain.checkpoint.averaged_weights import AVERAGED, PREFIX, checked_averages
from xftrain.config.fields import NonNegativeInt, PositiveInt, Probability
from xftrain.errors import ConfigError
from xftrain.train.module import TrainingModule, training_module

log = logging.getLogger(__name__)


class Average(Callback):
    """Averages the weights after each step: `average = decay * average + (1 - decay) * weights`.

    The average is float32 at least. It is saved beside the trained weights, and is resumed exactly.
    Training never reads it. Steps that the optimizer skips do not count.

    Args:
        decay: weight of the old average in an update; about the last `1 / (1 - decay)` updates
            count.
        start_step: the average begins as the weights after so many steps; 0: the initial weights.
        every_n_steps: optimizer steps between updates.
        warmup: update n has at most the decay (1 + n) / (10 + n), so that the average soon forgets
            the weights with which it began, as in TensorFlow's `ExponentialMovingAverage`.
        validate: whether validation reads the averaged weights, so that `val/loss` and `best.ckpt`
            are those of the average.
    """

    modifies_weights = False  # validation restores them, and reads no copies
    keeps_average = True

    def __init__(
        self,
        *,
        decay: Probability = 0.999,
        start_step: NonNegativeInt = 0,
        every_n_steps: PositiveInt = 1,
        warmup: bool = True,
        validate: bool = False,
    ) -> None:
        self.decay, self.start_step, self.every_n_steps = decay, start_step, every_n_steps
        self.warmup, self.validate = warmup, validate
        self._averages: dict[Tensor, Tensor] = {}  # of each weight; empty before `start_step`
        self._set_aside: list[Tensor] = []  # trained weights, while a validation reads the average
        self._step = -1  # the last step that was looked at
        self._scale: Tensor | None = None  # GradScaler's, after that step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins the average, or moves a restored one to the device of the weights."""
        module, self._step = training_module(pl_module), trainer.global_step
        self._scale = _loss_scale(module)
        self._averages = {
            weight: average.to(weight.device) for weight, average in self._averages.items()
        }
        self._begin_if_due(module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Updates the average after an optimizer step, without waiting for a GPU."""
        module, step = training_module(pl_module), trainer.global_step
        if step == self._step:  # a micro-batch before the last of its step
            return
        self._step, before = step, self._scale
        self._scale = _loss_scale(module)
        if not self._averages:
            self._begin_if_due(module)
        elif step % self.every_n_steps == 0:
            skipped = module.guard.must_skip
            if self._scale is not None and before is not None:  # it falls after an overflow alone
                skipped = torch.maximum(skipped, (self._scale < before).to(skipped.dtype))
            self._update(skipped, on_host=skipped.device.type == "cpu")

    @torch.no_grad()
    def _begin_if_due(self, module: TrainingModule) -> None:
        """Begins as the current weights, if there is no average yet and its first step is here."""
        if self._averages or self._step < self.start_step:
            return
        for weight in module.model.parameters():
            self._averages[weight] = weight.detach().to(_wide(weight), copy=True)

    @torch.no_grad()
    def _update(self, skipped: Tensor, *, on_host: bool) -> None:
        """Moves the average toward the weights, unless the last step was skipped.

        Args:
            skipped: a scalar on the device, 1 if the step was skipped, else 0.
            on_host: whether the host can read it without waiting for a device.
        """
        if on_host and skipped:
            return
        share = 1.0 - self._decay_now()
        share_on_device = share * (1.0 - skipped)
        for weight, average in self._averages.items():
            # one weight at a time, since the wide copies of all would take much memory
            wide = weight.detach().to(average.dtype)
            if on_host:
                average.lerp_(wide, share)
            else:
                average.lerp_(wide, share_on_device.to(average.dtype))

    def _decay_now(self) -> float:
        """The decay of the update after the last step; skipped updates count in its warm-up."""
        if not self.warmup:
            return self.decay
        number = self._step // self.every_n_steps - self.start_step // self.every_n_steps
        return min(self.decay, (1 + number) / (10 + number))

    @torch.no_grad()
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the average into the model, with `validate`."""
        if self.validate and not self._set_aside:
            self._set_aside = [weight.detach().clone() for weight in self._averages]
            for weight, average in self._averages.items():
                weight.copy_(average)

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the trained weights back."""
        if self._set_aside:
            for weight, trained in zip(self._averages, self._set_aside, strict=True):
                weight.copy_(trained)
            self._set_aside = []

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warns if the run has ended before its average began."""
        if not self._averages:
            log.warning(
                "callbacks.average: there is no average, since it begins at "
                "callbacks.average.start_step=%d, and the run has ended at step %d",
                *(self.start_step, trainer.global_step),
            )

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Puts the trained weights back before a checkpoint is saved."""
        self.on_validation_epoch_end(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds the average, under the names of the weights; tied weights have one tensor."""
        if self._averages:
            named = training_module(pl_module).model.named_parameters(remove_duplicate=False)
            checkpoint[AVERAGED] = {f"{PREFIX}{name}": self._averages[one] for name, one in named}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restores the average; a checkpoint without one leaves it to begin anew.

        Raises:
            ConfigError: it is the average of another model, or lacks weights.
        """
        saved = checked_averages(checkpoint, "ckpt")
        if saved is None:
            return
        named = dict(training_module(pl_module).model.named_parameters())
        if missing := [name for name in named if f"{PREFIX}{name}" not in saved]:
            raise ConfigError(
                f"ckpt holds averaged weights without {len(missing)} of the model's, first "
                f"{missing[0]}: give another checkpoint."
            )
        self._averages = {w: saved[f"{PREFIX}{name}"].to(_wide(w)) for name, w in named.items()}


def _wide(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)


def _loss_scale(module: TrainingModule) -> Tensor | None:
    """GradScaler's scale on the device, or None without float16."""
    scaler = module.scaler
    return None if scaler is None else scaler.scale(torch.ones((), device=module.device))
