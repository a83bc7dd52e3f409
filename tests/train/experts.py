"""A mixture of experts as a user's own feed-forward, with a load-balancing auxiliary loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Experts(nn.Module):
    """Routes each token to its most likely expert (Switch; Fedus et al., 2021, arXiv:2101.03961).

    All experts compute all tokens, which is slow and has no shape that depends on the data.
    """

    def __init__(
        self, dim: int, linear_bias: bool, *, num_experts: int = 3, weight: float = 0.5
    ) -> None:
        super().__init__()
        self.router = nn.Linear(dim, num_experts, bias=False)
        self.up = nn.ModuleList(nn.Linear(dim, dim) for _ in range(num_experts))
        self.weight = weight

    def forward(self, x_BMD: Tensor) -> tuple[Tensor, Tensor]:
        probs = self.router(x_BMD).softmax(dim=-1)
        experts = torch.arange(len(self.up), device=probs.device)
        chosen = (probs.argmax(dim=-1, keepdim=True) == experts).to(probs.dtype)
        gates = (probs * chosen).unbind(dim=-1)
        made = [g[..., None] * up(x_BMD).relu() for g, up in zip(gates, self.up, strict=True)]
        shares, means = chosen.flatten(0, -2).mean(0), probs.flatten(0, -2).mean(0)
        aux = self.weight * len(self.up) * (shares * means).sum()
        return torch.stack(made).sum(0), aux

    def active_parameters(self) -> int:
        """The router, and the one expert of a token."""
        return sum(p.numel() for part in (self.router, self.up[0]) for p in part.parameters())


class Spoilt(Experts):
    """Returns a NaN auxiliary loss in the third step, after two calls by the memory prediction."""

    calls = 0

    def forward(self, x_BMD: Tensor) -> tuple[Tensor, Tensor]:
        added, aux = super().forward(x_BMD)
        Spoilt.calls += self.training and torch.is_grad_enabled()
        return added, aux * float("nan") if Spoilt.calls == 5 else aux


class Triple(Experts):
    """A feed-forward that returns a tuple of three values instead of two."""

    def forward(self, x_BMD: Tensor) -> Any:
        return (*super().forward(x_BMD), x_BMD)


class Vector(Experts):
    """A feed-forward that returns an auxiliary loss for each token instead of a scalar."""

    def forward(self, x_BMD: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x_BMD)[0], x_BMD.sum(-1)
