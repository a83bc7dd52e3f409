"""Size limits of GPU kernels, beyond which a call fails or is silently wrong."""

from __future__ import annotations

import torch

MAX_ROWS = 65535  # maximum size of the second and third dimension of a CUDA grid
# cuDNN and FlashAttention index q, k, v and their gradients with 32 bits: with 2.2e9 elements in
# one tensor, dq and dk of cuDNN are wrong, and FlashAttention reads out of bounds (torch 2.11, an
# H200). Views of a larger tensor are correct.
MAX_ELEMENTS = 2**31 - 1


def row_reasons(num_rows: int, what: str, device: torch.device) -> list[str]:
    """Reasons why one call cannot take this many rows; empty if it can.

    Args:
        num_rows: rows of a batch, or documents in a row.
        what: the plural noun for them in the message.
        device: only a GPU has such limits.
    """
    if device.type != "cuda" or num_rows <= MAX_ROWS:
        return []
    return [f"its kernels take {MAX_ROWS} {what} at most, got {num_rows}"]


def element_reasons(shape_BMHK: tuple[int, int, int, int], device: torch.device) -> list[str]:
    """Reasons why q is too large for one call; empty if it is not."""
    num_elements = 1
    for size in shape_BMHK:
        num_elements *= size
    if device.type != "cuda" or num_elements <= MAX_ELEMENTS:
        return []
    sizes = " x ".join(map(str, shape_BMHK))
    return [
        f"its kernels index a tensor in 32 bits, and q has {num_elements} elements in one "
        f"call ({sizes}): make batches smaller"
    ]
