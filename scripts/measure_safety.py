"""Measures the cost of checkpoints and checks, by alternating runs with and without them.

The script prints the training time, from the first step to the last, and the difference. Runs
without checks also skip the check of each step for NaN and inf.

    python scripts/measure_safety.py --steps 1000 --rounds 3 [overrides ...]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import xftrain
from xftrain.commands.signals import StopSignals
from xftrain.interfaces import LossSums
from xftrain.train.nonfinite import NonFiniteGuard
from xftrain.utils.console import raised_log_level

WITHOUT = ("callbacks.checkpoint=null", "callbacks.watchdog=null")


@contextmanager
def timed() -> Iterator[list[float]]:
    """Records the training time of each run in seconds, with the callback that every run has."""
    seconds: list[float] = []
    start, end = StopSignals.on_train_start, StopSignals.on_train_end

    def on_start(callback: StopSignals, *args: Any) -> None:
        start(callback, *args)
        seconds.append(-time.perf_counter())

    def on_end(callback: StopSignals, *args: Any) -> None:
        end(callback, *args)
        seconds[-1] += time.perf_counter()

    with mock.patch.multiple(StopSignals, on_train_start=on_start, on_train_end=on_end):
        yield seconds


def unchecked() -> Any:
    """Disables the check of steps for NaN and inf."""

    def check_step(
        guard: NonFiniteGuard, optimizer: Any, sums: LossSums, norm: Tensor | None
    ) -> None:
        if guard._is_bad is None:  # it is read when metrics are recorded
            guard._is_bad = torch.zeros((), device=sums.loss.device)

    return mock.patch.multiple(NonFiniteGuard, check_step=check_step, record=lambda *_: None)


@raised_log_level()
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args(argv)
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    shared = [f"max_steps={args.steps}", "data.stop_at_accuracy=null", "callbacks.sample=null"]
    for turn in range(args.rounds + 1):
        for name in seconds if turn % 2 else reversed(seconds):
            more = WITHOUT if name == "without" else ()
            checks = nullcontext() if name == "with" else unchecked()
            with tempfile.TemporaryDirectory() as folder, timed() as times, checks:
                xftrain.run(xftrain.compose(*shared, *args.overrides, *more), Path(folder))
            if turn:  # the first warms up
                seconds[name] += times
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, times in seconds.items():
        print(f"{name:8} {medians[name]:7.3f} s  ({', '.join(f'{t:.3f}' for t in times)})")
    print(f"cost     {medians['with'] / medians['without'] - 1:+.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
