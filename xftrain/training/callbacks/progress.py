"""How a run shows that it moves: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from xftrain.fields import PositiveInt
from xftrain.training.module import training_module

log = logging.getLogger(__name__)

_SHOWN = {
    "train/loss": "loss {:.4f}",
    "train/accuracy": "accuracy {:.2%}",
    "train/bits_per_byte": "bits/byte {:.3f}",
    "speed/tokens_per_s": "{:,.0f} tokens/s",
}


class Progress(Callback):
    """Lines in the log; with a bar, only the validation results.

    Args:
        style: `auto` is `rich` on a terminal and `line` elsewhere; `none` shows nothing.
        every_n_steps: optimizer steps between two lines.
    """

    def __init__(
        self,
        *,
        style: Literal["auto", "rich", "line", "none"] = "auto",
        every_n_steps: PositiveInt = 20,
    ) -> None:
        on_terminal = sys.stdout.isatty()
        self.style = style if style != "auto" else ("rich" if on_terminal else "line")
        self.every_n_steps = every_n_steps
        self._next_line = every_n_steps

    def bar(self) -> Callback | None:
        """The bar to add to the trainer's callbacks; None where there is none."""
        return _Bar() if self.style == "rich" else None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A line every so many steps, at a step whose own metrics were fetched."""
        step, module = trainer.global_step, training_module(pl_module)
        has_figures = module.recorded_at in (step, -1)  # -1: none are ever fetched, or not yet
        if self.style != "line" or step < self._next_line or not has_figures:
            return
        self._next_line = (step // self.every_n_steps + 1) * self.every_n_steps
        log.info("step %d/%d  %s", step, trainer.max_steps, shown(module.latest))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The validation results."""
        if self.style == "none" or trainer.sanity_checking:
            return
        latest = training_module(pl_module).latest
        parts = [f"loss {latest['val/loss']:.4f}", f"accuracy {latest['val/accuracy']:.2%}"]
        if "val/bits_per_byte" in latest:
            parts.append(f"bits/byte {latest['val/bits_per_byte']:.3f}")
        log.info("validation at step %d  %s", trainer.global_step, "  ".join(parts))


class _Bar(RichProgressBar):
    """Lightning's bar with the figures that are on the host anyway."""

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        latest = training_module(pl_module).latest
        return {name.rpartition("/")[2]: value for name, value in latest.items() if name in _SHOWN}


def shown(latest: dict[str, float]) -> str:
    """The figures of a progress line that are known by now."""
    return "  ".join(text.format(latest[name]) for name, text in _SHOWN.items() if name in latest)
