"""AdamW (Loshchilov, Hutter, 2017, arXiv:1711.05101)."""

from __future__ import annotations

from typing import Any, Literal

import torch

from xftrain.config.fields import NonNegativeFloat, ParamGroups, PositiveFloat, Probability
from xftrain.interfaces import two_moments_bytes
from xftrain.kernels.adamw import has_kernel
from xftrain.kernels.fused_adamw import FusedAdamW
from xftrain.optim._grouped import GroupedOptimizer


class AdamW(GroupedOptimizer):
    """Builds torch's fused AdamW, or xftrain's own, which has the same state.

    A fused optimizer launches few kernels, and GradScaler need not wait for the device to detect an
    overflow.

    Args:
        lr: base learning rate.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        weight_decay: weight decay of matrices; norms, biases and embeddings have none.
        impl: `torch` is torch's fused AdamW. `auto` clips and steps large weights in one kernel if
            Triton runs. In `bf16-mixed` on one GPU, `auto` also keeps bfloat16 copies of large
            weights in blocks, which matmuls read, and takes bfloat16 gradients, unless a class
            of the user's may read them, see `train.bf16_weights`.
        param_groups: settings of parameters by patterns of their names, see `GroupedOptimizer`.
    """

    modifies_weights = False

    def __init__(
        self,
        *,
        lr: PositiveFloat = 3e-3,
        betas: tuple[Probability, Probability] = (0.9, 0.95),
        eps: PositiveFloat = 1e-8,
        weight_decay: NonNegativeFloat = 0.1,
        impl: Literal["auto", "torch"] = "auto",
        param_groups: ParamGroups = (),
    ) -> None:
        super().__init__(lr, weight_decay, param_groups)
        self.betas, self.eps, self.impl = (betas[0], betas[1]), eps, impl

    def make(self, groups: list[dict[str, Any]]) -> torch.optim.AdamW:
        """Creates torch's fused AdamW, or xftrain's `FusedAdamW`, which has the same state."""
        settings: dict[str, Any] = {"lr": self.lr, "betas": self.betas, "eps": self.eps}
        if self.uses_fused_adamw(groups[0]["params"][0].device):
            return FusedAdamW(groups, **settings)
        return torch.optim.AdamW(groups, fused=True, **settings)

    def uses_fused_adamw(self, device: torch.device) -> bool:
        """Whether xftrain's `FusedAdamW` is used on a device."""
        return self.impl == "auto" and has_kernel(device)

    def takes_bf16_gradients(self, device: torch.device) -> bool:
        """Whether the step on a device reads bfloat16 gradients, as `FusedAdamW` does."""
        return self.uses_fused_adamw(device) and not self.has_several_optimizers

    def state_bytes(self, parameter: torch.Tensor) -> int:
        """The bytes of two moments in the dtype of the parameter."""
        return two_moments_bytes(parameter)
