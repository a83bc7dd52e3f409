"""Biases as one tensor, for kernels that need one, and attention with such a tensor."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from xftrain.interfaces import AttnBias

# Torch's efficient kernel needs mask rows aligned to 16 elements, else it copies the mask.
_ALIGN = 16
# It computes row index times row length in 32 bits: past 2^32 the forward pass reads the masks of
# other rows (pytorch#187227), past 2^31 the backward pass reads out of bounds (pytorch#150054).
_MAX_MASK_ELEMENTS = 2**31 - 1
# All kernels but cuDNN. Its backward pass with a mask gives NaN if the length modulo 128 is 64 and
# the scores of a query are far below zero (pytorch#196678); without a mask tensor it is correct.
_MASKED_KERNELS = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


@dataclass(frozen=True)
class DenseDocument:
    """The positions of one packed document, or of the row if it is not packed.

    Attributes:
        length: number of positions.
        bias_1HMM: term added to the scores; None adds nothing.
        query_mask: mask of the queries that see a key, see `dense_bias`.
    """

    length: int
    bias_1HMM: Tensor | None
    query_mask: Tensor | None


def dense_documents(
    bias: AttnBias, num_positions: int, dtype: torch.dtype, device: torch.device
) -> tuple[DenseDocument, ...]:
    """The bias tensor of each document, shared by documents of one length if they are equal.

    The tensor is None if queries see their whole document.
    """
    if not bias.causal and bias.additive_HMM is None:
        lengths = [length for length, _ in bias.documents(num_positions)]
        return tuple(DenseDocument(length, None, None) for length in lengths)
    shared: dict[int, DenseDocument] = {}
    documents = []
    for length, own_bias in bias.documents(num_positions):
        document = shared.get(length) if own_bias.additive_HMM is None else None
        if document is None:
            document = DenseDocument(length, *dense_bias(own_bias, length, dtype, device))
            shared[length] = document
        documents.append(document)
    return tuple(documents)


def dense_bias(
    bias: AttnBias,
    num_positions: int,
    dtype: torch.dtype,
    device: torch.device,
    first_query: int = 0,
) -> tuple[Tensor, Tensor | None]:
    """The additive tensor [1, H or 1, M, M], and a mask of the queries that see any key.

    Each row is shifted so that its maximum is 0, which does not change the softmax. 16-bit numbers
    are then precise where attention is large, and do not overflow, whatever the sign of the slopes.

    Softmax over a row of -inf is NaN, and its gradient too. Such a row can only come from
    `additive_HMM`; it is set to 0 here, and the output must be multiplied by the second result,
    [1, M, H or 1, 1] in {0, 1}, so that a query that sees nothing gets 0. None means that every
    query sees itself.

    With `first_query` n, only the rows of the queries n, n+1, ... are returned.
    """
    wide = torch.promote_types(dtype, torch.float32)
    bias_1HMM = bias.materialize(num_positions, device, wide, first_query)[None]
    highest_1HM1 = bias_1HMM.detach().amax(dim=-1, keepdim=True)
    empty_1HM1 = torch.isneginf(highest_1HM1)
    bias_1HMM = bias_1HMM - highest_1HM1.masked_fill(empty_1HM1, 0.0)
    query_mask = None
    if bias.additive_HMM is not None:
        bias_1HMM = bias_1HMM.masked_fill(empty_1HM1, 0.0)
        query_mask = (~empty_1HM1).transpose(1, 2).to(dtype)
    return _aligned(bias_1HMM.to(dtype)), query_mask


def _aligned(bias_1HMM: Tensor) -> Tensor:
    """The same tensor; on a GPU, its rows are aligned as the kernels require."""
    padding = -bias_1HMM.shape[-1] % _ALIGN
    if bias_1HMM.device.type != "cuda" or not padding:
        return bias_1HMM
    return F.pad(bias_1HMM, (0, padding))[..., :-padding]


def mask_reasons(num_positions: int, device: torch.device) -> list[str]:
    """Reasons why GPU kernels misread a mask tensor of this length; empty if they do not."""
    num_elements = num_positions * (num_positions + -num_positions % _ALIGN)
    if device.type == "cuda" and num_elements > _MAX_MASK_ELEMENTS:
        return [
            f"a mask tensor of {num_positions} x {num_positions} elements is read incorrectly by "
            "torch's kernels, which index it in 32 bits"
        ]
    return []


def masked_kernels(device: torch.device) -> AbstractContextManager[None]:
    """Within this context, torch's attention uses kernels that are correct with masks."""
    return sdpa_kernel(_MASKED_KERNELS) if device.type == "cuda" else nullcontext()


