"""Stops the run when the task is solved."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from xftrain.callbacks.checkpoint import within_step
from xftrain.checkpoint.plain_values import is_number
from xftrain.train.module import training_module


class Solved(Callback):
    """Ends training at a validation accuracy of `data.stop_at_accuracy`, unless it is null."""

    modifies_weights = False
    decides_again = True  # `on_train_start` compares with the resumed run's `stop_at_accuracy`

    def __init__(self) -> None:
        self.accuracy: float | None = None  # accuracy at which the run ended
        self.stopping_reason_message: str | None = None  # as in Lightning's EarlyStopping

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops at once if the task was already solved when the checkpoint was saved."""
        target = training_module(pl_module).data.stop_at_accuracy
        if target is None or self.accuracy is None or self.accuracy < target:
            return
        self.stopping_reason_message = (
            f"the task was solved when the checkpoint of step {trainer.global_step} was saved, and "
            "nothing is left to train (data.stop_at_accuracy=null trains on)"
        )
        trainer.should_stop = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the run if the validation that just ended reached the accuracy."""
        module = training_module(pl_module)
        target = module.data.stop_at_accuracy
        accuracy = module.latest_metrics["val/accuracy"]
        if target is None or accuracy < target or trainer.sanity_checking or within_step(trainer):
            return
        self.stopping_reason_message = (
            f"the task is solved, with a validation accuracy of {accuracy:.2%} "
            "(data.stop_at_accuracy=null trains on)"
        )
        self.accuracy = accuracy
        trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """The accuracy at which the task was solved, or None."""
        return {"accuracy": self.accuracy}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the accuracy; raises TypeError for a wrong type, which fails the restore."""
        accuracy = state_dict["accuracy"]
        if accuracy is not None and not is_number(accuracy):
            raise TypeError("the accuracy at which it was solved is not a number")
        self.accuracy = accuracy
