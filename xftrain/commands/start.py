"""Prepares the folder of a run when training starts.

Until then the run can be refused, and the folder stays unchanged.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger

from xftrain.checkpoint.header import later_checkpoints
from xftrain.checkpoint.plain_values import is_count
from xftrain.folders.run_folder import RunFolder, holds_run
from xftrain.train.cut_back import TruncatableLogger, truncatable
from xftrain.train.module import TrainingModule, training_module
from xftrain.train.savable import refuse_unsavable
from xftrain.train.tracker import Tracker

log = logging.getLogger(__name__)

_COPIED = ("metrics.csv", "events.out.tfevents.*", "config.yaml", "result.json")
_METRIC = re.compile(r"\w[\w.:@%+/ ()-]{,200}").fullmatch


class RunStart(Callback):
    """Sets a previous run in the folder aside, or resumes it from its checkpoint.

    On a resume, the records of the loggers are truncated to their state at the save, so that each
    step is recorded once. This callback comes first, so that no other callback has written yet.

    Args:
        folder: the folder of the run.
        ckpt: the checkpoint to resume, or None.
        loggers: all loggers of the run, in order.
        is_same: whether the run may replace the one in the folder without a checkpoint, as in a
            repeated benchmark.
        on_start: called as soon as the folder is this run's.
    """

    modifies_weights = False

    def __init__(
        self,
        folder: RunFolder,
        ckpt: Path | None,
        loggers: list[Logger],
        *,
        is_same: bool,
        on_start: Callable[[], None],
    ) -> None:
        self.folder, self.ckpt, self.is_same = folder, ckpt, is_same
        self.loggers, self.on_start = loggers, on_start
        # the other loggers must not create files yet
        late = TruncatableLogger | Tracker
        self.early_loggers = [logger for logger in loggers if not isinstance(logger, late)]
        self._trainer: Trainer | None = None
        self._saved_run: str | None = None
        self._positions: dict[str, Any] = {}
        self._metrics: dict[str, float] = {}
        self._validated_at, self._validation = -1, ""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives the trainer all loggers; earlier, Lightning would make them create files."""
        self._trainer = trainer
        trainer.loggers = self.loggers

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepares the folder, since all state is restored and the run can no longer be refused.

        Raises:
            ConfigError: no checkpoint could hold the state of a user's class.
        """
        refuse_unsavable(trainer, have_started=False)
        self._prepare_folder(trainer, training_module(pl_module))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepares the folder if nothing was left to train and `on_train_start` was not called."""
        self._prepare_folder(trainer, training_module(pl_module))

    def _prepare_folder(self, trainer: Trainer, module: TrainingModule) -> None:
        if self.folder.has_started:
            return
        module.latest_metrics |= self._metrics
        loggers = truncatable(trainer.loggers)
        for logger in loggers.values():  # a callback may have opened its file already
            logger.close()
        if self._resumes_this_folder():
            if self._validation == _validation(trainer, module):
                module.validated_at = self._validated_at
            self._set_later_aside()
            self.folder.resume_run(self._saved_run, is_resumed=True)
            for key, logger in loggers.items():
                logger.cut_back(trainer.global_step, self._positions.get(key))
        elif self.is_same or not holds_run(self.folder.path):
            self.folder.resume_run()
            for logger in loggers.values():  # every record will be written again
                logger.cut_back(-1, logger.empty_position)
        else:
            self.folder.start_new_run()
        if self.folder.is_writer:
            self.on_start()

    def _resumes_this_folder(self) -> bool:
        """Whether the checkpoint belongs to the run in the folder."""
        if self.ckpt is None:
            return False
        if self.folder.run_id and self._saved_run:
            return self.folder.run_id == self._saved_run
        return self.ckpt.resolve().parent == (self.folder.path / "checkpoints").resolve()

    def _set_later_aside(self) -> None:
        """Sets later checkpoints aside if an earlier one is resumed, as their steps run again.

        A checkpoint in another folder may be a modified copy, for which all records are removed.
        """
        if self.ckpt is not None and self.folder.is_writer:
            checkpoints = self.folder.path / "checkpoints"
            later = later_checkpoints(checkpoints, self.ckpt)
            if later or self.ckpt.resolve().parent != checkpoints.resolve():
                self.folder.move_later_files(later, _COPIED)

    def state_dict(self) -> dict[str, Any]:
        """The run id, the positions of the loggers, and the last value of each metric."""
        trainer = self._trainer
        assert trainer is not None, "setup must be called before"
        module, loggers = training_module(trainer.lightning_module), truncatable(trainer.loggers)
        return {
            "run": self.folder.run_id,
            "loggers": {key: logger.position() for key, logger in loggers.items()},
            "metrics": {name: float(value) for name, value in module.latest_metrics.items()},
            "validated_at": module.validated_at,
            "validation": _validation(trainer, module),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the same values; raises an error for wrong types, which fails the restore."""
        self._positions = self._checked_positions(dict(state_dict["loggers"]))
        saved_run, validation = state_dict["run"], state_dict["validation"]
        if not isinstance(saved_run, str | None) or not isinstance(validation, str):
            raise TypeError("the run and its validation are not strings")
        self._saved_run, self._validation = saved_run, validation
        metrics, validated_at = dict(state_dict["metrics"]), state_dict["validated_at"]
        # a metric of a skipped step may be NaN
        if not all(type(value) is float for value in metrics.values()):
            raise TypeError("a metric is not a number")
        if not all(isinstance(name, str) and _METRIC(name) for name in metrics):
            raise ValueError("a metric has an invalid name")
        if validated_at != -1 and not is_count(validated_at):
            raise ValueError("the step of its last validation is not a count")
        self._metrics = metrics
        self._validated_at = validated_at

    def _checked_positions(self, saved: dict[str, Any]) -> dict[str, Any]:
        """The saved positions of this run's loggers, each of the type that its logger expects."""
        positions: dict[str, Any] = {}
        for key, logger in truncatable(self.loggers).items():
            position = saved.get(key)
            counts = [position]
            if position is not None and isinstance(logger.empty_position, Mapping):
                position = {str(name): count for name, count in dict(position).items()}
                counts = list(position.values())
            if position is not None and not all(map(is_count, counts)):
                raise ValueError("a position in a record of metrics is not a count")
            positions[key] = position
        return positions


def _validation(trainer: Trainer, module: TrainingModule) -> str:
    """The settings that change validation metrics, which a resumed run may change."""
    return f"{trainer.limit_val_batches} of {module.data.num_val_batches}"
