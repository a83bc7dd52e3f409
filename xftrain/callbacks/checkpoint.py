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

from xftrain.callbacks.metrics import not_training
from xftrain.checkpoint.file import UnsavableState, remove_partial_files
from xftrain.checkpoint.newest import newest_save
from xftrain.checkpoint.plain_values import is_number
from xftrain.checkpoint.safetensors_file import export_weights
from xftrain.config.fields import NonNegativeInt, PositiveInt
from xftrain.errors import ConfigError, RunError, first_line
from xftrain.train import distributed
from xftrain.train.module import training_module
from xftrain.train.savable import refuse_unsavable
from xftrain.utils.device_memory import is_out_of_memory
from xftrain.utils.optional import optional_step

log = logging.getLogger(__name__)

_SAVE_INTERVAL = 100  # steps between saves
_MAX_SAVE_SHARE = 0.02  # maximum share of the run time spent saving
_SAVE_S, _BYTES_PER_S = 0.02, 1e9  # estimate of the first save's time


class Checkpoint(LightningCheckpoint):
    """Saves `checkpoints/last.ckpt` every N steps and at the end, `best.ckpt` by `val/loss`.

    `previous.ckpt` is the `last.ckpt` before the current one, for `ckpt=auto` if the disk damages
    `last.ckpt`. `weights.safetensors`, the weights alone, is written at the end.

    Args:
        every_n_steps: optimizer steps between two saves of `last.ckpt`. None means 100, and
            skips saves that would take more than 2 % of the run time in total.
        max_failed_saves: consecutive saves that may fail, as on a full disk, before the run ends.
            The final save of a run may not fail.
    """

    modifies_weights = False

    def __init__(
        self, *, every_n_steps: PositiveInt | None = None, max_failed_saves: NonNegativeInt = 3
    ) -> None:
        self.every_n_steps, self.max_failed_saves = every_n_steps, max_failed_saves
        self.best_loss = math.inf
        self._saved_step = self._exported_step = self._validated_step = -1
        self._num_failed = 0  # consecutive failed saves
        self.is_saving = False
        self._has_given_up = False  # whether a state that cannot be saved has ended the run
        self._started_at = self._spent_s = self._last_s = 0.0  # start; time of all saves, last save

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keeps save times in the folder increasing, even if the clock was set back."""
        module = training_module(pl_module)
        module.saved_at = max(module.saved_at, newest_save(Path(trainer.default_root_dir)))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock, estimates the time of a save, and checks that all state can be saved.

        Raises:
            ConfigError: a checkpoint cannot hold the state of a user's class.
        """
        refuse_unsavable(trainer, have_started=True)
        ckpt = trainer.ckpt_path
        from_here = ckpt is None or Path(ckpt).resolve().parent == _folder(trainer).resolve()
        self._saved_step = trainer.global_step if from_here else -1
        self._validated_step = trainer.global_step
        if not distributed.broadcast_from_rank_0((_folder(trainer) / "best.ckpt").exists()):
            self.best_loss = math.inf  # the best checkpoint of another folder is not in this one
        self._started_at = time.monotonic()
        # the weights and two optimizer moments of each
        self._last_s = _SAVE_S + 3 * _num_bytes(training_module(pl_module).model) / _BYTES_PER_S
        if trainer.is_global_zero:
            remove_partial_files(_folder(trainer))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves `last.ckpt` when it is due."""
        # a step with a validation is saved after the validation, which a run resumed from an
        # earlier checkpoint would skip
        if not validation_follows(trainer):
            self._save_if_due(trainer)

    def _save_if_due(self, trainer: Trainer) -> None:
        step = trainer.global_step
        is_due = step % (self.every_n_steps or _SAVE_INTERVAL) == 0 and step != self._saved_step
        if is_due and self._is_affordable():
            self._save_last(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves `best.ckpt` if the validation loss is the lowest so far, and `last.ckpt` if due."""
        loss = training_module(pl_module).latest_metrics["val/loss"]
        if trainer.sanity_checking or trainer.state.fn != "fit" or within_step(trainer):
            return
        self._validated_step = trainer.global_step
        if loss < self.best_loss and self._is_affordable():
            previous, self.best_loss = self.best_loss, loss  # before the save, which stores it
            if not self._save(trainer, "best.ckpt"):
                self.best_loss = previous
        self._save_if_due(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the final state; `LastSave` calls this before the other callbacks' hooks."""
        if trainer.global_step != self._saved_step:
            self._save_last(trainer, may_fail=False)
        self._export(trainer)

    def _export(self, trainer: Trainer) -> None:
        """Writes `weights.safetensors`, on rank 0 and if the run has trained."""
        use_averaged_weights(trainer)  # last.ckpt has the averaged and the trained weights
        if trainer.is_global_zero and trainer.global_step not in (0, self._exported_step):
            weights = training_module(trainer.lightning_module).model.state_dict()
            export_weights(weights, _folder(trainer) / "weights.safetensors")
            self._exported_step = trainer.global_step

    def _give_up(self, trainer: Trainer) -> None:
        """Writes only the weights, since a user's class has state that no checkpoint can hold."""
        self._has_given_up = True
        try:
            self._export(trainer)
        except Exception as error:  # the first error is the one to report
            log.warning("the weights could not be written either (%s)", first_line(error))
            return
        if self._exported_step == trainer.global_step and trainer.is_global_zero:
            path = _folder(trainer) / "weights.safetensors"
            log.warning("the weights of step %d are in %s", trainer.global_step, path)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves a resumed run that has no steps left, such as one killed during its final saves."""
        if self._started_at or trainer.ckpt_path is None:
            return
        at_end = Path(trainer.ckpt_path).resolve() == (_folder(trainer) / "last.ckpt").resolve()
        self._saved_step = trainer.global_step if at_end else -1
        self.on_train_end(trainer, pl_module)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Saves after a signal, which stops the run between two steps.

        It also saves if an error is raised after the last step, for example by another callback.
        Other errors may end a run within a batch: then the previous save remains.
        """
        if self._has_given_up:
            return
        if isinstance(exception, SystemExit) and not within_step(trainer):
            validated_at = training_module(pl_module).validated_at
            if validated_at == trainer.global_step != self._validated_step:
                self.on_validation_end(trainer, pl_module)  # skipped by the signal
            self.on_train_end(trainer, pl_module)
        elif isinstance(exception, Exception) and self._has_all_steps(trainer, exception):
            with optional_step("saving after the error"):  # the first error is the one to report
                self.on_train_end(trainer, pl_module)

    def _has_all_steps(self, trainer: Trainer, error: Exception) -> bool:
        """Whether an error came after the last step, and not from the step or the device."""
        batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
        is_done = trainer.global_step >= trainer.max_steps or trainer.should_stop
        is_between_steps = batches.ready == batches.processed and not within_step(trainer)
        may_save = trainer.world_size == 1  # the other ranks would have to take part
        is_ours = isinstance(error, ConfigError | RunError) or is_out_of_memory(error)
        return bool(self._started_at and is_done and is_between_steps and may_save and not is_ours)

    def state_dict(self) -> dict[str, Any]:
        """The best validation loss so far, for a resumed run."""
        return {"best_loss": self.best_loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the best loss; raises TypeError for a wrong type, which fails the restore."""
        if not is_number(state_dict["best_loss"]):
            raise TypeError("the best loss so far is not a number")
        self.best_loss = state_dict["best_loss"]

    def _is_affordable(self) -> bool:
        """Whether one more save stays within the share of the run time allowed for saving."""
        if self.every_n_steps is not None:
            return True
        budget_s = _MAX_SAVE_SHARE * (time.monotonic() - self._started_at)
        fits = self._spent_s + self._last_s <= budget_s
        return bool(distributed.broadcast_from_rank_0(fits))  # clocks differ by rank

    def _save_last(self, trainer: Trainer, *, may_fail: bool = True) -> None:
        if self._save(trainer, "last.ckpt", previous="previous.ckpt", may_fail=may_fail):
            self._saved_step = trainer.global_step

    def _save(
        self, trainer: Trainer, name: str, *, previous: str | None = None, may_fail: bool = True
    ) -> bool:
        """Saves a checkpoint; returns whether it was saved."""
        module = training_module(trainer.lightning_module)
        failure: RunError | None = None
        with not_training(trainer):
            started = time.monotonic()  # the device has finished its steps
            module.guard.check(module)  # never save weights after a skipped step
            self.is_saving = True
            try:
                trainer.save_checkpoint(
                    _folder(trainer) / name,
                    weights_only=False,
                    storage_options={"previous": previous} if previous else None,
                )
            except RunError as error:  # on rank 0, the only rank that writes
                failure = error
                trainer.strategy.barrier()  # the other ranks wait here for the save
            except Exception:  # of a user's state_dict, on each rank
                self._give_up(trainer)
                raise
            finally:
                self.is_saving = False
        # all ranks take the same branch, or they would deadlock
        message = distributed.broadcast_from_rank_0(failure and str(failure))
        self._last_s = time.monotonic() - started
        self._spent_s += self._last_s
        if message is None:
            self._num_failed = 0
            return True
        self._num_failed += 1
        if not may_fail or self._num_failed > self.max_failed_saves:
            if isinstance(failure, UnsavableState):
                self._give_up(trainer)
            raise failure or RunError(message)
        log.warning(
            "%s Training continues, and the next save tries again (failed in a row: %d of at most "
            "%d).",
            message,
            self._num_failed,
            self.max_failed_saves,
        )
        return False


def _num_bytes(module: torch.nn.Module) -> int:
    """Size of the module's weights in bytes."""
    return sum(weight.numel() * weight.element_size() for weight in module.parameters())


def use_averaged_weights(trainer: Trainer) -> None:
    """Copies the weights averaged by Lightning's `WeightAveraging` into the model.

    `WeightAveraging` does so itself in its `on_train_end`, too late for earlier callbacks.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging):
            callback.on_train_end(trainer, trainer.lightning_module)


def within_step(trainer: Trainer) -> bool:
    """Whether the run is between the micro-batches of one optimizer step.

    A run resumed from there would apply that step with part of its gradient.
    """
    return bool((trainer.fit_loop.total_batch_idx + 1) % trainer.accumulate_grad_batches)


def validation_follows(trainer: Trainer) -> bool:
    """Whether a validation follows the training batch that just ended.

    Lightning also validates after the last batch of a run that a callback stops.
    """
    is_due = (trainer.fit_loop.total_batch_idx + 1) % int(trainer.val_check_interval) == 0
    return (is_due or trainer.should_stop) and trainer.limit_val_batches != 0


def _folder(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir) / "checkpoints"
