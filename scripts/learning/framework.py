"""A run of xftrain as a user runs it, whose validations are the points of the curve."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import OmegaConf

from learning.curve import CurveClock
from learning.setup import Setup, config_overrides
from xftrain import compose, run
from xftrain.config.compose import validate_as
from xftrain.config.run_config import RunConfig
from xftrain.interfaces import Batch
from xftrain.train.module import training_module


class CurveCallback(Callback):
    """Times the steps and reads the validation loss.

    Args:
        tokens_per_step: tokens of one optimizer step.
    """

    modifies_weights = False  # otherwise the run would have no bfloat16 copies of the weights
    last: ClassVar[CurveCallback | None] = None  # the instance, which Hydra creates

    def __init__(self, tokens_per_step: int) -> None:
        self.tokens_per_step = tokens_per_step
        CurveCallback.last = self

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self.clock = CurveClock(pl_module.device, self.tokens_per_step)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Counts a step, after the other callbacks, so that their time is included."""
        self.clock.after_step(trainer.global_step)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clock."""
        self.clock.pause()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds a point."""
        self.clock.resume(training_module(pl_module).latest_metrics["val/loss"])


def train(setup: Setup) -> CurveClock:
    """Trains a run and returns its curve."""
    cfg = compose(*config_overrides(setup))
    config = validate_as(RunConfig, cfg)
    accumulated = config.trainer.accumulate_grad_batches
    tokens = config.batch_size * config.seq * accumulated
    path = f"{CurveCallback.__module__}.{CurveCallback.__name__}"
    node = {"_target_": path, "tokens_per_step": tokens}
    OmegaConf.update(cfg, "callbacks.curve", node, force_add=True)  # the last callback
    with tempfile.TemporaryDirectory() as folder:
        run(cfg, Path(folder))
    callback = CurveCallback.last
    assert callback is not None
    return callback.clock
