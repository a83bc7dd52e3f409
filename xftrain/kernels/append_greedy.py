"""Appends the most likely token of each row: in Triton on a GPU, in torch elsewhere.

After the logits of a step of generation, torch needs eight kernels for this, each of which takes a
few microseconds, and its maximum over a vocabulary keeps few of the GPU's processors busy.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from xftrain.kernels.probe import runs_triton

_BLOCK = 8192  # logits that a program reads at a time


def append_greedy_(
    logits_BV: Tensor,
    vocab_size: int,
    drawn_BN: Tensor,
    columns_B: Tensor,
    tokens_B: Tensor,
    positions_B: Tensor,
    is_finite: Tensor,
) -> None:
    """Appends the first token with the highest logit to each row, in place.

    Args:
        logits_BV: logits, with contiguous rows.
        vocab_size: tokens from this id on are not considered.
        drawn_BN: int64 tokens; the new one is stored in the row's column.
        columns_B: int64 columns, each of which is increased by one.
        tokens_B: is set to the new tokens.
        positions_B: int64 positions, each of which is increased by one.
        is_finite: a boolean, which becomes false if a row has NaN, an infinite logit, or none above
            minus infinity.
    """
    run = _with_triton if has_kernel(logits_BV.device, logits_BV.dtype) else with_torch
    run(logits_BV, vocab_size, drawn_BN, columns_B, tokens_B, positions_B, is_finite)


def with_torch(
    logits_BV: Tensor,
    vocab_size: int,
    drawn_BN: Tensor,
    columns_B: Tensor,
    tokens_B: Tensor,
    positions_B: Tensor,
    is_finite: Tensor,
) -> None:
    """`append_greedy_` in torch operations."""
    highest = logits_BV[:, :vocab_size].max(dim=-1)  # NaN if any logit is
    is_finite.logical_and_(highest.values.isfinite().all())
    append_(highest.indices, drawn_BN, columns_B, tokens_B, positions_B)


def append_(
    chosen_B: Tensor, drawn_BN: Tensor, columns_B: Tensor, tokens_B: Tensor, positions_B: Tensor
) -> None:
    """Appends a chosen token to each row, with the arguments of `append_greedy_`."""
    drawn_BN.scatter_(1, columns_B[:, None], chosen_B[:, None])
    tokens_B.copy_(chosen_B)
    columns_B.add_(1)
    positions_B.add_(1)


def has_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the Triton kernel runs on the device for logits of this dtype."""
    return device.type == "cuda" and dtype != torch.float64 and _runs(device)


@cache
def _runs(device: torch.device) -> bool:
    def launch() -> None:
        zero_11 = torch.zeros(1, 1, dtype=torch.int64, device=device)
        is_finite = torch.ones((), dtype=torch.bool, device=device)
        logits_12 = torch.zeros(1, 2, device=device)
        state = (zero_11[0].clone(), zero_11[0].clone(), zero_11[0].clone())
        _with_triton(logits_12, 2, zero_11, *state, is_finite)

    return runs_triton(device, launch, "generation")


def _with_triton(
    logits_BV: Tensor,
    vocab_size: int,
    drawn_BN: Tensor,
    columns_B: Tensor,
    tokens_B: Tensor,
    positions_B: Tensor,
    is_finite: Tensor,
) -> None:
    from xftrain.kernels.append_greedy_triton import append_greedy_kernel  # imports triton

    assert logits_BV.stride(1) == 1 and drawn_BN.is_contiguous()
    block = min(_BLOCK, max(16, 1 << (vocab_size - 1).bit_length()))
    with torch.cuda.device(logits_BV.device):
        append_greedy_kernel[(len(logits_BV),)](
            logits_BV,
            drawn_BN,
            columns_B,
            tokens_B,
            positions_B,
            is_finite,
            vocab_size,
            logits_BV.stride(0),
            drawn_BN.stride(0),
            BLOCK=block,
            num_warps=16 if block == _BLOCK else 4,
        )
