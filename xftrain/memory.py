"""Memory of this process: allocated on a GPU, resident on the CPU; MiB."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")


def reset_peak_memory(device: torch.device) -> bool:
    """Starts a new peak, so that a run in a sweep does not report the one before it.

    False where the system does not let it: no Linux, or a sandbox that forbids it.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # proc(5): resets VmHWM
    except OSError:
        return False
    return True


def peak_memory_mib(device: torch.device) -> float:
    """Largest memory since the reset.

    Where the system keeps no such figure, resident memory is the process's largest ever.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    with suppress(OSError):
        if (mib := _resident_mib("VmHWM")) is not None:
            return mib
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest / 2**20 if sys.platform == "darwin" else largest / 2**10


def memory_mib(device: torch.device) -> float | None:
    """Memory in use now; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 2**20
    with suppress(OSError):
        return _resident_mib("VmRSS")
    return None


def total_memory_bytes(device: torch.device) -> int:
    """What the GPU, or this machine, has."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *_container_limits()])


def _container_limits() -> Iterator[int]:
    """What control groups allow this process, version 2 and 1; `max` is no limit."""
    for place in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            yield int(Path("/sys/fs/cgroup", place).read_text(encoding="utf-8"))


def usable_memory_bytes(device: torch.device) -> int:
    """What a run may plan with: 0.9 of all, and of what others leave free of a GPU.

    The rest is for what is not foreseen: fragments, buffers of libraries, the CUDA context.
    """
    total = total_memory_bytes(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        total = min(total, free + torch.cuda.memory_reserved(device))  # which is ours
    return int(0.9 * total)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator, of a GPU or of the CPU, had no more to give."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in said or "can't allocate memory" in said
    )


def _resident_mib(key: str) -> float | None:
    for line in _STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 2**10
    return None
