"""Keeps the last and the best checkpoint of a run."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint
from lightning.pytorch.callbacks import WeightAveraging

from xftrain.errors import ConfigError, RunError
from xftrain.fields import NonNegativeInt, PositiveInt
from xftrain.memory import is_out_of_memory
from xftrain.training import distributed
from xftrain.training.callbacks.metrics import not_training
from xftrain.training.checkpoint import export_weights, sweep_partial_files
from xftrain.training.module import training_module
from xftrain.training.newest_checkpoint import newest_save
from xftrain.training.optional import optional
from xftrain.training.plain_values import is_number

log = logging.getLogger(__name__)

_EVERY, _SHARE = 100, 0.02  # steps between saves, and how much of the time they may take
_SAVE_S, _BYTES_A_S = 0.02, 1e9  # what the first one is expected to take


class Checkpoint(LightningCheckpoint):
    """`checkpoints/last.ckpt` every so many steps and at the end, `best.ckpt` by `val/loss`.

    `previous.ckpt` is the last one before, for `ckpt=auto` where a disk has damaged `last.ckpt`. At
    the end also `weights.safetensors`, the weights alone.

    Args:
        every_n_steps: optimizer steps between two saves of `last.ckpt`. With None it is 100, and
            neither file is saved where saving would come to more than 2 % of the run's time.
        max_failed_saves: saves in a row that may fail, as on a full disk, before the run ends; the
            last one of a run may not.
    """

    modifies_weights = False

    def __init__(
        self, *, every_n_steps: PositiveInt | None = None, max_failed_saves: NonNegativeInt = 3
    ) -> None:
        self.every_n_steps, self.max_failed_saves = every_n_steps, max_failed_saves
        self.best_loss = math.inf
        self._saved_step = self._exported_step = self._judged_step = -1
        self._num_failed = 0  # in a row
        self.is_saving = False
        self._began = self._spent_s = self._last_s = 0.0  # saving, in all and the last time

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Whatever the clock says, what this run saves is newer than what is in its folder."""
        module = training_module(pl_module)
        module.saved_at = max(module.saved_at, newest_save(Path(trainer.default_root_dir)))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run that goes on from its own folder has its first step on the disk."""
        ckpt = trainer.ckpt_path
        from_here = ckpt is None or Path(ckpt).resolve().parent == _folder(trainer).resolve()
        self._saved_step = trainer.global_step if from_here else -1
        self._judged_step = trainer.global_step
        self._began = time.monotonic()
        # with the two moments of each weight
        self._last_s = _SAVE_S + 3 * _num_bytes(training_module(pl_module).model) / _BYTES_A_S
        if trainer.is_global_zero:
            sweep_partial_files(_folder(trainer))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves the last one when it is due."""
        # that of a step with a validation comes after it: a run that goes on from a checkpoint
        # before it would never make it
        if not validation_follows(trainer):
            self._save_if_due(trainer)

    def _save_if_due(self, trainer: Trainer) -> None:
        step = trainer.global_step
        is_due = step % (self.every_n_steps or _EVERY) == 0 and step != self._saved_step
        if is_due and self._is_affordable():
            self._save_last(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the best one when it is."""
        loss = training_module(pl_module).latest["val/loss"]
        if trainer.sanity_checking or trainer.state.fn != "fit" or within_step(trainer):
            return
        self._judged_step = trainer.global_step
        if loss < self.best_loss and self._is_affordable():
            beaten, self.best_loss = self.best_loss, loss  # which the file is to hold
            if not self._save(trainer, "best.ckpt"):
                self.best_loss = beaten
        self._save_if_due(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves where the run ended; `LastSave` calls this before other callbacks' turn."""
        if trainer.global_step != self._saved_step:
            self._save_last(trainer, may_fail=False)
        use_averaged_weights(trainer)  # last.ckpt has both
        if trainer.is_global_zero and trainer.global_step not in (0, self._exported_step):
            weights = training_module(pl_module).model.state_dict()
            export_weights(weights, _folder(trainer) / "weights.safetensors")
            self._exported_step = trainer.global_step

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves a run that had nothing left to train, as one that was killed in its last saves."""
        if self._began or trainer.ckpt_path is None:
            return
        at_end = Path(trainer.ckpt_path).resolve() == (_folder(trainer) / "last.ckpt").resolve()
        self._saved_step = trainer.global_step if at_end else -1
        self.on_train_end(trainer, pl_module)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Saves where a signal stopped the run, which is between two steps.

        And where an error comes after the last step, as from another callback. Other errors end a
        run anywhere inside a batch: there the last save stands.
        """
        if isinstance(exception, SystemExit) and not within_step(trainer):
            if training_module(pl_module).validated_at == trainer.global_step != self._judged_step:
                self.on_validation_end(trainer, pl_module)  # the signal's callback came before it
            self.on_train_end(trainer, pl_module)
        elif isinstance(exception, Exception) and self._has_all_steps(trainer, exception):
            with optional("saving after the error"):  # which is what is to be told
                self.on_train_end(trainer, pl_module)

    def _has_all_steps(self, trainer: Trainer, error: Exception) -> bool:
        """Whether an error came after the last step, and is not of the step or the device."""
        batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
        is_done = trainer.global_step >= trainer.max_steps or trainer.should_stop
        is_whole = batches.ready == batches.processed and not within_step(trainer)
        may_save = trainer.world_size == 1  # the other ranks would have to take part
        is_ours = isinstance(error, ConfigError | RunError) or is_out_of_memory(error)
        return bool(self._began and is_done and is_whole and may_save and not is_ours)

    def state_dict(self) -> dict[str, Any]:
        """The loss to beat, for a run that continues."""
        return {"best_loss": self.best_loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The loss to beat; of a wrong type, Lightning's restoring ends with an error."""
        if not is_number(state_dict["best_loss"]):
            raise TypeError("the best loss so far is not a number")
        self.best_loss = state_dict["best_loss"]

    def _is_affordable(self) -> bool:
        """Whether one more save is within its share of the time."""
        if self.every_n_steps is not None:
            return True
        budget_s = _SHARE * (time.monotonic() - self._began)
        fits = self._spent_s + self._last_s <= budget_s
        return bool(distributed.from_rank_0(fits))  # clocks differ

    def _save_last(self, trainer: Trainer, *, may_fail: bool = True) -> None:
        if self._save(trainer, "last.ckpt", previous="previous.ckpt", may_fail=may_fail):
            self._saved_step = trainer.global_step

    def _save(
        self, trainer: Trainer, name: str, *, previous: str | None = None, may_fail: bool = True
    ) -> bool:
        """Whether it was saved."""
        module = training_module(trainer.lightning_module)
        failure: RunError | None = None
        with not_training(trainer):
            started = time.monotonic()  # the steps under way are made by now
            module.guard.check(module)  # no weights after a step that had to be left out
            self.is_saving = True
            try:
                trainer.save_checkpoint(
                    _folder(trainer) / name,
                    weights_only=False,
                    storage_options={"previous": previous} if previous else None,
                )
            except RunError as error:  # on rank 0, which writes
                failure = error
                trainer.strategy.barrier()  # where the other ranks wait for this save
            finally:
                self.is_saving = False
        # all ranks go on alike, or they would wait for each other in different places
        said = distributed.from_rank_0(failure and str(failure))
        self._last_s = time.monotonic() - started
        self._spent_s += self._last_s
        if said is None:
            self._num_failed = 0
            return True
        self._num_failed += 1
        if not may_fail or self._num_failed > self.max_failed_saves:
            raise failure or RunError(said)
        log.warning(
            "%s Training goes on, and the next save tries again (failed in a row: %d of at most "
            "%d).",
            said,
            self._num_failed,
            self.max_failed_saves,
        )
        return False


def _num_bytes(module: torch.nn.Module) -> int:
    """Of the weights."""
    return sum(weight.numel() * weight.element_size() for weight in module.parameters())


def use_averaged_weights(trainer: Trainer) -> None:
    """Puts the weights that Lightning's `WeightAveraging` has averaged into the model.

    It does so itself at the end of training, but after callbacks that come before it.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging):
            callback.on_train_end(trainer, trainer.lightning_module)


def within_step(trainer: Trainer) -> bool:
    """Whether the run is between the batches of one optimizer step.

    A run that went on from there would make that step with part of its gradient.
    """
    return bool((trainer.fit_loop.total_batch_idx + 1) % trainer.accumulate_grad_batches)


def validation_follows(trainer: Trainer) -> bool:
    """Whether the batch that has just been trained on is one with a validation after it."""
    is_due = (trainer.fit_loop.total_batch_idx + 1) % int(trainer.val_check_interval) == 0
    return is_due and trainer.limit_val_batches != 0


def _folder(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir) / "checkpoints"
