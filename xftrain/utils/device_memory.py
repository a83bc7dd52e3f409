"""Memory of this process in MiB: allocated memory on a GPU, resident memory on the CPU."""

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
    """Resets the peak, so that a sweep's job does not report the peak of an earlier job.

    Returns:
        False if the system cannot reset it: not Linux, or a sandbox that forbids it.
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
    """The peak memory since the reset, MiB.

    If the system cannot reset it, this is the largest resident memory since the process started.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    with suppress(OSError):
        if (mib := _resident_mib("VmHWM")) is not None:
            return mib
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest / 2**20 if sys.platform == "darwin" else largest / 2**10


def memory_mib(device: torch.device) -> float | None:
    """The memory in use now, MiB; None if the system does not report it."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 2**20
    with suppress(OSError):
        return _resident_mib("VmRSS")
    return None


def total_memory_bytes(device: torch.device) -> int:
    """The memory of the GPU, or of this machine within its container limits."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *_container_limits()])


def _container_limits() -> Iterator[int]:
    """Yields the memory limits of the control groups (v2 and v1) of this process."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            yield int(Path("/sys/fs/cgroup", name).read_text(encoding="utf-8"))


def usable_memory_bytes(device: torch.device) -> int:
    """The memory that a run may plan to use: 0.9 of the total, or of what is free on the GPU.

    The rest is a reserve for fragmentation, library buffers and the CUDA context.
    """
    total = total_memory_bytes(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        total = min(total, free + torch.cuda.memory_reserved(device))  # reserved by this process
    return int(0.9 * total)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error means that a GPU or CPU allocation failed for lack of memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    message = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in message or "can't allocate memory" in message
    )


def _resident_mib(key: str) -> float | None:
    for line in _STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 2**10
    return None
