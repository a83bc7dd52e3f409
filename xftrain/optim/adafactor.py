"""Adafactor (Shazeer, Stern, 2018, arXiv:1804.04235): hardly any optimizer state."""

from __future__ import annotations

import math
from typing import Any

import torch

from xftrain.config.fields import NonNegativeFloat, ParamGroups, PositiveFloat
from xftrain.optim._grouped import GroupedOptimizer


class Adafactor(GroupedOptimizer):
    """Keeps one number per row and column of a matrix, where AdamW keeps two matrices.

    Updates are relative to the root mean square of the weights. It is not a fused optimizer, so
    the host waits for the device in each step, to learn whether the step is finite.

    Args:
        lr: base learning rate, for weights with a root mean square of 1; at most 1 / sqrt(step).
        beta2_decay: exponent of the decay of the second moment: 1 - step ** beta2_decay.
        clip_threshold: maximum root mean square of an update.
        weight_decay: weight decay of matrices; norms, biases and embeddings have none.
        param_groups: settings of parameters by patterns of their names, see `GroupedOptimizer`.
    """

    modifies_weights = False
    no_cuda_graph = (
        "its step cannot read the learning rate, and whether to skip, from the device: use "
        "optim=adamw"
    )

    def __init__(
        self,
        *,
        lr: PositiveFloat = 3e-2,
        beta2_decay: float = -0.8,
        clip_threshold: PositiveFloat = 1.0,
        weight_decay: NonNegativeFloat = 0.1,
        param_groups: ParamGroups = (),
    ) -> None:
        super().__init__(lr, weight_decay, param_groups)
        self.beta2_decay, self.clip_threshold = beta2_decay, clip_threshold

    def make(self, groups: list[dict[str, Any]]) -> torch.optim.Adafactor:
        """Creates torch's Adafactor."""
        return torch.optim.Adafactor(
            groups, lr=self.lr, beta2_decay=self.beta2_decay, d=self.clip_threshold
        )

    def state_bytes(self, parameter: torch.Tensor) -> int:
        """The bytes for the rows and columns of a matrix, or for all elements of a vector."""
        size = parameter.shape
        is_matrix = len(size) >= 2
        numbers = math.prod(size[:-2]) * sum(size[-2:]) if is_matrix else parameter.numel()
        return numbers * parameter.element_size()
