"""A sweep as a callback: its cells are measured in their own processes when training has ended."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from xftrain.benchmark.session import run_sweeps
from xftrain.benchmark.sweep_plan import Context, SweepPlan
from xftrain.training.hardware import compute_dtype
from xftrain.training.module import training_module

__all__ = ["Context", "Sweep"]


class Sweep(SweepPlan, Callback):
    """Measures its cells when training has ended, and adds to the report of the run folder."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses now what would end a run that has trained for hours."""
        if stage == "fit":
            self.checked_jobs(_context(trainer, pl_module))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The first of the run's sweeps does all of them; the model has left the GPU by now."""
        sweeps = [c for c in trainer.callbacks if isinstance(c, Sweep)]  # type: ignore[attr-defined]
        if self is sweeps[0] and trainer.is_global_zero:
            run_sweeps(sweeps, _context(trainer, pl_module))


def _context(trainer: Trainer, pl_module: LightningModule) -> Context:
    """Where the sweeps of a training run are."""
    return Context(
        run_dir=Path(trainer.default_root_dir),
        device=trainer.strategy.root_device,
        dtype=str(compute_dtype(str(trainer.precision))).removeprefix("torch."),
        options=training_module(pl_module).saved["config"],
        loggers=trainer.loggers,
    )
