"""AdamW of one large weight: clipping, the step, and a copy for matmuls in one kernel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from xftrain.kernels.probe import runs_triton

_BLOCK, _NUM_WARPS = 2048, 8


@dataclass(frozen=True)
class AdamWTensors:
    """The tensors of one weight: contiguous, on one GPU, float32 unless noted.

    Attributes:
        weight: overwritten.
        grad: gradient, in any dtype.
        exp_avg: first moment, overwritten.
        exp_avg_sq: second moment, overwritten.
        step: number of steps, this one included; a scalar.
        copy: overwritten by the weight, cast to the dtype of the copy; None for no copy.
    """

    weight: Tensor
    grad: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: Tensor
    copy: Tensor | None


@dataclass(frozen=True)
class AdamWSettings:
    """The settings of a parameter group; tensors are float32 scalars on the GPU.

    Attributes:
        lr: learning rate.
        clip: factor by which gradients are multiplied; None for no clipping.
        skip: the step is skipped if it is not 0; None never skips.
        betas: decay of the moments.
        eps: added to the root of the second moment.
        weight_decay: multiplied by the learning rate.
    """

    lr: Tensor
    clip: Tensor | None
    skip: Tensor | None
    betas: tuple[float, float]
    eps: float
    weight_decay: float


def adamw_(tensors: AdamWTensors, settings: AdamWSettings) -> None:
    """Takes one AdamW step (Loshchilov, Hutter, 2017, arXiv:1711.05101), like torch's fused one."""
    from xftrain.kernels.adamw_triton import adamw_kernel  # imports triton

    weight, num_elements = tensors.weight, tensors.weight.numel()
    unused = weight  # placeholder for a pointer that is not read
    with torch.cuda.device(weight.device):
        adamw_kernel[(-(-num_elements // _BLOCK),)](
            weight,
            tensors.grad,
            tensors.exp_avg,
            tensors.exp_avg_sq,
            unused if tensors.copy is None else tensors.copy,
            tensors.step,
            settings.lr,
            unused if settings.clip is None else settings.clip,
            unused if settings.skip is None else settings.skip,
            num_elements,
            *settings.betas,
            settings.eps,
            settings.weight_decay,
            HAS_COPY=tensors.copy is not None,
            HAS_CLIP=settings.clip is not None,
            HAS_SKIP=settings.skip is not None,
            BLOCK=_BLOCK,
            num_warps=_NUM_WARPS,
        )


@cache
def has_kernel(device: torch.device) -> bool:
    """Whether the Triton kernel runs on the device."""

    def launch() -> None:
        weight, grad, exp_avg, exp_avg_sq = torch.ones(4, 8, device=device).unbind()
        one = torch.ones((), device=device)
        settings = AdamWSettings(one, None, None, (0.9, 0.99), 1e-8, 0.0)
        adamw_(AdamWTensors(weight, grad, exp_avg, exp_avg_sq, one, None), settings)

    return runs_triton(device, launch, "optim")
