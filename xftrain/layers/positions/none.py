"""No position encoding: the causal mask or ALiBi alone tells positions apart."""

from torch import Tensor, nn


class None_(nn.Module):
    """Adds and rotates nothing.

    Args:
        dim: D; unused here.
        head_dim: K; unused here.
    """

    def __init__(self, dim: int, head_dim: int) -> None:
        super().__init__()
        self.max_positions: int | None = None  # any length will do

    def embed(self, x_BMD: Tensor, positions_1M: Tensor) -> Tensor:
        """Token embeddings as they are."""
        return x_BMD

    def rotation(self, positions_1M: Tensor) -> None:
        """Nothing to rotate."""
        return
