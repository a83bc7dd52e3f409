"""AdamW (Loshchilov, Hutter, 2017, arXiv:1711.05101) with a warm-up and a schedule."""

from __future__ import annotations

from typing import Any, Literal

import torch

from xftrain.fields import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, Probability
from xftrain.training.scheduled import Scheduled


class AdamW(Scheduled):
    """Builds the optimizer and its schedule.

    Fused: one kernel, and with GradScaler no wait for the device to learn of an overflow.

    Args:
        lr: rate after the warm-up.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        weight_decay: of matrices; norms, biases and embeddings are left alone.
        schedule: of the rate after the warm-up: `cosine` to `lr x min_lr_ratio`, or `constant`.
        warmup_steps: steps of linear growth from 0.
        min_lr_ratio: where the cosine ends, as a share of `lr`.
    """

    def __init__(
        self,
        *,
        lr: PositiveFloat = 3e-3,
        betas: tuple[Probability, Probability] = (0.9, 0.95),
        eps: PositiveFloat = 1e-8,
        weight_decay: NonNegativeFloat = 0.1,
        schedule: Literal["cosine", "constant"] = "cosine",
        warmup_steps: NonNegativeInt = 10,
        min_lr_ratio: Fraction = 0.1,
    ) -> None:
        super().__init__(lr, weight_decay, schedule, warmup_steps, min_lr_ratio)
        self.betas, self.eps = (betas[0], betas[1]), eps

    def make(self, groups: list[dict[str, Any]]) -> torch.optim.AdamW:
        """torch's own."""
        return torch.optim.AdamW(groups, lr=self.lr, fused=True, **self.settings())

    def settings(self) -> dict[str, Any]:
        """The moments'."""
        return {"betas": self.betas, "eps": self.eps}

    def state_bytes(self, parameter: torch.Tensor) -> int:
        """Two moments in the dtype of the parameter."""
        return 2 * parameter.numel() * parameter.element_size()
