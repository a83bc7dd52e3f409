"""Events for TensorBoard, in the run folder itself, so that one `--logdir outputs` shows all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only


class TensorBoard(TensorBoardLogger):
    """Lightning's own, without its dummy `hp_metric`."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(save_dir=run_dir, name="", version="", default_hp_metric=False)

    @rank_zero_only
    def begin_hparams(self, options: Mapping[str, Any], metrics: Sequence[str]) -> None:
        """Tells the HParams tab what the run is made of; a run that is cut off is there too.

        Only the records: Lightning's `log_hyperparams` would also write a point for each metric,
        of a value that nobody measured. The tab shows the last point of each metric instead.
        """
        from torch.utils.tensorboard.summary import hparams  # imports TensorBoard

        experiment, start, self._end_record = hparams(_plain(options), dict.fromkeys(metrics, 0.0))
        for record in (experiment, start):
            self.experiment._get_file_writer().add_summary(record)

    @rank_zero_only
    def end_hparams(self) -> None:
        """Tells it that the run came to its end."""
        self.experiment._get_file_writer().add_summary(self._end_record)


def _plain(options: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """Values that the tab can show."""
    return {
        key: value if isinstance(value, bool | int | float | str) else str(value)
        for key, value in options.items()
    }
