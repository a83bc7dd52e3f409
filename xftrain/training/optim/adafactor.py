"""Adafactor (Shazeer, Stern, 2018, arXiv:1804.04235): next to no optimizer state."""

from __future__ import annotations

import math
from typing import Any

import torch

from xftrain.fields import NonNegativeFloat, ParamGroups, PositiveFloat
from xftrain.training.optim._grouped import GroupedOptimizer


class Adafactor(GroupedOptimizer):
    """Of a matrix it keeps a number for each row and each column, where AdamW keeps two matrices.

    Steps are relative to the size of the weights. It is no fused optimizer: where a step is not
    finite, the host waits for the device to say so.

    Args:
        lr: base learning rate, of weights whose root mean square is 1; 1 / sqrt(step) where that
            is less.
        beta2_decay: how the memory of the second moment grows: it is 1 - step ** beta2_decay.
        clip_threshold: largest root mean square of an update.
        weight_decay: of matrices; norms, biases and embeddings are left alone.
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
        """torch's own."""
        return torch.optim.Adafactor(
            groups, lr=self.lr, beta2_decay=self.beta2_decay, d=self.clip_threshold
        )

    def state_bytes(self, parameter: torch.Tensor) -> int:
        """Rows and columns of a matrix, all numbers of a vector."""
        size = parameter.shape
        is_matrix = len(size) >= 2
        numbers = math.prod(size[:-2]) * sum(size[-2:]) if is_matrix else parameter.numel()
        return numbers * parameter.element_size()
