"""Gate times value, then a linear layer, with gate and value concatenated in one tensor.

torch.compile computes the gradients of the two halves as one `cat`, which reads all their inputs
twice. Here one kernel reads each element once. It also recomputes the input of the linear layer, so
only gate and value are saved for the backward pass.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from xftrain.kernels.matmul import linear_input_gradient, matmul_
from xftrain.kernels.probe import runs_triton

Gate = Literal["silu", "gelu"]

_BLOCK, _NUM_WARPS = 1024, 4  # a thread loads 8 adjacent half-precision elements at once


@torch.library.custom_op("xftrain::gated_linear", mutates_args=())
def gated_linear(h_NF2: Tensor, weight_OF: Tensor, gate: str) -> Tensor:
    """`(activation(h's first half) * h's second half) weight^T`, [N, O].

    Args:
        h_NF2: [N, 2 F], contiguous.
        weight_OF: [O, F].
        gate: the activation, computed in float32: `silu`, or `gelu` in its tanh form.
    """
    out_NF = h_NF2.new_empty(h_NF2.shape[0], weight_OF.shape[1])
    _gated(h_NF2, None, out_NF, None, gate)
    out_NO = h_NF2.new_empty(h_NF2.shape[0], weight_OF.shape[0])
    return matmul_(out_NF, weight_OF.t(), out_NO)


@gated_linear.register_fake
def _(h_NF2: Tensor, weight_OF: Tensor, gate: str) -> Tensor:
    return h_NF2.new_empty(h_NF2.shape[0], weight_OF.shape[0])


@torch.library.custom_op("xftrain::gated_gradient", mutates_args=())
def gated_gradient(grad_NF: Tensor, h_NF2: Tensor, gate: str) -> tuple[Tensor, Tensor]:
    """The gradient of h [N, 2 F], and activation times value [N, F], recomputed.

    Args:
        grad_NF: gradient of activation times value; contiguous.
        h_NF2: as in `gated_linear`.
        gate: likewise.
    """
    grad_h_NF2, out_NF = torch.empty_like(h_NF2), torch.empty_like(grad_NF)
    _gated(h_NF2, grad_NF, out_NF, grad_h_NF2, gate)
    return grad_h_NF2, out_NF


@gated_gradient.register_fake
def _(grad_NF: Tensor, h_NF2: Tensor, gate: str) -> tuple[Tensor, Tensor]:
    return torch.empty_like(h_NF2), torch.empty_like(grad_NF)


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: Tensor) -> None:
    *tensors, ctx.gate = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, ...]:
    h_NF2, weight_OF = ctx.saved_tensors
    grad_NF = linear_input_gradient(grad_NO, weight_OF)
    grad_h_NF2, out_NF = gated_gradient(grad_NF, h_NF2, ctx.gate)
    needs_h, needs_weight, _ = ctx.needs_input_grad
    return grad_h_NF2 if needs_h else None, grad_NO.t() @ out_NF if needs_weight else None, None


gated_linear.register_autograd(_backward, setup_context=_setup)
MATMULS = (torch.ops.xftrain.gated_linear,)  # this file's matmul operators


@register_flop_formula(torch.ops.xftrain.gated_linear)
def _(h_shape: torch.Size, weight_shape: torch.Size, *_: object, **__: object) -> int:
    return 2 * h_shape[0] * weight_shape[0] * weight_shape[1]


@torch.compiler.assume_constant_result
def has_kernel(device: torch.device) -> bool:
    """Whether the Triton kernel runs on the device."""
    return _runs(device)


@cache
def _runs(device: torch.device) -> bool:
    def launch() -> None:
        h_12, out_11 = torch.ones(1, 2, device=device), torch.ones(1, 1, device=device)
        _with_triton(h_12, None, out_11, None, "silu")

    return runs_triton(device, launch, "model.ffn")


def _gated(
    h_NF2: Tensor, grad_NF: Tensor | None, out_NF: Tensor, grad_h_NF2: Tensor | None, gate: str
) -> None:
    """Fills `out` and, if the gradient of `out` is given, `grad_h`."""
    run = _with_triton if h_NF2.device.type == "cuda" else _with_torch
    run(h_NF2, grad_NF, out_NF, grad_h_NF2, gate)


def _with_triton(
    h_NF2: Tensor, grad_NF: Tensor | None, out_NF: Tensor, grad_h_NF2: Tensor | None, gate: str
) -> None:
    from xftrain.kernels.gated_triton import gated_kernel  # imports triton

    num_rows, width = out_NF.shape
    with torch.cuda.device(h_NF2.device):
        gated_kernel[(num_rows, -(-width // _BLOCK))](
            h_NF2,
            h_NF2 if grad_NF is None else grad_NF,
            out_NF,
            h_NF2 if grad_h_NF2 is None else grad_h_NF2,
            width,
            HAS_GRAD=grad_NF is not None,
            GATE=gate,
            BLOCK=_BLOCK,
            num_warps=_NUM_WARPS,
        )


def _with_torch(
    h_NF2: Tensor, grad_NF: Tensor | None, out_NF: Tensor, grad_h_NF2: Tensor | None, gate: str
) -> None:
    wide = torch.promote_types(h_NF2.dtype, torch.float32)
    first, value = h_NF2.to(wide).chunk(2, dim=-1)
    activated = F.silu(first) if gate == "silu" else F.gelu(first, approximate="tanh")
    out_NF.copy_(activated * value)
    if grad_NF is None or grad_h_NF2 is None:
        return
    grad = grad_NF.to(wide)
    grad_gate, grad_value = grad_h_NF2.chunk(2, dim=-1)
    grad_value.copy_(grad * activated)
    if gate == "silu":
        grad_gate.copy_(torch.ops.aten.silu_backward(grad * value, first))
    else:
        grad_gate.copy_(torch.ops.aten.gelu_backward(grad * value, first, approximate="tanh"))
