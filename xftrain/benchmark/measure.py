"""Time and memory of one call, on a GPU and on a CPU."""

from __future__ import annotations

import ctypes
import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from xftrain.memory import memory_mib, peak_memory_mib, reset_peak_memory
from xftrain.timing import synchronize, wall_ms

_FLUSH_CUDA, _FLUSH_CPU = 256 * 2**20, 16 * 2**20  # larger than a GPU's L2, than a core's L2
_HOST_MARGIN = 2.0  # of the time that Python takes to issue a call: it varies
_FIRST_KERNEL = 0.5  # of that time, until the device has something to do
_SHORT_MS, _TRIES = 10.0, 4
_MAX_FLUSHES = 100
_LOOPS, _LOOP_MS = 3, 40.0  # of calls back to back

Call = Callable[[], object]


@dataclass(frozen=True)
class Memory:
    """What a call needs, MiB; None where the system does not tell.

    Attributes:
        mask_mib: the kernel's own form of the bias.
        extra_mib: all that is allocated above the inputs at the worst moment, the mask included.
        peak_mib: the largest memory of the process, allocated on a GPU, resident on the CPU.
    """

    mask_mib: float | None
    extra_mib: float | None
    peak_mib: float | None


class Stopwatch:
    """Times single calls with a cold cache.

    On CUDA by device events. Before each call a buffer larger than the L2 cache is overwritten, as
    `triton.testing.do_bench` does, and as often as it takes for Python to issue the call
    meanwhile: what is timed is the device's work, not Python's. `loops_ms` has both.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        size = _FLUSH_CUDA if device.type == "cuda" else _FLUSH_CPU
        self._flush = torch.empty(size, dtype=torch.int8, device=device)
        self._flush_ms = wall_ms(self._flush.zero_, device)
        if device.type == "cuda":
            self._flush_ms = statistics.median(self._event_ms(self._flush.zero_) for _ in range(5))

    def once(self, call: Call) -> Callable[[], float]:
        """A function that makes the call and returns its time, ms."""
        if self.device.type != "cuda":
            return lambda: self._once_cpu(call)
        num_flushes = 0
        is_warm = False

        def timed() -> float:
            nonlocal num_flushes, is_warm
            if not is_warm:
                is_warm = True
                return wall_ms(call, self.device)
            if not num_flushes:
                num_flushes = min(math.ceil(self._hide_ms(call) / self._flush_ms), _MAX_FLUSHES)
            for _ in range(num_flushes):
                self._flush.zero_()
            return self._event_ms(call)

        return timed

    def loops_ms(self, call: Call, estimate_ms: float) -> list[float]:
        """Mean times of loops of calls, Python's part included where it is the slower."""
        repeats = min(max(int(_LOOP_MS / max(estimate_ms, 1e-3)), 1), 50)

        def loop() -> None:
            for _ in range(repeats):
                call()

        call()
        loops = _LOOPS if repeats > 1 else 1  # the same as single calls
        return [wall_ms(loop, self.device) / repeats for _ in range(loops)]

    def _once_cpu(self, call: Call) -> float:
        self._flush.zero_()
        return wall_ms(call, self.device)

    def _event_ms(self, call: Call) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def _hide_ms(self, call: Call) -> float:
        """How long to keep the device busy first.

        The longest of a few: Python's part varies most where it matters, in short calls.
        """
        issued_ms, total_ms = self._issue_ms(call)
        tries = [(issued_ms, total_ms)]
        if total_ms < _SHORT_MS:
            tries += [self._issue_ms(call) for _ in range(_TRIES)]
        return max(hidden_ms(*one) for one in tries)

    def _issue_ms(self, call: Call) -> tuple[float, float]:
        """How long Python took to issue the call, and all of it."""
        synchronize(self.device)
        start = time.perf_counter()
        call()
        issued = (time.perf_counter() - start) * 1e3
        synchronize(self.device)
        return issued, (time.perf_counter() - start) * 1e3


def hidden_ms(host_ms: float, total_ms: float) -> float:
    """How long the device is to be kept busy before a call that Python takes so long to issue.

    A call that takes the device longer hides most of Python's part itself, and a device that
    rests before it would run it at a higher clock than training does.
    """
    device_ms = max(total_ms - host_ms, 0.0)  # that is left when Python has issued the call
    return max(_HOST_MARGIN * host_ms - device_ms, _FIRST_KERNEL * host_ms, 1e-3)


def spread(name: str, times_ms: Sequence[float]) -> dict[str, Any]:
    """Median, 10th and 90th percentile as fields of a row."""
    low, middle, high = np.percentile(times_ms, (10, 50, 90)).tolist()
    return {name: middle, f"{name}_p10": low, f"{name}_p90": high}


def memory_of(
    prepare: Callable[[], Any], call: Callable[[Any], object], device: torch.device
) -> Memory:
    """Memory of `call(prepare())`, with nothing else in the process but the inputs."""
    settle(device)
    before = memory_mib(device)
    if before is None or not reset_peak_memory(device):
        return Memory(None, None, None)
    handle = prepare()
    synchronize(device)
    mask_mib = (memory_mib(device) or before) - before
    call(handle)
    synchronize(device)
    peak_mib = peak_memory_mib(device)
    return Memory(max(mask_mib, 0.0), max(peak_mib - before, 0.0), peak_mib)


def settle(device: torch.device) -> None:
    """Gives freed memory back, so that it is not taken for memory in use or for room to use."""
    gc.collect()
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.empty_cache()
        return
    with suppress(OSError, AttributeError):  # not every C library has it
        ctypes.CDLL(None).malloc_trim(0)


def warm_up(device: torch.device) -> None:
    """Workspaces and thread pools that stay, so that no cell pays for them: both directions."""
    for dtype in (torch.float32, torch.float16):
        x = torch.randn(64, 64, device=device, dtype=dtype, requires_grad=True)
        (x @ x).softmax(-1).sum().backward()
    synchronize(device)
