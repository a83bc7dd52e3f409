"""Events for TensorBoard, in the run folder itself, so that one `--logdir outputs` shows all."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only


class TensorBoard(TensorBoardLogger):
    """Lightning's own, without its dummy `hp_metric`."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(save_dir=run_dir, name="", version="", default_hp_metric=False)

    @rank_zero_only
    def begin_hparams(
        self, options: Mapping[str, Any], metrics: Sequence[str], varied: Collection[str]
    ) -> None:
        """Tells the HParams tab what the run is made of; a run that is cut off is there too.

        Only the records: Lightning's `log_hyperparams` would also write a point for each metric,
        of a value that nobody measured. The tab shows the last point of each metric instead, and
        of the options the first five, those before all that are said to differ from run to run.

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
