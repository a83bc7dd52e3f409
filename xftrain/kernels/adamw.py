"""AdamW of one large weight: clipping, the step, and a copy for matrix products in one kernel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from xftrain.kernels.probe import runs_triton

_BLOCK, _NUM_WARPS = 2048, 8


@dataclass(frozen=True)
class Held:
    """What belongs to one weight; contiguous, on one GPU, float32 where nothing is said.

    Attributes:
        weight: overwritten.
        grad: in any dtype.
        exp_avg: moment, overwritten.
        exp_avg_sq: likewise.
        step: how many there were, this one included; one number.
        copy: becomes the weight in its own dtype, or None.
    """

    weight: Tensor
    grad: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: Tensor
    copy: Tensor | None


@dataclass(frozen=True)
class Settings:
    """Of a group of weights; tensors are single float32 numbers on the GPU.

    Attributes:
        rate: learning rate.
        clip: gradients are multiplied by it, where it is there.
        skip: nothing is done where it is not 0.
        betas: decay of the moments.
        eps: added to the root of the second.
        weight_decay: as a share of the rate.
    """

    rate: Tensor
    clip: Tensor | None
    skip: Tensor | None
    betas: tuple[float, float]
    eps: float
    weight_decay: float


def adamw_(held: Held, settings: Settings) -> None:
    """One step of AdamW (Loshchilov, Hutter, 2017, arXiv:1711.05101), as torch's fused one."""
    from xftrain.kernels.adamw_triton import adamw_kernel  # imports triton

    weight, num_elements = held.weight, held.weight.numel()
    nothing = weight  # in place of a pointer that is not read
    with torch.cuda.device(weight.device):
        adamw_kernel[(-(-num_elements // _BLOCK),)](
            weight,
            held.grad,
            held.exp_avg,
            held.exp_avg_sq,
            nothing if held.copy is None else held.copy,
            held.step,
            settings.rate,
            nothing if settings.clip is None else settings.clip,
            nothing if settings.skip is None else settings.skip,
            num_elements,
            *settings.betas,
            settings.eps,
            settings.weight_decay,
            HAS_COPY=held.copy is not None,
            HAS_CLIP=settings.clip is not None,
            HAS_SKIP=settings.skip is not None,
            BLOCK=_BLOCK,
            num_warps=_NUM_WARPS,
        )


@cache
def has_kernel(device: torch.device) -> bool:
    """Whether it runs there."""

    def launch() -> None:
        weight, grad, exp_avg, exp_avg_sq = torch.ones(4, 8, device=device).unbind()
        one = torch.ones((), device=device)
        settings = Settings(one, None, None, (0.9, 0.99), 1e-8, 0.0)
        adamw_(Held(weight, grad, exp_avg, exp_avg_sq, one, None), settings)

    return runs_triton(device, launch, "optim")
