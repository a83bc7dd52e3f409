"""FlexAttention: masks and score modifications compiled into one fused kernel.

Dong et al., 2024, arXiv:2412.05496; torch.nn.attention.flex_attention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from xftrain.interfaces import Attention, AttnBias, AttnCall, AttnShape, Backend
from xftrain.model.attn._stand_in import fused_kernel
from xftrain.utils.compilation import allow_many_shapes
from xftrain.utils.transfer import on_device

_ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
_BLOCK = 128
_MAX_ELEMENTS = 2**31 - 1


@dataclass(frozen=True)
class _Handle:
    attend: Any  # the compiled function, stored as compiled code must not look it up
    scale: float
    block_mask: BlockMask | None
    score_mod: _ScoreMod | None
    enable_gqa: bool
    kernel_options: dict[str, int | bool]
    padding: int  # number of positions appended to the row


@cache
def _compiled() -> Callable[..., Tensor]:
    """flex_attention, compiled once per process, as it materializes the scores uncompiled."""
    allow_many_shapes()
    return torch.compile(flex_attention, dynamic=False)


class Flex(Backend):
    """Computes every bias as a mask or score function, block-sparse where keys are hidden."""

    name = "flex"
    rank = 30
    needs_compilation = True
    takes_scale = takes_softcap = True

    def reasons(self, call: AttnCall, *, needs_grad: bool = True) -> list[str]:
        """Reasons against: an old GPU, float64, narrow heads, huge biases, gradients on a CPU."""
        bias, shape, dtype, device = call
        reasons: list[str] = []
        if device.type != "cuda":
            return [f"torch has no backward of FlexAttention on {device.type}"] * needs_grad
        if torch.cuda.get_device_capability(device) < (8, 0):
            reasons.append("FlexAttention needs a GPU of compute capability 8.0 or later")
        if dtype == torch.float64:
            reasons.append("FlexAttention has no float64 kernel")
        if shape.K < 16:
            reasons.append(f"FlexAttention needs a head width of at least 16, got {shape.K}")
        if _is_tensor(bias) and _num_elements(bias, shape) > _MAX_ELEMENTS:
            reasons.append(
                f"FlexAttention indexes a bias tensor, of {_num_elements(bias, shape)} elements "
                "here, in 32 bits"
            )
        return reasons

    def handle_for(self, call: AttnCall) -> _Handle:
        """The block mask and the score function."""
        bias, shape, device = call.bias, call.shape, call.device
        padding = _padding(bias, shape.M)
        if padding:
            bias = padded(bias, shape.M, padding)
        num_positions = shape.M + padding
        return _Handle(
            attend=_compiled(),
            scale=call.scale,
            block_mask=block_mask(bias, num_positions, device),
            score_mod=_score_mod(bias, num_positions, device),
            enable_gqa=shape.H != shape.G,
            kernel_options=_kernel_options(bias),
            padding=padding,
        )

    def __call__(self, q_BMHK: Tensor, k_BMGK: Tensor, v_BMGK: Tensor, handle: _Handle) -> Tensor:
        """Runs the kernel, which takes grouped K/V heads without expanding them."""
        q, k, v = (x.transpose(1, 2) for x in (q_BMHK, k_BMGK, v_BMGK))
        if handle.padding:
            q, k, v = (F.pad(x, (0, 0, 0, handle.padding)) for x in (q, k, v))
        out_BMHK = handle.attend(
            q,
            k,
            v,
            score_mod=handle.score_mod,
            block_mask=handle.block_mask,
            scale=handle.scale,
            enable_gqa=handle.enable_gqa,
            kernel_options=handle.kernel_options,
        ).transpose(1, 2)
        return out_BMHK[:, : q_BMHK.shape[1]] if handle.padding else out_BMHK

    def kernel_for(self, call: AttnCall) -> str:
        """The compiler's Triton template."""
        return "flex-triton"

    def stand_in(self, call: AttnCall) -> Attention:
        """A fused kernel, with rows padded to whole blocks if the compiled kernel needs that."""
        num_positions = call.shape.M
        padding = _padding(call.bias, num_positions)

        def attend(q_BMHK: Tensor, k_BMGK: Tensor, v_BMGK: Tensor, handle: object) -> Tensor:
            if not padding:
                return fused_kernel(q_BMHK, k_BMGK, v_BMGK)
            padded = (F.pad(x, (0, 0, 0, 0, 0, padding)) for x in (q_BMHK, k_BMGK, v_BMGK))
            return fused_kernel(*padded)[:, :num_positions]

        return attend

    def transient_bytes(self, call: AttnCall) -> int:
        """Zero, since the kernel computes the scores in tiles."""
        return 0


