"""AdamW (Loshchilov, Hutter, 2017, arXiv:1711.05101) with a warm-up and a schedule."""

from __future__ import annotations

from typing import Any, Literal

import torch

from xftrain.fields import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, Probability
from xftrain.kernels.adamw import has_kernel
from xftrain.training.fused_adamw import FusedAdamW
from xftrain.training.scheduled import Scheduled


class AdamW(Scheduled):
    """Builds the optimizer and its schedule.

    Fused: few kernels, and with GradScaler no wait for the device to learn of an overflow.

    Args:
        lr: rate after the warm-up.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        weight_decay: of matrices; norms, biases and embeddings are left alone.
        schedule: of the rate after the warm-up: `cosine` to `lr x min_lr_ratio`, or `constant`.
        warmup_steps: steps of linear growth from 0.
        min_lr_ratio: where the cosine ends, as a share of `lr`.
        impl: `torch`, its fused one; `auto`: where Triton runs, large weights are clipped and
            stepped in one kernel. In `bf16-mixed` on one GPU it also keeps bfloat16 copies of those
            in blocks, for matrix products to read, and reads bfloat16 gradients, unless a part of
            the run that is not built in may look at them, see `training.bf16_weights`.
    """

    modifies_weights = False

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
        impl: Literal["auto", "torch"] = "auto",
    ) -> None:
        super().__init__(lr, weight_decay, schedule, warmup_steps, min_lr_ratio)
        self.betas, self.eps, self.impl = (betas[0], betas[1]), eps, impl

    def make(self, groups: list[dict[str, Any]]) -> torch.optim.AdamW:
        """torch's own, or ours with its state."""
        if groups and self.is_own(groups[0]["params"][0].device):
            return FusedAdamW(groups, lr=self.lr, **self.settings())
        return torch.optim.AdamW(groups, lr=self.lr, fused=True, **self.settings())

    def is_own(self, device: torch.device) -> bool:
        """Whether it is ours there."""
        return self.impl == "auto" and has_kernel(device)

    def settings(self) -> dict[str, Any]:
        """The moments'."""
        return {"betas": self.betas, "eps": self.eps}

    def takes_bf16_gradients(self, device: torch.device) -> bool:
        """Where the step is our kernel's."""
        return self.is_own(device)

    def state_bytes(self, parameter: torch.Tensor) -> int:
        """Two moments in the dtype of the parameter."""
        return 2 * parameter.numel() * parameter.element_size()
