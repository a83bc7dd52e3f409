"""Muon, with the matrices of equal shape orthogonalized in batches, which ranks share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xftrain.kernels.newton_schulz import orthogonalize

# of a batch on one rank, for which a step needs at most about 1 GiB of memory, and for the updates
# of each other rank 128 MiB in bfloat16
_BATCH_ELEMENTS = 2**26


class Ranks(NamedTuple):
    """The ranks that train one model, whose gradients are equal.

    Attributes:
        rank: the rank of this process.
        world_size: number of ranks.
        all_gather: concatenates the tensors of all ranks along the first dimension.
    """

    rank: int = 0
    world_size: int = 1
    all_gather: Callable[[Tensor], Tensor] = lambda own: own


_ONE_RANK = Ranks()


class _Matrix(NamedTuple):
    """Views of a matrix, or of one of several that are stacked in a weight, with R <= C."""

    weight_RC: Tensor
    grad_RC: Tensor
    momentum_RC: Tensor


class BatchedMuon(torch.optim.Optimizer):
    """Muon (Jordan et al., 2024): momentum whose matrices are orthogonalized.

    It is `torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`, except that the matmuls are in
    float32 on a CPU (in float64 for float64 weights), that stacked matrices are orthogonalized one
    by one, and that it has `found_inf` of fused optimizers: it skips a step without waiting for the
    device. A step can be captured in a CUDA graph.

    Each rank orthogonalizes its share of the matrices, and receives the others. The weights of all
    ranks stay bitwise equal.

    Args:
        groups: groups with `params`, matrices, and optionally `lr`, `weight_decay` and
            `stacked_rows`, which has the numbers of rows of the matrices in each weight.
        lr: learning rate.
        momentum: decay of the mean of the gradients.
        nesterov: whether the update looks ahead, by adding the last gradient once more.
        num_ns_steps: number of Newton-Schulz iterations.
        update_rms: root mean square of an update at a learning rate of 1.
        weight_decay: multiplied by the learning rate.
        ranks: the ranks among which the matrices are divided; a copy of the optimizer works alone.

    Attributes:
        copies: copies of some weights in another dtype, which each step updates.
    """

    _step_supports_amp_scaling = True
    ranks: Ranks
    copies: Mapping[Tensor, Tensor]

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        lr: float,
        momentum: float = 0.95,
        nesterov: bool = True,
        num_ns_steps: int = 5,
        update_rms: float = 0.2,
        weight_decay: float = 0.1,
        ranks: Ranks = _ONE_RANK,
    ) -> None:
        settings: dict[str, Any] = {"lr": lr, "momentum": momentum, "nesterov": nesterov}
        settings |= {"num_ns_steps": num_ns_steps, "update_rms": update_rms}
        settings |= {"weight_decay": weight_decay, "stacked_rows": None, "capturable": False}
        super().__init__(groups, settings)
        self.__setstate__({"ranks": ranks})
        assert all(weight.ndim == 2 for group in self.param_groups for weight in group["params"])

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores a state; attributes that it lacks are kept, or empty in a new object."""
        super().__setstate__(state)
        self.__dict__.setdefault("ranks", _ONE_RANK)
        self.__dict__.setdefault("copies", {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Steps all weights that have a gradient; a skipped step sets the gradients to zero.

        Args:
            closure: computes the gradients, and returns the loss.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # set by GradScaler, which has unscaled the gradients before they are clipped
        assert getattr(self, "grad_scale", None) is None
        for group in self.param_groups:
            if any(weight.grad is not None for weight in group["params"]):
                self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        weights = [weight for weight in group["params"] if weight.grad is not None]
        grads = [weight.grad for weight in weights]
        momenta = [self._momentum(weight) for weight in weights]
        device, momentum = weights[0].device, group["momentum"]
        lr, decay = (_scalar(value, device) for value in (group["lr"], momentum))
        skip: Tensor | None = getattr(self, "found_inf", None)
        if skip is not None:  # a step with zero gradients, no decay and a learning rate of zero
            is_skipped = skip != 0
            for grad in grads:
                grad.masked_fill_(is_skipped, 0.0)
            lr, decay = lr.masked_fill(is_skipped, 0.0), decay.masked_fill(is_skipped, 1.0)
        torch._foreach_mul_(momenta, decay)
        torch._foreach_add_(momenta, grads, alpha=1.0 - momentum)
        if group["weight_decay"]:
            torch._foreach_mul_(weights, 1.0 - lr * group["weight_decay"])
        for batch in self._batches(group):
            updates_NRC = self._all_updates(batch, group)
            scale = group["update_rms"] * math.sqrt(updates_NRC.shape[2])
            share = updates_NRC.shape[0] // self.ranks.world_size
            # one rank's updates at a time, since those of all ranks are large in float32
            for start in range(0, len(batch), share):
                views = [matrix.weight_RC for matrix in batch[start : start + share]]
                part_NRC = updates_NRC[start : start + len(views)].to(views[0].dtype)
                torch._foreach_add_(views, list(part_NRC.mul_(-scale * lr).unbind()))
        if copied := [weight for weight in weights if weight in self.copies]:
            torch._foreach_copy_([self.copies[weight] for weight in copied], copied)

    def _batches(self, group: dict[str, Any]) -> Iterator[list[_Matrix]]:
        """The matrices of a group, in batches of equal shape and dtype and of limited size."""
        by_kind: dict[tuple[torch.Size, torch.dtype], list[_Matrix]] = {}
        stacked_rows = group["stacked_rows"] or [None] * len(group["params"])
        for weight, rows in zip(group["params"], stacked_rows, strict=True):
            if weight.grad is None:
                continue
            tensors = (weight, weight.grad, self._momentum(weight))
            for views in zip(*(t.split(rows or t.shape[0]) for t in tensors), strict=True):
                is_tall = views[0].shape[0] > views[0].shape[1]
                matrix = _Matrix(*(view.mT if is_tall else view for view in views))
                kind = matrix.weight_RC.shape, weight.dtype
                by_kind.setdefault(kind, []).append(matrix)
        for (shape, _), matrices in by_kind.items():
            size = max(1, _BATCH_ELEMENTS // shape.numel()) * self.ranks.world_size
            for start in range(0, len(matrices), size):
                yield matrices[start : start + size]

    def _all_updates(self, batch: list[_Matrix], group: dict[str, Any]) -> Tensor:
        """The orthogonalized momenta of a batch, then zeros if the ranks cannot share it evenly."""
        rank, world_size, all_gather = self.ranks
        share = -(-len(batch) // world_size)
        own = batch[rank * share : (rank + 1) * share]
        weight_RC = batch[0].weight_RC
        dtype = _matmul_dtype(weight_RC)
        if not own:
            return all_gather(weight_RC.new_zeros(share, *weight_RC.shape, dtype=dtype))
        wide = torch.promote_types(weight_RC.dtype, torch.float32)
        momentum = group["momentum"]
        momenta_NRC = torch.stack([matrix.momentum_RC for matrix in own]).to(wide)
        if group["nesterov"]:
            grads = [matrix.grad_RC for matrix in own]
            momenta_NRC.mul_(momentum).add_(torch.stack(grads), alpha=1.0 - momentum)
        updates_NRC = orthogonalize(momenta_NRC, group["num_ns_steps"], dtype)
        if missing := share - len(own):
            padding = updates_NRC.new_zeros(missing, *weight_RC.shape)
            updates_NRC = torch.cat([updates_NRC, padding])
        return all_gather(updates_NRC)

    def _momentum(self, weight: Tensor) -> Tensor:
        state: dict[str, Tensor] = self.state[weight]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
        return state["momentum_buffer"]


def _scalar(value: float | Tensor, device: torch.device) -> Tensor:
    """A float32 scalar on the device; in graph capture, the learning rate already is one."""
    return value if isinstance(value, Tensor) else torch.full((), value, device=device)


def _matmul_dtype(weight: Tensor) -> torch.dtype:
    """bfloat16 on a GPU, where it is as good as float32 (Jordan et al.) and much faster."""
    if weight.dtype == torch.float64:
        return torch.float64
    return torch.bfloat16 if weight.device.type == "cuda" else torch.float32
