"""Lightning's profilers, which write where the time goes into the run's folder."""

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

_FILENAME = "profile"  # Lightning puts what it ran before: fit-profile.txt


def build_profiler(name: str | None, run_dir: Path) -> Profiler | None:
    """The profiler of that name.

    Args:
        name: `simple` times Lightning's hooks, `advanced` Python's functions; `pytorch` times the
            operators and kernels of steps 3 to 5, and writes them as a trace too.
        run_dir: where it writes.
    """
    if name == "simple":
        return SimpleProfiler(run_dir, _FILENAME)
    if name == "advanced":
        return AdvancedProfiler(run_dir, _FILENAME)
    if name == "pytorch":
        return _TrainingSteps(run_dir, _FILENAME)
    return None


def end_profile(trainer: Trainer, run_dir: Path) -> None:
    """Says where the profile of training is; what comes after it has none."""
    trainer.profiler = PassThroughProfiler()  # type: ignore[attr-defined]
    for path in sorted(run_dir.glob(f"fit-{_FILENAME}*")):
        log.info("profile: %s", path)


def stop_profiling(trainer: Trainer) -> None:
    """Stops what an error in training left on.

    torch's profiler would go on through later runs of this process, and one that an error left
    half begun ends the process in one of them.
    """
    try:
        trainer.profiler.teardown(stage=None)  # type: ignore[attr-defined]
    except Exception as error:  # the one that training ended with is to be seen
        log.warning("the profile is lost: %s", first_line(error))
    finally:
        trainer.profiler = PassThroughProfiler()  # type: ignore[attr-defined]
        if torch.autograd._profiler_enabled():  # type: ignore[attr-defined]
            torch.autograd._disable_profiler()  # type: ignore[attr-defined]


class _TrainingSteps(PyTorchProfiler):
    """Counts training steps alone.

    Lightning counts validation steps as well, and where there are fewer than five gives up its
    schedule and records every step of the run.
    """

    STEP_FUNCTIONS = {"training_step"}

    def _cache_functions_events(self) -> None:
        if getattr(self.profiler, "profiler", None) is not None:  # else no step was made
            super()._cache_functions_events()
