"""Several processes, one on each device, that train one model: PyTorch's DDP."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from xftrain.processes import rank

_TIMEOUT = timedelta(minutes=30)  # for the slowest of the ranks, as when one makes token files


def world_size() -> int:
    """Processes that train together, of the group that `connect` joined."""
    return dist.get_world_size() if dist.is_initialized() else 1


def connect(device: torch.device, num_ranks: int) -> None:
    """Joins the ranks that the environment names; nothing where there is one."""
    if num_ranks == 1 or dist.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, rank=rank(), world_size=num_ranks, timeout=_TIMEOUT)


def disconnect() -> None:
    """Leaves the group, so that a run that follows in this process is one of its own."""
    if dist.is_initialized():
        dist.destroy_process_group()


def from_rank_0(value: Any) -> Any:
    """What rank 0 has, on every rank."""
    if world_size() == 1:
        return value
    held = [value]
    dist.broadcast_object_list(held, src=0)
    return held[0]


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of all ranks' tensors, on every rank; without a wait for the device."""
    if world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def largest_over_ranks(value: Tensor) -> Tensor:
    """The largest of all ranks' tensors, element by element, on every rank."""
    if world_size() > 1:
        value = value.clone()
        dist.all_reduce(value, dist.ReduceOp.MAX)
    return value


def from_all_ranks(value: str) -> list[str]:
    """What each rank has, on every rank."""
    if world_size() == 1:
        return [value]
    held: list[Any] = [None] * world_size()
    dist.all_gather_object(held, value)
    return held
