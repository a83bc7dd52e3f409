"""Shows the progress of a run: a bar on a terminal, lines at intervals elsewhere."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Collection
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import (
    BatchesProcessedColumn,
    CustomBarColumn,
)
from rich.progress import TimeRemainingColumn

from xftrain.config.fields import PositiveInt
from xftrain.train.module import training_module

log = logging.getLogger(__name__)

_NUM_LINES = 50  # approximate number of lines of a run
_LINE_FORMATS = {
    "train/loss": "loss {:.4f}",
    "train/accuracy": "accuracy {:.2%}",
    "train/bits_per_byte": "bits/byte {:.3f}",
    "speed/tokens_per_s": "{:,.0f} tokens/s",
}


_BAR_FORMATS = {  # short formats, as a terminal may have 80 columns
    "train/loss": ("loss", "{:.4f}"),
    "train/accuracy": ("acc", "{:.1%}"),
    "train/bits_per_byte": ("bits/byte", "{:.3f}"),
    "speed/tokens_per_s": ("tok/s", "{:,.0f}"),
}
_NARROW_BAR_METRICS = ("train/loss", "speed/tokens_per_s")
_WIDE, _MEDIUM = 100, 75  # terminal columns for all metrics, and for a long bar


class Progress(Callback):
    """Logs lines with the latest metrics; with a bar, only the validation results.

    Training and validation have one line each per interval and at the end. The first intervals are
    shorter, so that output begins at once and the log of a long run stays readable. `metrics.csv`
    and TensorBoard have every record and every validation.

    Args:
        style: `auto` is `rich` on a terminal and `line` elsewhere; `none` shows nothing.
        every_n_steps: optimizer steps between two lines; None uses `interval_at`.
    """

    modifies_weights = False

    def __init__(
        self,
        *,
        style: Literal["auto", "rich", "line", "none"] = "auto",
        every_n_steps: PositiveInt | None = None,
    ) -> None:
        on_terminal = sys.stdout.isatty()
        self.style = style if style != "auto" else ("rich" if on_terminal else "line")
        self.every_n_steps = every_n_steps
        self._next_step_line = self._next_validation_line = 0

    def bar(self) -> Callback | None:
        """The progress bar to add to the trainer's callbacks, or None."""
        return _Bar() if self.style == "rich" else None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Computes the steps of the first lines."""
        step = trainer.global_step
        self._next_step_line = self._next_validation_line = self._next_after(step, trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs a line if one is due."""
        self._show_step(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the line of the last step before the line of its validation."""
        self._show_step(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the line of the last step before the output of other callbacks."""
        self._show_step(trainer, pl_module)

    def _show_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the last step whose metrics are on the host, with these metrics."""
        module = training_module(pl_module)
        step = module.recorded_at if module.recorded_at >= 0 else trainer.global_step
        trains = trainer.state.fn == "fit" and not trainer.sanity_checking
        if self.style != "line" or step < self._next_step_line or not trains:
            return
        self._next_step_line = self._next_after(step, trainer)
        log.info("step %d/%d  %s", step, trainer.max_steps, line_metrics(module.latest_metrics))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the validation results if a line is due or training is over."""
        step = trainer.global_step
        is_due = step >= self._next_validation_line or trainer.state.fn != "fit"
        if self.style == "none" or trainer.sanity_checking or not is_due:
            return
        self._next_validation_line = self._next_after(step, trainer)
        latest = training_module(pl_module).latest_metrics
        parts = [f"loss {latest['val/loss']:.4f}", f"accuracy {latest['val/accuracy']:.2%}"]
        if "val/bits_per_byte" in latest:
            parts.append(f"bits/byte {latest['val/bits_per_byte']:.3f}")
        log.info("validation at step %d  %s", step, "  ".join(parts))

    def _next_after(self, step: int, trainer: Trainer) -> int:
        """The next step with a line: a multiple of the interval, or the last step of the run."""
        interval = self.every_n_steps or interval_at(step, trainer.max_steps)
        return min((step // interval + 1) * interval, max(trainer.max_steps, step + 1))


class _Bar(RichProgressBar):
    """Lightning's bar over the batches of the whole run, with the metrics that are on the host."""

    modifies_weights = False

    def __init__(self) -> None:
        super().__init__(refresh_rate=10)  # per second

    @property
    def total_train_batches(self) -> int:
        """The batches of the whole run; Lightning would count the remaining optimizer steps."""
        return self.trainer.max_steps * self.trainer.accumulate_grad_batches

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """The columns bar, batches and remaining time, which fill a line with the metrics."""
        bar_width = 7 if self._width() < _MEDIUM else 20
        bar = CustomBarColumn(bar_width, complete_style=self.theme.progress_bar)
        batches = BatchesProcessedColumn(style=self.theme.batch_progress)
        return [bar, batches, TimeRemainingColumn(compact=True)]

    def _width(self) -> int:
        assert self._console is not None  # Lightning creates it before the columns
        return self._console.width

    def _get_train_description(self, current_epoch: int) -> str:
        return "training"  # there are no epochs

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        names = tuple(_BAR_FORMATS) if self._width() >= _WIDE else _NARROW_BAR_METRICS
        return bar_metrics(training_module(pl_module).latest_metrics, names)


def bar_metrics(
    latest: dict[str, float], names: Collection[str] = tuple(_BAR_FORMATS)
) -> dict[str, int | str | float | dict[str, float]]:
    """The metrics with these names that are available, formatted for the bar."""
    known = [(name, *_BAR_FORMATS[name]) for name in names if name in latest]
    return {short: text.format(latest[name]) for name, short, text in known}


def interval_at(step: int, max_steps: int) -> int:
    """Steps from one line to the next: 20, 50, 100, 200, ...

    The interval is a fiftieth of the run, but at least 20 steps; early in the run it is about the
    number of steps so far.
    """
    least = max(20.0, min(step, max_steps / _NUM_LINES))
    ten: int = 10 ** math.floor(math.log10(least))
    return next(digit * ten for digit in (1, 2, 5, 10) if digit * ten >= least)


def line_metrics(latest: dict[str, float]) -> str:
    """The metrics of a progress line that are available, formatted."""
    return "  ".join(
        text.format(latest[name]) for name, text in _LINE_FORMATS.items() if name in latest
    )
