"""Small operands of a feed-forward, for the tests of its matmuls."""

from __future__ import annotations

import torch

N, D, H = 24, 16, 40


def inputs(dtype=torch.float64, device="cpu", sizes=(N, D, H)):
    torch.manual_seed(0)
    n, d, h = sizes
    x = torch.randn(2, n // 2, d, dtype=dtype, device=device)
    up, down = (torch.randn(*s, dtype=dtype, device=device) / 4 for s in ((h, d), (d, h)))
    return x, up, down
