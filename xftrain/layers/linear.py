"""The linear layer of all variants."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xftrain.kernels.linear_functions import autotuned_linear, compute_dtype, should_autotune


class Linear(nn.Linear):
    """torch's, with large products on a GPU by the fastest algorithm, see `kernels.matmul`.

    Attributes:
        bf16_weight: a copy of the weight in the dtype of matmuls, which training reads in its
            place; None where there is none, see `training.bf16_weights`.
    """

    bf16_weight: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        weight_OI = self.read_for(x)
        if should_autotune(x, self):
            return autotuned_linear(x, weight_OI)
        return F.linear(x, weight_OI, self.bias)

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy of the layer, no optimizer would keep `bf16_weight` up to date."""
        state: dict[str, Any] = super().__getstate__()
        state.pop("bf16_weight", None)
        return state

    def read_for(self, x: Tensor) -> Tensor:
        """What a product with x reads: the weight, or its copy where that is of its dtype."""
        if self.bf16_weight is None or not torch.is_grad_enabled():
            return self.weight
        return self.bf16_weight if self.bf16_weight.dtype == compute_dtype(x) else self.weight


def is_plain(layer: nn.Module) -> bool:
    """Whether it is that layer and nothing else: its product may be made without calling it."""
    hooks = (
        *(layer._forward_hooks, layer._forward_pre_hooks),
        *(layer._backward_hooks, layer._backward_pre_hooks),
    )
    return type(layer) is Linear and not any(hooks)
