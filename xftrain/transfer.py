"""Numbers of the host on a device, without a wait for what the device has to do before."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def on_device(
    values: Sequence[float], device: torch.device | str, dtype: torch.dtype | None = None
) -> Tensor:
    """A few numbers as a tensor there, where `torch.tensor(values, device=device)` would wait."""
    return torch.tensor(values, dtype=dtype, device="cpu").to(device, non_blocking=True)
