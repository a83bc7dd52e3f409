"""Events for TensorBoard, in the run folder itself, so that one `--logdir outputs` shows all."""

from pathlib import Path

from lightning.pytorch.loggers import TensorBoardLogger


class TensorBoard(TensorBoardLogger):
    """Lightning's own, without its dummy `hp_metric`."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(save_dir=run_dir, name="", version="", default_hp_metric=False)
