"""What is done to the run's folder when a run is sure to train, and not before.

Until then a run can be refused, and leaves the folder as it was.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from xftrain.run_folder import RunFolder, holds_run
from xftrain.training.checkpoint_header import later_checkpoints
from xftrain.training.loggers.csv import CSV
from xftrain.training.loggers.tensorboard import TensorBoard

log = logging.getLogger(__name__)

_COPIED = ("metrics.csv", "events.out.tfevents.*", "config.yaml", "result.json")
_NOTHING: dict[str, Any] = {"metrics.csv": 0, "events": {}}  # the positions in empty files


class RunStart(Callback):
    """Sets a former run aside, or takes the folder's run up where its checkpoint was saved.

    The records of the loggers are cut back to what they held then, so that each step has its record
    once. The first of all callbacks, so that no other one has written anything.

    Args:
        folder: of the run.
        ckpt: what is resumed; None is nothing.
        is_same: whether the run in the folder is meant though it is not resumed, as by a benchmark
            that is repeated.
        on_begin: called as soon as the folder is this run's.
    """

    def __init__(
        self,
        folder: RunFolder,
        ckpt: Path | None,
        *,
        is_same: bool,
        on_begin: Callable[[], None],
    ) -> None:
        self.folder, self.ckpt, self.is_same = folder, ckpt, is_same
        self.on_begin = on_begin
        self._trainer: Trainer | None = None
        self._saved_run: str | None = None
        self._positions: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Notes the trainer, whose loggers are asked at each save."""
        self._trainer = trainer

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """All is restored, and nothing can be refused any more."""
        self._begin(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing was left to train, so that `on_train_start` was not called."""
        self._begin(trainer)

    def _begin(self, trainer: Trainer) -> None:
        if self.folder.has_begun:
            return
        if self._is_here():
            self._set_later_aside()
            self.folder.begin_again(self._saved_run)
            for key, logger in _loggers(trainer):
                logger.cut_back(trainer.global_step, self._positions.get(key))
        elif self.is_same or not holds_run(self.folder.path):
            self.folder.begin_again()
            for key, logger in _loggers(trainer):  # all that was recorded is made again
                logger.cut_back(-1, _NOTHING[key])
        else:
            self.folder.begin_anew()
        if self.folder.is_kept:
            self.on_begin()

    def _is_here(self) -> bool:
        """Whether the checkpoint is of the run that the folder holds."""
        if self.ckpt is None:
            return False
        if self.folder.run_id and self._saved_run:
            return self.folder.run_id == self._saved_run
        return self.ckpt.resolve().parent == (self.folder.path / "checkpoints").resolve()

    def _set_later_aside(self) -> None:
        """Where an earlier checkpoint is resumed, later files are of steps that are made again."""
        if self.ckpt is not None and self.folder.is_kept:
            later = later_checkpoints(self.folder.path / "checkpoints", self.ckpt)
            if later:
                self.folder.set_aside_later(later, _COPIED)

    def state_dict(self) -> dict[str, Any]:
        """Which run this is, and where its loggers are."""
        loggers = _loggers(self._trainer) if self._trainer is not None else []
        positions = {key: logger.position() for key, logger in loggers}
        return {"run": self.folder.run_id, "loggers": positions}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Which run it was, and where its loggers were."""
        loggers = dict(state_dict["loggers"])
        rows, sizes = loggers.get("metrics.csv"), loggers.get("events")
        self._saved_run = None if state_dict["run"] is None else str(state_dict["run"])
        self._positions = {
            "metrics.csv": None if rows is None else int(rows),
            "events": None if sizes is None else {str(k): int(v) for k, v in sizes.items()},
        }


def _loggers(trainer: Trainer) -> list[tuple[str, CSV | TensorBoard]]:
    """Those that can be cut back, with a name for what they write."""
    found = [logger for logger in trainer.loggers if isinstance(logger, CSV | TensorBoard)]
    return [("metrics.csv" if isinstance(one, CSV) else "events", one) for one in found]