def masked_attention(
    q_BHNK: Tensor, k_BGMK: Tensor, v_BGMK: Tensor, mask: Tensor, *, scale: float
) -> Tensor:
    """Torch's attention with a mask tensor, [B, H, N, K]; call it within `masked_kernels`."""
    k_BGMK, v_BGMK = heads_for_mask(q_BHNK, k_BGMK, v_BGMK)
    grouped = k_BGMK.shape[1] != q_BHNK.shape[1]
    return F.scaled_dot_product_attention(
        q_BHNK, k_BGMK, v_BGMK, attn_mask=mask, scale=scale, enable_gqa=grouped
    )


def unfused_attention(
    q_BNHK: Tensor,
    k_BMGK: Tensor,
    v_BMGK: Tensor,
    bias_1HNM: Tensor | None,
    query_mask: Tensor | None,
    *,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """Attention in plain torch operations, with all scores in float32 or wider, [B, N, H, K].

    Query heads of a group share their K/V head without copying it.

    Args:
        q_BNHK: queries, as many as there are keys or fewer.
        k_BMGK: keys.
        v_BMGK: values.
        bias_1HNM: term added to the scores, -inf where hidden; None adds nothing.
        query_mask: see `dense_bias`.
        scale: factor of q k^T.
        softcap: see `AttnBias`.
    """
    B, N, H, K = q_BNHK.shape
    G = k_BMGK.shape[2]
    wide = torch.promote_types(q_BNHK.dtype, torch.float32)
    # autocast would cast the scores to 16 bits
    with torch.autocast(q_BNHK.device.type, enabled=False):
        # Query heads [H] = [G, H/G]: the heads of a group become further rows of one matmul.
        q = q_BNHK.to(wide).transpose(1, 2).reshape(B, G, H // G * N, K)
        k = k_BMGK.to(wide).transpose(1, 2)
        v = v_BMGK.to(wide).transpose(1, 2)
        factor = scale if softcap is None else scale / softcap
        scores_BHNM = (q @ k.transpose(-2, -1) * factor).view(B, H, N, -1)
        if softcap is not None:
            scores_BHNM = scores_BHNM.tanh() * softcap
        if bias_1HNM is not None:
            scores_BHNM = scores_BHNM + bias_1HNM
        probs = scores_BHNM.softmax(dim=-1).view(B, G, H // G * N, -1)
        out_BNHK = (probs @ v).view(B, H, N, K).transpose(1, 2)
        if query_mask is not None:
            out_BNHK = out_BNHK * query_mask
    return out_BNHK.to(q_BNHK.dtype)


def heads_for_mask(q_BHNK: Tensor, k_BGMK: Tensor, v_BGMK: Tensor) -> tuple[Tensor, Tensor]:
    """K and V for kernels with a mask tensor: expanded to all query heads on a GPU.

    The efficient kernel of the GPU takes no grouped heads: torch would materialize all scores.
    """
    repeats = q_BHNK.shape[1] // k_BGMK.shape[1]
    if q_BHNK.device.type != "cuda" or repeats == 1:
        return k_BGMK, v_BGMK
    return k_BGMK.repeat_interleave(repeats, dim=1), v_BGMK.repeat_interleave(repeats, dim=1)
