"""The linear layer that all variants use."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xftrain.kernels.linear_functions import autotuned_linear, compute_dtype, should_autotune


class Linear(nn.Linear):
    """torch's linear layer, with autotuned large matmuls on a GPU, see `kernels.matmul`.

    Attributes:
        bf16_weight: a copy of the weight in the dtype of matmuls, which training reads instead of
            the weight; None for no copy, see `train.bf16_weights`.
        stacked_rows: numbers of rows of the matrices that are stacked in the weight, if it computes
            several by one matmul; None if it is one matrix.
    """

    bf16_weight: Tensor | None = None
    stacked_rows: tuple[int, ...] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Maps [..., I] to [..., O]."""
        weight_OI = self.read_for(x)
        if should_autotune(x, self):
            return autotuned_linear(x, weight_OI)
        return F.linear(x, weight_OI, self.bias)

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out `bf16_weight`, which no optimizer would update in a copy of the layer."""
        state: dict[str, Any] = super().__getstate__()
        state.pop("bf16_weight", None)
        return state

    def read_for(self, x: Tensor) -> Tensor:
        """The tensor that a matmul with x reads: the copy if its dtype fits, else the weight."""
        if self.bf16_weight is None or not torch.is_grad_enabled():
            return self.weight
        return self.bf16_weight if self.bf16_weight.dtype == compute_dtype(x) else self.weight


def is_plain(layer: nn.Module) -> bool:
    """Whether it is a `Linear` without hooks or overrides, so that it need not be called."""
    hooks = (
        *(layer._forward_hooks, layer._forward_pre_hooks),
        *(layer._backward_hooks, layer._backward_pre_hooks),
    )
    return type(layer) is Linear and not any(hooks)
