"""Trains, and explains a checkpoint that cannot be restored."""

from __future__ import annotations

import traceback
from pathlib import Path

import lightning.pytorch as pl

from xftrain.commands.prepare import Prepared
from xftrain.errors import ConfigError, RunError, first_line
from xftrain.train.module import TrainingModule
from xftrain.utils.device_memory import is_out_of_memory

_BAD_STATE = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def fit(run: Prepared, trainer: pl.Trainer, module: TrainingModule) -> None:
    """Trains; errors while the checkpoint is restored are reported as errors of the checkpoint."""
    try:
        trainer.fit(module, ckpt_path=run.ckpt, weights_only=True)
    except _BAD_STATE as error:
        is_explained = isinstance(error, ConfigError | RunError) or is_out_of_memory(error)
        frames = traceback.walk_tb(error.__traceback__)
        file_names = {Path(frame.f_code.co_filename).name for frame, _ in frames}
        is_restoring = not module.has_begun and "checkpoint_connector.py" in file_names
        if run.ckpt is None or is_explained or not is_restoring:
            raise
        raise ConfigError(
            f"ckpt={run.ckpt} cannot be resumed ({first_line(error)}): its content is not what "
            "this version of xftrain saves; give another one, or none to train from the start."
        ) from error
