"""Runs the final save of a run before the other callbacks at its end."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from xftrain.callbacks.checkpoint import Checkpoint, use_averaged_weights


class LastSave(Callback):
    """Saves the final checkpoints before any other callback's `on_train_end`.

    Lightning calls checkpoint callbacks last, so that checkpoints include the state of the others.
    At the end of training, an error of another callback, such as the sample, would then lose the
    trained weights. Later callbacks see the averaged weights, if weights are averaged.
    """

    modifies_weights = False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Runs the final save of each checkpoint callback."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Checkpoint):
                callback.on_train_end(trainer, pl_module)
        use_averaged_weights(trainer)
