"""Data-parallel training with one process per device, by PyTorch's DDP."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from xftrain.errors import ConfigError, RunError, first_line
from xftrain.utils.processes import RANKS_VARIABLE, rank, rank_died

_POLL_S = 0.2
_MAX_NAMED = 5  # maximum number of parameters named in an error
_Value = TypeVar("_Value")

_TIMEOUT = timedelta(minutes=30)  # for the slowest rank, which may be preparing token files


class DDP(DDPStrategy):
    """Lightning's DDP strategy, created on the CUDA stream that runs the training steps.

    Lightning would create DDP on a separate stream, for which each gradient might have to wait.
    Gradients are views of the all-reduce buckets, so each is in memory only once. Buckets have
    100 MiB: with torch's default of 25 MiB, a step on two H200s took 1 to 2 % longer.
    """

    def __init__(self) -> None:
        super().__init__(gradient_as_bucket_view=True, bucket_cap_mb=100)
        self._is_checked = False  # whether every parameter was seen to get a gradient

    def _setup_model(self, model: nn.Module) -> DistributedDataParallel:
        device_ids = self.determine_ddp_device_ids()
        return DistributedDataParallel(model, device_ids=device_ids, **self._ddp_kwargs)

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """Broadcasts Lightning's plain values, such as a folder, as JSON, not pickled."""
        if obj is None or isinstance(obj, str | int | float):
            return all_gather_values(obj)[src]
        return super().broadcast(obj, src)

    def post_backward(self, closure_loss: Tensor) -> None:
        """Checks after the first batch that every trained parameter has a gradient.

        torch would detect a parameter without a gradient only in the next batch, after a step
        whose gradients were not all-reduced.

        Raises:
            RunError: a parameter has no gradient; the message names it.
        """
        super().post_backward(closure_loss)
        if self._is_checked or self.lightning_module is None:
            return
        self._is_checked = True
        named = self.lightning_module.named_parameters()
        unused = [name for name, weight in named if weight.requires_grad and weight.grad is None]
        if unused:
            raise _missing_gradient(unused)

    def on_exception(self, exception: BaseException) -> None:
        """Replaces the advice in torch's error, which names an argument that no key sets."""
        if "finished reduction in the prior iteration" in str(exception):
            exception.args = (str(_missing_gradient(self._unused_in(str(exception)))),)

    def _unused_in(self, message: str) -> list[str]:
        """Names of the parameters that torch's message lists by index."""
        assert self.lightning_module is not None
        named = self.lightning_module.named_parameters()
        names = [name for name, weight in named if weight.requires_grad]
        listed = re.search(r"did not receive grad for rank \d+: ([\d ]+)", message)
        numbers = map(int, listed[1].split()) if listed else ()
        return [names[number] for number in numbers if number < len(names)]


def _missing_gradient(names: list[str]) -> RunError:
    shown = ", ".join(name.removeprefix("model.") for name in names[:_MAX_NAMED])
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return RunError(
        "with trainer.devices > 1 every parameter must take part in the loss of every batch, and "
        f"{shown or 'some'}{more} got no gradient: use them, remove them, or set their "
        "requires_grad to False."
    )


class StartedRanks(LightningEnvironment):
    """The cluster environment of ranks that `launch.ranks` or torchrun started."""

    def teardown(self) -> None:
        """Does nothing: Lightning would unset WORLD_SIZE, which a later run reads."""


def set_lightning_rank() -> None:
    """Sets the rank of this process in Lightning, of which only rank 0 writes records.

    Lightning reads the rank at its import from any of four environment variables. One of them is
    SLURM_PROCID, also in a job whose tasks are not ranks: such a run would lose all its records.
    """
    rank_zero_only.rank = rank()  # type: ignore[attr-defined]


