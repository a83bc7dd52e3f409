"""The last save of a run comes before whatever else there is to do at its end."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from xftrain.training.callbacks.checkpoint import Checkpoint, use_averaged_weights


class LastSave(Callback):
    """Has the checkpoints saved before any other callback's `on_train_end`.

    Lightning calls checkpoint callbacks last, so that what they save has the others' state. At the
    end of training that would let an error of another callback, as of a sample of the model, cost
    the trained weights. What follows, as a sample, has the averaged weights where there are some.
    """

    modifies_weights = False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Checkpoint):
                callback.on_train_end(trainer, pl_module)
        use_averaged_weights(trainer)
