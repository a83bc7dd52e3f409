"""Root-mean-square normalization (Zhang, Sennrich, 2019, arXiv:1910.07467)."""

from torch import Tensor, nn

from xftrain.config.fields import PositiveFloat


class RMSNorm(nn.RMSNorm):
    """torch's RMSNorm, returned in the dtype of its input.

    Args:
        dim: D.
        linear_bias: unused, since RMSNorm has no shift; all norms have the same signature.
        eps: added to the mean square.
    """

    def __init__(self, dim: int, linear_bias: bool, *, eps: PositiveFloat = 1e-5) -> None:
        super().__init__(dim, eps=eps)

    def forward(self, x_BMD: Tensor) -> Tensor:
        """Normalizes in the dtype of the weights, float32 under autocast; returns that of x."""
        return super().forward(x_BMD.to(self.weight.dtype)).to(x_BMD.dtype)
