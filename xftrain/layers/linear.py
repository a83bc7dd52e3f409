"""The linear layer of all variants."""

from torch import Tensor, nn

from xftrain.kernels.linear_functions import chooses, chosen_linear


class Linear(nn.Linear):
    """torch's, with large products on a GPU by the fastest algorithm, see `kernels.matmul`."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        if chooses(x, self):
            return chosen_linear(x, self.weight)
        return super().forward(x)


def is_plain(layer: nn.Module) -> bool:
    """Whether it is that layer and nothing else: its product may be made without calling it."""
    hooks = (
        *(layer._forward_hooks, layer._forward_pre_hooks),
        *(layer._backward_hooks, layer._backward_pre_hooks),
    )
    return type(layer) is Linear and not any(hooks)
