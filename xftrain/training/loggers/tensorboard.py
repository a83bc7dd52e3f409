"""Events for TensorBoard, in the run folder itself, so that one `--logdir outputs` shows all."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from xftrain.files import NotPlainFile, open_plain

log = logging.getLogger(__name__)

_EVENTS = "events.out.tfevents.*"


class TensorBoard(TensorBoardLogger):
    """Lightning's own, without its dummy `hp_metric`."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(save_dir=run_dir, name="", version="", default_hp_metric=False)

    @rank_zero_only
    def save(self) -> None:
        """Writes what was recorded; a run that is refused has nothing, and makes no file."""
        if self._experiment is not None:
            super().save()

    @rank_zero_only
    def close(self) -> None:
        """Ends the event file; what is recorded next begins another one."""
        if self._experiment is not None:
            self._experiment.close()
            self._experiment = None

    @rank_zero_only
    def position(self) -> dict[str, int]:
        """The bytes of each event file so far, all of which are on the disk; for `cut_back`."""
        if self._experiment is not None:
            try:
                self._experiment.flush()
            except OSError as error:  # as on a full disk, which is no reason not to save
                log.warning("TensorBoard's events could not be written: %s", error)
        return {path.name: path.stat().st_size for path in Path(self.log_dir).glob(_EVENTS)}

    @rank_zero_only
    def cut_back(self, step: int, sizes: Mapping[str, int] | None) -> None:
        """Removes the points that a run which resumes at `step` makes again.

        A TensorBoard that shows the run forgets those that it has read.

        Args:
            step: of the checkpoint.
            sizes: what `position` was when it was saved; None where that is not known.
        """
        self._kwargs["purge_step"] = step + 1
        paths = Path(self.log_dir).glob(_EVENTS) if sizes is not None else []
        for path in paths:
            if (size := (sizes or {}).get(path.name)) is None:  # it was begun later
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
        self, options: Mapping[str, Any], metrics: Sequence[str], varied: Collection[str]
    ) -> None:
        """Tells the HParams tab what the run is made of; a run that is cut off is there too.

        Only the records: Lightning's `log_hyperparams` would also write a point for each metric,
        of a value that nobody measured. The tab shows the last point of each metric instead. It
        sorts the options itself, those first that are said to differ from run to run and then by
        name, whatever their order here, and shows five; metrics keep their order. It takes both
        from one of the runs that it shows, of its own choice.

        Args:
            options: by their dotted keys.
            metrics: names of metrics.
            varied: the keys that are said so, an option's own as `model.attn`.
        """
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
        from torch.utils.tensorboard.summary import hparams  # imports TensorBoard

        experiment, start, self._end_record = hparams(_plain(options), dict.fromkeys(metrics, 0.0))
        plugin_data = experiment.value[0].metadata.plugin_data
        described = HParamsPluginData.FromString(plugin_data.content)
        for option in described.experiment.hparam_infos:
            option.differs = option.name.removesuffix(".name") in varied
        plugin_data.content = described.SerializeToString()
        for record in (experiment, start):
            self.experiment._get_file_writer().add_summary(record)

    @rank_zero_only
    def end_hparams(self) -> None:
        """Tells it that the run came to its end."""
        self.experiment._get_file_writer().add_summary(self._end_record)


def _plain(options: Mapping[str, Any]) -> dict[str, int | float | str]:
    """Values that the tab can show, others as they are typed; it would show true as 1.0."""
    return {
        key: value if type(value) in (int, float, str) else json.dumps(value)
        for key, value in options.items()
    }
