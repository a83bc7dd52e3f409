"""Times several calls with interleaved repetitions, so that drift affects all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch


def interleaved_times_ms(
    calls: Sequence[Callable[[], float]], *, budget_s: float, min_repeats: int, max_repeats: int
) -> list[list[float]]:
    """Times calls in turns, and returns the milliseconds of each repetition, one list per call.

    Args:
        calls: functions that each time one call, in ms; a first call of each is a warm-up.
        budget_s: time to spend on each call, within the limits below.
        min_repeats: minimum number of repetitions of a call.
        max_repeats: maximum number of repetitions of a call.
    """
    for call in calls:
        call()  # warm-up: loads kernels, so it must not set the number of repetitions
    series = [[call()] for call in calls]
    fits = [int(budget_s * 1e3 / max(first[0], 1e-3)) for first in series]
    repeats = [min(max(count, min_repeats), max_repeats) for count in fits]
    for turn in range(1, max(repeats, default=0)):
        for index, call in enumerate(calls):
            if turn < repeats[index]:
                series[index].append(call())
    return series


def wall_ms(call: Callable[[], object], device: torch.device) -> float:
    """The wall time of one call in ms, including the work that it launches on the device."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return (time.perf_counter() - start) * 1e3


def synchronize(device: torch.device) -> None:
    """Waits until a GPU has finished its work; does nothing on the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
