"""Measures time and memory of one call, on a GPU or a CPU."""

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

from xftrain.utils.device_memory import memory_mib, peak_memory_mib, reset_peak_memory
from xftrain.utils.timing import synchronize, wall_ms

_FLUSH_CUDA, _FLUSH_CPU = 256 * 2**20, 16 * 2**20  # bytes; larger than the L2 of a GPU and a core
_HOST_MARGIN = 2.0  # safety factor of the time that Python takes to issue a call
_FIRST_KERNEL = 0.5  # share of that time until the first kernel is launched
_SHORT_MS, _TRIES = 10.0, 4
_MAX_FLUSHES = 100
_LOOPS, _LOOP_MS = 3, 40.0  # number and length of loops of back-to-back calls

Call = Callable[[], object]


@dataclass(frozen=True)
class Memory:
    """The memory of a call, MiB; None if the system does not report it.

    Attributes:
        mask_mib: the prepared mask or bias of the kernel.
        extra_mib: peak memory above the inputs, the mask included.
        peak_mib: peak memory of the process: allocated on a GPU, resident on the CPU.
    """

    mask_mib: float | None
    extra_mib: float | None
    peak_mib: float | None


class Stopwatch:
    """Times single calls with a cold cache.

    On CUDA it uses device events. Before each call, a buffer larger than the L2 cache is
    overwritten, as `triton.testing.do_bench` does, repeatedly until Python has issued the call, so
    that only the device's work is timed. `loops_ms` includes Python's overhead.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        size = _FLUSH_CUDA if device.type == "cuda" else _FLUSH_CPU
        self._flush = torch.empty(size, dtype=torch.int8, device=device)
        self._flush_ms = wall_ms(self._flush.zero_, device)
        if device.type == "cuda":
            self._flush_ms = statistics.median(self._event_ms(self._flush.zero_) for _ in range(5))

    def once(self, call: Call) -> Callable[[], float]:
        """Returns a function that makes the call and returns its time in ms."""
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
        """Mean times per call in loops of calls, ms, which include Python's overhead."""
        repeats = min(max(int(_LOOP_MS / max(estimate_ms, 1e-3)), 1), 50)

        def loop() -> None:
            for _ in range(repeats):
                call()

        call()
        loops = _LOOPS if repeats > 1 else 1  # a loop of one long call needs no repetition
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
        """How long to keep the device busy before a call, ms.

        It is the maximum of a few measurements, since Python's overhead varies most in short
        calls, where it matters.
        """
        issued_ms, total_ms = self._issue_ms(call)
        tries = [(issued_ms, total_ms)]
        if total_ms < _SHORT_MS:
            tries += [self._issue_ms(call) for _ in range(_TRIES)]
        return max(hidden_ms(*times) for times in tries)

    def _issue_ms(self, call: Call) -> tuple[float, float]:
        """Times of a call in ms: until Python had issued it, and until the device finished."""
        synchronize(self.device)
        start = time.perf_counter()
        call()
        issued = (time.perf_counter() - start) * 1e3
        synchronize(self.device)
        return issued, (time.perf_counter() - start) * 1e3


def hidden_ms(host_ms: float, total_ms: float) -> float:
    """How long the device must be kept busy before a call so that Python's overhead is hidden, ms.

    A call with a long device time hides most of the overhead itself. The device must not idle
    before a call, or it would run at a higher clock than in training.
    """
    device_ms = max(total_ms - host_ms, 0.0)  # device time left when Python has issued the call
    return max(_HOST_MARGIN * host_ms - device_ms, _FIRST_KERNEL * host_ms, 1e-3)


def spread(name: str, times_ms: Sequence[float]) -> dict[str, Any]:
    """The median, 10th and 90th percentile as fields of a row."""
    low, middle, high = np.percentile(times_ms, (10, 50, 90)).tolist()
    return {name: middle, f"{name}_p10": low, f"{name}_p90": high}


def measure_memory(
    prepare: Callable[[], Any], call: Callable[[Any], object], device: torch.device
) -> Memory:
    """Measures the memory of `call(prepare())`; the process must hold only the inputs."""
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
    """Returns freed memory to the system, so that measurements do not count it as in use."""
    gc.collect()
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.empty_cache()
        return
    with suppress(OSError, AttributeError):  # not every C library has it
        ctypes.CDLL(None).malloc_trim(0)


def warm_up(device: torch.device) -> None:
    """Creates persistent workspaces and thread pools, forward and backward, before any cell."""
    for dtype in (torch.float32, torch.float16):
        x = torch.randn(64, 64, device=device, dtype=dtype, requires_grad=True)
        (x @ x).softmax(-1).sum().backward()
    synchronize(device)
