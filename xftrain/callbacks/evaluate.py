"""Evaluates held-out loss by position in the context during training, with a plot."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from xftrain.callbacks.metrics import not_training
from xftrain.config.fields import PositiveInt
from xftrain.evaluation.by_position import LossByPosition, plot
from xftrain.evaluation.scores import parts_of, score
from xftrain.interfaces import load_batch
from xftrain.model.evaluation_mode import evaluation_mode
from xftrain.train.module import TrainingModule, training_module
from xftrain.utils.files import replace_text
from xftrain.utils.optional import optional_step
from xftrain.utils.spreadsheet import csv_text

FILE, _TAG = "loss_by_position.csv", "val/loss_by_position"
_COLUMNS = ["step", "first", "last", "labels", "loss"]
_MAX_TOKENS = 16_384  # tokens that are computed at once


class Evaluate(Callback):
    """Writes the held-out loss by position to TensorBoard and to `loss_by_position.csv`.

    It shows how far back the model uses its context, which the mean loss does not.

    Args:
        every_n_steps: optimizer steps between evaluations; the last step is evaluated too.
        num_batches: maximum number of validation batches of an evaluation.
    """

    modifies_weights = False

    def __init__(self, *, every_n_steps: PositiveInt = 100, num_batches: PositiveInt = 4) -> None:
        self.every_n_steps, self.num_batches = every_n_steps, num_batches
        self._rows: list[dict[str, float]] = []
        self._evaluated_at = 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Evaluates after every n-th optimizer step, on rank 0."""
        step = trainer.global_step
        is_due = step % self.every_n_steps == 0 or step >= trainer.max_steps
        if not is_due or step == self._evaluated_at or not trainer.is_global_zero:
            return
        self._evaluated_at = step
        with optional_step("callbacks.evaluate"), not_training(trainer):
            self._evaluate(trainer, training_module(pl_module))

    def _evaluate(self, trainer: Trainer, module: TrainingModule) -> None:
        model, data = module.model, module.data
        by_position = LossByPosition()
        with evaluation_mode(model), trainer.precision_plugin.forward_context():
            for number in range(min(self.num_batches, data.num_val_batches)):
                for part in parts_of(load_batch(data, "val", number), _MAX_TOKENS):
                    by_position.add(score(model, part.to(module.device)))
        buckets, step = by_position.buckets(), trainer.global_step
        self._rows += [
            dict(zip(_COLUMNS, (step, b.first, b.last, b.num_labels, b.loss), strict=True))
            for b in buckets
        ]
        replace_text(Path(trainer.default_root_dir) / FILE, csv_text(self._rows, _COLUMNS))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                figure = plot(buckets, f"held-out loss by position, step {step}")
                logger.experiment.add_figure(_TAG, figure, step)

    def state_dict(self) -> dict[str, object]:
        """The rows so far, so that a resumed run writes all of them."""
        return {"rows": self._rows}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Restores rows that have the columns of this callback."""
        rows = state_dict.get("rows")
        if isinstance(rows, list) and all(_is_row(row) for row in rows):
            self._rows = rows


def _is_row(row: object) -> bool:
    return (
        isinstance(row, dict)
        and list(row) == _COLUMNS
        and all(type(value) in (int, float) for value in row.values())
    )
