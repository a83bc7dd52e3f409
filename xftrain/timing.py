"""Times of several calls, taken in turns so that drift hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch


def in_turns(
    once: Sequence[Callable[[], float]], *, budget_s: float, min_repeats: int, max_repeats: int
) -> list[list[float]]:
    """Milliseconds of every repetition of every call.

    Args:
        once: each makes one call and returns how long it took, ms; called once more beforehand.
        budget_s: time to spend on each, within the two limits below.
        min_repeats: repetitions that are made however slow a call is.
        max_repeats: repetitions that are made at most.
    """
    for call in once:
        call()  # loads kernels, which says nothing of how many repetitions fit
    series = [[call()] for call in once]
    fits = [int(budget_s * 1e3 / max(first[0], 1e-3)) for first in series]
    repeats = [min(max(count, min_repeats), max_repeats) for count in fits]
    for turn in range(1, max(repeats, default=0)):
        for index, call in enumerate(once):
            if turn < repeats[index]:
                series[index].append(call())
    return series


def wall_ms(call: Callable[[], object], device: torch.device) -> float:
    """How long one call takes from the host's view, with all that it starts on the device."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return (time.perf_counter() - start) * 1e3


def synchronize(device: torch.device) -> None:
    """Waits for a GPU; the CPU has nothing under way."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
