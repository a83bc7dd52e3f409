"""AdamW that clips within its step, and updates copies of weights in the dtype of matmuls."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from xftrain.kernels.adamw import AdamWSettings, AdamWTensors, adamw_

_LARGE = 2**19  # number of elements from which a kernel per weight is worth its launch


class FusedAdamW(torch.optim.AdamW):
    """torch's fused AdamW, except that large float32 weights have a separate kernel.

    torch clips in a pass of its own, which reads and writes every gradient. Here `clip` does not
    change the gradients of large weights, and the step scales them as it reads them. The state is
    that of torch's AdamW.

    Attributes:
        copies: copies of some large weights in another dtype, which each step updates.
    """

    saves_as_base = True  # its state is that of torch's AdamW
    copies: Mapping[Tensor, Tensor]
    _clip: Tensor | None  # factor by which the next step multiplies gradients
    _lr_tensors: dict[tuple[int, torch.device], Tensor]

    def __init__(self, groups: list[dict[str, Any]], **settings: Any) -> None:
        super().__init__(groups, fused=True, **settings)
        self.__setstate__({})

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores a state; attributes that it lacks are kept, or empty in a new object."""
        super().__setstate__(state)
        self.__dict__.setdefault("copies", {})
        self.__dict__.setdefault("_clip", None)
        self.__dict__.setdefault("_lr_tensors", {})

    def clip(self, limit: float | None) -> Tensor:
        """Makes the next step clip gradients to the norm `limit`; returns their norm."""
        small, large = _by_size(weight for group in self.param_groups for weight in group["params"])
        norm = gradient_norm([weight.grad for weight in (*small, *large)])
        self._clip = None
        if limit is not None and math.isfinite(limit):
            # as in torch.nn.utils.clip_grad_norm_
            self._clip = torch.clamp(limit / (norm + 1e-6), max=1.0)
            if small:
                grads = [weight.grad for weight in small]
                torch._foreach_mul_(grads, self._clip)  # type: ignore[arg-type]
        return norm

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Steps all weights that have a gradient; the factor of `clip` applies to this step only.

        Args:
            closure: computes the gradients, and returns the loss.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        skip: Tensor | None = getattr(self, "found_inf", None)
        # set by GradScaler, which has unscaled the gradients before they are clipped
        assert getattr(self, "grad_scale", None) is None
        for index, group in enumerate(self.param_groups):
            small, large = _by_size(group["params"])
            self._step_small(small, group, skip)
            self._step_large(large, index, skip)
        self._clip = None
        return loss

    def _step_small(
        self, weights: list[Tensor], group: dict[str, Any], skip: Tensor | None
    ) -> None:
        if not weights:
            return
        states = [self._state(weight) for weight in weights]
        beta1, beta2 = group["betas"]
        adamw(
            weights,
            [weight.grad for weight in weights],  # type: ignore[misc]
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            capturable=group["capturable"],
            found_inf=skip,
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            amsgrad=False,
            maximize=False,
        )

    def _step_large(self, weights: list[Tensor], index: int, skip: Tensor | None) -> None:
        if not weights:
            return
        group, device = self.param_groups[index], weights[0].device
        states = [self._state(weight) for weight in weights]
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1.0)
        if skip is not None:
            torch._foreach_sub_(steps, [skip] * len(steps))
        settings = AdamWSettings(
            lr=self._learning_rate(index, device),
            clip=self._clip,
            skip=skip,
            betas=group["betas"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
        )
        for weight, state in zip(weights, states, strict=True):
            assert weight.grad is not None
            moments = state["exp_avg"], state["exp_avg_sq"]
            copy = self.copies.get(weight)
            adamw_(AdamWTensors(weight, weight.grad, *moments, state["step"], copy), settings)

    def _learning_rate(self, index: int, device: torch.device) -> Tensor:
        """The learning rate of a group on the device; in graph capture, the group's own tensor."""
        lr = self.param_groups[index]["lr"]
        if isinstance(lr, Tensor):
            return lr
        if (index, device) not in self._lr_tensors:
            self._lr_tensors[index, device] = torch.zeros((), device=device)
        return self._lr_tensors[index, device].fill_(lr)

    def _state(self, weight: Tensor) -> dict[str, Tensor]:
        """The state of a weight, created as torch does."""
        state: dict[str, Tensor] = self.state[weight]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(weight, memory_format=torch.preserve_format)
        return state


def has_own_kernel(weight: Tensor) -> bool:
    """Whether this project's kernel steps the weight: if it is large, float32 and contiguous."""
    is_wide = weight.dtype == torch.float32 and weight.numel() >= _LARGE
    return is_wide and weight.is_contiguous()


def _by_size(weights: Iterable[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Splits weights with a gradient into those for torch's kernel and those for this project's."""
    small: list[Tensor] = []
    large: list[Tensor] = []
    for weight in weights:
        if weight.grad is not None:
            (large if has_own_kernel(weight) else small).append(weight)
    return small, large


def gradient_norm(grads: list[Any]) -> Tensor:
    """The norm of all gradients as one vector, in float32 for any dtypes."""
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for grad in grads:
        by_dtype.setdefault(grad.dtype, []).append(grad)
    norms: list[Tensor] = []
    for same in by_dtype.values():
        norms += torch._foreach_norm(same, 2.0, dtype=torch.float32)
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())
