"""Layer normalization (Ba, Kiros, Hinton, 2016, arXiv:1607.06450)."""

from torch import Tensor, nn

from xftrain.config.fields import PositiveFloat


class LayerNorm(nn.LayerNorm):
    """torch's LayerNorm, with a scale, and with a shift only if the linear layers have biases.

    Args:
        dim: D.
        linear_bias: whether to add a shift.
        eps: added to the variance.
    """

    def __init__(self, dim: int, linear_bias: bool, *, eps: PositiveFloat = 1e-5) -> None:
        super().__init__(dim, eps=eps, bias=linear_bias)

    def forward(self, x_BMD: Tensor) -> Tensor:
        """Normalizes in the dtype of the weights, float32 under autocast; returns that of x."""
        return super().forward(x_BMD.to(self.weight.dtype)).to(x_BMD.dtype)
