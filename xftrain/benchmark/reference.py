"""Independent float64 attention, and the errors of attention functions against it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from xftrain.interfaces import AttnBias, AttnShape

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
RESULTS = ("out", "dq", "dk", "dv")  # what output_and_grads returns


def poisoned(
    shape: AttnShape,
    heads: int,
    dtype: torch.dtype,
    device: torch.device | str,
    generator: torch.Generator,
) -> Tensor:
    """Draws randn of [B, M, heads, K], as a view into memory that is NaN everywhere else."""
    wide = torch.full((shape.B, shape.M + 3, heads, shape.K), torch.nan, dtype=dtype, device=device)
    values = torch.randn(shape.B, shape.M, heads, shape.K, generator=generator)
    wide[:, : shape.M] = values.to(device, dtype)
    return wide[:, : shape.M]


def exact(q: Tensor, k: Tensor, v: Tensor, bias: AttnBias) -> Tensor:
    """Computes softmax(scores + bias) v in the dtype of q, one head at a time.

    It shares only the definition of the bias with the package.
    """
    num_heads, num_groups = q.shape[2], k.shape[2]
    bias_HMM = bias.materialize(q.shape[1], q.device, q.dtype)
    outs = []
    for head in range(num_heads):
        group = head * num_groups // num_heads
        dot_products = q[:, :, head] @ k[:, :, group].transpose(1, 2)
        scores = (
            bias.scores(dot_products, q.shape[-1]) + bias_HMM[head if bias_HMM.shape[0] > 1 else 0]
        )
        outs.append(scores.softmax(dim=-1) @ v[:, :, group])
    return torch.stack(outs, dim=2)


def torch_sdpa(q: Tensor, k: Tensor, v: Tensor, bias: AttnBias, *, expand: bool = True) -> Tensor:
    """Computes torch's attention with the whole bias as a tensor of the same dtype."""
    mask = bias.materialize(q.shape[1], q.device, torch.float32).to(q.dtype)[None]
    if expand:
        k, v = (x.repeat_interleave(q.shape[2] // k.shape[2], dim=2) for x in (k, v))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, scale=bias.scale, enable_gqa=not expand
    )
    return out.transpose(1, 2)


def capped_attention(q: Tensor, k: Tensor, v: Tensor, bias: AttnBias) -> Tensor:
    """Emulates torch's attention with a soft cap, rounded where its fused kernels round.

    The kernels multiply in the dtype of q, accumulate in float32 or wider, and round probabilities
    to the dtype of q before they multiply by v.
    """
    dtype, wide = q.dtype, torch.promote_types(q.dtype, torch.float32)
    k, v = (x.repeat_interleave(q.shape[2] // k.shape[2], dim=2) for x in (k, v))
    q, k, v = (x.transpose(1, 2).to(wide) for x in (q, k, v))
    scores = bias.scores(q @ k.mT, q.shape[-1]) + bias.materialize(q.shape[2], q.device, wide)
    probs = scores.softmax(dim=-1).to(dtype).to(wide)
    return (probs @ v).transpose(1, 2).to(dtype)


def torch_errors(
    qkv: tuple[Tensor, ...], grad: Tensor, bias: AttnBias, truth: list[Tensor]
) -> list[float]:
    """The baseline of parity: relative errors of torch's least accurate kernel for this call.

    The kernels differ from each other, and for grouped heads by whether these are expanded. A
    kernel with non-finite results is excluded, since twice its error would accept anything, and so
    is cuDNN, whose backward pass with a mask tensor gives such results, see `model.attn._dense`.
    No kernel caps scores: with a soft cap the baseline is the error of `capped_attention`, or the
    kernels' error without the cap if that is larger.
    """
    if bias.softcap is not None:
        return _errors_with_a_cap(qkv, grad, bias, truth)
    worst = [0.0] * len(truth)
    kernels = (
        SDPBackend.MATH,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
    )
    for kernel, expand in product(kernels, (True, False)):
        with sdpa_kernel(kernel), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's reasons why a kernel does not run this
            try:
                results = output_and_grads(partial(torch_sdpa, bias=bias, expand=expand), qkv, grad)
            except RuntimeError as error:
                if "kernel" not in str(error):
                    raise
                continue
        if not all(bool(result.isfinite().all()) for result in results):
            continue
        errors = [relative_error(x, right) for x, right in zip(results, truth, strict=True)]
        worst = [max(pair) for pair in zip(worst, errors, strict=True)]
    return worst


def _errors_with_a_cap(
    qkv: tuple[Tensor, ...], grad: Tensor, bias: AttnBias, truth: list[Tensor]
) -> list[float]:
    results = output_and_grads(partial(capped_attention, bias=bias), qkv, grad)
    capped = [relative_error(x, right) for x, right in zip(results, truth, strict=True)]
    plain, wide = replace(bias, softcap=None), tuple(x.double() for x in qkv)
    without = output_and_grads(partial(exact, bias=plain), wide, grad.double())
    return [max(pair) for pair in zip(capped, torch_errors(qkv, grad, plain, without), strict=True)]


def output_and_grads(attention: Attention, qkv: tuple[Tensor, ...], grad: Tensor) -> list[Tensor]:
    """Computes the output and the gradients of q, k and v."""
    leaves = [x.detach().requires_grad_() for x in qkv]
    out = attention(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def relative_error(value: Tensor, truth: Tensor) -> float:
    """|value - truth| / |truth|, Frobenius; infinite where the value has NaN."""
    return ratio(float((value.double() - truth).norm()), float(truth.norm()))


def ratio(error: float, size: float) -> float:
    """Divides an error by a size; NaN errors and a nonzero error of a zero size are infinite."""
    if not math.isfinite(error) or not math.isfinite(size):
        return math.inf
    if size == 0:
        return 0.0 if error == 0 else math.inf
    return error / size
