"""Attention of one new token per row over a cache of keys: in Triton on a GPU, in torch elsewhere.

The Triton kernel splits the slots of a row among several programs, so that one row alone also keeps
a GPU busy (Flash-Decoding, Dao et al., 2023, https://pytorch.org/blog/flash-decoding/). It reads no
more keys than a row has, and takes the positions from the device, so that a CUDA graph can repeat
it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from xftrain.kernels.probe import runs_triton
from xftrain.kernels.softcap import softcapped

_BLOCK = 64  # slots that a program reads at a time
_PROGRAMS_PER_SM = 4
_MAX_SPLITS = 64


def decode_attention(
    q_BHK: Tensor,
    k_BGK: Tensor,
    v_BGK: Tensor,
    k_BCGK: Tensor,
    v_BCGK: Tensor,
    positions_B: Tensor,
    slopes_H: Tensor | None = None,
    *,
    scale: float,
    softcap: float | None = None,
) -> Tensor:
    """Stores the new keys and values in the cache; returns attention of the new tokens, [B, H, K].

    The key of position p is in slot p modulo C. So a query sees the C last keys, its own included:
    all of them, or those of a window of C.

    Args:
        q_BHK: queries, with contiguous features.
        k_BGK: keys of the new tokens, likewise.
        v_BGK: values of the new tokens, likewise.
        k_BCGK: cached keys, contiguous; slots of later positions may hold anything finite.
        v_BCGK: cached values, contiguous.
        positions_B: int64 positions of the new tokens.
        slopes_H: ALiBi slopes in float32; None adds nothing.
        scale: factor of q k^T.
        softcap: see `AttnBias`.
    """
    run = _with_triton if has_kernel(q_BHK.device, q_BHK.dtype) else with_torch
    return run(q_BHK, k_BGK, v_BGK, k_BCGK, v_BCGK, positions_B, slopes_H, scale, softcap)


def with_torch(
    q_BHK: Tensor,
    k_BGK: Tensor,
    v_BGK: Tensor,
    k_BCGK: Tensor,
    v_BCGK: Tensor,
    positions_B: Tensor,
    slopes_H: Tensor | None,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """`decode_attention` in plain torch operations, with scores in float32 or wider."""
    B, H, K = q_BHK.shape
    C, G = k_BCGK.shape[1:3]
    flat_slots_B = torch.arange(B, device=q_BHK.device) * C + positions_B % C
    for cached, new in ((k_BCGK, k_BGK), (v_BCGK, v_BGK)):
        cached.flatten(0, 1).index_copy_(0, flat_slots_B, new.to(cached.dtype))
    wide = torch.promote_types(q_BHK.dtype, torch.float32)
    slots_C = torch.arange(C, device=q_BHK.device)
    # the number of positions from the key in a slot to the query
    distance_BC = (positions_B[:, None] - slots_C) % C
    hidden_BC = distance_BC > positions_B[:, None]
    with torch.autocast(q_BHK.device.type, enabled=False):
        q_BGSK = q_BHK.to(wide).view(B, G, H // G, K)
        scores_BGSC = torch.einsum("bgsk,bcgk->bgsc", q_BGSK, k_BCGK.to(wide)) * scale
        if softcap is not None:
            scores_BGSC = softcapped(scores_BGSC, softcap)
        if slopes_H is not None:
            slopes_1GS1 = slopes_H.to(wide).view(1, G, H // G, 1)
            scores_BGSC = scores_BGSC - slopes_1GS1 * distance_BC[:, None, None]
        scores_BGSC = scores_BGSC.masked_fill(hidden_BC[:, None, None], -torch.inf)
        probs_BGSC = scores_BGSC.softmax(dim=-1)
        out_BGSK = torch.einsum("bgsc,bcgk->bgsk", probs_BGSC, v_BCGK.to(wide))
    return out_BGSK.reshape(B, H, K).to(q_BHK.dtype)


def has_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the Triton kernel runs on the device for this dtype; it has none for float64."""
    return device.type == "cuda" and dtype != torch.float64 and _runs(device)


@cache
def _runs(device: torch.device) -> bool:
    def launch() -> None:
        q, k = torch.ones(1, 1, 16, device=device), torch.ones(1, 1, 1, 16, device=device)
        positions = torch.zeros(1, dtype=torch.int64, device=device)
        _with_triton(q, q, q, k, k, positions, None, 1.0, None)

    return runs_triton(device, launch, "generation")


@cache
def _num_sms(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def _with_triton(
    q_BHK: Tensor,
    k_BGK: Tensor,
    v_BGK: Tensor,
    k_BCGK: Tensor,
    v_BCGK: Tensor,
    positions_B: Tensor,
    slopes_H: Tensor | None,
    scale: float,
    softcap: float | None,
) -> Tensor:
    from xftrain.kernels import decode_attention_triton as kernels  # imports triton

    assert q_BHK.stride(2) == k_BGK.stride(2) == v_BGK.stride(2) == 1
    B, H, K = q_BHK.shape
    C, G = k_BCGK.shape[1:3]
    wanted = -(-_PROGRAMS_PER_SM * _num_sms(q_BHK.device) // (B * G))
    num_splits = max(1, min(_MAX_SPLITS, wanted, -(-C // _BLOCK)))
    width = _power_of_2(K, 16)
    new: dict[str, Any] = {"dtype": torch.float32, "device": q_BHK.device}
    parts = torch.empty(B, H, num_splits, K, **new)
    sums = torch.empty(B, H, num_splits, 2, **new)  # highest score, and sum of exponentials
    out_BHK = torch.empty(B, H, K, dtype=q_BHK.dtype, device=q_BHK.device)
    with torch.cuda.device(q_BHK.device):
        kernels.split_kernel[(B * G, num_splits)](
            q_BHK,
            k_BGK,
            v_BGK,
            k_BCGK,
            v_BCGK,
            positions_B,
            q_BHK if slopes_H is None else slopes_H,
            parts,
            sums,
            scale,
            1.0 if softcap is None else softcap,
            C,
            num_splits,
            *q_BHK.stride()[:2],
            *k_BGK.stride()[:2],
            *v_BGK.stride()[:2],
            G=G,
            GROUP=H // G,
            K=K,
            HAS_SLOPES=slopes_H is not None,
            HAS_SOFTCAP=softcap is not None,
            IS_PRECISE=q_BHK.dtype == torch.float32,
            GROUP_BLOCK=_power_of_2(H // G, 16),
            WIDTH=width,
            BLOCK=_BLOCK,
            num_warps=4,
        )
        kernels.join_kernel[(B * H,)](
            parts,
            sums,
            out_BHK,
            num_splits,
            K=K,
            WIDTH=width,
            SPLITS=_power_of_2(num_splits, 1),
            num_warps=4,
        )
    return out_BHK


def _power_of_2(number: int, least: int) -> int:
    return max(least, 1 << (number - 1).bit_length())