def world_size() -> int:
    """Number of ranks in the process group that `connect` joined; 1 without a group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def connect(device: torch.device, num_ranks: int) -> None:
    """Joins the process group of the ranks; does nothing for a single rank.

    Args:
        device: the device of this rank.
        num_ranks: the number of ranks.

    Raises:
        ConfigError: the environment lacks the address of the rendezvous.
        ConnectionError: another rank died while this one waited.
        RunError: the ranks cannot connect.
    """
    if num_ranks == 1 or dist.is_initialized():
        return
    address = _rendezvous_address()
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)

    def join() -> None:
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=_file_store(num_ranks),
            rank=rank(),
            world_size=num_ranks,
            timeout=_TIMEOUT,
            device_id=device if on_gpu else None,
        )

    try:
        _interruptible(join)
    except ConnectionError:  # the parent of the ranks reports which rank died
        raise
    except (OSError, RuntimeError, ValueError) as error:
        raise RunError(
            f"the ranks cannot connect at {address} ({first_line(error)}): check MASTER_ADDR and "
            "MASTER_PORT in the environment, and that all ranks were started."
        ) from error


def _file_store(num_ranks: int) -> Any:
    """A file store in a private folder, for ranks that `launch.ranks` has started.

    torch's default store listens on a port, where another user's process could join as a rank. The
    result is None if another launcher, such as torchrun, has started the ranks; it provides the
    address of a store.
    """
    if not (folder := os.environ.get(RANKS_VARIABLE)):
        return None
    return dist.FileStore(os.path.join(folder, "store"), num_ranks)  # type: ignore[attr-defined]


def _rendezvous_address() -> str:
    """The address of the rendezvous, from the environment that the launcher has set."""
    names = ("MASTER_ADDR", "MASTER_PORT")
    for name in names:
        if not os.environ.get(name, "").strip():
            raise ConfigError(
                f"{name} is not in the environment of this rank: start the ranks with torchrun, or "
                "unset LOCAL_RANK and WORLD_SIZE."
            )
    return ":".join(os.environ[name] for name in names)


def _interruptible(function: Callable[[], None]) -> None:
    """Calls a function that may block in C for minutes, while signals can end this process.

    Python runs signal handlers only in the main thread, once it returns from C. The death of
    another rank ends the wait too.
    """
    failures: list[BaseException] = []
    gpu = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def call() -> None:
        try:
            if gpu is not None:
                torch.cuda.set_device(gpu)  # the device is set per thread
            function()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=call, daemon=True, name="waiting for the ranks")
    thread.start()
    while thread.is_alive():
        thread.join(_POLL_S)
        if rank_died.is_set() and thread.is_alive():
            raise ConnectionError("another rank has died")
    if failures:
        raise failures[0]


def disconnect(*, together: bool) -> None:
    """Leaves the process group, so that a later run in this process can join another one.

    Args:
        together: whether all ranks leave, as at the end of a complete run. NCCL needs all ranks to
            destroy a group; a rank that fails aborts it, since the others may be waiting in a step.
    """
    if not dist.is_initialized():
        return
    if not together and dist.get_backend() == "nccl":
        dist.distributed_c10d._abort_process_group()
    else:
        dist.destroy_process_group()


def broadcast_from_rank_0(value: Any) -> Any:
    """Broadcasts a value of rank 0 to every rank; the value must consist of JSON types."""
    return all_gather_values(value)[0]


def all_reduce_sum(value: Tensor) -> Tensor:
    """All-reduces a tensor by sum, without waiting for the device."""
    if world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def all_reduce_max(value: Tensor) -> Tensor:
    """All-reduces a tensor by elementwise maximum."""
    if world_size() > 1:
        value = value.clone()
        dist.all_reduce(value, dist.ReduceOp.MAX)
    return value


def all_gather_rows(value: Tensor) -> Tensor:
    """Concatenates the tensors of all ranks, of one shape, along the first dimension."""
    if world_size() == 1:
        return value
    gathered = value.new_empty(world_size() * value.shape[0], *value.shape[1:])
    # torch 2.13 renamed the function, and warns of the old name
    all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    all_gather(gathered, value.contiguous())
    return gathered


def all_gather_values(value: _Value) -> list[_Value]:
    """Gathers the values of all ranks on every rank; each must consist of JSON types.

    torch would pickle the values, and unpickling could run code from another process.
    """
    if world_size() == 1:
        return [value]
    gathered: list[_Value] = []
    _interruptible(lambda: gathered.extend(_all_gather_json(value)))
    return gathered


def _all_gather_json(value: Any) -> list[Any]:
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    content = json.dumps(value, default=str, skipkeys=True).encode()
    sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(world_size())]
    dist.all_gather(sizes, torch.tensor([len(content)], device=device))
    longest = int(torch.cat(sizes).max())
    sent = torch.tensor(
        [*content, *bytes(longest - len(content))], dtype=torch.uint8, device=device
    )
    received = [torch.empty_like(sent) for _ in sizes]
    dist.all_gather(received, sent)
    return [
        json.loads(bytes(text[: int(size)].tolist()))
        for text, size in zip(received, sizes, strict=True)
    ]
