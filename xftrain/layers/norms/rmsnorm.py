"""Root-mean-square normalization (Zhang, Sennrich, 2019, arXiv:1910.07467)."""

from torch import Tensor, nn

from xftrain.fields import PositiveFloat


class RMSNorm(nn.RMSNorm):
    """torch's own.

    Args:
        dim: D.
        linear_bias: taken for the sake of one signature; RMSNorm has no shift.
        eps: added to the mean square.
    """

    def __init__(self, dim: int, linear_bias: bool, *, eps: PositiveFloat = 1e-5) -> None:
        super().__init__(dim, eps=eps)

    def forward(self, x_BMD: Tensor) -> Tensor:
        """Computed in the dtype of the weights, float32 under autocast; returned in that of x."""
        return super().forward(x_BMD.to(self.weight.dtype)).to(x_BMD.dtype)