def _kernel_options(bias: AttnBias) -> dict[str, int | bool]:
    # Below 128 queries torch selects its decoding kernel, which has no variant for grouped heads
    # whose queries fill more than one block ("NoValidChoicesError", torch 2.11).
    # a tensor is staged in shared memory too, where three stages do not fit
    stages = {"num_stages": 1} if _is_tensor(bias) else {}
    return {"FORCE_USE_FLEX_ATTENTION": True, **stages}


def _padding(bias: AttnBias, num_positions: int) -> int:
    """How many positions to append, so that rows with a score function end at a block boundary.

    Past the end of a row the backward kernel evaluates the score function at positions that do not
    exist. The exponential of such a score may be infinite, and infinity times 0 makes the gradients
    of keys NaN (pytorch#153799).
    """
    has_score_mod = bias.slopes is not None or bias.softcap is not None or _is_tensor(bias)
    return -num_positions % _BLOCK if has_score_mod else 0


def padded(bias: AttnBias, num_positions: int, padding: int) -> AttnBias:
    """The same bias for a row with `padding` more positions, which form a separate document."""
    additive_HMM = bias.additive_HMM
    if additive_HMM is not None:
        additive_HMM = F.pad(additive_HMM, (0, padding, 0, padding))
    seqlens = (*(bias.seqlens or (num_positions,)), padding)
    return replace(bias, seqlens=seqlens, additive_HMM=additive_HMM)


def _num_elements(bias: AttnBias, shape: AttnShape) -> int:
    """Number of elements of the tensor that the score function reads."""
    per_head = bias.slopes is not None
    if bias.additive_HMM is not None:
        per_head |= bias.additive_HMM.shape[0] > 1
    side = shape.M + _padding(bias, shape.M)
    return (shape.H if per_head else 1) * side**2


def block_mask(bias: AttnBias, num_positions: int, device: torch.device) -> BlockMask | None:
    """The 128 x 128 blocks of scores that are computed, and those that need the mask within.

    Every query sees one range of keys, so blocks follow from the ends of the ranges; torch's own
    `create_block_mask` would evaluate the mask at all M x M positions. None if all keys are
    visible.
    """
    if not bias.causal and bias.seqlens is None:
        return None
    first_M, last_M = _ranges(bias, num_positions, device)

    def mask_mod(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        # tensors, not numbers: other documents are then new data and cause no recompilation
        return (j >= first_M[i]) & (j <= last_M[i])

    starts = torch.arange(0, num_positions, _BLOCK, device=device)
    ends = (starts + _BLOCK).clamp(max=num_positions) - 1
    touched = (starts <= last_M[ends][:, None]) & (ends >= first_M[starts][:, None])
    inside = (starts >= first_M[ends][:, None]) & (starts + _BLOCK - 1 <= last_M[starts][:, None])
    return BlockMask.from_kv_blocks(
        *_ordered(touched & ~inside),
        *_ordered(inside),
        BLOCK_SIZE=_BLOCK,
        mask_mod=mask_mod,
        seq_lengths=(num_positions, num_positions),
    )


def _ranges(bias: AttnBias, num_positions: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The first and the last key that each query sees; neither ever decreases."""
    i = torch.arange(num_positions, device=device)
    first_M, last_M = bias.documents_M(num_positions, device)
    if bias.window is not None:
        first_M = torch.maximum(first_M, i - (bias.window - 1))
    return first_M, i if bias.causal else last_M


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """The number of key blocks per query block [1, 1, n], and their indices first [1, 1, n, n]."""
    counts = blocks.sum(dim=-1, dtype=torch.int32)
    order = torch.argsort(blocks.to(torch.int8), dim=-1, descending=True, stable=True)
    return counts[None, None], order.to(torch.int32)[None, None]


def _score_mod(bias: AttnBias, num_positions: int, device: torch.device) -> _ScoreMod | None:
    """The score function, which caps the scaled scores and adds the bias; None without either."""
    add, softcap = _additive_score_mod(bias, num_positions, device), bias.softcap
    if softcap is None:
        return add

    def score_capped(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        capped = softcap * torch.tanh(s / softcap)
        return capped if add is None else add(capped, b, h, i, j)

    return score_capped


def _additive_score_mod(
    bias: AttnBias, num_positions: int, device: torch.device
) -> _ScoreMod | None:
    """Adds ALiBi slopes times the distance, or one bias tensor; None adds nothing."""
    if _is_tensor(bias):
        # the block mask already hides the keys at which this tensor is -inf
        dense_HMM = bias.materialize(num_positions, device, torch.float32)
        per_head = dense_HMM.shape[0] > 1

        def score_tensor(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return s + dense_HMM[h if per_head else 0, i, j]

        return score_tensor
    if bias.slopes is None:
        return None
    slopes_H = on_device(bias.slopes, device, torch.float32)

    def score_alibi(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return s + slopes_H[h] * (j - i)

    return score_alibi


def _is_tensor(bias: AttnBias) -> bool:
    """Whether the kernel reads the bias from memory rather than computing it."""
    return bias.dense or bias.additive_HMM is not None
