"""Builds the loggers of a run, records its hyperparameters, and closes them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from omegaconf import OmegaConf

from xftrain.commands.data_report import DataReport
from xftrain.commands.description import hyperparameters
from xftrain.commands.neighboring_runs import differing_keys
from xftrain.commands.result_file import changed_overrides, is_multirun_job
from xftrain.config import registry
from xftrain.config.option_config import OptionConfig
from xftrain.config.run_config import Options
from xftrain.interfaces import DataSource
from xftrain.train.log_text import log_text
from xftrain.train.same_run import flat
from xftrain.train.tracker import Tracker
from xftrain.utils.optional import optional_step
from xftrain.utils.redaction import hidden_in_message, hidden_throughout

log = logging.getLogger(__name__)

_HPARAM_METRICS = (
    "val/loss",
    "val/accuracy",
    "train/loss",
    "speed/tokens_per_s",
    "memory/peak_mib",
)


def writes_tensorboard(options: Options) -> bool:
    """Whether a logger declares `writes_tensorboard`: its records are TensorBoard's event files."""
    kinds = map(registry.class_of, options.values())
    return any(getattr(kind, "writes_tensorboard", False) for kind in kinds)


class RunLoggers:
    """Builds the loggers of a run.

    Args:
        options: the options of the group `logger`.
        run_dir: the run folder.
    """

    def __init__(self, options: Options, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.all: list[Logger] = [self._built(option) for option in options.values()]
        self.tensorboards: list[Any] = [x for x in self.all if hasattr(x, "begin_hparams")]
        self.trackers = [logger for logger in self.all if isinstance(logger, Tracker)]

    def _built(self, option: OptionConfig) -> Any:
        # a user's own logger chooses its own files
        return registry.build(option, *([] if option.name is None else [self.run_dir]))

    def start(self, shown: Mapping[str, Any], kernel: str, data: DataSource) -> None:
        """Starts trackers and records the configuration, after earlier files were moved away.

        Args:
            shown: the plain configuration with secrets hidden.
            kernel: name of the attention kernel.
            data: the data source, which is described.
        """
        shown = hidden_throughout(dict(shown), hidden_in_message)
        for tracker in self.trackers:
            tracker.start_run(flat(shown))
        log_text(self.all, "kernel", kernel)
        report = DataReport(data)
        log.info("data: %s", report.line())
        with optional_step("the report of the data"):
            report.log(self.all)
        log_text(self.all, "config", OmegaConf.to_yaml(OmegaConf.create(dict(shown))))
        typed = hidden_throughout(changed_overrides(), hidden_in_message)
        for tensorboard in self.tensorboards:
            first = differing_keys(self.run_dir, typed, is_job=is_multirun_job())
            tensorboard.begin_hparams(hyperparameters(shown, typed), _HPARAM_METRICS, first)

    def end_hparams(self) -> None:
        """Marks the run as completed in TensorBoard's HParams."""
        for tensorboard in self.tensorboards:
            with optional_step("TensorBoard's record of the end"):
                tensorboard.end_hparams()
                tensorboard.save()

    def close(self, *, is_complete: bool) -> None:
        """Closes the runs of experiment trackers, however this run ended."""
        for tracker in self.trackers:
            tracker.close_run(is_complete=is_complete)
