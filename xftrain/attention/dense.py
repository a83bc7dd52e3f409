"""Biases as one tensor, for kernels that take nothing else, and attention with one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from xftrain.interfaces import AttnBias

# Torch's efficient kernel reads a mask in rows that start on 16 numbers, else it copies the mask.
_ALIGN = 16
# It multiplies a row's number by the row's length in 32 bits: past 2^32 the forward pass reads
# other rows' masks (pytorch#187227), past 2^31 the backward pass reads outside (pytorch#150054).
_LARGEST_MASK = 2**31 - 1
# All but cuDNN, whose backward pass with a mask gives NaN at lengths that leave 64 by 128 where a
# query's scores are far below zero (pytorch#196678); cuDNN without a mask tensor is right.
_MASKED_KERNELS = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


@dataclass(frozen=True)
class DenseDocument:
    """Positions that attend to each other only: the row, or one packed document.

    Attributes:
        length: number of positions.
        bias_1HMM: what is added to the scores; None where nothing is.
        alive: see `dense_bias`.
    """

    length: int
    bias_1HMM: Tensor | None
    alive: Tensor | None


def documents_of(bias: AttnBias, num_positions: int) -> Iterator[tuple[int, AttnBias]]:
    """The length and the facts of each packed document by itself; of the row where none is packed.

    Slopes and window are the row's, as they count differences of positions; the additive tensor is
    the document's own part of it.
    """
    additive_HMM = bias.additive_HMM
    for start, end in bias.segments(num_positions):
        own = None if additive_HMM is None else additive_HMM[:, start:end, start:end]
        yield end - start, replace(bias, seqlens=None, additive_HMM=own)


def dense_documents(
    bias: AttnBias, num_positions: int, dtype: torch.dtype, device: torch.device
) -> tuple[DenseDocument, ...]:
    """Each document's own tensor; those of one length share it, unless an additive tensor differs.

    Nothing is added where a query sees all of its document.
    """
    if not bias.causal and bias.additive_HMM is None:
        lengths = [length for length, _ in documents_of(bias, num_positions)]
        return tuple(DenseDocument(length, None, None) for length in lengths)
    shared: dict[int, DenseDocument] = {}
    documents = []
    for length, facts in documents_of(bias, num_positions):
        document = shared.get(length) if facts.additive_HMM is None else None
        if document is None:
            document = DenseDocument(length, *dense_bias(facts, length, dtype, device))
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
    """The additive tensor [1, H or 1, M, M], and which queries see anything at all.

    Each row is shifted so that its largest number is 0, which softmax does not see: 16 bits are
    then exact where attention is, and hold it, whatever the sign of slopes.

    Softmax over a row of -inf is NaN, and its gradient too. Such a row can only come from
    `additive_HMM`; it is set to 0 here, and the second result, [1, M, H or 1, 1] in {0, 1}, is to
    be multiplied into the output, so that a query that sees nothing gets 0. None means that every
    query sees itself.

    With `first_query` n, the rows of the queries n, n+1, ... only.
    """
    wide = torch.promote_types(dtype, torch.float32)
    bias_1HMM = bias.materialize(num_positions, device, wide, first_query)[None]
    highest_1HM1 = bias_1HMM.detach().amax(dim=-1, keepdim=True)
    empty_1HM1 = torch.isneginf(highest_1HM1)
    bias_1HMM = bias_1HMM - highest_1HM1.masked_fill(empty_1HM1, 0.0)
    alive = None
    if bias.additive_HMM is not None:
        bias_1HMM = bias_1HMM.masked_fill(empty_1HM1, 0.0)
        alive = (~empty_1HM1).transpose(1, 2).to(dtype)
    return _aligned(bias_1HMM.to(dtype)), alive


def _aligned(bias_1HMM: Tensor) -> Tensor:
    """The same numbers, on a GPU in rows that start where its kernels want them."""
    padding = -bias_1HMM.shape[-1] % _ALIGN
    if bias_1HMM.device.type != "cuda" or not padding:
        return bias_1HMM
    return F.pad(bias_1HMM, (0, padding))[..., :-padding]


def mask_reasons(longest: int, device: torch.device) -> list[str]:
    """Why no kernel of a GPU reads a mask tensor of this many rows right; empty where one does."""
    if device.type == "cuda" and longest * (longest + -longest % _ALIGN) > _LARGEST_MASK:
        return [
            f"a mask tensor of {longest} x {longest} numbers is read wrong by torch's kernels, "
            "which count them in 32 bits"
        ]
    return []


def masked_kernels(device: torch.device) -> AbstractContextManager[None]:
    """Within it, torch's attention takes a kernel that is right with a mask tensor."""
    return sdpa_kernel(_MASKED_KERNELS) if device.type == "cuda" else nullcontext()


def masked_attention(
    q_BHNK: Tensor, k_BGMK: Tensor, v_BGMK: Tensor, mask: Tensor, *, scale: float
) -> Tensor:
    """Torch's attention with a mask tensor, [B, H, N, K]; to be called within `masked_kernels`."""
    k_BGMK, v_BGMK = heads_for_mask(q_BHNK, k_BGMK, v_BGMK)
    grouped = k_BGMK.shape[1] != q_BHNK.shape[1]
    return F.scaled_dot_product_attention(
        q_BHNK, k_BGMK, v_BGMK, attn_mask=mask, scale=scale, enable_gqa=grouped
    )


def written_out_attention(
    q_BNHK: Tensor,
    k_BMGK: Tensor,
    v_BMGK: Tensor,
    bias_1HNM: Tensor | None,
    alive: Tensor | None,
    *,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """Attention in plain operations with all scores in float32 or wider, [B, N, H, K].

    Query heads of a group share their K/V head without a copy of it.

    Args:
        q_BNHK: queries, as many as there are keys or fewer.
        k_BMGK: keys.
        v_BMGK: values.
        bias_1HNM: what is added to the scores, -inf where hidden; None where nothing is.
        alive: see `dense_bias`.
        scale: what q k^T is multiplied by.
        softcap: see `AttnBias`.
    """
    B, N, H, K = q_BNHK.shape
    G = k_BMGK.shape[2]
    wide = torch.promote_types(q_BNHK.dtype, torch.float32)
    # autocast would take the scores back to 16 bits
    with torch.autocast(q_BNHK.device.type, enabled=False):
        # Query heads [H] = [G, H/G]: those of a group become further rows of one product.
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
        if alive is not None:
            out_BNHK = out_BNHK * alive
    return out_BNHK.to(q_BNHK.dtype)


def heads_for_mask(q_BHNK: Tensor, k_BGMK: Tensor, v_BGMK: Tensor) -> tuple[Tensor, Tensor]:
    """K and V as the kernels for masks want them: on a GPU, a copy for each query head.

    Its efficient kernel takes no grouped heads, and torch would compute all scores instead.
    """
    repeats = q_BHNK.shape[1] // k_BGMK.shape[1]
    if q_BHNK.device.type != "cuda" or repeats == 1:
        return k_BGMK, v_BGMK
    return k_BGMK.repeat_interleave(repeats, dim=1), v_BGMK.repeat_interleave(repeats, dim=1)
