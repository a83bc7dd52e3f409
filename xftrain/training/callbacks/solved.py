"""Stops the run when the task is solved."""

import logging

from lightning.pytorch import Callback, LightningModule, Trainer

from xftrain.training.callbacks.checkpoint import within_step
from xftrain.training.module import training_module

log = logging.getLogger(__name__)


class Solved(Callback):
    """Ends training at a validation accuracy of `data.stop_at_accuracy`; never where it is null."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at the validation that just ended."""
        module = training_module(pl_module)
        target = module.data.stop_at_accuracy
        accuracy = module.latest["val/accuracy"]
        if target is None or accuracy < target or trainer.sanity_checking or within_step(trainer):
            return
        log.info(
            "solved at step %d: validation accuracy %.2f %% (data.stop_at_accuracy=null goes on)",
            trainer.global_step,
            100 * accuracy,
        )
        trainer.should_stop = True
