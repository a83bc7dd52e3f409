"""Copies tensors to the host asynchronously, while the device runs the next step."""

from __future__ import annotations

import time

import torch
from torch import Tensor


class AsyncHostCopy:
    """An asynchronous copy of a tensor to the host, with its value at this point of the stream.

    Args:
        tensor: the tensor to copy; it may be overwritten afterwards.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._arrival: torch.cuda.Event | None = None
        if tensor.device.type != "cuda":
            self._host = tensor.detach().to("cpu", copy=True)
            return
        # a copy to unpinned memory would block the host
        self._host = torch.empty_like(tensor, device="cpu", pin_memory=True)
        self._host.copy_(tensor.detach(), non_blocking=True)
        self._arrival = torch.cuda.Event()
        self._arrival.record()

    def wait(self) -> Tensor:
        """The tensor on the host; waits only for the work queued before the copy."""
        if self._arrival is not None:
            self._arrival.synchronize()
        return self._host


class DeviceTimestamp:
    """The time at which the device finishes the work queued so far; creating it does not wait.

    Args:
        device: the device; on a CPU, no work is pending.
    """

    def __init__(self, device: torch.device) -> None:
        self._host = time.perf_counter()
        self._event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)
            self._event.record(torch.cuda.current_stream(device))

    def seconds_since(self, earlier: DeviceTimestamp) -> float:
        """The seconds from an earlier timestamp to this one; waits until the device reaches it."""
        if self._event is None or earlier._event is None:
            return self._host - earlier._host
        self._event.synchronize()
        return earlier._event.elapsed_time(self._event) / 1e3
