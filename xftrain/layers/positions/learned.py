"""Learned absolute positions, added to the token embedding (GPT-2)."""

from torch import Tensor, nn

from xftrain.fields import PositiveInt


class Learned(nn.Module):
    """One vector per position.

    Args:
        dim: D.
        head_dim: K; unused here.
        max_positions: longest document.
    """

    def __init__(self, dim: int, head_dim: int, *, max_positions: PositiveInt) -> None:
        super().__init__()
        self.max_positions: int | None = max_positions
        self.table = nn.Embedding(max_positions, dim)

    def embed(self, x_BMD: Tensor, positions_1M: Tensor) -> Tensor:
        """Token embeddings with the positions' vectors added."""
        return x_BMD + self.table(positions_1M)

    def rotation(self, positions_1M: Tensor) -> None:
        """Nothing to rotate."""
        return
