"""Figures of a step, brought to the host while the device goes on with the next one."""

from __future__ import annotations

import time

import torch
from torch import Tensor


class AsyncHostCopy:
    """A tensor as it is at this point of the device's work, on its way to the host.

    Args:
        tensor: may be written to afterwards.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._arrival: torch.cuda.Event | None = None
        if tensor.device.type != "cuda":
            self._host = tensor.detach().to("cpu", copy=True)
            return
        # copies to memory that is not pinned make the host wait
        self._host = torch.empty_like(tensor, device="cpu", pin_memory=True)
        self._host.copy_(tensor.detach(), non_blocking=True)
        self._arrival = torch.cuda.Event()
        self._arrival.record()

    def wait(self) -> Tensor:
        """The tensor on the host; waits for what the device had to do before, and no longer."""
        if self._arrival is not None:
            self._arrival.synchronize()
        return self._host


class DeviceTimestamp:
    """When the device is done with what it was given by now, which is not waited for.

    Args:
        device: on a CPU, nothing is under way.
    """

    def __init__(self, device: torch.device) -> None:
        self._host = time.perf_counter()
        self._event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)
            self._event.record(torch.cuda.current_stream(device))

    def seconds_since(self, earlier: DeviceTimestamp) -> float:
        """Waits until it has come."""
        if self._event is None or earlier._event is None:
            return self._host - earlier._host
        self._event.synchronize()
        return earlier._event.elapsed_time(self._event) / 1e3
