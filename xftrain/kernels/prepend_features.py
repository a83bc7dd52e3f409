"""Prepends features to each head's vector by two copies, or one Triton kernel where it is faster.

`torch.cat` is slower than both, since it reads broadcast features as if they were materialized.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from xftrain.kernels.probe import runs_triton

_MAX_HEADS = 32  # heads per program
_MIN_ELEMENTS = 2**22  # elements of x; below, launching the kernel takes longer than the copies


def prepend_features(x_BMHK: Tensor, features_1MHF: Tensor) -> Tensor:
    """The concatenation of features and x, [B, M, H, F+K].

    Args:
        x_BMHK: queries or keys, with any strides.
        features_1MHF: contiguous, in the dtype of x; M and H may be 1 to broadcast. They get no
            gradient.
    """
    assert features_1MHF.shape[0] == 1 and features_1MHF.is_contiguous()
    joined: Tensor = _PrependFeatures.apply(x_BMHK, features_1MHF)
    return joined


class _PrependFeatures(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BMHK: Tensor, features_1MHF: Tensor) -> Tensor:
        ctx.width = width = features_1MHF.shape[-1]
        joined = x_BMHK.new_empty(*x_BMHK.shape[:-1], width + x_BMHK.shape[-1])
        # not in compiled code, whose copies are as fast and may fuse with the producer of x
        large = not torch.compiler.is_compiling() and x_BMHK.numel() >= _MIN_ELEMENTS
        if large and has_kernel(x_BMHK.device):
            prepend_features_(x_BMHK, features_1MHF, joined)
        else:
            joined[..., :width] = features_1MHF
            joined[..., width:] = x_BMHK
        return joined

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad[..., ctx.width :], None


@cache
def has_kernel(device: torch.device) -> bool:
    """Whether the Triton kernel runs on the device."""

    def launch() -> None:
        one, two = (torch.zeros(1, 1, 1, n, device=device) for n in (1, 2))
        _with_triton(one, one, two)

    return runs_triton(device, launch, "model.bias")


@torch.library.custom_op("xftrain::prepend_features_", mutates_args={"joined"})
def prepend_features_(x_BMHK: Tensor, features_1MHF: Tensor, joined: Tensor) -> None:
    """Fills `joined`, contiguous [B, M, H, F+K]; an operator, so that fake tensors skip it."""
    _with_triton(x_BMHK, features_1MHF, joined)


def _with_triton(x_BMHK: Tensor, features_1MHF: Tensor, joined: Tensor) -> None:
    from triton import next_power_of_2

    from xftrain.kernels.prepend_features_triton import prepend_features_kernel

    B, M, H, K = x_BMHK.shape
    _, f_M, f_H, width = features_1MHF.shape
    if x_BMHK.stride(-1) != 1:
        x_BMHK = x_BMHK.contiguous()
    heads, block = min(_MAX_HEADS, next_power_of_2(H)), next_power_of_2(K)
    with torch.cuda.device(x_BMHK.device):
        prepend_features_kernel[(B * M, -(-H // heads))](
            x_BMHK,
            features_1MHF,
            joined,
            M,
            H,
            *x_BMHK.stride()[:3],
            features_1MHF.stride(1) if f_M > 1 else 0,
            features_1MHF.stride(2) if f_H > 1 else 0,
            K=K,
            WIDTH=width,
            HEADS=heads,
            BLOCK_K=block,
            BLOCK_WIDTH=next_power_of_2(width),
            # 16 bytes of half precision per thread
            num_warps=4 if heads * block >= 1024 else 1,
        )
