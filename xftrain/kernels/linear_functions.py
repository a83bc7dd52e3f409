"""Linear layers, alone and with GELU between two, by products that are chosen by measurement."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from xftrain.kernels.matmul import (
    gelu_linear_gradient,
    is_choosing,
    is_large,
    linear,
    linear_gelu,
    linear_input_gradient,
)


def chooses(x: Tensor, *layers: nn.Linear) -> bool:
    """Whether these layers' products are chosen: on a GPU, in half precision, without bias, large.

    Args:
        x: [..., I].
        layers: one after the other.
    """
    if not _on_gpu(x) or any(layer.bias is not None for layer in layers):
        return False
    num_rows = x.numel() // x.shape[-1]
    is_half = compute_dtype(x) in (torch.float16, torch.bfloat16)
    large = all(is_large(num_rows, *layer.weight.shape) for layer in layers)
    return is_half and large and is_choosing()


def _on_gpu(x: Tensor) -> bool:
    return x.device.type == "cuda"


def compute_dtype(x: Tensor) -> torch.dtype:
    """Of the products: autocast's, where it is on."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def chosen_linear(x: Tensor, weight_OI: Tensor) -> Tensor:
    """`x weight^T`, [..., O], in the dtype of products.

    Args:
        x: [..., I].
        weight_OI: in any dtype.
    """
    dtype = compute_dtype(x)
    out_NO = _Linear.apply(x.to(dtype).flatten(0, -2), weight_OI.to(dtype))
    return out_NO.view(*x.shape[:-1], -1)


def chosen_gelu_mlp(x: Tensor, up_HD: Tensor, down_DH: Tensor) -> Tensor:
    """`gelu(x up^T) down^T`, [..., D]: GELU, in its tanh form, in the products' epilogues.

    Args:
        x: [..., D].
        up_HD: the first layer's weight, in any dtype.
        down_DH: the second's.
    """
    dtype = compute_dtype(x)
    out_ND = _GeluMLP.apply(x.to(dtype).flatten(0, -2), up_HD.to(dtype), down_DH.to(dtype))
    return out_ND.view(*x.shape[:-1], -1)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor) -> Tensor:
        ctx.save_for_backward(x_NI, weight_OI)
        return linear(x_NI, weight_OI)

    @staticmethod
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, weight_OI = ctx.saved_tensors
        needs_x, needs_weight = ctx.needs_input_grad
        grad_x_NI = linear_input_gradient(grad_NO, weight_OI) if needs_x else None
        # of the weight's gradient torch's own choice is the fastest of all that were measured
        return grad_x_NI, grad_NO.t() @ x_NI if needs_weight else None


class _GeluMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, up_HD: Tensor, down_DH: Tensor) -> Tensor:
        gelu_NH, h_NH = linear_gelu(x_ND, up_HD)
        ctx.save_for_backward(x_ND, up_HD, down_DH, gelu_NH, h_NH)
        return linear(gelu_NH, down_DH)

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, up_HD, down_DH, gelu_NH, h_NH = ctx.saved_tensors
        needs_x, needs_up, needs_down = ctx.needs_input_grad
        grad_NH = gelu_linear_gradient(grad_ND, down_DH, h_NH)
        return (
            linear_input_gradient(grad_NH, up_HD) if needs_x else None,
            grad_NH.t() @ x_ND if needs_up else None,
            grad_ND.t() @ gelu_NH if needs_down else None,
        )
