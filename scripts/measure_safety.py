"""What checkpoints and checks cost: the same run with all of them and with none, in turn.

Prints the time of the training alone, from the first step to the last, and the difference. The
checks that are part of a step (NaN, inf) are replaced by nothing for the comparison.

    python scripts/measure_safety.py --steps 1000 --rounds 3 [overrides ...]
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import xftrain
from xftrain.training.nonfinite import NonFiniteGuard
from xftrain.training.signals import StopSignals

WITHOUT = ("callbacks.checkpoint=null", "callbacks.watchdog=null")


class Clock:
    """Times a run's training by the callback that every run has."""

    def __init__(self) -> None:
        self.started = self.seconds = 0.0
        start, end = StopSignals.on_train_start, StopSignals.on_train_end

        def on_start(callback: StopSignals, *args: Any) -> None:
            start(callback, *args)
            self.started = time.perf_counter()

        def on_end(callback: StopSignals, *args: Any) -> None:
            end(callback, *args)
            self.seconds = time.perf_counter() - self.started

        StopSignals.on_train_start, StopSignals.on_train_end = on_start, on_end  # type: ignore[method-assign]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    logging.disable(logging.INFO)
    clock, judge = Clock(), NonFiniteGuard.judge
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    shared = [f"max_steps={args.steps}", "data.stop_at_accuracy=null", "callbacks.sample=null"]
    for turn in range(args.rounds + 1):
        for name in seconds if turn % 2 else reversed(seconds):
            NonFiniteGuard.judge = judge if name == "with" else lambda *_, **__: None  # type: ignore[method-assign]
            more = WITHOUT if name == "without" else ()
            with tempfile.TemporaryDirectory() as folder:
                xftrain.run(xftrain.compose(*shared, *args.overrides, *more), Path(folder))
            if turn:  # the first warms up
                seconds[name].append(clock.seconds)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, times in seconds.items():
        print(f"{name:8} {medians[name]:7.3f} s  ({', '.join(f'{t:.3f}' for t in times)})")
    print(f"cost     {medians['with'] / medians['without'] - 1:+.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
