"""Several processes, one on each device, that train one model: PyTorch's DDP."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from xftrain.processes import rank

_Value = TypeVar("_Value")

_TIMEOUT = timedelta(minutes=30)  # for the slowest of the ranks, as when one makes token files


class DDP(DDPStrategy):
    """Lightning's, made on the stream of the steps; on one of its own each gradient may wait.

    Gradients are views of the buckets that are summed over ranks, and so are held once. Buckets of
    100 MiB: with torch's 25 a step of two H200s took 1 to 2 % longer.
    """

    def __init__(self) -> None:
        super().__init__(gradient_as_bucket_view=True, bucket_cap_mb=100)

    def _setup_model(self, model: nn.Module) -> DistributedDataParallel:
        device_ids = self.determine_ddp_device_ids()
        return DistributedDataParallel(model, device_ids=device_ids, **self._ddp_kwargs)


def world_size() -> int:
    """Processes that train together, of the group that `connect` joined."""
    return dist.get_world_size() if dist.is_initialized() else 1


def connect(device: torch.device, num_ranks: int) -> None:
    """Joins the ranks that the environment names; nothing where there is one."""
    if num_ranks == 1 or dist.is_initialized():
        return
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        rank=rank(),
        world_size=num_ranks,
        timeout=_TIMEOUT,
        device_id=device if on_gpu else None,
    )


def disconnect(*, together: bool) -> None:
    """Leaves the group, so that a run that follows in this process is one of its own.

    Args:
        together: all ranks do, at the end of a whole run. Leaving NCCL's group properly takes all
            of them; where one fails, the others may wait for it in a step, so it aborts the group.
    """
    if not dist.is_initialized():
        return
    if not together and dist.get_backend() == "nccl":
        dist.distributed_c10d._abort_process_group()
    else:
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


def from_all_ranks(value: _Value) -> list[_Value]:
    """What each rank has, on every rank."""
    if world_size() == 1:
        return [value]
    held: list[Any] = [None] * world_size()
    dist.all_gather_object(held, value)
    return held
