"""How much one call of a kernel on a GPU takes: past that it fails, or is wrong without a word."""

from __future__ import annotations

import torch

MOST_ROWS = 65535  # blocks of a grid's second and third dimension
# cuDNN and FlashAttention count the numbers of q, k, v and their gradients in 32 bits: of 2.2e9 in
# one tensor cuDNN's dq and dk are wrong, and FlashAttention reads outside (torch 2.11, an H200).
# Views of a larger tensor are right.
MOST_NUMBERS = 2**31 - 1


def row_reasons(num_rows: int, what: str, device: torch.device) -> list[str]:
    """Why so many rows are too many for one call; empty where they are not.

    Args:
        num_rows: of a batch, or documents of a row.
        what: their name, in the plural.
        device: only a GPU has such limits.
    """
    if device.type != "cuda" or num_rows <= MOST_ROWS:
        return []
    return [f"its kernels take {MOST_ROWS} {what} at most, got {num_rows}"]


def number_reasons(shape_BMHK: tuple[int, int, int, int], device: torch.device) -> list[str]:
    """Why a tensor of q is too large for one call; empty where it is not."""
    num_numbers = 1
    for size in shape_BMHK:
        num_numbers *= size
    if device.type != "cuda" or num_numbers <= MOST_NUMBERS:
        return []
    sizes = " x ".join(map(str, shape_BMHK))
    return [
        f"its kernels count the numbers of a tensor in 32 bits, and q has {num_numbers} in one "
        f"call ({sizes}): make batches smaller"
    ]
