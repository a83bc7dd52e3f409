"""Keeps the last and the best checkpoint of a run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint

from xftrain.fields import PositiveInt
from xftrain.training.callbacks.metrics import not_training
from xftrain.training.module import training_module


class Checkpoint(LightningCheckpoint):
    """`checkpoints/last.ckpt` every so many steps and at the end, `best.ckpt` by `val/loss`.

    Args:
        every_n_steps: optimizer steps between two saves.
    """

    def __init__(self, *, every_n_steps: PositiveInt = 100) -> None:
        self.every_n_steps = every_n_steps
        self.best_loss = math.inf
        self._saved_step = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run that continues has its first step on the disk."""
        self._saved_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves the last one when it is due."""
        step = trainer.global_step
        if step % self.every_n_steps == 0 and step != self._saved_step:
            self._save_last(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the best one when it is."""
        loss = training_module(pl_module).latest["val/loss"]
        if trainer.sanity_checking or trainer.state.fn != "fit" or within_step(trainer):
            return
        if loss < self.best_loss:
            self.best_loss = loss
            self._save(trainer, "best.ckpt")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves where the run ended."""
        if trainer.global_step != self._saved_step:
            self._save_last(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Saves where SIGTERM stopped the run, which Lightning answers between two batches.

        Ctrl-C and errors end it anywhere inside a batch: there the last save stands.
        """
        if isinstance(exception, SystemExit) and not within_step(trainer):
            self.on_train_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The loss to beat, for a run that continues."""
        return {"best_loss": self.best_loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The loss to beat."""
        self.best_loss = float(state_dict["best_loss"])

    def _save_last(self, trainer: Trainer) -> None:
        self._save(trainer, "last.ckpt")
        self._saved_step = trainer.global_step

    @staticmethod
    def _save(trainer: Trainer, name: str) -> None:
        with not_training(trainer, trainer.strategy.root_device):
            trainer.save_checkpoint(_folder(trainer) / name, weights_only=False)


def within_step(trainer: Trainer) -> bool:
    """Whether the run is between the batches of one optimizer step.

    A run that went on from there would make that step with part of its gradient.
    """
    return bool((trainer.fit_loop.total_batch_idx + 1) % trainer.accumulate_grad_batches)


def _folder(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir) / "checkpoints"
