"""Writes TensorBoard events to the run folder itself: `--logdir outputs` shows all runs."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from xftrain.logger._hidden_records import hidden_values, hiding_writer
from xftrain.utils.files import NotPlainFile, open_plain
from xftrain.utils.redaction import hidden_throughout

log = logging.getLogger(__name__)

_EVENTS = "events.out.tfevents.*"


class TensorBoard(TensorBoardLogger):
    """Lightning's TensorBoard logger, without its dummy metric `hp_metric`."""

    records = "events"
    empty_position: Mapping[str, int] = MappingProxyType({})
    writes_tensorboard = True

    def __init__(self, run_dir: Path) -> None:
        super().__init__(save_dir=run_dir, name="", version="", default_hp_metric=False)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer of the event file, which hides secrets."""
        if self._experiment is None:
            Path(self.log_dir).mkdir(parents=True, exist_ok=True)
            self._experiment = hiding_writer()(log_dir=self.log_dir, **self._kwargs)
        return self._experiment

    @rank_zero_only
    def log_hyperparams(
        self, params: Any, metrics: dict[str, Any] | None = None, step: int | None = None
    ) -> None:
        """Records a callback's hyperparameters, also in `hparams.yaml`, with secrets hidden."""
        shown, measured = hidden_values(params), metrics and hidden_throughout(metrics)
        super().log_hyperparams(shown, measured, step)

    @rank_zero_only
    def save(self) -> None:
        """Flushes the records; creates no file if there are none, as in a refused run."""
        if self._experiment is not None:
            super().save()

    @rank_zero_only
    def close(self) -> None:
        """Closes the event file; the next record begins another one."""
        if self._experiment is not None:
            self._experiment.close()
            self._experiment = None

    @rank_zero_only
    def position(self) -> dict[str, int]:
        """The current size of each event file in bytes, flushed to disk, for `cut_back`."""
        if self._experiment is not None:
            try:
                self._experiment.flush()
            except OSError as error:  # a full disk, for example, must not prevent a checkpoint
                log.warning("TensorBoard's events could not be written: %s", error)
        return {path.name: path.stat().st_size for path in Path(self.log_dir).glob(_EVENTS)}

    @rank_zero_only
    def cut_back(self, step: int, sizes: Mapping[str, int] | None) -> None:
        """Removes the points that a run resumed at `step` will write again.

        A running TensorBoard discards these points too.

        Args:
            step: step of the checkpoint.
            sizes: value of `position` at its save; None if unknown.
        """
        self._kwargs["purge_step"] = step + 1
        paths = Path(self.log_dir).glob(_EVENTS) if sizes is not None else []
        for path in paths:
            if (size := (sizes or {}).get(path.name)) is None:  # created after the checkpoint
                path.unlink()
                continue
            try:
                with open_plain(path, "ab") as file:
                    if os.fstat(file.fileno()).st_size > size:
                        os.truncate(file.fileno(), size)
            except NotPlainFile:
                path.unlink()  # a link, whose target is not this run's

    @rank_zero_only
    def begin_hparams(
        self, options: Mapping[str, Any], metrics: Sequence[str], differing: Collection[str]
    ) -> None:
        """Writes the options of the run for the HParams tab; killed runs are shown there too.

        Lightning's `log_hyperparams` would also write a point with an unmeasured value for each
        metric; without it, the tab shows the last point of each metric. The tab shows five options:
        it puts those first that are declared to differ between runs, and sorts by name. Metrics
        keep their order. The tab reads both lists from one of the runs shown, which it selects
        itself.

        Args:
            options: values of options by dotted keys.
            metrics: names of metrics.
            differing: keys declared to differ between runs; `model.attn` for the choice of its
                option.
        """
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
        from torch.utils.tensorboard.summary import hparams  # a slow import of TensorBoard

        experiment, start, self._end_record = hparams(_plain(options), dict.fromkeys(metrics, 0.0))
        plugin_data = experiment.value[0].metadata.plugin_data
        described = HParamsPluginData.FromString(plugin_data.content)
        for option in described.experiment.hparam_infos:
            option.differs = option.name.removesuffix(".name") in differing
        plugin_data.content = described.SerializeToString()
        for record in (experiment, start):
            self.experiment._get_file_writer().add_summary(record)

    @rank_zero_only
    def end_hparams(self) -> None:
        """Records for the HParams tab that the run has completed."""
        self.experiment._get_file_writer().add_summary(self._end_record)


def _plain(options: Mapping[str, Any]) -> dict[str, int | float | str]:
    """Numbers and texts for the tab; other values as text, since the tab shows true as 1.0."""
    return {
        key: value if type(value) in (int, float, str) else json.dumps(value)
        for key, value in options.items()
    }
