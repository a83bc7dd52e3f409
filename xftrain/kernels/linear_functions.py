"""Linear layers with autotuned matmuls: alone, with GELU, or after a gate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from xftrain.kernels.gated import Gate, gated_linear, has_kernel
from xftrain.kernels.matmul import (
    gelu_linear,
    gelu_linear_gradient,
    is_autotuning,
    is_large,
    linear,
    linear_gelu,
    linear_input_gradient,
)


def should_autotune(x: Tensor, *layers: nn.Linear) -> bool:
    """Whether these layers are autotuned: large, in half precision, without bias, on a GPU.

    Args:
        x: [..., I].
        layers: linear layers, each applied to the output of the one before.
    """
    if not _on_gpu(x) or any(layer.bias is not None for layer in layers):
        return False
    num_rows = x.numel() // x.shape[-1]
    is_half = compute_dtype(x) in (torch.float16, torch.bfloat16)
    large = all(is_large(num_rows, *layer.weight.shape) for layer in layers)
    return is_half and large and is_autotuning()


def should_fuse_gate(h: Tensor, layer: nn.Linear) -> bool:
    """Whether the last layer of a gated feed-forward is autotuned, with the gate fused into it.

    Args:
        h: gate and value, [..., 2 F].
        layer: the last linear layer, with F inputs.
    """
    return should_autotune(h, layer) and has_kernel(h.device)


def _on_gpu(x: Tensor) -> bool:
    return x.device.type == "cuda"


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of matmuls: that of autocast if it is enabled, else that of x."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def autotuned_linear(x: Tensor, weight_OI: Tensor) -> Tensor:
    """`x weight^T`, [..., O], in the dtype of matmuls.

    Args:
        x: [..., I].
        weight_OI: in any dtype.
    """
    dtype = compute_dtype(x)
    out_NO = linear(x.to(dtype).flatten(0, -2), weight_OI.to(dtype))
    return out_NO.view(*x.shape[:-1], -1)


def autotuned_gelu_mlp(x: Tensor, up_HD: Tensor, down_DH: Tensor) -> Tensor:
    """`gelu(x up^T) down^T`, [..., D]: GELU, in its tanh form, in the epilogues of the matmuls.

    Args:
        x: [..., D].
        up_HD: the first layer's weight, in any dtype.
        down_DH: the second layer's weight, in any dtype.
    """
    dtype = compute_dtype(x)
    gelu_NH, h_NH = linear_gelu(x.to(dtype).flatten(0, -2), up_HD.to(dtype))
    out_ND = gelu_linear(gelu_NH, h_NH, down_DH.to(dtype))
    return out_ND.view(*x.shape[:-1], -1)


def autotuned_gated_linear(h: Tensor, weight_OF: Tensor, gate: Gate) -> Tensor:
    """`(gate(h's first half) * h's second half) weight^T`, [..., O]; see `gated`.

    Args:
        h: [..., 2 F].
        weight_OF: in any dtype.
        gate: the activation.
    """
    dtype = compute_dtype(h)
    out_NO = gated_linear(h.to(dtype).flatten(0, -2).contiguous(), weight_OF.to(dtype), gate)
    return out_NO.view(*h.shape[:-1], -1)


# The gradients are registered with custom operators, not in an autograd.Function, whose contents
# torch.compile could not recompute for activation checkpointing.


def _save_inputs(ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _linear_backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, ...]:
    x_NI, weight_OI = ctx.saved_tensors
    needs_x, needs_weight = ctx.needs_input_grad
    grad_x_NI = linear_input_gradient(grad_NO, weight_OI) if needs_x else None
    # for the gradient of the weight, torch's own choice was the fastest measured
    return grad_x_NI, grad_NO.t() @ x_NI if needs_weight else None


def _linear_gelu_setup(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[0])  # gelu_linear, its reader, has the gradient of h
    _save_inputs(ctx, inputs, output)


def _linear_gelu_backward(ctx: Any, _: Any, grad_NH: Tensor) -> tuple[Tensor | None, ...]:
    return _linear_backward(ctx, grad_NH)


def _gelu_linear_backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor | None, ...]:
    gelu_NH, h_NH, down_DH = ctx.saved_tensors
    _, needs_h, needs_down = ctx.needs_input_grad
    return (
        None,
        gelu_linear_gradient(grad_ND, down_DH, h_NH) if needs_h else None,
        grad_ND.t() @ gelu_NH if needs_down else None,
    )


linear.register_autograd(_linear_backward, setup_context=_save_inputs)
linear_gelu.register_autograd(_linear_gelu_backward, setup_context=_linear_gelu_setup)
gelu_linear.register_autograd(_gelu_linear_backward, setup_context=_save_inputs)
