"""Lightning's profilers, which write their reports to the folder of the run."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.profilers import (
    AdvancedProfiler,
    PassThroughProfiler,
    Profiler,
    PyTorchProfiler,
    SimpleProfiler,
)

from xftrain.errors import first_line

log = logging.getLogger(__name__)

_FILENAME = "profile"  # Lightning prepends the stage: fit-profile.txt


def build_profiler(name: str | None, run_dir: Path) -> Profiler | None:
    """Creates a profiler by name.

    Args:
        name: `simple` times Lightning's hooks, `advanced` Python's functions; `pytorch` times the
            operators and kernels of steps 3 to 5, and also writes a trace.
        run_dir: folder for the report.
    """
    if name == "simple":
        return SimpleProfiler(run_dir, _FILENAME)
    if name == "advanced":
        return AdvancedProfiler(run_dir, _FILENAME)
    if name == "pytorch":
        return _TrainingSteps(run_dir, _FILENAME)
    return None


def end_profile(trainer: Trainer, run_dir: Path) -> None:
    """Logs the path of the training profile, and stops profiling."""
    trainer.profiler = PassThroughProfiler()  # type: ignore[attr-defined]
    for path in sorted(run_dir.glob(f"fit-{_FILENAME}*")):
        log.info("profile: %s", path)


def stop_profiling(trainer: Trainer) -> None:
    """Stops a profiler that an error in training left running.

    torch's profiler would continue in later runs of this process, and a partly started one would
    crash the process in a later run.
    """
    try:
        trainer.profiler.teardown(stage=None)  # type: ignore[attr-defined]
    except Exception as error:  # the error that ended training must stay visible
        log.warning("the profile is lost: %s", first_line(error))
    finally:
        trainer.profiler = PassThroughProfiler()  # type: ignore[attr-defined]
        if torch.autograd._profiler_enabled():  # type: ignore[attr-defined]
            torch.autograd._disable_profiler()  # type: ignore[attr-defined]


class _TrainingSteps(PyTorchProfiler):
    """A PyTorch profiler that counts only training steps.

    Lightning counts validation steps as well. With fewer than five of them, it drops the schedule
    and records every step of the run.
    """

    STEP_FUNCTIONS = {"training_step"}

    def _cache_functions_events(self) -> None:
        if getattr(self.profiler, "profiler", None) is not None:  # otherwise no step has run
            super()._cache_functions_events()
