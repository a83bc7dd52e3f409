"""Copies numbers from the host to a device without a device synchronization."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def on_device(
    values: Sequence[float], device: torch.device | str, dtype: torch.dtype | None = None
) -> Tensor:
    """Copies numbers to a device; `torch.tensor(values, device=device)` would synchronize."""
    return torch.tensor(values, dtype=dtype, device="cpu").to(device, non_blocking=True)
