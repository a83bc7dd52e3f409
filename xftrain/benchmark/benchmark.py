"""A benchmark: a Lightning callback whose cells are measured in processes after training."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from xftrain.benchmark.base import BenchmarkPlan, Context
from xftrain.benchmark.session import run_suite
from xftrain.commands.early_stop import StoppableTrainer
from xftrain.train.hardware import compute_dtype
from xftrain.train.module import training_module

__all__ = ["Context", "Benchmark"]


class Benchmark(BenchmarkPlan, Callback):
    """Measures its cells after training, and adds a section to the report of the run folder."""

    measures_times = True  # other processes on the device would falsify the times

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks the jobs before training rather than hours later."""
        if stage == "fit":
            self.checked_jobs(_context(trainer, pl_module))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Runs all benchmarks at the first one's call, when the model has left the GPU."""
        benchmarks = [c for c in trainer.callbacks if isinstance(c, Benchmark)]  # type: ignore[attr-defined]
        if self is benchmarks[0] and trainer.is_global_zero:
            run_suite(benchmarks, _context(trainer, pl_module))


def _context(trainer: Trainer, pl_module: LightningModule) -> Context:
    """The context of the benchmarks of a training run."""
    module = training_module(pl_module)
    return Context(
        run_dir=Path(trainer.default_root_dir),
        device=trainer.strategy.root_device,
        dtype=str(compute_dtype(str(trainer.precision))).removeprefix("torch."),
        options=module.saved["config"],
        loggers=trainer.loggers,
        cfg=trainer.run_config if isinstance(trainer, StoppableTrainer) else None,
        vocab_size=module.model.vocab_size,
    )
