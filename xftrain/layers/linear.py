"""The linear layer of all variants."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xftrain.kernels.linear_functions import chooses, chosen_linear, compute_dtype


class Linear(nn.Linear):
    """torch's, with large products on a GPU by the fastest algorithm, see `kernels.matmul`.

    Attributes:
        narrow: a copy of the weight in the dtype of products, for training to read, if it has one;
            see `training.narrow_weights`.
    """

    narrow: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        weight_OI = self.read_for(x)
        if chooses(x, self):
            return chosen_linear(x, weight_OI)
        return F.linear(x, weight_OI, self.bias)

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy of the layer, no optimizer would keep `narrow` up to date."""
        state: dict[str, Any] = super().__getstate__()
        state.pop("narrow", None)
        return state

    def read_for(self, x: Tensor) -> Tensor:
        """What a product with x reads: the weight, or its copy where that is of its dtype."""
        if self.narrow is None or not torch.is_grad_enabled():
            return self.weight
        return self.narrow if self.narrow.dtype == compute_dtype(x) else self.weight


def is_plain(layer: nn.Module) -> bool:
    """Whether it is that layer and nothing else: its product may be made without calling it."""
    hooks = (
        *(layer._forward_hooks, layer._forward_pre_hooks),
        *(layer._backward_hooks, layer._backward_pre_hooks),
    )
    return type(layer) is Linear and not any(hooks)
